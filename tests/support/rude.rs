//! Sinks that behave as badly as the internet, but the second time they give in.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::time::Duration;

use super::place;
use super::sink::{Manner, Moment, Sink};

/// A sink that defers, hangs up on and delays a part of what it gets, chosen by the hash of what it is about; each
/// recipient and each message suffers once only.
pub fn sink(salt: u64) -> Sink {
    let suffered = Mutex::new(HashSet::new());
    // One in `part` suffers, the first time.
    let strikes = move |kind: &str, what: &str, part: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, kind, what).hash(&mut hasher);
        hasher.finish().is_multiple_of(part) && suffered.lock().unwrap().insert(format!("{kind} {what}"))
    };
    Sink::start((place::own_address(), 0).into(), false, move |moment| match moment {
        Moment::Greeting => Manner::Accept,
        Moment::Recipient(path) if strikes("recipient", path, 25) => {
            Manner::Say("450 4.2.0 greylisted, try again")
        }
        Moment::Recipient(_) => Manner::Accept,
        Moment::Content(paths) if strikes("content", &paths[0], 50) => Manner::HangUp,
        Moment::Content(_) => Manner::Accept,
        Moment::Dot(id, _) if strikes("before the answer", id, 60) => Manner::HangUp,
        Moment::Dot(id, _) if strikes("deferred", id, 40) => Manner::Say("451 4.3.0 try again"),
        Moment::Dot(id, _) if strikes("slow", id, 4) => Manner::Slow(Duration::from_millis(15)),
        Moment::Dot(..) => Manner::Accept,
    })
}
