//! How many attempts a destination may have under way: additive increase, multiplicative decrease.

/// The concurrency of one destination. Starts at one, so that a destination nobody has heard from costs one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    now: u32,
    max: u32,
}

impl Window {
    /// A window of one attempt that may grow to `max` (at least one).
    pub fn new(max: u32) -> Self {
        Self { now: 1, max: max.max(1) }
    }

    /// Attempts that may be under way at once.
    pub fn get(self) -> u32 {
        self.now
    }

    /// A host answered properly: one more. Full use doubles the window each round, as TCP's slow start does.
    pub fn grow(&mut self) {
        self.now = (self.now + 1).min(self.max);
    }

    /// The destination failed: half, at least one.
    pub fn shrink(&mut self) {
        self.now = (self.now / 2).max(1);
    }

    /// There is no room for more than are under way.
    pub fn limit_to(&mut self, attempts: u32) {
        self.now = self.now.min(attempts.max(1));
    }

    /// Half open: one probe, then ramp up again.
    pub fn probe(&mut self) {
        self.now = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_by_one_and_halves() {
        let mut window = Window::new(4);
        let grown: Vec<u32> = (0..5)
            .map(|_| {
                window.grow();
                window.get()
            })
            .collect();
        assert_eq!(grown, [2, 3, 4, 4, 4]);
        window.shrink();
        assert_eq!(window.get(), 2);
        window.grow();
        window.limit_to(1);
        assert_eq!(window.get(), 1);
        window.probe();
        window.shrink();
        assert_eq!(window.get(), 1);
    }
}
