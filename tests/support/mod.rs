//! What the black-box tests and the benchmark share: the real relay as a process, a sink with a ledger, a small SMTP
//! client, a small HTTP client. Nothing here uses the library, so that a mistake of the relay can't hide in its tester.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod clients;
pub mod http;
pub mod message;
pub mod place;
pub mod relay;
pub mod rude;
pub mod sink;
pub mod smtp;

use std::time::{Duration, Instant};

/// Longest that a test waits for what should happen at once, on a machine that is busy with all the other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is there.
///
/// # Panics
/// After `patience`, with what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {patience:?} for this, in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`wait_for`], for a condition.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, patience, || holds().then_some(()));
}
