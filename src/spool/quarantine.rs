//! Quarantine: what can't be used is kept, byte by byte, until an operator decides.

use sled::IVec;

use super::content::{ContentFiles, wrong_length};
use super::database::{Change, Tree, Visit};
use super::write::Changes;
use super::{Quarantined, SpoolError, keys, read, record};
use crate::mail::envelope::{ContentPlace, Envelope, StoredMessage};
use crate::mail::id::QueueId;

/// The kinds of records that a message consists of.
const KINDS: [u8; 3] = [keys::ENVELOPE, keys::STATE, keys::CONTENT];

// S2, S3 → S5: all records move under the quarantine prefix, as they are.
pub(super) fn set_aside<T: Tree>(
    tree: &T,
    changes: &mut Changes,
    id: QueueId,
    reason: &str,
) -> Result<(), SpoolError> {
    for kind in KINDS {
        for (key, value) in changes.values(tree, &keys::of_message(kind, id))? {
            changes.put(&keys::quarantined(&key), value);
            changes.remove(&key);
        }
    }
    changes.put(&keys::of_message(keys::REASON, id), record::write_reason(reason));
    Ok(())
}

// S5 → S2: they move back; the Queue gives the message its keys in the same commit.
pub(super) fn release<T: Tree>(tree: &T, changes: &mut Changes, id: QueueId) -> Result<(), SpoolError> {
    // It may have been set aside by a program of an older format, and the migration has passed.
    take_out(tree, changes, id, |changes, key, value| {
        changes.put(&key[1..], record::carried(&value).unwrap_or(value));
    })
}

// S5 → S4 (content in a file, which goes after the commit) or S0.
pub(super) fn discard<T: Tree>(tree: &T, changes: &mut Changes, id: QueueId) -> Result<(), SpoolError> {
    take_out(tree, changes, id, |_, _, _| {})
}

fn take_out<T: Tree>(
    tree: &T,
    changes: &mut Changes,
    id: QueueId,
    keep: impl Fn(&mut Changes, &[u8], IVec),
) -> Result<(), SpoolError> {
    for kind in KINDS {
        for (key, value) in changes.values(tree, &keys::quarantined(&keys::of_message(kind, id)))? {
            keep(changes, &key, value);
            changes.remove(&key);
        }
    }
    changes.remove(&keys::of_message(keys::REASON, id));
    Ok(())
}

/// What is known of a message in quarantine.
pub(super) fn message<T: Tree>(tree: &T, id: QueueId) -> Result<Option<Quarantined>, SpoolError> {
    let Some(reason) = tree.get(&keys::of_message(keys::REASON, id))? else { return Ok(None) };
    let reason = read::reason(&reason);
    let (records, bytes) = records(tree, id)?;
    let message = stored(tree, id)?;
    let obstacle = match &message {
        Ok(found) => obstacle(&Shelf(tree), &found.envelope)?,
        Err(_) => None,
    };
    Ok(Some(Quarantined { id, reason, records, bytes, message, obstacle }))
}

/// How many records are kept of a message, and how many bytes they have.
pub(super) fn records<T: Tree>(tree: &T, id: QueueId) -> Result<(usize, u64), SpoolError> {
    let (mut records, mut bytes) = (0, 0);
    for kind in KINDS {
        let prefix = keys::quarantined(&keys::of_message(kind, id));
        tree.scan(&prefix, &keys::end_of(&prefix), &mut |_, value| {
            records += 1;
            bytes += value.len() as u64;
            true
        })?;
    }
    Ok((records, bytes))
}

/// What can be read of it without its content: the message, or what stands in the way.
pub(super) fn stored<T: Tree>(tree: &T, id: QueueId) -> Result<Result<StoredMessage, String>, SpoolError> {
    match read::message(&Shelf(tree), id) {
        Ok(Some(found)) => Ok(Ok(found)),
        Ok(None) => Ok(Err("its envelope is missing".to_owned())),
        Err(error @ SpoolError::Damaged { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// What is wrong with the content of a message, if anything is.
fn obstacle<T: Tree>(shelf: &Shelf<'_, T>, envelope: &Envelope) -> Result<Option<String>, SpoolError> {
    match &envelope.place {
        ContentPlace::File(name) => match shelf.0.files() {
            Some(files) => files.obstacle(name, envelope.size),
            None => Ok(Some("its content is in a file, and this spool has none".to_owned())),
        },
        ContentPlace::Database => match read::content(shelf, envelope.id) {
            Ok(content) => Ok(wrong_length(content.len() as u64, envelope.size)),
            Err(error @ SpoolError::Damaged { .. }) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        },
    }
}

/// The records in quarantine, read as if they were in their places.
struct Shelf<'a, T>(&'a T);

impl<T: Tree> Tree for Shelf<'_, T> {
    fn files(&self) -> Option<ContentFiles> {
        self.0.files()
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        self.0.get(&keys::quarantined(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        self.0
            .scan(&keys::quarantined(from), &keys::quarantined(to), &mut |key, value| visit(&key[1..], value))
    }

    fn apply(&self, _: Vec<Change>) -> Result<(), SpoolError> {
        Err(SpoolError::Closed("quarantine is for reading".to_owned()))
    }

    fn syncs(&self) -> u64 {
        self.0.syncs()
    }
}
