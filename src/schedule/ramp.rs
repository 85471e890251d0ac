//! How many new things may begin per second: a rate that ramps up while they queue, and falls back when they don't.
//! Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// While somebody waits, the rate doubles in this time.
const DOUBLES_IN: Duration = Duration::from_secs(5);
/// While nobody does, it halves in this time.
const HALVES_IN: Duration = Duration::from_secs(30);
/// The part of the rate that is kept for those that come together after a quiet moment.
const BURST: f64 = 0.1;

/// Turns, one after the other, at a rate that ramps up.
///
/// In no second there are more turns than `most`, whoever asks for them. After a quiet time
/// the rate is back at `least`: whatever is overdue then begins as slowly as after a start. Whether what began went well
/// is none of its business, since those that fail must not hold up the others.
#[derive(Clone, Debug)]
pub struct Ramp {
    least: f64,
    most: f64,
    /// Turns per second.
    rate: f64,
    /// When the next turn is at this rate; in the past when turns were left unused.
    next: Instant,
    /// When the rate was last adapted.
    seen: Instant,
}

impl Ramp {
    /// A ramp from `least` to `most` turns per second (each at least one), with nobody waiting.
    pub fn new(least: f64, most: f64, now: Instant) -> Self {
        let most = most.max(1.0);
        let least = least.clamp(1.0, most);
        // As after a quiet second.
        let next = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        Self { least, most, rate: least, next, seen: now }
    }

    /// Takes the next turn, and tells when it is: now, or later. Turns come in the order in which they are taken.
    pub fn take(&mut self, now: Instant) -> Instant {
        self.adapt(now);
        // What was saved up goes at once, the rest evenly spaced; together they never exceed the rate.
        let saved = (self.rate * BURST - 1.0).max(0.0) * self.spacing();
        let earliest = now.checked_sub(Duration::from_secs_f64(saved)).unwrap_or(now);
        let turn = self.next.max(earliest);
        self.next = turn + Duration::from_secs_f64(self.spacing());
        turn.max(now)
    }

    /// The rate now, in turns per second.
    pub fn rate(&mut self, now: Instant) -> f64 {
        self.adapt(now);
        self.rate
    }

    /// Seconds between two turns.
    fn spacing(&self) -> f64 {
        1.0 / (self.rate * (1.0 - BURST))
    }

    fn adapt(&mut self, now: Instant) {
        let pressed = self.next.min(now).saturating_duration_since(self.seen);
        let passed = now.saturating_duration_since(self.seen);
        let doublings = pressed.as_secs_f64() / DOUBLES_IN.as_secs_f64();
        let halvings = passed.saturating_sub(pressed).as_secs_f64() / HALVES_IN.as_secs_f64();
        self.rate = (self.rate * doublings.exp2()).min(self.most);
        self.rate = (self.rate * (-halvings).exp2()).max(self.least);
        self.seen = self.seen.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Turns in each of the next seconds, when somebody new asks whenever fewer than `waiting` wait.
    fn turns(ramp: &mut Ramp, start: Instant, seconds: usize, waiting: usize) -> Vec<usize> {
        let mut counts = vec![0; seconds];
        let mut line = std::collections::VecDeque::new();
        for millisecond in 0..seconds * 1000 {
            let now = start + MILLISECOND * u32::try_from(millisecond).expect("small");
            while line.front().is_some_and(|turn| *turn <= now) {
                line.pop_front();
                counts[millisecond / 1000] += 1;
            }
            while line.len() < waiting {
                let turn = ramp.take(now);
                assert!(line.back().is_none_or(|last| turn >= *last), "turns come in order");
                line.push_back(turn);
            }
        }
        counts
    }

    #[tokio::test(start_paused = true)]
    async fn turns_ramp_up_while_somebody_waits_and_never_exceed_the_bound() {
        let now = Instant::now();
        let mut ramp = Ramp::new(50.0, 1000.0, now);
        let counts = turns(&mut ramp, now, 60, 100);
        assert!((40..=50).contains(&counts[0]), "{counts:?}");
        assert!(counts.windows(2).all(|pair| pair[1] <= pair[0] + pair[0] / 4 + 2), "no jump: {counts:?}");
        assert!(counts.iter().all(|count| *count <= 1000), "{counts:?}");
        assert!(counts[40..].iter().all(|count| *count >= 890), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_time_brings_the_rate_back_down() {
        let now = Instant::now();
        let mut ramp = Ramp::new(50.0, 1000.0, now);
        turns(&mut ramp, now, 60, 100);
        let later = now + Duration::from_secs(60);
        assert!(ramp.rate(later) > 990.0);
        assert!((600.0..800.0).contains(&ramp.rate(later + Duration::from_secs(15))));
        let later = later + Duration::from_secs(300);
        let counts = turns(&mut ramp, later, 5, 100);
        assert!((40..=50).contains(&counts[0]), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_alone_does_not_wait() {
        let now = Instant::now();
        let mut ramp = Ramp::new(50.0, 1000.0, now);
        for second in 0..100 {
            let now = now + Duration::from_secs(second);
            for _ in 0..4 {
                assert_eq!(ramp.take(now), now, "second {second}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_and_odd_bounds_hold() {
        let now = Instant::now();
        for (least, most, each) in [(50.0, 1.0, 1), (50.0, 5.0, 5), (50.0, 12.0, 12), (0.0, 7.0, 7)] {
            let counts = turns(&mut Ramp::new(least, most, now), now, 200, 3);
            assert!(counts.iter().all(|count| *count <= each), "{least} to {most}: {counts:?}");
            assert!(counts[150..].iter().sum::<usize>() >= each * 40, "{least} to {most}: {counts:?}");
        }
    }
}
