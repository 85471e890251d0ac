//! From the records that could be read to a new spool.

use std::collections::{HashMap, HashSet};
use std::fs;

use sled::IVec;

use super::super::content::ContentFiles;
use super::super::database::{Change, Tree};
use super::super::quarantine;
use super::super::sled::SledSpool;
use super::super::tools::END;
use super::super::{Counters, Op, SpoolError, Tally, keys, read, record, write};
use super::Report;
use super::tree::Salvaged;
use crate::mail::envelope::{Content, ContentPlace, Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;

/// The kinds of records that a message consists of.
const KINDS: [u8; 3] = [keys::ENVELOPE, keys::STATE, keys::CONTENT];
/// A commit is written when it has this many bytes,
const COMMIT_BYTES: usize = 4 << 20;
/// or this many changes.
const COMMIT_CHANGES: usize = 10_000;

/// Copies what `old` has into `new`, and says what was left.
///
/// # Errors
/// Those of the new spool and of content files that can't be written.
pub(super) fn rebuild(old: &Salvaged, files: &ContentFiles, new: &SledSpool) -> Result<Report, SpoolError> {
    let mut rebuild = Rebuild {
        old,
        from: files,
        to: new.files(),
        new,
        counters: Counters::default(),
        changes: Vec::new(),
        bytes: 0,
        copied: HashSet::new(),
        names: None,
        report: Report::default(),
    };
    rebuild.messages()?;
    rebuild.destinations()?;
    rebuild.commit()?;
    rebuild.look_for_any()?;
    Ok(rebuild.finish())
}

struct Rebuild<'a> {
    old: &'a Salvaged,
    from: &'a ContentFiles,
    to: ContentFiles,
    new: &'a SledSpool,
    counters: Counters,
    /// The open commit,
    changes: Vec<Change>,
    /// and its size.
    bytes: usize,
    /// Content files that are in the new spool.
    copied: HashSet<String>,
    /// The old content files by message, once they were looked for.
    names: Option<HashMap<QueueId, Vec<String>>>,
    report: Report,
}

impl Rebuild<'_> {
    fn messages(&mut self) -> Result<(), SpoolError> {
        let mut after = None;
        while let Some(id) = self.next_id(after)? {
            after = Some(id);
            self.message(id)?;
        }
        Ok(())
    }

    /// The lowest id above `after` that any record is of.
    fn next_id(&self, after: Option<QueueId>) -> Result<Option<QueueId>, SpoolError> {
        let plain = KINDS.into_iter().chain([keys::REASON]).map(|kind| vec![kind]);
        let aside = KINDS.into_iter().map(|kind| keys::quarantined(&[kind]));
        let mut next = None;
        for prefix in plain.chain(aside) {
            let of_prefix = first_id(self.old, &prefix, after)?;
            next = next.into_iter().chain(of_prefix).min();
        }
        Ok(next)
    }

    fn message(&mut self, id: QueueId) -> Result<(), SpoolError> {
        match self.examine(id)? {
            Verdict::Whole(stored, content) => self.queue(&stored, content),
            Verdict::Finished => {
                self.report.finished += 1;
                Ok(())
            }
            Verdict::Aside => {
                let known = quarantine::message(self.old, id)?;
                self.report.quarantined_before += 1;
                let reason = known.map_or("its reason could not be read".to_owned(), |known| known.reason);
                self.set_aside(id, &reason)
            }
            Verdict::Damaged(reason) => {
                self.report.quarantined += 1;
                self.set_aside(id, &format!("rescued from a damaged spool: {reason}"))
            }
        }
    }

    /// What is there of a message.
    fn examine(&mut self, id: QueueId) -> Result<Verdict, SpoolError> {
        let stored = match read::message(self.old, id) {
            Ok(Some(stored)) => stored,
            Ok(None) if self.is_aside(id)? => return Ok(Verdict::Aside),
            Ok(None) => return Ok(Verdict::Damaged("its envelope is missing".to_owned())),
            Err(error @ SpoolError::Damaged { .. }) => return Ok(Verdict::Damaged(error.to_string())),
            Err(error) => return Err(error),
        };
        if stored.states.iter().all(|state| state.status.is_settled()) {
            return Ok(Verdict::Finished);
        }
        let envelope = &stored.envelope;
        let content = match &envelope.place {
            ContentPlace::Database => match read::content(self.old, id) {
                Ok(bytes) if bytes.len() as u64 == envelope.size => Content::Memory(bytes),
                Ok(bytes) => return Ok(Verdict::Damaged(wrong_size(bytes.len() as u64, envelope))),
                Err(error @ SpoolError::Damaged { .. }) => return Ok(Verdict::Damaged(error.to_string())),
                Err(error) => return Err(error),
            },
            ContentPlace::File(name) => {
                if let Err(why) = self.copy(name)? {
                    return Ok(Verdict::Damaged(why));
                }
                match self.to.verify(name, envelope.size) {
                    Ok(()) => Content::File { name: name.clone(), size: envelope.size, whole: None },
                    Err(SpoolError::Damaged { what, reason }) => {
                        self.report.files_missing += 1;
                        return Ok(Verdict::Damaged(format!("its {what}: {reason}")));
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(Verdict::Whole(stored, content))
    }

    /// Whether the message was in quarantine before.
    fn is_aside(&self, id: QueueId) -> Result<bool, SpoolError> {
        let mut aside = self.old.get(&keys::of_message(keys::REASON, id))?.is_some();
        for kind in KINDS {
            let prefix = keys::quarantined(&keys::of_message(kind, id));
            self.old.scan(&prefix, &keys::end_of(&prefix), &mut |_, _| {
                aside = true;
                false
            })?;
        }
        Ok(aside)
    }

    fn queue(&mut self, stored: &StoredMessage, content: Content) -> Result<(), SpoolError> {
        let (envelope, id) = (&stored.envelope, stored.envelope.id);
        let fresh = RecipientState::fresh(envelope.arrived_ms);
        let mut ops = vec![Op::PutMessage(envelope.clone(), content)];
        for (number, state) in (0..).zip(&stored.states) {
            if *state != fresh {
                ops.push(Op::PutRecipient(id, number, state.clone()));
            }
        }
        self.add(write::changes(&self.new.tree, &ops)?)?;
        self.counters.add(Tally::of(envelope, &stored.states));
        // Ids come in order: this is set once. The relay that starts here gives all from there on their keys.
        self.counters.unindexed_from.get_or_insert(id);
        Ok(())
    }

    /// Puts every record of a message into quarantine, as it is.
    fn set_aside(&mut self, id: QueueId, reason: &str) -> Result<(), SpoolError> {
        let mut records: Vec<Change> = Vec::new();
        for kind in KINDS {
            let plain = keys::of_message(kind, id);
            let aside = keys::quarantined(&plain);
            // Where both are there, the one that is in its place: it comes last.
            self.old.scan(&aside, &keys::end_of(&aside), &mut |key, value| {
                records.push((key.into(), Some(value.into())));
                true
            })?;
            self.old.scan(&plain, &keys::end_of(&plain), &mut |key, value| {
                records.push((keys::quarantined(key).into(), Some(value.into())));
                true
            })?;
        }
        self.copy_all(id)?;
        self.add(records)?;
        let reason = record::write_reason(reason);
        self.add(vec![(IVec::from(&keys::of_message(keys::REASON, id)), Some(reason))])?;
        self.counters.quarantined += 1;
        Ok(())
    }

    /// Copies a content file as it is; the answer in it says why it can't be read, if it can't.
    fn copy(&mut self, name: &str) -> Result<Result<(), String>, SpoolError> {
        if self.copied.contains(name) {
            return Ok(Ok(()));
        }
        match self.to.copy_from(self.from, name)? {
            Ok(()) => {
                self.copied.insert(name.to_owned());
                Ok(Ok(()))
            }
            Err(error) => {
                self.report.files_missing += 1;
                Ok(Err(format!("its content file {name} can't be read: {error}")))
            }
        }
    }

    /// Copies every content file that bears the id of a message.
    fn copy_all(&mut self, id: QueueId) -> Result<(), SpoolError> {
        let from = self.from;
        let names = self.names.get_or_insert_with(|| from.names().unwrap_or_default());
        for name in names.get(&id).cloned().unwrap_or_default() {
            // Damage is told in the reason already.
            let _ = self.copy(&name)?;
        }
        Ok(())
    }

    fn destinations(&mut self) -> Result<(), SpoolError> {
        let mut from = vec![keys::DESTINATION];
        loop {
            let (mut ops, mut last) = (Vec::new(), None);
            self.old.scan(&from, &[keys::DESTINATION + 1], &mut |key, value| {
                match (keys::read_destination(key), record::read_destination(value)) {
                    (Some(destination), Ok(record)) => ops.push(Op::PutDestination(destination, record)),
                    _ => self.report.records_unreadable += 1,
                }
                last = Some(key.to_vec());
                ops.len() < COMMIT_CHANGES
            })?;
            self.add(write::changes(&self.new.tree, &ops)?)?;
            let Some(last) = last else { return Ok(()) };
            from = keys::after(last);
        }
    }

    fn add(&mut self, changes: Vec<Change>) -> Result<(), SpoolError> {
        for (key, value) in changes {
            self.bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            self.changes.push((key, value));
        }
        if self.bytes >= COMMIT_BYTES || self.changes.len() >= COMMIT_CHANGES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        self.bytes = 0;
        let mut changes = std::mem::take(&mut self.changes);
        changes.extend(write::changes(&self.new.tree, &[Op::Counters(self.counters)])?);
        self.new.tree.apply(changes)
    }

    fn look_for_any(&mut self) -> Result<(), SpoolError> {
        self.report.database_empty = true;
        self.old.scan(&[], &END, &mut |_, _| {
            self.report.database_empty = false;
            false
        })
    }

    fn finish(mut self) -> Report {
        let files = fs::read_dir(self.from.folder()).map_or(0, Iterator::count);
        let (damage, pages) = (self.old.damage(), self.old.pages());
        self.report.messages = self.counters.messages;
        self.report.recipients = self.counters.recipients;
        self.report.bytes = self.counters.bytes;
        let counted = self.old.get(keys::META_COUNTERS).ok().flatten();
        let counted = counted.and_then(|found| record::read_counters(&found).ok());
        self.report.counted = counted.map(|counted| counted.messages + counted.quarantined);
        self.report.files_left = files.saturating_sub(self.copied.len()) as u64;
        self.report.segments_unreadable = damage.segments;
        self.report.records_unreadable += damage.messages;
        (self.report.pages_older, self.report.pages_missing) = (pages.older, pages.missing);
        self.report
    }
}

/// What becomes of a message.
enum Verdict {
    /// It can be delivered.
    Whole(StoredMessage, Content),
    /// Each recipient has its fate.
    Finished,
    /// It was in quarantine.
    Aside,
    /// Something is missing.
    Damaged(String),
}

fn wrong_size(size: u64, envelope: &Envelope) -> String {
    format!("its content has {size} bytes instead of {}", envelope.size)
}

/// The lowest id above `after` that a key with this prefix has.
fn first_id(tree: &Salvaged, prefix: &[u8], after: Option<QueueId>) -> Result<Option<QueueId>, SpoolError> {
    let behind = |id: QueueId| keys::end_of(&[prefix, id.as_bytes()].concat());
    let from = after.map_or_else(|| prefix.to_vec(), behind);
    let mut first = None;
    tree.scan(&from, &keys::end_of(prefix), &mut |key, _| {
        // The id is behind the last byte of the prefix.
        first = keys::read_id(&key[prefix.len() - 1..]);
        first.is_none()
    })?;
    Ok(first)
}
