//! Outbound connection slots and who may take them (promise P5).
//!
//! Destinations that failed or are slow never hold more than half of all slots by new grants, and together with
//! those nobody has heard from yet never more than three quarters: a destination that answers always finds room.
//! Strangers that turn out to be slow may thus hold more than the half; when other strangers wait, that excess is asked to
//! give way.

/// What is known of a destination when it asks for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Its last attempt went well.
    Proven,
    /// Nothing is known yet.
    Unknown,
    /// Its last attempt failed, or one has been running for long.
    Troubled,
}

impl Standing {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Proven, Self::Unknown, Self::Troubled];
}

/// All outbound connection slots.
#[derive(Clone, Debug)]
pub struct Slots {
    total: usize,
    used: [usize; 3],
}

impl Slots {
    /// `total` slots (at least four), none of them taken.
    pub fn new(total: usize) -> Self {
        Self { total: total.max(4), used: [0; 3] }
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.total
    }

    /// How many are taken.
    pub fn used(&self) -> usize {
        self.used.iter().sum()
    }

    /// Whether a destination of this standing may take one more.
    pub fn has_room(&self, standing: Standing) -> bool {
        let [_, unknown, troubled] = self.used;
        self.used() < self.total
            && match standing {
                Standing::Proven => true,
                Standing::Unknown => unknown + troubled < self.total - self.total / 4,
                Standing::Troubled => {
                    troubled < self.total / 2 && unknown + troubled < self.total - self.total / 4
                }
            }
    }

    /// How many more than their half those in trouble hold: strangers that turned out to be slow.
    pub fn excess(&self) -> usize {
        self.used[Standing::Troubled as usize].saturating_sub(self.total / 2)
    }

    /// Takes one.
    pub fn take(&mut self, standing: Standing) {
        self.used[standing as usize] += 1;
    }

    /// Gives one back.
    pub fn give_back(&mut self, standing: Standing) {
        self.used[standing as usize] = self.used[standing as usize].saturating_sub(1);
    }

    /// Counts one that is taken under another standing from now on: its attempt turned out to be slow.
    pub fn reclassify(&mut self, from: Standing, to: Standing) {
        self.give_back(from);
        self.take(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &mut Slots, standing: Standing) -> usize {
        let mut taken = 0;
        while slots.has_room(standing) {
            slots.take(standing);
            taken += 1;
        }
        taken
    }

    #[test]
    fn trouble_holds_at_most_half_and_strangers_leave_a_quarter() {
        let mut slots = Slots::new(100);
        assert_eq!(fill(&mut slots, Standing::Troubled), 50);
        assert_eq!(fill(&mut slots, Standing::Unknown), 25);
        assert_eq!(fill(&mut slots, Standing::Proven), 25);
        assert_eq!(slots.used(), slots.total());
    }

    #[test]
    fn strangers_that_turn_out_slow_are_an_excess_over_the_half_of_trouble() {
        let mut slots = Slots::new(100);
        assert_eq!((fill(&mut slots, Standing::Unknown), slots.excess()), (75, 0));
        (0..75).for_each(|_| slots.reclassify(Standing::Unknown, Standing::Troubled));
        assert_eq!(slots.excess(), 25);
        (0..25).for_each(|_| slots.give_back(Standing::Troubled));
        assert!(slots.has_room(Standing::Unknown) && !slots.has_room(Standing::Troubled));
    }

    #[test]
    fn a_slow_stranger_stops_counting_as_a_stranger_but_keeps_its_room() {
        let mut slots = Slots::new(100);
        assert_eq!(fill(&mut slots, Standing::Unknown), 75);
        (0..75).for_each(|_| slots.reclassify(Standing::Unknown, Standing::Troubled));
        assert!(!slots.has_room(Standing::Unknown) && !slots.has_room(Standing::Troubled));
        assert_eq!(fill(&mut slots, Standing::Proven), 25);
    }
}
