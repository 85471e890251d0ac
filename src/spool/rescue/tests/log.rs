//! The reading of a sound log: the same as sled, whatever happened before.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::format::SEGMENT;
use super::super::tree::PageFacts;
use super::*;

fn database(home: &Path) -> sled::Db {
    let config = sled::Config::new().path(home).flush_every_ms(Some(50));
    // sled's threads may hold the file for a moment after the last one was dropped.
    let (_open, never) = std::sync::mpsc::channel::<()>();
    let tries = std::iter::repeat_with(|| {
        let _ = never.recv_timeout(std::time::Duration::from_millis(5));
        config.open()
    });
    tries.take(1_000).find_map(Result::ok).expect("opens")
}

#[track_caller]
fn assert_like_sled(spool: &Path) {
    let salvaged = salvaged(spool);
    assert_same(&all_of(&salvaged), &by_sled(spool));
    assert_eq!(salvaged.pages(), PageFacts::default());
}

#[test]
fn a_spool_through_which_thousands_of_messages_went_reads_as_sled_reads_it() {
    let home = folder();
    let live = churned(home.path(), 2_400, 200);
    let spool = home.path().join("spool");
    let segments = fs::metadata(spool.join("db")).expect("there").len() / SEGMENT as u64;
    assert!(segments < 40, "{segments} segments: they were not used again");
    assert_like_sled(&spool);
    assert_eq!(whole(&salvaged(&spool), &live), live);
    assert!(salvaged(&spool).damage().is_none());
    // A start writes a snapshot and zeros over what is free; then more goes through.
    let again = sled_in(home.path()).expect("opens");
    for number in 5_000..5_200 {
        again.commit(&[arrival(number), departure(number)]).expect("committed");
        again.commit(&[arrival(number + 1_000)]).expect("committed");
    }
    // As a kill leaves it.
    let killed = home.path().join("killed");
    copy(&spool, &killed);
    drop(again);
    assert_like_sled(&killed);
    assert_like_sled(&spool);
}

#[test]
fn a_new_spool_and_an_empty_file_read_as_nothing_lost() {
    let home = folder();
    drop(sled_in(home.path()).expect("opens"));
    assert_like_sled(&home.path().join("spool"));
    fs::write(home.path().join("db"), b"").expect("written");
    let empty = salvaged(home.path());
    assert!(all_of(&empty).is_empty());
    assert_eq!(empty.pages(), PageFacts::default());
}

/// A crash leaves the log up to some byte: what sled would not apply of a torn batch is not read either.
#[test]
fn a_log_that_ends_anywhere_in_its_last_batches_reads_as_sled_reads_it() {
    let home = folder();
    let spool = home.path().join("spool");
    let db = database(&spool);
    let mut dice = Dice(99);
    for round in 0_u32..60 {
        let mut batch = sled::Batch::default();
        for number in 0_u32..20 {
            batch
                .insert(format!("key{:04}", (round * 7 + number) % 200).as_bytes(), vec![1; dice.below(900)]);
        }
        db.apply_batch(batch).and_then(|()| db.flush()).expect("written");
    }
    let copied = home.path().join("copied");
    copy(&spool, &copied);
    let sound = fs::read(copied.join("db")).expect("readable");
    let used = sound.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
    for _ in 0..40 {
        let mut torn = sound.clone();
        let end = used - dice.below(40_000);
        torn[end..].fill(0);
        fs::write(copied.join("db"), &torn).expect("written");
        assert_same(&all_of(&salvaged(&copied)), &by_sled(&copied));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u16, u16),
    Delete(u16),
    Commit,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..600_u16, 0..5_000_u16).prop_map(|(key, size)| Step::Put(key, size)),
        5 => (0..600_u16).prop_map(Step::Delete),
        2 => Just(Step::Commit),
        1 => Just(Step::Reopen),
    ]
}

/// Keys that share long beginnings, so that prefixes of pages differ.
fn key(number: u16) -> Vec<u8> {
    let group =
        ["a", "queue", "queue/of/mail/", "queue/of/mail/for/some/destination/"][usize::from(number % 4)];
    let mut key = group.as_bytes().to_vec();
    key.extend_from_slice(&(number / 4).to_be_bytes());
    key
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_put_and_deleted_reads_as_sled_reads_it(steps in vec(step(), 1..900)) {
        let home = folder();
        let spool = home.path().join("spool");
        let mut db = database(&spool);
        let mut batch = sled::Batch::default();
        for step in steps {
            match step {
                Step::Put(number, size) => batch.insert(key(number), vec![number as u8; usize::from(size)]),
                Step::Delete(number) => batch.remove(key(number)),
                Step::Commit => {
                    db.apply_batch(std::mem::take(&mut batch)).expect("applied");
                    db.flush().expect("flushed");
                }
                Step::Reopen => {
                    drop(db);
                    db = database(&spool);
                }
            }
        }
        db.apply_batch(batch).expect("applied");
        db.flush().expect("flushed");
        let killed = home.path().join("killed");
        copy(&spool, &killed);
        drop(db);
        for spool in [&killed, &spool] {
            let salvaged = salvaged(spool);
            assert_same(&all_of(&salvaged), &by_sled(spool));
        }
    }

    #[test]
    fn random_bytes_are_no_log_and_no_panic(
        pieces in vec((0..3_usize, vec(any::<u8>(), 0..2_000)), 1..6),
    ) {
        let home = folder();
        let file = OpenOptions::new().write(true).create_new(true).open(home.path().join("db")).expect("a file");
        for (segment, bytes) in pieces {
            file.write_all_at(&bytes, (segment * SEGMENT) as u64).expect("written");
        }
        prop_assert!(all_of(&salvaged(home.path())).is_empty());
    }

    #[test]
    fn random_bytes_as_pages_and_changes_are_no_panic(bytes in vec(any::<u8>(), 0..300)) {
        use super::super::format::{Link, Message, Node, SegmentHeader, root};
        let _ = (Link::read(&bytes), Node::read(&bytes), root(&bytes), SegmentHeader::read(&bytes));
        if let Some(message) = Message::read(&bytes) {
            prop_assert!(message.len() <= bytes.len());
            let _ = message.is_shaped();
        }
    }
}
