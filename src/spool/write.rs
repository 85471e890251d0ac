//! From operations to changes of the tree.

use std::collections::{BTreeMap, HashSet};

use sled::IVec;

use super::database::{Change, Tree};
use super::record::{self, Kind};
use super::{Op, SpoolError, keys, migrate, quarantine};
use crate::mail::envelope::{Content, ContentPlace, Envelope};
use crate::mail::id::QueueId;

/// What the operations change, in their order.
pub(super) fn changes<T: Tree>(tree: &T, ops: &[Op]) -> Result<Vec<Change>, SpoolError> {
    let mut changes = Changes(Vec::with_capacity(ops.len() + ops.len() / 2));
    let mut lost = HashSet::new();
    for op in ops {
        match op {
            Op::PutMessage(envelope, content) => put_message(tree, &mut changes, envelope, content)?,
            Op::PutRecipient(id, number, state) => {
                changes.put(&keys::state(*id, *number), record::write_state(state));
            }
            Op::RemoveMessage { envelope, states } => remove_message(&mut changes, envelope, *states),
            Op::PutDue(due) => changes.put(&keys::due(due), IVec::default()),
            Op::DeleteDue(due) => changes.remove(&keys::due(due)),
            Op::PutWake(at_ms, destination) => changes.put(&keys::wake(*at_ms, destination), IVec::default()),
            Op::DeleteWake(at_ms, destination) => changes.remove(&keys::wake(*at_ms, destination)),
            Op::PutDeadline(at_ms, id) => changes.put(&keys::deadline(*at_ms, *id), IVec::default()),
            Op::DeleteDeadline(at_ms, id) => changes.remove(&keys::deadline(*at_ms, *id)),
            Op::PutDestination(destination, state) => {
                changes.put(&keys::destination(destination), record::write_destination(state));
            }
            Op::DeleteDestination(destination) => changes.remove(&keys::destination(destination)),
            Op::Quarantine(id, reason) => {
                quarantine::set_aside(tree, &mut changes, *id, reason)?;
                lost.insert(*id);
            }
            Op::Release(id) => quarantine::release(tree, &mut changes, *id)?,
            Op::Discard(id, _) => quarantine::discard(tree, &mut changes, *id)?,
            Op::Counters(counters) => changes.put(keys::META_COUNTERS, record::write_counters(counters)),
            Op::Migrate => migrate::step(tree, &mut changes)?,
        }
    }
    if !lost.is_empty() {
        remove_pointers(tree, &mut changes, &lost)?;
    }
    Ok(changes.0)
}

pub(super) struct Changes(Vec<Change>);

impl Changes {
    pub fn put(&mut self, key: &[u8], value: IVec) {
        self.0.push((key.into(), Some(value)));
    }

    pub fn remove(&mut self, key: &[u8]) {
        self.0.push((key.into(), None));
    }

    /// What the tree will have under the keys that start with `prefix`, once the changes so far are applied.
    pub fn values<T: Tree>(&self, tree: &T, prefix: &[u8]) -> Result<Vec<(IVec, IVec)>, SpoolError> {
        let mut pairs = BTreeMap::new();
        tree.scan(prefix, &keys::end_of(prefix), &mut |key, value| {
            pairs.insert(IVec::from(key), Some(IVec::from(value)));
            true
        })?;
        let staged = self.0.iter().filter(|(key, _)| key.starts_with(prefix));
        pairs.extend(staged.cloned());
        Ok(pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }
}

// S1 → S2 or S3: with this batch on disk the message is queued.
fn put_message<T: Tree>(
    tree: &T,
    changes: &mut Changes,
    envelope: &Envelope,
    content: &Content,
) -> Result<(), SpoolError> {
    let id = envelope.id;
    for (number, chunk) in record::write_chunks(Kind::Envelope, &record::write_envelope(envelope)) {
        changes.put(&keys::chunk(keys::ENVELOPE, id, number), chunk);
    }
    match content {
        Content::Memory(bytes) => {
            debug_assert_eq!(
                bytes.len() as u64,
                envelope.size,
                "the envelope tells how many chunks there are"
            );
            for (number, chunk) in record::write_chunks(Kind::Content, bytes) {
                changes.put(&keys::chunk(keys::CONTENT, id, number), chunk);
            }
            Ok(())
        }
        Content::File { .. } if tree.files().is_some() => Ok(()),
        Content::File { name, .. } => Err(SpoolError::Damaged {
            what: format!("message {id}"),
            reason: format!("its content is in file {name}, and this spool has no files"),
        }),
    }
}

// S2, S3 → S4 (content in a file, which goes after the commit) or S0.
fn remove_message(changes: &mut Changes, envelope: &Envelope, states: bool) {
    let id = envelope.id;
    for number in 0..record::chunks(record::envelope_len(envelope)) {
        changes.remove(&keys::chunk(keys::ENVELOPE, id, number));
    }
    if envelope.place == ContentPlace::Database {
        for number in 0..record::chunks(usize::try_from(envelope.size).unwrap_or(usize::MAX)) {
            changes.remove(&keys::chunk(keys::CONTENT, id, number));
        }
    }
    if states {
        for (number, _) in (0..).zip(&envelope.recipients) {
            changes.remove(&keys::state(id, number));
        }
    }
}

/// Takes due and deadline keys of quarantined messages out, so that nobody finds them again. The records that name
/// them may be what is damaged, so the indexes themselves are searched: keys only, once for a commit, and rare.
fn remove_pointers<T: Tree>(
    tree: &T,
    changes: &mut Changes,
    lost: &HashSet<QueueId>,
) -> Result<(), SpoolError> {
    for (prefix, id_of) in [
        (keys::DUE, (|key| keys::read_due(key).map(|(_, id, _)| id)) as fn(&[u8]) -> Option<QueueId>),
        (keys::DEADLINE, |key| keys::read_deadline(key).map(|(_, id)| id)),
    ] {
        let mut found: Vec<IVec> = Vec::new();
        let mut visit = |key: &[u8]| {
            if id_of(key).is_some_and(|id| lost.contains(&id)) {
                found.push(key.into());
            }
        };
        tree.scan(&[prefix], &[prefix + 1], &mut |key, _| {
            visit(key);
            true
        })?;
        changes.0.iter().filter(|(key, _)| key.first() == Some(&prefix)).for_each(|(key, _)| visit(key));
        found.iter().for_each(|key| changes.remove(key));
    }
    Ok(())
}
