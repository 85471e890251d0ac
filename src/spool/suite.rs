//! What every spool must do, run over each body.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::database::{Database, Store, Tree};
use super::memory::MemorySpool;
use super::sled::SledSpool;
use super::{Counters, DestinationRecord, DueKey, Op, Spool, SpoolError, keys};
use crate::config::SpoolConfig;
use crate::mail::envelope::{
    BodyType, Content, ContentPlace, Envelope, LastReply, Origin, Recipient, RecipientState, Status,
    StoredMessage,
};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply::{EnhancedStatus, Reply, ReplyCode};

pub(super) const ARRIVED: u64 = 1_700_000_000_000;

pub(super) fn id(number: u8) -> QueueId {
    QueueId::from_bytes([number; 16])
}

pub(super) fn domain(text: &str) -> Domain {
    Domain::parse(text).expect("a domain")
}

pub(super) fn recipient(text: &str) -> Recipient {
    let path = ForwardPath::new(Mailbox::parse(text).expect("a mailbox"));
    Recipient { destination: path.domain().clone(), path }
}

pub(super) fn envelope(number: u8, size: usize, recipients: Vec<Recipient>) -> Arc<Envelope> {
    Arc::new(Envelope {
        id: id(number),
        reverse_path: ReversePath::parse("joe@sender.example").expect("a path"),
        body: BodyType::EightBitMime,
        arrived_ms: ARRIVED,
        origin: Origin::Smtp {
            peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 4711)),
            helo: "client.example".into(),
            extended: true,
        },
        size: size as u64,
        place: ContentPlace::Database,
        recipients,
    })
}

pub(super) fn bytes(size: usize) -> Bytes {
    (0..size).map(|at| (at % 251) as u8).collect()
}

pub(super) fn last(text: &str) -> LastReply {
    LastReply {
        at_ms: ARRIVED + 1,
        host: Some("mx.a.example[127.0.0.1]:25".into()),
        cause: Cause {
            class: CauseClass::Reply4xx,
            status: EnhancedStatus::new(4, 2, 2),
            reply: Some(Reply {
                code: ReplyCode::new(452).expect("a code"),
                enhanced: Some(EnhancedStatus::new(4, 2, 2)),
                text: text.into(),
            }),
            text: String::new(),
        },
    }
}

pub(super) fn deferred(due_ms: u64) -> RecipientState {
    RecipientState { attempts: 1, due_ms, last: Some(last("full")), ..RecipientState::fresh(ARRIVED) }
}

pub(super) fn due_of(envelope: &Envelope, number: u16, due_ms: u64) -> DueKey {
    let destination = envelope.recipients[usize::from(number)].destination.clone();
    DueKey { destination, due_ms, id: envelope.id, number }
}

/// What the Queue commits for a fresh message.
pub(super) fn arrival(envelope: &Arc<Envelope>) -> Vec<Op> {
    let content = Content::Memory(bytes(usize::try_from(envelope.size).expect("small")));
    let mut ops = vec![Op::PutMessage(envelope.clone(), content)];
    for (number, _) in (0..).zip(&envelope.recipients) {
        ops.push(Op::PutDue(due_of(envelope, number, envelope.arrived_ms)));
    }
    ops.push(Op::PutDeadline(ARRIVED + 1_000, envelope.id));
    ops
}

/// What it commits when all of a never deferred message is settled.
pub(super) fn departure(envelope: &Arc<Envelope>, states: bool) -> Vec<Op> {
    let mut ops = vec![Op::RemoveMessage { envelope: envelope.clone(), states }];
    for (number, _) in (0..).zip(&envelope.recipients) {
        ops.push(Op::DeleteDue(due_of(envelope, number, envelope.arrived_ms)));
    }
    ops.push(Op::DeleteDeadline(ARRIVED + 1_000, envelope.id));
    ops
}

fn due(spool: &dyn Spool, destination: &str, until_ms: u64, limit: usize) -> super::DuePage {
    spool.due(&domain(destination), until_ms, &HashSet::new(), limit, &|_| false).expect("a page")
}

fn keys_without_meta<S: Store + 'static>(spool: &Database<S>) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let all = |key: &[u8], _: &[u8]| {
        keys.push(key.to_vec());
        true
    };
    let mut all = all;
    spool.tree.scan(&[0], &[0xff], &mut all).expect("a scan");
    keys.retain(|key| key[0] != b'm');
    keys
}

fn a_message_reads_back_as_it_was_put<S: Store + 'static>(spool: &Database<S>) {
    for (number, size) in (1..).zip([0, 1, 5_989, 5_990, 5_991, 20_000]) {
        let envelope = envelope(number, size, vec![recipient("Ann@A.example")]);
        spool.commit(&arrival(&envelope)).expect("committed");
        let stored = spool.message(envelope.id).expect("readable").expect("there");
        assert_eq!(stored.envelope, envelope);
        assert_eq!(stored.states, [RecipientState::fresh(ARRIVED)]);
        assert_eq!(spool.content(envelope.id).expect("readable"), bytes(size), "{size} bytes");
    }
    assert!(spool.message(id(99)).expect("readable").is_none());
    assert!(matches!(spool.content(id(99)), Err(SpoolError::Damaged { .. })));
}

fn a_thousand_recipients_are_chunked_and_removed_without_trace<S: Store + 'static>(spool: &Database<S>) {
    let recipients = (0..1_000).map(|n| recipient(&format!("some.longer.name.{n}@d{}.example", n % 7)));
    let envelope = envelope(1, 10, recipients.collect());
    spool.commit(&arrival(&envelope)).expect("committed");
    spool.commit(&[Op::PutRecipient(id(1), 999, deferred(7))]).expect("committed");
    let stored = spool.message(id(1)).expect("readable").expect("there");
    assert_eq!(stored.envelope, envelope);
    assert_eq!(stored.states[999], deferred(7));
    assert_eq!(stored.states[998], RecipientState::fresh(ARRIVED));

    spool.commit(&departure(&envelope, true)).expect("committed");
    assert_eq!(keys_without_meta(spool), Vec::<Vec<u8>>::new());
}

fn removal_leaves_the_tree_empty<S: Store + 'static>(spool: &Database<S>) {
    let envelope = envelope(1, 12_345, vec![recipient("a@a.example"), recipient("b@b.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    spool.commit(&departure(&envelope, false)).expect("committed");
    assert_eq!(keys_without_meta(spool), Vec::<Vec<u8>>::new());

    // A state that is written in the very commit that removes its message goes too.
    spool.commit(&arrival(&envelope)).expect("committed");
    let mut ops = vec![Op::PutRecipient(id(1), 1, deferred(1))];
    ops.extend(departure(&envelope, true));
    spool.commit(&ops).expect("committed");
    assert_eq!(keys_without_meta(spool), Vec::<Vec<u8>>::new());
}

fn of_two_changes_of_one_key_the_later_one_counts<S: Store + 'static>(spool: &Database<S>) {
    let a = domain("a.example");
    spool
        .commit(&[
            Op::PutWake(1, a.clone()),
            Op::DeleteWake(1, a.clone()),
            Op::DeleteWake(2, a.clone()),
            Op::PutWake(2, a.clone()),
        ])
        .expect("committed");
    assert_eq!(spool.wakes(None, 9).expect("readable"), [(2, a)]);
}

fn due_pages_in_order_and_tells_the_next_due_time<S: Store + 'static>(spool: &Database<S>) {
    for (number, due_ms) in [(1, 30), (2, 10), (3, 20), (4, 40)] {
        let envelope = envelope(number, 1, vec![recipient("x@a.example")]);
        let put = Op::PutMessage(envelope.clone(), Content::Memory(bytes(1)));
        spool.commit(&[put, Op::PutDue(due_of(&envelope, 0, due_ms))]).expect("committed");
    }
    let other = envelope(5, 1, vec![recipient("x@aa.example")]);
    spool.commit(&arrival(&other)).expect("committed");

    let read = |until_ms, limit| {
        let page = due(spool, "a.example", until_ms, limit);
        assert!(page.damaged.is_empty());
        (page.items.iter().map(|(key, _)| key.due_ms).collect::<Vec<_>>(), page.next_due_ms)
    };
    assert_eq!(read(30, 9), (vec![10, 20, 30], Some(40)));
    assert_eq!(read(99, 9), (vec![10, 20, 30, 40], None));
    assert_eq!(read(99, 2), (vec![10, 20], Some(30)));
    assert_eq!(read(5, 9), (vec![], Some(10)));
    assert_eq!(read(u64::MAX, 0), (vec![], Some(10)));

    let skip = HashSet::from([(id(2), 0), (id(1), 0), (id(3), 1)]);
    let page = spool.due(&domain("a.example"), 25, &skip, 9, &|_| false).expect("a page");
    assert_eq!(page.items.iter().map(|(key, _)| key.id).collect::<Vec<_>>(), [id(3)]);
    assert_eq!(page.next_due_ms, Some(40), "what is skipped is nobody's next");
    let nothing = due(spool, "example", 99, 9);
    assert!(nothing.items.is_empty() && nothing.next_due_ms.is_none());
}

fn recipients_of_one_message_share_it_on_a_page<S: Store + 'static>(spool: &Database<S>) {
    let envelope = envelope(1, 1, vec![recipient("x@a.example"), recipient("y@a.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    let page = due(spool, "a.example", u64::MAX, 9);
    let [(_, one), (_, two)] = &page.items[..] else { panic!("two, not {}", page.items.len()) };
    let (Some(one), Some(two)) = (one, two) else { panic!("not read") };
    assert!(Arc::ptr_eq(one, two));
}

fn a_due_key_without_its_message_is_damaged<S: Store + 'static>(spool: &Database<S>) {
    let envelope = envelope(1, 1, vec![recipient("x@a.example"), recipient("y@a.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    let lost = keys::chunk(keys::ENVELOPE, id(1), 0);
    spool.tree.apply(vec![(lost[..].into(), None)]).expect("applied");
    assert!(spool.holds(id(1)).expect("readable"), "its content is still here");
    let page = due(spool, "a.example", u64::MAX, 9);
    assert!(page.items.is_empty());
    assert_eq!(page.damaged, [(id(1), "its envelope is missing".to_owned())], "once, not for each key");

    spool.commit(&[Op::Quarantine(id(1), page.damaged[0].1.clone())]).expect("committed");
    let page = due(spool, "a.example", u64::MAX, 9);
    assert!(page.damaged.is_empty() && page.items.is_empty(), "nobody meets it again");
    assert_eq!(spool.deadlines(None, 9).expect("readable"), []);
}

fn every_flipped_byte_of_a_record_is_noticed<S: Store + 'static>(spool: &Database<S>) {
    let envelope = envelope(1, 6, vec![recipient("x@a.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    spool.commit(&[Op::PutRecipient(id(1), 0, deferred(1))]).expect("committed");
    for key in keys_without_meta(spool) {
        let good = spool.tree.get(&key).expect("readable").expect("there");
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 0x20;
            spool.tree.apply(vec![(key[..].into(), Some(bad.into()))]).expect("applied");
            let (message, content) = (spool.message(id(1)), spool.content(id(1)));
            assert!(
                matches!(message, Err(SpoolError::Damaged { .. }))
                    || matches!(content, Err(SpoolError::Damaged { .. })),
                "byte {at} of {key:?}"
            );
        }
        spool.tree.apply(vec![(key[..].into(), Some(good))]).expect("applied");
    }
}

fn quarantine_takes_a_message_out_and_keeps_every_byte<S: Store + 'static>(spool: &Database<S>) {
    let bad = envelope(1, 13_000, vec![recipient("x@a.example"), recipient("y@b.example")]);
    let good = envelope(2, 5, vec![recipient("z@a.example")]);
    spool.commit(&arrival(&bad)).expect("committed");
    spool.commit(&arrival(&good)).expect("committed");
    let before = keys_without_meta(spool).len();
    // The state is in the same commit as the quarantine.
    let ops = [Op::PutRecipient(id(1), 1, deferred(9)), Op::Quarantine(id(1), "for a test".into())];
    spool.commit(&ops).expect("committed");

    assert!(spool.message(id(1)).expect("readable").is_none());
    assert!(spool.holds(id(1)).expect("readable"), "its content file would stay");
    assert!(!spool.holds(id(3)).expect("readable"));
    assert_eq!(spool.quarantined(None, 9).expect("readable"), [(id(1), "for a test".to_owned())]);
    assert_eq!(spool.quarantined(Some(id(1)), 9).expect("readable"), []);
    assert_eq!(due(spool, "a.example", u64::MAX, 9).items.len(), 1, "the other one is still due");
    let moved = keys_without_meta(spool).iter().filter(|key| key[0] == keys::QUARANTINED).count();
    assert_eq!(moved, 1 + 3 + 1, "envelope, three chunks, one state");
    // Two due keys and a deadline are gone; a state and a reason came.
    assert_eq!(keys_without_meta(spool).len(), before - 3 + 2);
}

fn wakes_and_deadlines_come_in_order_of_time<S: Store + 'static>(spool: &Database<S>) {
    let (a, b) = (domain("a.example"), domain("b.example"));
    spool
        .commit(&[
            Op::PutWake(300, a.clone()),
            Op::PutWake(20, b.clone()),
            Op::PutWake(20, a.clone()),
            Op::PutDeadline(300, id(1)),
            Op::PutDeadline(20, id(3)),
            Op::PutDeadline(20, id(2)),
        ])
        .expect("committed");
    let all = [(20, a.clone()), (20, b.clone()), (300, a)];
    assert_eq!(spool.wakes(None, 9).expect("readable"), all);
    assert_eq!(spool.wakes(Some(&all[0]), 1).expect("readable"), all[1..2]);
    assert_eq!(spool.wakes(None, 0).expect("readable"), []);
    let all = [(20, id(2)), (20, id(3)), (300, id(1))];
    assert_eq!(spool.deadlines(None, 9).expect("readable"), all);
    assert_eq!(spool.deadlines(Some(all[1]), 9).expect("readable"), all[2..]);
}

fn destinations_are_remembered_and_forgotten<S: Store + 'static>(spool: &Database<S>) {
    let record = |failures| DestinationRecord {
        failures,
        retry_at_ms: 5,
        last: Some(last("no")),
        suspended_until_ms: 6,
    };
    let (a, b) = (domain("a.example"), domain("[ipv6:::1]"));
    spool
        .commit(&[Op::PutDestination(a.clone(), record(1)), Op::PutDestination(b.clone(), record(2))])
        .expect("committed");
    assert_eq!(spool.destination(&a).expect("readable"), Some(record(1)));
    let all = [(b.clone(), record(2)), (a.clone(), record(1))];
    assert_eq!(spool.destinations(None, 9).expect("readable"), all);
    assert_eq!(spool.destinations(Some(&b), 9).expect("readable"), all[1..]);
    spool.commit(&[Op::DeleteDestination(a.clone())]).expect("committed");
    assert_eq!(spool.destination(&a).expect("readable"), None);
}

/// A message with a state record, in quarantine.
fn quarantined<S: Store + 'static>(spool: &Database<S>) -> StoredMessage {
    let envelope = envelope(1, 1, vec![recipient("x@a.example"), recipient("y@b.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    let state = RecipientState { attempts: 3, ..RecipientState::fresh(9) };
    spool.commit(&[Op::PutRecipient(id(1), 1, state)]).expect("committed");
    let before = spool.message(id(1)).expect("readable").expect("there");
    spool.commit(&[Op::Quarantine(id(1), "for a test".to_owned())]).expect("committed");
    before
}

fn what_is_released_from_quarantine_is_as_it_was<S: Store + 'static>(spool: &Database<S>) {
    let before = quarantined(spool);
    let found = spool.in_quarantine(id(1)).expect("readable").expect("there");
    assert_eq!((found.reason.as_str(), found.records), ("for a test", 3));
    let same = |found: &StoredMessage| found.envelope == before.envelope && found.states == before.states;
    assert!(found.message.is_ok_and(|found| same(&found)));
    spool.commit(&[Op::Release(id(1))]).expect("committed");
    assert!(spool.message(id(1)).expect("readable").is_some_and(|found| same(&found)));
    assert_eq!(spool.content(id(1)).expect("readable").len(), 1);
    assert_eq!(spool.quarantined(None, 9).expect("readable"), []);
    assert!(spool.in_quarantine(id(1)).expect("readable").is_none());
}

fn what_is_discarded_from_quarantine_leaves_nothing<S: Store + 'static>(spool: &Database<S>) {
    quarantined(spool);
    let broken = keys::quarantined(&keys::chunk(keys::CONTENT, id(1), 0));
    spool.tree.apply(vec![(broken[..].into(), Some(b"?"[..].into()))]).expect("applied");
    let found = spool.in_quarantine(id(1)).expect("readable").expect("there");
    assert!(found.message.is_ok() && found.obstacle.expect("damaged").contains("content"));
    spool.commit(&[Op::Discard(id(1), None)]).expect("committed");
    assert!(!spool.holds(id(1)).expect("readable"));
    assert!(spool.in_quarantine(id(1)).expect("readable").is_none());
}

fn a_message_that_is_known_is_not_read<S: Store + 'static>(spool: &Database<S>) {
    for number in [1, 2] {
        let to = vec![recipient("x@a.example"), recipient("y@b.example")];
        spool.commit(&arrival(&envelope(number, 1, to))).expect("committed");
    }
    let broken = keys::chunk(keys::ENVELOPE, id(1), 0);
    spool.tree.apply(vec![(broken[..].into(), Some(b"?"[..].into()))]).expect("applied");
    let known = |known: QueueId| known == id(1);
    let page = spool.due(&domain("a.example"), u64::MAX, &HashSet::new(), 9, &known).expect("a page");
    let read: Vec<_> = page.items.iter().map(|(key, stored)| (key.id, stored.is_some())).collect();
    assert_eq!(read, [(id(1), false), (id(2), true)]);
    assert_eq!(page.damaged, []);
}

fn listing_pages_by_id_and_leaves_out_what_is_unreadable<S: Store + 'static>(spool: &Database<S>) {
    for number in 1..=5 {
        spool.commit(&arrival(&envelope(number, 1, vec![recipient("x@a.example")]))).expect("committed");
    }
    let broken = keys::chunk(keys::ENVELOPE, id(2), 0);
    spool.tree.apply(vec![(broken[..].into(), Some(b"?"[..].into()))]).expect("applied");
    let list = |after, limit| {
        let found = spool.list(after, limit).expect("readable");
        found.iter().map(|message| message.envelope.id).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 9), [id(1), id(3), id(4), id(5)]);
    assert_eq!(list(None, 2), [id(1), id(3)]);
    assert_eq!(list(Some(id(3)), 9), [id(4), id(5)]);
    assert_eq!(list(None, 0), []);
}

fn counters_are_those_of_the_last_commit<S: Store + 'static>(spool: &Database<S>) {
    assert_eq!(spool.counters().expect("readable"), Counters::default());
    let counters = Counters {
        messages: 1,
        recipients: 2,
        bytes: u64::MAX,
        quarantined: 4,
        tree_bytes: 6,
        unindexed_from: Some(id(5)),
        held: 7,
    };
    spool.commit(&[Op::Counters(Counters::default()), Op::Counters(counters)]).expect("committed");
    assert_eq!(spool.counters().expect("readable"), counters);
}

fn a_settled_recipient_keeps_its_end_until_the_message_goes<S: Store + 'static>(spool: &Database<S>) {
    let envelope = envelope(1, 1, vec![recipient("x@a.example"), recipient("y@a.example")]);
    spool.commit(&arrival(&envelope)).expect("committed");
    let delivered = RecipientState { status: Status::Delivered, ..deferred(0) };
    spool
        .commit(&[
            Op::PutRecipient(id(1), 0, delivered.clone()),
            Op::DeleteDue(due_of(&envelope, 0, ARRIVED)),
        ])
        .expect("committed");
    let page = due(spool, "a.example", u64::MAX, 9);
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].1.as_ref().map(|stored| &stored.states[0]), Some(&delivered));
}

/// A sled spool in a folder of its own, with settings for tests.
pub(super) fn sled_in(folder: &Path) -> Result<SledSpool, SpoolError> {
    let config = SpoolConfig { path: folder.join("spool"), reserve: 0, ..SpoolConfig::default() };
    SledSpool::open(&config, uuid::Uuid::from_u128(7))
}

/// Copies a folder and all in it.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Copies of a spool, taken at each of its syncs, and how much was answered then.
pub(super) struct Cuts {
    /// To be told what was answered.
    pub answered: Arc<AtomicU64>,
    copies: Arc<Mutex<Vec<(u64, PathBuf)>>>,
}

/// From now on a copy of the folder is taken at each sync of the database, as a power cut may leave it, in `to`.
pub(super) fn copy_at_each_sync(spool: &SledSpool, to: &Path) -> Cuts {
    let cuts = Cuts { answered: Arc::default(), copies: Arc::default() };
    let (from, to) = (spool.folder().to_owned(), to.to_owned());
    let (answered, copies) = (cuts.answered.clone(), cuts.copies.clone());
    spool.tree.store.watch.hook(Box::new(move || {
        let mut copies = copies.lock().expect("no panic");
        let target = to.join(format!("copy{}", copies.len()));
        copy(&from, &target.join("spool"));
        copies.push((answered.load(Ordering::SeqCst), target));
        Ok(())
    }));
    cuts
}

impl Cuts {
    /// No more are taken: what was answered at each, and the folder of its copy.
    pub fn end(self, spool: &SledSpool) -> Vec<(u64, PathBuf)> {
        spool.tree.store.watch.hook(Box::new(|| Ok(())));
        std::mem::take(&mut *self.copies.lock().expect("no panic"))
    }
}

macro_rules! over_both_bodies {
    ($($fact:ident),* $(,)?) => {
        mod memory {
            $(#[test]
            fn $fact() {
                super::$fact(&super::MemorySpool::new());
            })*
        }

        mod sled {
            $(#[test]
            fn $fact() {
                let folder = tempfile::tempdir().expect("a folder");
                super::$fact(&super::sled_in(folder.path()).expect("a spool"));
            })*
        }
    };
}

over_both_bodies!(
    a_message_reads_back_as_it_was_put,
    a_thousand_recipients_are_chunked_and_removed_without_trace,
    removal_leaves_the_tree_empty,
    of_two_changes_of_one_key_the_later_one_counts,
    due_pages_in_order_and_tells_the_next_due_time,
    recipients_of_one_message_share_it_on_a_page,
    a_due_key_without_its_message_is_damaged,
    every_flipped_byte_of_a_record_is_noticed,
    quarantine_takes_a_message_out_and_keeps_every_byte,
    a_message_that_is_known_is_not_read,
    what_is_released_from_quarantine_is_as_it_was,
    what_is_discarded_from_quarantine_leaves_nothing,
    wakes_and_deadlines_come_in_order_of_time,
    destinations_are_remembered_and_forgotten,
    listing_pages_by_id_and_leaves_out_what_is_unreadable,
    counters_are_those_of_the_last_commit,
    a_settled_recipient_keeps_its_end_until_the_message_goes,
);
