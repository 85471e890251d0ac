use proptest::prelude::*;

use super::super::suite::{ARRIVED, bytes, deferred, envelope, id, last, recipient};
use super::*;
use crate::mail::envelope::{ContentPlace, Origin, Status};
use crate::mail::outcome::CauseClass;
use crate::smtp::address::{Domain, ReversePath};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of format 1. When one of these fails, spools of the field can't be read: write a migration instead.
#[track_caller]
fn golden(name: &str, found: &[u8], frozen: &str) {
    let frozen: String = frozen.split_whitespace().collect();
    assert_eq!(hex(found), frozen, "the bytes of {name}");
}

#[test]
fn golden_state() {
    golden("a fresh state", &write_state(&RecipientState::fresh(ARRIVED)), "");
    let state = RecipientState { status: Status::Bounced, delay_notified: true, ..deferred(0x0102_0304) };
    golden("a state", &write_state(&state), "");
}

#[test]
fn golden_destination() {
    let record = DestinationRecord { failures: 3, retry_at_ms: ARRIVED, last: None };
    golden("a destination", &write_destination(&record), "");
}

#[test]
fn golden_counters_format_start_reason() {
    let counters = Counters { messages: 1, recipients: 2, bytes: 3, quarantined: 4 };
    golden("counters", &write_counters(&counters), "");
    golden("format", &write_format(&Format { version: 1, writer: "0.1.0".into() }), "");
    golden("start", &write_start(&Start { number: 2, instance: "ab".into() }), "");
    golden("reason", &write_reason("why"), "");
}

#[test]
fn golden_envelope() {
    let from_client = envelope(1, 5, vec![recipient("Ann@A.example")]);
    golden("an envelope from a client", &write_envelope(&from_client), "");
    let mut report = (*from_client).clone();
    report.reverse_path = ReversePath::Null;
    report.origin = Origin::Report;
    report.place = ContentPlace::File("f".into());
    report.recipients[0].destination = Domain::parse("route.example").expect("a domain");
    golden("a report in a file", &write_envelope(&report), "");
}

#[test]
fn golden_chunks() {
    let chunks: Vec<_> = write_chunks(Kind::Content, b"hello").collect();
    assert_eq!(chunks.len(), 1);
    golden("a chunk", &chunks[0].1, "");
    let long = bytes(CHUNK + 1);
    let chunks: Vec<_> = write_chunks(Kind::Envelope, &long).collect();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0].1.len(), VALUE_MAX);
    golden("the head of a full first chunk", &chunks[0].1[..12], "");
    golden("a second chunk", &chunks[1].1, "");
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
    refuse(&resealed(2, &good[6..]), Unreadable::Version(2));
    let mut trailing = good[6..].to_vec();
    trailing.push(0);
    assert!(matches!(read_state(&resealed(1, &trailing)), Err(Unreadable::Payload(_))));
    let mut unknown = good[6..].to_vec();
    unknown[0] = 9;
    refuse(&resealed(1, &unknown), Unreadable::Field("status"));
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
        kind in 0..10u8,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut record = vec![kind, VERSION, 0, 0, 0, 0];
        record.extend_from_slice(&payload);
        let crc = checksum(&record[..2], &payload);
        record[2..6].copy_from_slice(&crc.to_le_bytes());
        let _ = (read_state(&record), read_destination(&record), read_counters(&record));
        let _ = (read_format(&record), read_start(&record), read_reason(&record));
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
