//! The bytes of each record are frozen, every value reads back, and damage is found.

use proptest::prelude::*;

use super::super::suite::{ARRIVED, bytes, deferred, envelope, id, last, recipient};
use super::*;
use crate::mail::envelope::{ContentPlace, Origin, Status};
use crate::mail::outcome::CauseClass;
use crate::smtp::address::{Domain, ReversePath};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of the format. When one of these fails, spools of the field can't be read: write a migration instead.
#[track_caller]
fn golden(name: &str, found: &[u8], frozen: &str) {
    let frozen: String = frozen.split_whitespace().collect();
    assert_eq!(hex(found), frozen, "the bytes of {name}");
}

#[test]
fn golden_state() {
    golden(
        "a fresh state",
        &write_state(&RecipientState::fresh(ARRIVED)),
        "02021f8ca9e600000000000068e5cf8b010000000000",
    );
    let state =
        RecipientState { status: Status::Bounced, delay_notified: true, held: true, ..deferred(0x0102_0304) };
    golden(
        "a state",
        &write_state(&state),
        "0202a8c810a60201000000040302010000000001010168e5cf8b010000011a000000000000006d78 \
         2e612e6578616d706c655b3132372e302e302e315d3a32350104000200020001c401010400020002 \
         00040000000000000066756c6c000000000000000001",
    );
}

#[test]
fn golden_destination() {
    let record =
        DestinationRecord { failures: 3, retry_at_ms: ARRIVED, last: None, suspended_until_ms: 0x0102 };
    golden(
        "a destination",
        &write_destination(&record),
        "040258a1d4fe030000000068e5cf8b010000000201000000000000",
    );
}

#[test]
fn golden_counters_format_start_reason() {
    let counters = Counters {
        messages: 1,
        recipients: 2,
        bytes: 3,
        quarantined: 4,
        tree_bytes: 6,
        unindexed_from: Some(id(5)),
        held: 7,
    };
    golden(
        "counters",
        &write_counters(&counters),
        "0502b66d69950100000000000000020000000000000003000000000000000400000000000000060000000000000001050505050505050505050505050505050700000000000000",
    );
    golden(
        "format",
        &write_format(&Format { version: 1, writer: "0.1.0".into() }),
        "060161dab4db010000000500000000000000302e312e30",
    );
    golden(
        "start",
        &write_start(&Start { number: 2, instance: "ab".into() }),
        "07016a5c08e7020000000000000002000000000000006162",
    );
    golden("reason", &write_reason("why"), "080163e973820300000000000000776879");
    golden(
        "keys",
        &write_keys(b"\x02\x01\0b\x03\x01\0c\x01\x02\0bx"),
        "0a03fc266d0702010062030100630102006278",
    );
}

#[test]
fn records_of_format_1_are_read_and_carried_over() {
    let record = |text: &str| -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    };
    let state = record(
        "0201852f8f190201000000040302010000000001010168e5cf8b010000011a000000000000006d78 \
         2e612e6578616d706c655b3132372e302e302e315d3a32350104000200020001c401010400020002 \
         00040000000000000066756c6c0000000000000000",
    );
    let bounced = RecipientState { status: Status::Bounced, delay_notified: true, ..deferred(0x0102_0304) };
    assert_eq!(read_state(&state), Ok(bounced.clone()));
    assert_eq!(carried(&state), Some(write_state(&bounced)));
    assert_eq!(carried(&write_state(&bounced)), None, "it is that already");
    let destination = record("04010593c8b1030000000068e5cf8b01000000");
    let failing = DestinationRecord { failures: 3, retry_at_ms: ARRIVED, ..DestinationRecord::default() };
    assert_eq!(read_destination(&destination), Ok(failing));
    let counters = record(
        "050166497fb9010000000000000002000000000000000300000000000000040000000000000006000000000000000105050505050505050505050505050505",
    );
    assert_eq!(read_counters(&counters).map(|counters| (counters.tree_bytes, counters.held)), Ok((6, 0)));
    let mut damaged = state;
    damaged[20] ^= 1;
    assert_eq!(carried(&damaged), None, "it stays as it is, for whoever meets it");
}

#[test]
fn golden_envelope() {
    let from_client = envelope(1, 5, vec![recipient("Ann@A.example")]);
    golden(
        "an envelope from a client",
        &write_envelope(&from_client),
        "12000000000000006a6f654073656e6465722e6578616d706c65010068e5cf8b010000000e000000 \
         000000003132372e302e302e313a343731310e00000000000000636c69656e742e6578616d706c65 \
         010500000000000000000000000000000001000000000000000d00000000000000416e6e40412e65 \
         78616d706c650000000000000000",
    );
    let mut report = (*from_client).clone();
    report.reverse_path = ReversePath::Null;
    report.origin = Origin::Report;
    report.place = ContentPlace::File("f".into());
    report.recipients[0].destination = Domain::parse("route.example").expect("a domain");
    golden(
        "a report in a file",
        &write_envelope(&report),
        "0000000000000000010068e5cf8b0100000200000000000000000000000000000000000500000000 \
         00000001000000000000006601000000000000000d00000000000000416e6e40412e6578616d706c \
         650d00000000000000726f7574652e6578616d706c65",
    );
}

#[test]
fn golden_chunks() {
    let chunks: Vec<_> = write_chunks(Kind::Content, b"hello").collect();
    assert_eq!(chunks.len(), 1);
    golden("a chunk", &chunks[0].1, "030107a802a70500000068656c6c6f");
    let long = bytes(CHUNK + 1);
    let chunks: Vec<_> = write_chunks(Kind::Envelope, &long).collect();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0].1.len(), VALUE_MAX);
    golden("the head of a full first chunk", &chunks[0].1[..12], "010169bf6607671700000001");
    golden("a second chunk", &chunks[1].1, "010114e89718d9");
}

#[test]
fn every_envelope_reads_back() {
    let origins = [
        Origin::Embedded,
        Origin::Report,
        Origin::Smtp { peer: "[::1]:25".parse().expect("an address"), helo: "[::1]".into(), extended: false },
    ];
    for origin in origins {
        let mut envelope = (*envelope(1, 5, vec![recipient("\"a b\"@[127.0.0.1]")])).clone();
        envelope.origin = origin;
        let bytes = write_envelope(&envelope);
        assert_eq!(bytes.len(), envelope_len(&envelope));
        assert_eq!(read_envelope(id(1), &bytes), Ok(envelope));
    }
}

#[test]
fn every_class_and_status_reads_back() {
    for class in CauseClass::ALL {
        let mut state = deferred(1);
        state.last.as_mut().expect("set").cause.class = class;
        assert_eq!(read_state(&write_state(&state)), Ok(state));
    }
    for status in [Status::Queued, Status::Delivered, Status::Bounced, Status::Expired, Status::Removed] {
        let state = RecipientState { status, ..deferred(1) };
        assert_eq!(read_state(&write_state(&state)), Ok(state));
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let state = RecipientState { last: Some(last(&"ü".repeat(300))), ..deferred(1) };
    let read = read_state(&write_state(&state)).expect("reads");
    assert_eq!(read.last.expect("set").cause.reply.expect("set").text, "ü".repeat(256));
    assert_eq!(read_reason(&write_reason(&format!("a{}", "ü".repeat(300)))).expect("reads").len(), 511);
}

#[test]
fn a_record_is_refused_for_its_reason() {
    let good = write_state(&deferred(1)).to_vec();
    let refuse = |bytes: &[u8], why: Unreadable| assert_eq!(read_state(bytes), Err(why));
    refuse(&good[..5], Unreadable::Short);
    refuse(&good[..good.len() - 1], Unreadable::Checksum);
    refuse(&write_destination(&DestinationRecord::default()), Unreadable::Kind(4));
    let resealed = |version: u8, payload: &[u8]| {
        let mut record = vec![Kind::State as u8, version, 0, 0, 0, 0];
        record.extend_from_slice(payload);
        let crc = checksum(&record[..2], payload);
        record[2..6].copy_from_slice(&crc.to_le_bytes());
        record
    };
    refuse(&resealed(3, &good[6..]), Unreadable::Version(3));
    refuse(&resealed(0, &good[6..]), Unreadable::Version(0));
    let mut trailing = good[6..].to_vec();
    trailing.push(0);
    assert!(matches!(read_state(&resealed(2, &trailing)), Err(Unreadable::Payload(_))));
    let mut unknown = good[6..].to_vec();
    unknown[0] = 9;
    refuse(&resealed(2, &unknown), Unreadable::Field("status"));
}

#[test]
fn a_missing_or_foreign_chunk_is_noticed() {
    let whole = bytes(3 * CHUNK);
    let chunks: Vec<_> = write_chunks(Kind::Content, &whole).map(|(_, chunk)| chunk).collect();
    let read =
        |chunks: &[IVec]| read_chunks(Kind::Content, |number| Ok(chunks.get(number as usize).cloned()));
    assert_eq!(read(&chunks), Ok(Some(whole)));
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&chunks[..2]), Err(Unreadable::Chunk(2)));
    let short = write_chunks(Kind::Content, b"x").next().expect("one").1;
    assert_eq!(read(&[chunks[0].clone(), short, chunks[2].clone()]), Err(Unreadable::Field("length")));
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_state(&bytes);
        let _ = read_chunks::<Unreadable>(Kind::Envelope, |_| Ok(Some(bytes[..].into())));
        let _ = read_envelope(id(1), &bytes);
    }

    #[test]
    fn random_payloads_under_a_good_checksum_do_not_panic(
        kind in 0..12u8,
        version in 0..5u8,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut record = vec![kind, version, 0, 0, 0, 0];
        record.extend_from_slice(&payload);
        let crc = checksum(&record[..2], &payload);
        record[2..6].copy_from_slice(&crc.to_le_bytes());
        let _ = (read_state(&record), read_destination(&record), read_counters(&record));
        let _ = (read_format(&record), read_start(&record), read_reason(&record), read_migration(&record));
        let _ = read_keys(&record);
        let _ = carried(&record);
        let _ = read_chunks::<Unreadable>(Kind::Content, |_| Ok(Some(record[..].into())));
    }

    #[test]
    fn flipped_bytes_of_an_envelope_do_not_panic(at in 0..150usize, to in any::<u8>()) {
        let mut bytes = write_envelope(&envelope(1, 5, vec![recipient("x@a.example")]));
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = read_envelope(id(1), &bytes);
    }
}
