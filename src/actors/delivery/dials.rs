//! How many new connections are opened per second, over all arbiters (`delivery.connects_per_second`).
//!
//! Two lanes share it by halves, so that neither waits for the other: destinations that have answered before, and those
//! nobody has heard from yet or that fail (promise P5). The second lane ramps up: after a start, and whenever much is
//! overdue at once, thousands of destinations are a queue and not a herd (promise P4). A connection that is already open
//! takes no turn.
//!
//! An attempt that waits here holds a slot, and counts as slow after a while. So the Queue begins no more attempts of the
//! second lane than get their turn within [`LINE_SECONDS`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::SharedClock;
use crate::schedule::ramp::Ramp;

/// New connections per second to destinations that nobody has heard from, at first.
const AT_FIRST: f64 = 50.0;
/// Attempts that may be on their way to their first connection, in seconds' worth of the rate.
const LINE_SECONDS: f64 = 5.0;

/// Which connections a turn is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// To a destination that has answered before.
    Proven,
    /// To one that nobody has heard from yet, or that fails.
    Other,
}

/// Hands out the turns to connect. Cheap to clone; clones share the bound.
#[derive(Clone, Debug)]
pub struct Dials(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: SharedClock,
    lanes: Mutex<Lanes>,
}

#[derive(Debug)]
struct Lanes {
    proven: Ramp,
    other: Ramp,
    /// Attempts of the other lane that have begun and not connected yet.
    expected: usize,
}

impl Dials {
    /// At most `per_second` new connections in any second, at least two.
    pub fn new(per_second: usize, clock: SharedClock) -> Self {
        let (now, per_second) = (clock.instant(), per_second.max(2));
        let (proven, other) = ((per_second / 2) as f64, per_second.div_ceil(2) as f64);
        let lanes = Lanes {
            proven: Ramp::new(proven, proven, now),
            other: Ramp::new(AT_FIRST, other, now),
            expected: 0,
        };
        Self(Arc::new(Shared { clock, lanes: Mutex::new(lanes) }))
    }

    /// Waits for a turn to connect. Dropping the wait gives the turn up, unused.
    pub async fn turn(&self, lane: Lane) {
        let now = self.0.clock.instant();
        let turn = {
            let mut lanes = self.0.lock();
            match lane {
                Lane::Proven => lanes.proven.take(now),
                Lane::Other => lanes.other.take(now),
            }
        };
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// Whether one more attempt of the other lane would get its turn soon.
    pub fn has_room(&self) -> bool {
        let now = self.0.clock.instant();
        let mut lanes = self.0.lock();
        let room = (lanes.other.rate(now) * LINE_SECONDS).max(1.0);
        (lanes.expected as f64) < room
    }

    /// An attempt of the other lane begins.
    pub fn expect(&self) -> Expected {
        self.0.lock().expected += 1;
        Expected(Arc::new(One { shared: self.0.clone(), over: AtomicBool::new(false) }))
    }

    /// Attempts of the other lane that have begun and not connected yet.
    pub fn expected(&self) -> usize {
        self.0.lock().expected
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // Each change is one step: a panic elsewhere leaves it whole.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that is expected to connect: the Queue and the Delivery hold it together. It counts until one of them
/// releases it, or both have dropped it.
#[derive(Clone, Debug)]
pub struct Expected(Arc<One>);

#[derive(Debug)]
struct One {
    shared: Arc<Shared>,
    over: AtomicBool,
}

impl Expected {
    /// The attempt connects, or has waited so long that others must not wait for it.
    pub fn release(&self) {
        self.0.release();
    }
}

impl One {
    fn release(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            let mut lanes = self.shared.lock();
            lanes.expected = lanes.expected.saturating_sub(1);
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::clock::SystemClock;

    fn dials(per_second: usize) -> Dials {
        Dials::new(per_second, Arc::new(SystemClock))
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_of_strangers_holds_up_nobody_who_has_answered() {
        let (dials, start) = (dials(1000), Instant::now());
        let strangers: Vec<_> = (0..200)
            .map(|_| {
                let dials = dials.clone();
                tokio::spawn(async move { dials.turn(Lane::Other).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for _ in 0..40 {
            dials.turn(Lane::Proven).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for stranger in strangers {
            stranger.await.expect("no panic");
        }
        assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_answer_are_bounded_too() {
        let (dials, start) = (dials(100), Instant::now());
        for _ in 0..500 {
            dials.turn(Lane::Proven).await;
        }
        assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_attempts_begin_as_get_their_turn_soon() {
        let dials = dials(1000);
        let mut expected = Vec::new();
        while dials.has_room() {
            expected.push(dials.expect());
        }
        assert_eq!(expected.len(), 250, "five seconds at fifty a second");
        let connects = expected[0].clone();
        connects.release();
        connects.release();
        assert!(dials.has_room());
        assert_eq!(dials.expected(), 249);
        drop((connects, expected));
        assert_eq!(dials.expected(), 0);
    }
}
