//! Every message: its records and content, its due keys and its deadline.

use super::{ANEW, Check, each_id};
use crate::mail::envelope::{ContentPlace, StoredMessage};
use crate::mail::id::QueueId;
use crate::spool::content::wrong_length;
use crate::spool::database::Tree;
use crate::spool::{DueKey, Spool, SpoolError, Tally, due_time, keys, read, record};

/// Messages whose deadlines are looked for in one pass over that index: what is in memory, 100,000 × 24 bytes, against how
/// often the index is read.
const WINDOW: usize = 100_000;

/// A message whose deadline keys are counted.
struct Seen {
    id: QueueId,
    readable: bool,
    unindexed: bool,
    deadlines: u32,
}

impl Check<'_> {
    pub(super) fn messages(&mut self) -> Result<(), SpoolError> {
        let mut window = Vec::new();
        let mut matched = 0;
        each_id(self.tree, &[keys::ENVELOPE], |id| {
            let seen = self.message(id)?;
            window.extend(seen);
            if window.len() == WINDOW {
                matched += self.deadlines(&mut window)?;
            }
            Ok::<(), SpoolError>(())
        })?;
        matched += self.deadlines(&mut window)?;
        self.records_without_envelope()?;
        if matched < self.checked.deadline_keys {
            self.stray_deadlines()?;
        }
        Ok(())
    }

    fn message(&mut self, id: QueueId) -> Result<Option<Seen>, SpoolError> {
        let seen = |readable, unindexed| Some(Seen { id, readable, unindexed, deadlines: 0 });
        let stored = match read::message(self.tree, id) {
            Ok(Some(stored)) => stored,
            Ok(None) => {
                self.unreadable(format!("the beginning of the envelope of message {id} is missing"));
                return Ok(seen(false, false));
            }
            Err(error @ SpoolError::Damaged { .. }) => {
                self.unreadable(error.to_string());
                return Ok(seen(false, false));
            }
            Err(error) => return Err(error),
        };
        let waiting = stored.states.iter().filter(|state| !state.status.is_settled()).count() as u64;
        self.checked.messages += 1;
        self.checked.recipients += waiting;
        self.checked.held += Tally::of(&stored.envelope, &stored.states).held;
        self.checked.bytes += stored.envelope.size;
        if waiting == 0 {
            self.damage(format!("message {id} is still here, though each recipient has met its fate"));
        }
        self.content(&stored)?;
        self.surplus(&stored)?;
        let lacking = self.due_keys(&stored)?;
        let unindexed = self.may_be_unindexed(id);
        if lacking > 0 && unindexed {
            self.checked.unindexed += 1;
        } else if lacking > 0 {
            self.damage(format!(
                "{lacking} of {waiting} recipients of message {id} have no due key and would wait for ever; the relay finds \
                 them an hour or more after its start, or {ANEW}"
            ));
        }
        Ok(seen(true, unindexed))
    }

    fn unreadable(&mut self, why: String) {
        self.checked.unreadable += 1;
        self.damage(format!("{why}; the relay sets it aside: see `posthaste queue quarantine list`"));
    }

    fn content(&mut self, stored: &StoredMessage) -> Result<(), SpoolError> {
        let (id, size) = (stored.envelope.id, stored.envelope.size);
        match &stored.envelope.place {
            ContentPlace::Database => {
                self.checked.tree_bytes += size;
                match self.spool.content(id) {
                    Ok(content) => {
                        if let Some(why) = wrong_length(content.len() as u64, size) {
                            self.damage(format!("the content of message {id} can't be delivered: {why}"));
                        }
                    }
                    Err(error @ SpoolError::Damaged { .. }) => {
                        self.damage(format!("{error}; it can't be delivered"));
                    }
                    Err(error) => return Err(error),
                }
            }
            ContentPlace::File(name) => match self.files.verify(name, size) {
                Ok(()) => {}
                Err(SpoolError::Damaged { reason, .. }) => self
                    .damage(format!("the content file {name} of message {id} can't be delivered: {reason}")),
                Err(error) => {
                    self.damage(format!("the content file {name} of message {id} can't be read: {error}"));
                }
            },
        }
        Ok(())
    }

    /// Chunks that nothing reads, and that stay when the message goes.
    fn surplus(&mut self, stored: &StoredMessage) -> Result<(), SpoolError> {
        let envelope = &stored.envelope;
        let content = match envelope.place {
            ContentPlace::Database => record::chunks(usize::try_from(envelope.size).unwrap_or(usize::MAX)),
            ContentPlace::File(_) => 0,
        };
        let parts = [
            (keys::ENVELOPE, record::chunks(record::envelope_len(envelope)), "envelope"),
            (keys::CONTENT, content, "content"),
        ];
        for (kind, expected, name) in parts {
            let prefix = keys::of_message(kind, envelope.id);
            let mut there = 0;
            self.tree.scan(&prefix, &keys::end_of(&prefix), &mut |_, _| {
                there += 1;
                true
            })?;
            if there > expected {
                let id = envelope.id;
                self.harmless(format!(
                    "message {id} has {} records of {name} that nothing reads",
                    there - expected
                ));
            }
        }
        Ok(())
    }

    /// How many recipients that wait lack their due keys. Counts those that are there.
    fn due_keys(&mut self, stored: &StoredMessage) -> Result<u64, SpoolError> {
        let envelope = &stored.envelope;
        let mut lacking = 0;
        for (number, (recipient, state)) in (0..).zip(envelope.recipients.iter().zip(&stored.states)) {
            let Some(due_ms) = due_time(state) else { continue };
            let destination = recipient.destination.clone();
            let key = keys::due(&DueKey { destination, due_ms, id: envelope.id, number });
            match self.tree.get(&key)? {
                Some(_) => self.checked.due_keys += 1,
                None => lacking += 1,
            }
        }
        Ok(lacking)
    }

    /// Looks for the deadline keys of the messages in the window, and empties it. Returns how many there are.
    fn deadlines(&mut self, window: &mut Vec<Seen>) -> Result<u64, SpoolError> {
        let (mut all, mut matched) = (0, 0);
        self.tree.scan(&[keys::DEADLINE], &[keys::DEADLINE + 1], &mut |key, _| {
            all += 1;
            let id = keys::read_deadline(key).map(|(_, id)| id);
            let at = id.and_then(|id| window.binary_search_by_key(&id, |seen| seen.id).ok());
            if let Some(seen) = at.and_then(|at| window.get_mut(at)) {
                seen.deadlines += 1;
                matched += 1;
            }
            true
        })?;
        self.checked.deadline_keys = all;
        for Seen { id, readable, unindexed, deadlines } in window.drain(..) {
            if readable && !unindexed && deadlines == 0 {
                self.damage(format!("message {id} has no deadline key: it would never expire; {ANEW}"));
            }
            if deadlines > 1 {
                self.harmless(format!(
                    "message {id} has {deadlines} deadline keys: the relay removes those that are no more"
                ));
            }
        }
        Ok(matched)
    }

    fn stray_deadlines(&mut self) -> Result<(), SpoolError> {
        super::each_pair(self.tree, &[keys::DEADLINE], &[keys::DEADLINE + 1], |key, _| {
            let Some((_, id)) = keys::read_deadline(key) else {
                let key = super::shown(key);
                self.harmless(format!("deadline key {key} can't be read, and nothing reads it"));
                return Ok(());
            };
            let prefix = keys::of_message(keys::ENVELOPE, id);
            if !self.has_any(&prefix)? {
                self.harmless(format!(
                    "a deadline key leads to message {id}, which is gone: the relay removes it"
                ));
            }
            Ok(())
        })
    }

    /// States and content of which the envelope is gone: nobody finds them.
    fn records_without_envelope(&mut self) -> Result<(), SpoolError> {
        for (kind, name) in [(keys::STATE, "states of recipients"), (keys::CONTENT, "content")] {
            each_id(self.tree, &[kind], |id| {
                if !self.has_any(&keys::of_message(keys::ENVELOPE, id))? {
                    self.damage(format!(
                        "{name} of message {id} are here, but its envelope is gone; `posthaste spool export` writes them \
                         as a message in quarantine"
                    ));
                }
                Ok::<(), SpoolError>(())
            })?;
        }
        Ok(())
    }

    /// Whether any key starts with this.
    pub(super) fn has_any(&self, prefix: &[u8]) -> Result<bool, SpoolError> {
        let mut found = false;
        self.tree.scan(prefix, &keys::end_of(prefix), &mut |_, _| {
            found = true;
            false
        })?;
        Ok(found)
    }
}
