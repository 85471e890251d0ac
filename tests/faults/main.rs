//! Break every step: promise P1 when a call to the system fails, wherever that is.
//!
//! A script of nine messages (small and large, deferred, bounced) runs over three lives of the real relay (one killed, two
//! stopped) while the n-th call of one kind on a file of the spool fails, for n = 1, 2, … until a run passes untouched. The
//! relay must end by itself with a message, or answer 4xx, or go on unharmed; it never hangs. A last life without the
//! fault must start, take mail and deliver: whatever was answered 250 has arrived once, or was reported to its sender;
//! twice only when a death lies between the two.
//!
//! In CI every call is broken up to [`EACH_UP_TO`] and then every [`THEN_EVERY`]-th, by turns for once and from then on,
//! and so that EIO and ENOSPC differ in that. `EXHAUSTIVE=1` breaks all of them in both ways; `FAULTS=fsync,open` only
//! these kinds; `JOBS` runs so many relays at once.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod library;
mod readonly;
mod script;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use library::{Fault, Lasts, Library};
use nix::errno::Errno;
use steps::{EACH_UP_TO, Steps, THEN_EVERY};

const KINDS: [&str; 9] =
    ["pwrite", "write", "fdatasync", "fsync", "open", "rename", "unlink", "ftruncate", "fallocate"];

#[test]
fn whichever_call_fails_nothing_answered_is_lost() {
    let setting = |name: &str| std::env::var(name).ok();
    let jobs = setting("JOBS").map_or(6, |text| text.parse().expect("JOBS is a number"));
    let chosen = setting("FAULTS");
    let kinds: Vec<&'static str> = KINDS
        .into_iter()
        .filter(|kind| chosen.as_ref().is_none_or(|chosen| chosen.split(',').any(|name| name == *kind)))
        .collect();
    let (each_up_to, then_every, ways) = if setting("EXHAUSTIVE").is_some() {
        let both = &[Lasts::Once, Lasts::FromThenOn][..];
        (u64::MAX, 1, [(Errno::EIO, both), (Errno::ENOSPC, both)])
    } else {
        let ways = [(Errno::EIO, &[Lasts::OnceAtOdd][..]), (Errno::ENOSPC, &[Lasts::OnceAtEven][..])];
        (EACH_UP_TO, THEN_EVERY, ways)
    };
    let library = Library::build();
    let began = Instant::now();
    let mut all = Steps::new(each_up_to, then_every);
    if chosen.is_none_or(|chosen| chosen.contains("change")) {
        // What ext4 does by itself after an error.
        all.add(Fault { kind: "change", errno: Errno::EROFS, lasts: Lasts::FromThenOn });
    }
    for kind in kinds {
        for (errno, ways) in ways {
            for lasts in ways {
                all.add(Fault { kind, errno, lasts: *lasts });
            }
        }
    }
    all.run(&library, jobs);
    all.print(began.elapsed());
    all.judge();
}
