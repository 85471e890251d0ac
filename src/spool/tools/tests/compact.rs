//! Compaction: smaller, all there, and whole at every instant.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::config::SpoolConfig;
use crate::spool::SpoolError;
use crate::spool::sled::compact::{CompactError, State, check_room, compact, compact_through};
use crate::spool::sled::swap::{Step, settle, snapshots};
use crate::spool::suite::{arrival, copy, copy_at_each_sync, departure};

fn config(home: &Path) -> SpoolConfig {
    SpoolConfig { path: home.join("spool"), reserve: 0, ..SpoolConfig::default() }
}

/// A spool with a large file of which little is used, stopped and started a few times.
fn grown(home: &Path) {
    drop(filled(home));
    for round in 0..3 {
        let spool = sled_in(home).expect("opens");
        for number in 10..=250 {
            let gone = envelope(number, 30_000 + round, vec![recipient("x@a.example")]);
            spool.commit(&[Op::PutMessage(gone, Content::Memory(bytes(30_000 + round)))]).expect("committed");
        }
        for number in 10..=250 {
            let gone = envelope(number, 30_000 + round, vec![recipient("x@a.example")]);
            spool.commit(&departure(&gone, false)).expect("committed");
        }
    }
}

#[test]
fn a_compacted_spool_is_smaller_and_has_all_that_was_there() {
    let home = folder();
    grown(home.path());
    let spool = sled_in(home.path()).expect("opens");
    // Whatever else is in it.
    put(&spool, b"", b"first");
    put(&spool, b"\xff\xff", b"last");
    let (before, counters) = (all(&spool), spool.counters().expect("readable"));
    drop(spool);
    let length = || fs::metadata(home.path().join("spool/db")).expect("there").len();
    let grown = length();
    let done = compact(&config(home.path())).expect("compacted");
    // sled may have cut off a free end when it was opened.
    assert!(done.before <= grown && done.after == length(), "{done:?} of {grown}");
    assert!(done.after * 4 < done.before, "{done:?}");
    let spool = sled_in(home.path()).expect("opens");
    assert_eq!((all(&spool), spool.counters().expect("readable")), (before, counters));
    assert_eq!(checked(&spool).1.harmless, 2);
    drop(spool);
    let again = compact(&config(home.path())).expect("compacted");
    assert!(again.after <= again.before, "{again:?}");
    assert!(!home.path().join("spool/compact").exists());
}

#[test]
fn a_spool_is_compacted_while_it_is_read_and_written() {
    let home = folder();
    grown(home.path());
    let spool = sled_in(home.path()).expect("opens");
    let (first, syncs) = (spool.content(id(1)).expect("readable"), spool.syncs());
    let database = home.path().join("spool/db");
    let length = || fs::metadata(&database).expect("there").len();
    let grown = length();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (spool, done, first) = (&spool, &done, &first);
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                assert_eq!(spool.content(id(1)).expect("readable"), first);
            }
        });
        let writer = scope.spawn(move || {
            for number in 10..=60 {
                spool.commit(&arrival(&envelope(number, 3_000, vec![recipient("x@a.example")]))).expect("ok");
            }
        });
        for _ in 0..3 {
            let compacted = spool.compact(u64::MAX).expect("compacted").expect("tried");
            assert!(compacted.after <= compacted.before, "{compacted:?}");
        }
        writer.join().expect("no panic");
        done.store(true, Ordering::SeqCst);
    });
    assert!(length() * 4 < grown, "{} of {grown}", length());
    let counted = spool.syncs();
    assert!(counted >= syncs + 51, "a sync for each commit, before and after: {syncs}, {counted}");
    let before = all(&spool);
    // As `kill -9` would leave it, and as a stop does.
    let killed = home.path().join("killed");
    copy(&home.path().join("spool"), &killed.join("spool"));
    drop(spool);
    for home in [&killed, home.path()] {
        let spool = sled_in(home).expect("opens");
        assert_eq!(all(&spool), before);
        (10..=60).for_each(|number| assert_eq!(spool.content(id(number)).expect("there").len(), 3_000));
    }
}

/// At each sync of either database from the compaction on, a power cut may leave what is on disk.
#[test]
fn at_each_sync_after_a_compaction_a_copy_of_the_folder_has_all_that_was_answered() {
    let (home, crashes) = (folder(), folder());
    grown(home.path());
    let spool = sled_in(home.path()).expect("opens");
    let cuts = copy_at_each_sync(&spool, crashes.path());
    spool.compact(u64::MAX).expect("compacted");
    for number in 1..=20 {
        spool
            .commit(&arrival(&envelope(100 + number, 7_000, vec![recipient("x@a.example")])))
            .expect("committed");
        cuts.answered.store(u64::from(number), Ordering::SeqCst);
    }
    let copies = cuts.end(&spool);
    assert!(copies.len() >= 20, "{} syncs", copies.len());
    for (answered, cut) in &copies {
        let spool = sled_in(cut).expect("opens");
        for number in 1..=u8::try_from(*answered).expect("few") {
            assert_eq!(spool.content(id(100 + number)).expect("readable").len(), 7_000);
        }
        assert!(spool.message(id(1)).expect("readable").is_some());
    }
}

#[test]
fn a_running_spool_that_is_too_full_or_has_no_room_for_a_copy_stays_as_it_is() {
    let home = folder();
    grown(home.path());
    let spool = sled_in(home.path()).expect("opens");
    let before = all(&spool);
    let length = || fs::metadata(home.path().join("spool/db")).expect("there").len();
    let grown = length();
    assert_eq!(spool.compact(20_000).expect("not an error"), None, "there is more in it");
    // A file in the way of the copy, which nobody may take for one that a crash left.
    fs::write(home.path().join("spool/compact"), b"").expect("written");
    spool.compact(u64::MAX).expect_err("no copy can be written");
    assert_eq!((length(), all(&spool)), (grown, before));
    fs::remove_file(home.path().join("spool/compact")).expect("removed");
    spool.commit(&arrival(&envelope(99, 3_000, vec![recipient("x@a.example")]))).expect("goes on");
    assert!(spool.compact(u64::MAX).expect("compacted").is_some_and(|done| done.after < done.before));
}

#[test]
fn a_crash_in_any_state_leaves_a_spool_that_opens_with_all_mail() {
    let (home, crashes) = (folder(), folder());
    grown(home.path());
    let before = all(&sled_in(home.path()).expect("opens"));
    let mut states: Vec<(State, PathBuf)> = Vec::new();
    let done = compact_through(&config(home.path()), &mut |state| {
        let crash = crashes.path().join(states.len().to_string());
        copy(&home.path().join("spool"), &crash.join("spool"));
        states.push((state, crash));
    });
    let done = done.expect("compacted");
    let reached: Vec<State> = states.iter().map(|(state, _)| *state).collect();
    let steps = [Step::Decided, Step::Bare, Step::Swapped, Step::Whole].map(State::Swapping);
    let expected = [&[State::Copying, State::Copied][..], &steps, &[State::Done]].concat();
    assert_eq!(reached, expected);
    for (state, crash) in states {
        // What is done before sled opens it, once or twice.
        for _ in 0..2 {
            settle(&crash.join("spool")).expect("settled");
            let length = fs::metadata(crash.join("spool/db")).expect("there").len();
            let decided = !matches!(state, State::Copying | State::Copied);
            assert_eq!(length, if decided { done.after } else { done.before }, "{state:?}");
            assert_eq!(snapshots(&crash.join("spool")).expect("readable").len(), 1, "{state:?}");
        }
        // Twice: what the first open writes must be right too.
        for _ in 0..2 {
            let spool = sled_in(&crash).expect("opens");
            assert_eq!(all(&spool), before, "{state:?}");
            assert_eq!(checked(&spool).0, Vec::<String>::new(), "{state:?}");
            for left in ["compact", "compacted"] {
                assert!(!crash.join("spool").join(left).exists(), "{state:?}");
            }
        }
    }
}

#[test]
fn a_panic_while_the_databases_are_exchanged_is_told_and_loses_nothing() {
    let home = folder();
    grown(home.path());
    let spool = sled_in(home.path()).expect("opens");
    let before = all(&spool);
    drop(spool);
    let mut panicking = |state| assert!(!matches!(state, State::Swapping(_)), "a test panics");
    let told = compact_through(&config(home.path()), &mut panicking).expect_err("told").to_string();
    assert!(told.contains("a test panics"), "{told}");
    assert_eq!(all(&sled_in(home.path()).expect("opens")), before);
}

#[test]
fn a_spool_is_in_use_until_it_is_compacted() {
    let home = folder();
    grown(home.path());
    let mut reached = 0;
    compact_through(&config(home.path()), &mut |state| {
        reached += 1;
        if state != State::Done {
            let refused = sled_in(home.path()).map(drop);
            assert!(matches!(refused, Err(SpoolError::Locked(_))), "{state:?}");
        }
    })
    .expect("compacted");
    assert_eq!(reached, 7);
    assert!(sled_in(home.path()).is_ok());
}

#[test]
fn a_copy_that_is_not_like_the_spool_is_not_used() {
    let home = folder();
    grown(home.path());
    let before = all(&sled_in(home.path()).expect("opens"));
    let result = compact_through(&config(home.path()), &mut |state| {
        if state == State::Copied {
            fs::write(home.path().join("spool/compact/conf"), "of other settings").expect("written");
        }
    });
    assert!(matches!(result, Err(CompactError::Unlike(_))), "{result:?}");
    assert_eq!(all(&sled_in(home.path()).expect("opens")), before);
}

#[test]
fn a_copy_that_would_not_fit_is_not_begun_and_leaves_the_reserve() {
    let home = folder();
    let reserve = home.path().join("reserve");
    fs::write(&reserve, [0; 9]).expect("written");
    check_room(home.path(), 1_000).expect("a small one fits");
    let refused = check_room(home.path(), 1 << 50).expect_err("refused");
    assert!(matches!(refused, CompactError::NoRoom { needed, .. } if needed > 1 << 50), "{refused}");
    assert!(refused.to_string().contains("free some"), "{refused}");
    assert!(reserve.exists());
}
