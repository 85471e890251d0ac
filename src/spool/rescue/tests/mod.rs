//! What is saved, against what sled itself says, and against what was stored before it was damaged.

mod damage;
mod log;
mod proof;
mod rescue;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::super::database::Tree;
use super::super::suite::{bytes, copy, envelope, recipient, sled_in};
use super::super::{Counters, Op, Spool, keys};
use super::log::Log;
use super::snapshot::Snapshot;
use super::tree::Salvaged;
use crate::mail::envelope::{Content, Envelope};
use crate::mail::id::QueueId;

/// Keys and values.
type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Numbers that look random and are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("below a usize")
    }
}

fn all_of(tree: &impl Tree) -> Map {
    let mut map = Map::new();
    tree.scan(&[], &[0xff; 300], &mut |key, value| {
        map.insert(key.to_vec(), value.to_vec());
        true
    })
    .expect("readable");
    map
}

/// What is read without sled.
fn salvaged(spool: &Path) -> Salvaged {
    let file = File::open(spool.join("db")).expect("a database");
    Salvaged::read(Log::open(file, Snapshot::newest(spool)).expect("readable"))
}

/// What sled says of a copy.
fn by_sled(spool: &Path) -> Map {
    let home = folder();
    copy(spool, home.path());
    let db = sled::Config::new().path(home.path()).open().expect("sled opens it");
    db.iter().map(|pair| pair.expect("readable")).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Both say the same, to the byte.
#[track_caller]
fn assert_same(salvaged: &Map, by_sled: &Map) {
    let first = |map: &Map, other: &Map| {
        map.iter().find(|(key, value)| other.get(*key) != Some(value)).map(|(key, _)| key.clone())
    };
    assert_eq!(first(salvaged, by_sled), None, "not so in sled");
    assert_eq!(first(by_sled, salvaged), None, "only in sled");
}

fn id(number: u64) -> QueueId {
    let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let random = std::array::from_fn(|_| u8::try_from(dice.below(256)).expect("a byte"));
    QueueId::from_parts(1_700_000_000_000 + number / 4, &random)
}

/// A message of its own size and content.
fn message(number: u64) -> (Arc<Envelope>, bytes::Bytes) {
    let mut dice = Dice(number + 77);
    let size = [300, 2_000, 9_000, 25_000][dice.below(4)] + dice.below(500);
    let people = 1 + dice.below(3);
    let recipients = (0..people).map(|n| recipient(&format!("u{n}@d{}.example", number % 7))).collect();
    let envelope = Envelope { id: id(number), ..(*envelope(1, size, recipients)).clone() };
    let mut content = bytes(size).to_vec();
    content[..8].copy_from_slice(&number.to_be_bytes());
    (Arc::new(envelope), content.into())
}

fn arrival(number: u64) -> Op {
    let (envelope, content) = message(number);
    Op::PutMessage(envelope, Content::Memory(content))
}

fn departure(number: u64) -> Op {
    Op::RemoveMessage { envelope: message(number).0, states: false }
}

/// Messages in one commit.
const AT_ONCE: usize = 20;

/// A spool in `home/spool` through which many messages went, and the numbers of those that are there.
fn churned(home: &Path, messages: u64, stay: u64) -> Vec<u64> {
    let spool = sled_in(home).expect("opens");
    let mut dice = Dice(4_711);
    let mut live: Vec<u64> = Vec::new();
    for first in (0..messages).step_by(AT_ONCE) {
        let last = (first + AT_ONCE as u64).min(messages);
        let mut ops: Vec<Op> = (first..last).map(arrival).collect();
        live.extend(first..last);
        while live.len() as u64 > stay {
            let gone = live.swap_remove(dice.below(live.len()));
            ops.push(departure(gone));
        }
        ops.push(Op::Counters(counters(&live)));
        spool.commit(&ops).expect("committed");
    }
    live.sort_unstable();
    live
}

/// A stopped spool through which messages went: those that are there, and its database.
struct Stopped {
    home: tempfile::TempDir,
    live: Vec<u64>,
    sound: Vec<u8>,
}

impl Stopped {
    fn new(messages: u64, stay: u64) -> Self {
        let home = folder();
        let live = churned(home.path(), messages, stay);
        let sound = fs::read(home.path().join("spool/db")).expect("readable");
        Self { home, live, sound }
    }
}

fn counters(live: &[u64]) -> Counters {
    let mut counters = Counters::default();
    for envelope in live.iter().map(|number| message(*number).0) {
        counters.messages += 1;
        counters.recipients += envelope.recipients.len() as u64;
        counters.bytes += envelope.size;
    }
    Counters { tree_bytes: counters.bytes, ..counters }
}

/// The messages that are whole in these records.
fn whole(tree: &impl Tree, numbers: &[u64]) -> Vec<u64> {
    let is_whole = |number: &u64| {
        let (envelope, content) = message(*number);
        let found = super::super::read::message(tree, envelope.id).ok().flatten();
        let found_content = super::super::read::content(tree, envelope.id).ok();
        found.is_some_and(|found| found.envelope == envelope) && found_content == Some(content)
    };
    numbers.iter().copied().filter(is_whole).collect()
}

/// The first message key of each kind, to look for the pages that hold a message.
fn record_keys(number: u64) -> Vec<Vec<u8>> {
    let (envelope, content) = message(number);
    let chunks = super::super::record::chunks(content.len());
    let content = (0..chunks).map(|chunk| keys::chunk(keys::CONTENT, envelope.id, chunk).to_vec());
    content.chain([keys::chunk(keys::ENVELOPE, envelope.id, 0).to_vec()]).collect()
}
