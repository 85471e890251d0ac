//! Look-ups that failed lately. Pure; the time is an argument.
//!
//! A broken name server must be asked rarely and must not hold up the look-ups of other domains: what failed is not
//! asked again for a while, and after that it waits in a lane of its own until it was answered once.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// What is known of a question's last look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// Answered, never asked, or forgotten.
    Good,
    /// It failed a while ago: ask again, with care.
    Suspect,
    /// It failed just now, with this text: do not ask.
    Failed(String),
}

/// The failed look-ups, at most `capacity` of them; the oldest are forgotten first.
#[derive(Debug)]
pub struct Failures {
    lasts: Duration,
    half: usize,
    young: HashMap<String, Failure>,
    old: HashMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    text: String,
}

impl Failures {
    /// Failures that hold for `lasts` and are remembered as long as there is room for `capacity` (at least 2).
    pub fn new(lasts: Duration, capacity: usize) -> Self {
        Self { lasts, half: (capacity / 2).max(1), young: HashMap::new(), old: HashMap::new() }
    }

    /// What is known of a question.
    pub fn last(&self, question: &str, now: Instant) -> Last {
        match self.young.get(question).or_else(|| self.old.get(question)) {
            None => Last::Good,
            Some(failure) if now.duration_since(failure.at) < self.lasts => {
                Last::Failed(failure.text.clone())
            }
            Some(_) => Last::Suspect,
        }
    }

    /// The look-up failed.
    pub fn failed(&mut self, question: String, text: String, now: Instant) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&question);
        self.young.insert(question, Failure { at: now, text });
    }

    /// The look-up was answered.
    pub fn answered(&mut self, question: &str) {
        self.young.remove(question);
        self.old.remove(question);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_failure_holds_for_a_while_and_then_makes_the_question_suspect() {
        let now = Instant::now();
        let mut failures = Failures::new(LASTS, 10);
        failures.failed("MX a".to_owned(), "SERVFAIL".to_owned(), now);
        assert_eq!(failures.last("MX a", now), Last::Failed("SERVFAIL".to_owned()));
        assert_eq!(failures.last("MX b", now), Last::Good);
        assert_eq!(failures.last("MX a", now + LASTS), Last::Suspect);
        failures.answered("MX a");
        assert_eq!(failures.last("MX a", now), Last::Good);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_failures_are_forgotten_first() {
        let now = Instant::now();
        let mut failures = Failures::new(LASTS, 10);
        for number in 0..1000 {
            failures.failed(format!("MX {number}"), String::new(), now);
            assert!(failures.young.len() + failures.old.len() <= 10);
        }
        assert_eq!(failures.last("MX 0", now), Last::Good);
        assert_eq!(failures.last("MX 999", now), Last::Failed(String::new()));
    }
}
