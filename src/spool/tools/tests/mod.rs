//! The tools over a spool on a real disk that has some of everything.

mod check;
mod compact;
mod transfer;

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use sled::IVec;

use super::import::{ImportError, Imported, import};
use super::{check as checking, export};
use crate::mail::envelope::{Content, ContentPlace, Envelope, RecipientState, Status};
use crate::spool::content::ContentFiles;
use crate::spool::database::Tree;
use crate::spool::sled::SledSpool;
use crate::spool::suite::{ARRIVED, deferred, domain, due_of, envelope, id, last, recipient, sled_in};
use crate::spool::{Counters, DestinationRecord, Op, Spool};

/// When message 1 is due for the second time.
const DUE: u64 = ARRIVED + 60_000;
/// Until when c.example backs off.
const RETRY: u64 = ARRIVED + 90_000;
const LARGE: usize = 100_000;
const THRESHOLD: u64 = 32 << 10;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Content with 8-bit characters, and without what an import refuses.
fn bytes(size: usize) -> bytes::Bytes {
    (0..size).map(|at| b' ' + (at % 211) as u8).collect()
}

fn deadline(envelope: &Envelope, _: &[RecipientState]) -> u64 {
    envelope.arrived_ms + 1_000
}

/// A message whose content lies in a file, which is written.
fn in_file(spool: &SledSpool, number: u8, instance: &str, to: &str) -> (Arc<Envelope>, Content) {
    let mut writer = spool.files().create(id(number), instance).expect("a file");
    writer.write(&bytes(LARGE)).expect("written");
    let (name, size) = writer.finish().expect("finished");
    let mut envelope = Arc::unwrap_or_clone(envelope(number, LARGE, vec![recipient(to)]));
    envelope.place = ContentPlace::File(name.clone());
    (Arc::new(envelope), Content::File { name, size, whole: None })
}

/// A spool with: 1 deferred for one recipient and delivered to the other; 2 large, its destination backing off; 3 in quarantine;
/// 4 fresh and without keys, as after a crash; 5 large and in quarantine.
fn filled(home: &Path) -> SledSpool {
    let spool = sled_in(home).expect("opens");
    let first = envelope(1, 20_000, vec![recipient("x@a.example"), recipient("y@b.example")]);
    let (large, large_content) = in_file(&spool, 2, "run0", "z@c.example");
    let aside = envelope(3, 10, vec![recipient("x@a.example")]);
    let fresh = envelope(4, 10, vec![recipient("x@d.example")]);
    let (large_aside, large_aside_content) = in_file(&spool, 5, "run0", "z@c.example");
    let backing_off = DestinationRecord {
        failures: 3,
        retry_at_ms: RETRY,
        last: Some(last("no")),
        suspended_until_ms: RETRY - 1,
    };
    let counters = Counters {
        messages: 3,
        recipients: 3,
        bytes: 20_010 + LARGE as u64,
        quarantined: 2,
        tree_bytes: 20_010,
        unindexed_from: Some(id(4)),
        held: 0,
    };
    let delivered =
        RecipientState { status: Status::Delivered, attempts: 1, ..RecipientState::fresh(ARRIVED) };
    let small = |envelope: &Arc<Envelope>| {
        let size = usize::try_from(envelope.size).expect("small");
        Op::PutMessage(envelope.clone(), Content::Memory(bytes(size)))
    };
    let ops = [
        small(&first),
        Op::PutRecipient(id(1), 0, deferred(DUE)),
        Op::PutRecipient(id(1), 1, delivered),
        Op::PutDue(due_of(&first, 0, DUE)),
        Op::PutWake(DUE, domain("a.example")),
        Op::PutDeadline(ARRIVED + 1_000, id(1)),
        Op::PutMessage(large.clone(), large_content),
        Op::PutDue(due_of(&large, 0, ARRIVED)),
        Op::PutWake(RETRY, domain("c.example")),
        Op::PutDeadline(ARRIVED + 1_000, id(2)),
        Op::PutDestination(domain("c.example"), backing_off),
        small(&aside),
        Op::Quarantine(id(3), "a test".to_owned()),
        small(&fresh),
        Op::PutMessage(large_aside, large_aside_content),
        Op::Quarantine(id(5), "another test".to_owned()),
        Op::Counters(counters),
    ];
    spool.commit(&ops).expect("committed");
    spool
}

/// Every key and value but those that tell of starts.
fn all(spool: &SledSpool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        if key.first() != Some(&b'm') {
            pairs.push((key.to_vec(), value.to_vec()));
        }
        true
    };
    spool.tree.scan(&[], &super::END, &mut visit).expect("a scan");
    pairs
}

fn put(spool: &SledSpool, key: &[u8], value: &[u8]) {
    spool.tree.apply(vec![(key.into(), Some(IVec::from(value)))]).expect("applied");
}

fn remove(spool: &SledSpool, key: &[u8]) {
    assert!(spool.tree.get(key).expect("readable").is_some(), "{key:?} is there");
    spool.tree.apply(vec![(key.into(), None)]).expect("applied");
}

/// What a check finds, and its summary.
fn checked(spool: &SledSpool) -> (Vec<String>, checking::Checked) {
    let mut found = Vec::new();
    let summary = checking::check(spool, &mut |finding| found.push(finding.to_string())).expect("checked");
    (found, summary)
}

/// An export, and what was told.
fn exported(spool: &SledSpool) -> (String, Vec<String>) {
    let (mut out, mut told) = (Vec::new(), Vec::new());
    export::export(spool, &mut out, &mut |text| told.push(text.to_owned())).expect("exported");
    (String::from_utf8(out).expect("JSON is text"), told)
}

fn imported(spool: &SledSpool, text: &str) -> Result<Imported, ImportError> {
    import(spool, &mut BufReader::with_capacity(100, text.as_bytes()), THRESHOLD, false, &deadline)
}

fn imported_in_part(spool: &SledSpool, text: &str) -> Result<Imported, ImportError> {
    import(spool, &mut text.as_bytes(), THRESHOLD, true, &deadline)
}

fn name(number: u8) -> String {
    format!("{}.run0", id(number))
}

/// Changes a content file of [`filled`] and returns its bytes.
fn change_file(spool: &SledSpool, number: u8, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let path = spool.files().folder().join(name(number));
    let mut bytes = std::fs::read(&path).expect("readable");
    change(&mut bytes);
    std::fs::write(path, &bytes).expect("written");
    bytes
}

fn read_file(files: &ContentFiles, name: &str) -> Vec<u8> {
    let mut file = files.open(name, LARGE as u64).expect("opens");
    file.read_piece(LARGE * 2).expect("readable").expect("not empty").to_vec()
}
