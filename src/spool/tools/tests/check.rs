//! What a check finds, and what not.

use proptest::prelude::*;

use super::*;
use crate::spool::{DueKey, SpoolError, keys};

#[test]
fn a_healthy_spool_has_no_finding() {
    let home = folder();
    let spool = filled(home.path());
    let before = all(&spool);
    let (found, summary) = checked(&spool);
    assert_eq!(found, Vec::<String>::new());
    let expected = checking::Checked {
        messages: 3,
        recipients: 3,
        bytes: 20_010 + LARGE as u64,
        tree_bytes: 20_010,
        unindexed: 1,
        quarantined: 2,
        destinations: 1,
        due_keys: 2,
        deadline_keys: 2,
        wake_keys: 2,
        content_files: 2,
        ..checking::Checked::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(all(&spool), before, "it changes nothing");
}

/// A change to a healthy spool, and what the check must say of it.
type Case = (&'static str, fn(&SledSpool));

fn due(number: u8, to: &str, due_ms: u64, recipient: u16) -> Vec<u8> {
    keys::due(&DueKey { destination: domain(to), due_ms, id: id(number), number: recipient })
}

fn counters(spool: &SledSpool, change: fn(&mut Counters)) {
    let mut counters = spool.counters().expect("readable");
    change(&mut counters);
    spool.commit(&[Op::Counters(counters)]).expect("committed");
}

/// Runs each case on a spool of its own: one of the findings must have the words and this gravity, and none is graver.
fn found_as(gravity: &str, cases: &[Case]) {
    for (words, change) in cases {
        let home = folder();
        let spool = filled(home.path());
        change(&spool);
        let (found, summary) = checked(&spool);
        let named = |finding: &String| finding.starts_with(gravity) && finding.contains(words);
        assert!(found.iter().any(named), "{words}: {found:#?}");
        assert_eq!(summary.damage + summary.harmless, found.len() as u64, "{words}");
        assert_eq!(summary.damage > 0, gravity == "damage", "{words}: {found:#?}");
    }
}

#[test]
fn damage_of_records_is_found_and_named() {
    found_as(
        "damage",
        &[
            ("01010101010101010101010101010101: chunk 2 is missing", |spool| {
                remove(spool, &keys::chunk(keys::CONTENT, id(1), 2));
            }),
            ("the beginning of the envelope of message 0404", |spool| {
                put(spool, &keys::chunk(keys::ENVELOPE, id(4), 1), b"?");
                remove(spool, &keys::chunk(keys::ENVELOPE, id(4), 0));
            }),
            (
                "content of message 04040404040404040404040404040404 are here, but its envelope is gone",
                |spool| {
                    remove(spool, &keys::chunk(keys::ENVELOPE, id(4), 0));
                    counters(spool, |counters| {
                        (counters.messages, counters.recipients) = (2, 2);
                        (counters.bytes, counters.tree_bytes) =
                            (counters.bytes - 10, counters.tree_bytes - 10);
                    });
                },
            ),
            (
                "content file 02020202020202020202020202020202.run0 of message 0202020202020202020202020202",
                |spool| {
                    spool.files().remove(&format!("{}.run0", id(2))).expect("removed");
                },
            ),
            ("has 5 bytes instead of 100000", |spool| {
                std::fs::write(spool.files().folder().join(format!("{}.run0", id(2))), "short")
                    .expect("written");
            }),
            ("02020202020202020202020202020202 can't be delivered: its checksum is wrong", |spool| {
                change_file(spool, 2, |bytes| bytes[LARGE / 2] ^= 1);
            }),
            ("can't be delivered: what is behind its content is no checksum", |spool| {
                change_file(spool, 2, |bytes| bytes[LARGE] ^= 1);
            }),
            ("it has 100001 bytes instead of 100000", |spool| {
                change_file(spool, 2, |bytes| bytes.truncate(LARGE + 1));
            }),
            ("4 messages, there are 3", |spool| counters(spool, |counters| counters.messages = 4)),
            ("7 recipients, there are 3", |spool| counters(spool, |counters| counters.recipients = 7)),
            ("0 messages in quarantine, there are 2", |spool| {
                counters(spool, |counters| counters.quarantined = 0)
            }),
            ("a record in quarantine", |spool| remove(spool, &keys::of_message(keys::REASON, id(3)))),
            ("the back-off of destination c.example", |spool| {
                put(spool, &keys::destination(&domain("c.example")), b"?");
                put(spool, &keys::wake(ARRIVED, &domain("c.example")), b"");
            }),
            ("is still here, though each recipient", |spool| {
                let delivered = RecipientState { status: Status::Bounced, ..RecipientState::fresh(ARRIVED) };
                spool.commit(&[Op::PutRecipient(id(4), 0, delivered)]).expect("committed");
                counters(spool, |counters| counters.recipients = 2);
            }),
            ("record of the counters", |spool| put(spool, keys::META_COUNTERS, b"?")),
        ],
    );
}

#[test]
fn damage_of_indexes_is_found_and_named() {
    found_as(
        "damage",
        &[
            ("1 of 1 recipients of message 0101", |spool| remove(spool, &due(1, "a.example", DUE, 0))),
            ("message 02020202020202020202020202020202 has no deadline key", |spool| {
                remove(spool, &keys::deadline(ARRIVED + 1_000, id(2)));
            }),
            ("destination a.example has mail, but no wake key", |spool| {
                remove(spool, &keys::wake(DUE, &domain("a.example")));
            }),
            ("destination a.example has mail that is due 61 s before it wakes", |spool| {
                remove(spool, &keys::wake(DUE, &domain("a.example")));
                put(spool, &keys::wake(DUE + 60_001, &domain("a.example")), b"");
            }),
            ("leads to message 0909", |spool| put(spool, &due(9, "a.example", DUE, 0), b"")),
            ("leads to recipient 7 of message 0101", |spool| put(spool, &due(1, "a.example", DUE, 7), b"")),
            (
                "recipient 1 of message 01010101010101010101010101010101 is delivered, but a due key",
                |spool| {
                    put(spool, &due(1, "b.example", ARRIVED, 1), b"");
                    put(spool, &keys::wake(ARRIVED, &domain("b.example")), b"");
                },
            ),
            ("recipient 0 of message 01010101010101010101010101010101 has a due key too many", |spool| {
                put(spool, &due(1, "a.example", DUE + 1, 0), b"");
            }),
        ],
    );
}

#[test]
fn what_a_crash_leaves_is_harmless() {
    found_as(
        "harmless",
        &[
            ("no message names content/09090909090909090909090909090909.run0", |spool| {
                in_file(spool, 9, "run0", "x@a.example");
            }),
            ("does not name content/02020202020202020202020202020202.run9", |spool| {
                in_file(spool, 2, "run9", "x@a.example");
            }),
            ("content/stranger is no file of posthaste", |spool| {
                std::fs::write(spool.files().folder().join("stranger"), "").expect("written");
            }),
            ("1 wake keys are of destinations without due keys", |spool| {
                put(spool, &keys::wake(ARRIVED, &domain("idle.example")), b"");
            }),
            ("has mail that is due up to a minute before it wakes", |spool| {
                remove(spool, &keys::wake(DUE, &domain("a.example")));
                put(spool, &keys::wake(DUE + 60_000, &domain("a.example")), b"");
            }),
            ("has 2 deadline keys", |spool| put(spool, &keys::deadline(ARRIVED + 7, id(1)), b"")),
            ("a deadline key leads to message 0909", |spool| {
                put(spool, &keys::deadline(ARRIVED, id(9)), b"")
            }),
            ("2 records of content that nothing reads", |spool| {
                put(spool, &keys::chunk(keys::CONTENT, id(2), 0), b"?");
                put(spool, &keys::chunk(keys::CONTENT, id(2), 1), b"?");
            }),
            ("key zzz is none that this program knows", |spool| put(spool, b"zzz", b"?")),
            ("key a\\xff is none that", |spool| put(spool, b"a\xff", b"?")),
            ("key \\xff\\xff is none that", |spool| put(spool, b"\xff\xff", b"?")),
        ],
    );
}

#[test]
fn an_early_wake_key_and_keys_of_a_fresh_message_are_no_finding() {
    let home = folder();
    let spool = filled(home.path());
    put(&spool, &keys::wake(ARRIVED, &domain("a.example")), b"");
    put(&spool, &due(4, "d.example", ARRIVED, 0), b"");
    put(&spool, &keys::wake(ARRIVED, &domain("d.example")), b"");
    put(&spool, &keys::deadline(ARRIVED, id(4)), b"");
    assert_eq!(checked(&spool).0, Vec::<String>::new());
}

#[test]
fn a_content_file_of_an_older_program_is_no_finding() {
    let home = folder();
    let spool = filled(home.path());
    change_file(&spool, 2, |bytes| bytes.truncate(LARGE));
    assert_eq!(checked(&spool).0, Vec::<String>::new());
}

#[test]
fn every_flipped_byte_of_a_record_is_found() {
    let home = folder();
    let spool = filled(home.path());
    for (key, value) in all(&spool) {
        // A quarantined record is damaged as a rule; keys of indexes have no value.
        if key[0] == keys::QUARANTINED || value.is_empty() {
            continue;
        }
        for at in [0, 1, 2, 5, 6, value.len() / 2, value.len() - 1] {
            let mut flipped = value.clone();
            flipped[at] ^= 0x10;
            put(&spool, &key, &flipped);
            let (found, summary) = checked(&spool);
            assert!(summary.damage > 0, "byte {at} of {}: {found:?}", key.escape_ascii());
        }
        put(&spool, &key, &value);
    }
    assert_eq!(checked(&spool).0, Vec::<String>::new());
}

#[test]
fn a_spool_that_is_not_there_is_not_made() {
    let home = folder();
    let config = crate::config::SpoolConfig { path: home.path().join("spool"), ..Default::default() };
    let error = SledSpool::open_existing(&config).map(drop).expect_err("missing");
    assert!(matches!(&error, SpoolError::Missing(path) if *path == config.path), "{error}");
    assert!(!config.path.exists());
}

#[test]
fn to_look_at_a_spool_is_no_start_and_leaves_its_reserve() {
    let home = folder();
    let start =
        |spool: &SledSpool| spool.tree.get(keys::META_START).expect("readable").expect("there").to_vec();
    let spool = filled(home.path());
    let before = start(&spool);
    drop(spool);
    std::fs::write(home.path().join("spool/reserve"), "kept").expect("written");
    let config = crate::config::SpoolConfig { path: home.path().join("spool"), ..Default::default() };
    let spool = SledSpool::open_existing(&config).expect("opens");
    assert_eq!(start(&spool), before);
    assert_eq!(std::fs::read(home.path().join("spool/reserve")).expect("there"), b"kept");
    assert_eq!(checked(&spool).1.damage, 0);
    assert!(matches!(SledSpool::open_existing(&config), Err(SpoolError::Locked(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_bytes_in_any_record_are_told_and_exported(
        which in any::<prop::sample::Index>(),
        value in prop::collection::vec(any::<u8>(), 0..200),
        key in prop::collection::vec(any::<u8>(), 0..40),
        first in prop::sample::select(b"cdeknqstwx".to_vec()),
    ) {
        let home = folder();
        let spool = filled(home.path());
        let pairs = all(&spool);
        put(&spool, &pairs[which.index(pairs.len())].0, &value);
        let strange: Vec<u8> = [vec![first], key].concat();
        put(&spool, &strange, &value);
        checked(&spool);
        let (text, _) = exported(&spool);
        let other = folder();
        let copy = sled_in(other.path()).expect("opens");
        imported(&copy, &text).expect("what is exported can be imported");
    }
}
