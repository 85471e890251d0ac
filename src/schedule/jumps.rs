//! What due times mean that were noted before wall time jumped ahead. Pure: the times are arguments.

use std::collections::VecDeque;

/// Jumps that are remembered; what was noted before older ones is due when its time says.
const REMEMBERED: usize = 16;

/// The stretches of wall time (milliseconds) that never were, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Jumps {
    gaps: VecDeque<Gap>,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    from_ms: u64,
    to_ms: u64,
}

impl Jumps {
    /// Wall time, which should show `expected_ms`, shows `now_ms`.
    pub fn note(&mut self, expected_ms: u64, now_ms: u64) {
        // What is still to come will be, whatever was thought of it before.
        self.gaps.retain(|gap| gap.to_ms <= now_ms);
        if now_ms > expected_ms {
            if self.gaps.len() >= REMEMBERED {
                self.gaps.pop_front();
            }
            self.gaps.push_back(Gap { from_ms: expected_ms, to_ms: now_ms });
        }
    }

    /// Wall time shows `now_ms`. Where a small step took it back into a stretch that never was, the rest of that will be.
    pub fn see(&mut self, now_ms: u64) {
        while let Some(last) = self.gaps.back_mut()
            && last.to_ms > now_ms
        {
            last.to_ms = now_ms;
            if last.from_ms >= now_ms {
                self.gaps.pop_back();
            }
        }
    }

    /// When something is due that at `noted_ms` was put off until `due_ms`. A time that wall time jumped over comes as much
    /// later as the jump was long: as if it had been put off by so many minutes of a clock that does not jump.
    pub fn due(&self, noted_ms: u64, due_ms: u64) -> u64 {
        let mut due = due_ms;
        for gap in &self.gaps {
            if noted_ms < gap.to_ms && due > gap.from_ms && due < gap.to_ms {
                due += gap.to_ms - gap.from_ms;
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: u64 = 1_000 * HOUR;

    #[test]
    fn what_wall_time_jumped_over_comes_later_and_nothing_else() {
        let mut jumps = Jumps::default();
        assert_eq!(jumps.due(NOW, NOW + HOUR), NOW + HOUR);
        jumps.note(NOW, NOW + 24 * HOUR);
        for (noted, due, expected, why) in [
            (NOW - HOUR, NOW - 1, NOW - 1, "overdue before the jump"),
            (NOW - HOUR, NOW, NOW, "due at the jump"),
            (NOW - HOUR, NOW + 4 * HOUR, NOW + 28 * HOUR, "due four hours after it"),
            (NOW - HOUR, NOW + 25 * HOUR, NOW + 25 * HOUR, "due later than it leads"),
            (NOW + 24 * HOUR, NOW + 28 * HOUR, NOW + 28 * HOUR, "noted after it"),
        ] {
            assert_eq!(jumps.due(noted, due), expected, "{why}");
        }
        let shifted = jumps.due(NOW - HOUR, NOW + 4 * HOUR);
        assert_eq!(jumps.due(NOW - HOUR, shifted), shifted, "once");
    }

    #[test]
    fn jumps_add_up_until_wall_time_goes_back() {
        let mut jumps = Jumps::default();
        jumps.note(NOW, NOW + 24 * HOUR);
        jumps.note(NOW + 25 * HOUR, NOW + 49 * HOUR);
        assert_eq!(jumps.due(NOW - HOUR, NOW + 4 * HOUR), NOW + 52 * HOUR);
        assert_eq!(jumps.due(NOW + 24 * HOUR, NOW + 28 * HOUR), NOW + 52 * HOUR);
        jumps.note(NOW + 50 * HOUR, NOW + 30 * HOUR);
        assert_eq!(jumps.due(NOW + 24 * HOUR, NOW + 28 * HOUR), NOW + 28 * HOUR, "it is over now");
        jumps.note(NOW + 30 * HOUR, NOW);
        assert_eq!(jumps.due(NOW - HOUR, NOW + 4 * HOUR), NOW + 4 * HOUR);
    }

    #[test]
    fn what_was_noted_after_a_small_step_back_is_not_put_off() {
        let mut jumps = Jumps::default();
        jumps.note(NOW, NOW + 13 * HOUR);
        jumps.see(NOW + 13 * HOUR);
        jumps.see(NOW + 12 * HOUR);
        assert_eq!(jumps.due(NOW + 12 * HOUR, NOW + 12 * HOUR + 1), NOW + 12 * HOUR + 1);
        assert_eq!(jumps.due(NOW - HOUR, NOW + 4 * HOUR), NOW + 16 * HOUR, "what was noted before still is");
        jumps.see(NOW - HOUR);
        assert_eq!(jumps.due(NOW - HOUR, NOW + 4 * HOUR), NOW + 4 * HOUR, "nothing is left of it");
    }

    #[test]
    fn jumps_without_end_take_no_memory() {
        let mut jumps = Jumps::default();
        for number in 0..1_000 {
            jumps.note(NOW + number * 48 * HOUR, NOW + (number * 48 + 24) * HOUR);
        }
        assert_eq!(jumps.gaps.len(), REMEMBERED);
    }
}
