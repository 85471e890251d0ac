//! What must hold between the records of a message and its keys, and the looks that find where it does not.
//!
//! Reads no content. Each look is bounded, so that one after the other can go through a long queue in the background.

use std::collections::{HashMap, HashSet};

use super::database::Tree;
use super::{Counters, DueKey, Patrolled, SpoolError, Strays, Survey, Tally, keys, read};
use crate::mail::envelope::{ContentPlace, Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;

/// Deadline keys that a look reads at most to find those of its messages that are not where they are expected.
const DEADLINES_MAX: usize = 100_000;

/// The time of the one due key that a recipient in this state has on disk; `None` when it must have none.
pub fn due_time(state: &RecipientState) -> Option<u64> {
    (!state.status.is_settled() && !state.held).then_some(state.due_ms)
}

/// Whether a due key is that of a recipient in this message.
pub fn is_due_key_of(key: &DueKey, envelope: &Envelope, states: &[RecipientState]) -> bool {
    let number = usize::from(key.number);
    let recipient = envelope.recipients.get(number).zip(states.get(number));
    recipient.is_some_and(|(recipient, state)| {
        recipient.destination == key.destination && due_time(state) == Some(key.due_ms)
    })
}

/// Where the deadline keys of messages may be.
pub struct Deadlines<'a> {
    /// The times that the key of a message may have.
    pub of: &'a dyn Fn(&Envelope) -> Vec<u64>,
    /// Up to this time (ms) there may be a key of any message.
    pub until_ms: u64,
}

pub(super) fn messages<T: Tree>(
    tree: &T,
    from: QueueId,
    limit: usize,
    deadlines: &Deadlines<'_>,
) -> Result<Patrolled, SpoolError> {
    let Survey { messages, damaged, next } = read::survey(tree, from, limit)?;
    let mut found = Patrolled { damaged, next, ..Patrolled::default() };
    let mut undated = HashMap::new();
    for stored in messages {
        let tally = Tally::of(&stored.envelope, &stored.states);
        let lacks_due = lacks_due_key(tree, &stored)?;
        let lacks_deadline =
            tally.recipients > 0 && !has_deadline(tree, &stored.envelope, &(deadlines.of)(&stored.envelope))?;
        found.tallies.push((stored.envelope.id, tally));
        if lacks_due {
            found.lacking.push(stored);
        } else if lacks_deadline {
            undated.insert(stored.envelope.id, stored);
        }
    }
    look_everywhere(tree, undated, deadlines.until_ms, &mut found)?;
    Ok(found)
}

fn lacks_due_key<T: Tree>(tree: &T, stored: &StoredMessage) -> Result<bool, SpoolError> {
    let envelope = &stored.envelope;
    for (number, (recipient, state)) in (0..).zip(envelope.recipients.iter().zip(&stored.states)) {
        if let Some(due_ms) = due_time(state) {
            let destination = recipient.destination.clone();
            let key = keys::due(&DueKey { destination, due_ms, id: envelope.id, number });
            if tree.get(&key)?.is_none() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn has_deadline<T: Tree>(tree: &T, envelope: &Envelope, times: &[u64]) -> Result<bool, SpoolError> {
    for at_ms in times {
        if tree.get(&keys::deadline(*at_ms, envelope.id))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks through all deadline keys for those of messages that have none where it would be by now.
fn look_everywhere<T: Tree>(
    tree: &T,
    mut missing: HashMap<QueueId, StoredMessage>,
    until_ms: u64,
    found: &mut Patrolled,
) -> Result<(), SpoolError> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut left = DEADLINES_MAX;
    tree.scan(&[keys::DEADLINE], &[keys::DEADLINE + 1], &mut |key, _| {
        if let Some((at_ms, id)) = keys::read_deadline(key)
            && let Some(stored) = missing.remove(&id)
            && at_ms > until_ms
        {
            found.misdated.push(stored);
        }
        left -= 1;
        left > 0 && !missing.is_empty()
    })?;
    let rest = if left == 0 { &mut found.misdated } else { &mut found.undated };
    rest.extend(missing.into_values());
    Ok(())
}

pub(super) fn strays<T: Tree>(tree: &T, after: Option<&DueKey>, limit: usize) -> Result<Strays, SpoolError> {
    let from = after.map_or_else(|| vec![keys::DUE], |key| keys::after(keys::due(key)));
    let (mut looked, mut more) = (Vec::new(), false);
    tree.scan(&from, &[keys::DUE + 1], &mut |key, _| {
        more = looked.len() >= limit;
        if !more {
            looked.extend(keys::read_due_key(key));
        }
        !more
    })?;
    let mut found = Strays { next: looked.last().filter(|_| more).cloned(), ..Strays::default() };
    let (mut messages, mut damaged) = (HashMap::new(), HashSet::new());
    for key in looked {
        if damaged.contains(&key.id) {
            continue;
        }
        let message = match messages.get(&key.id) {
            Some(message) => message,
            None => match read::look_up(tree, &key, &mut found.damaged)? {
                Some(message) => messages.entry(key.id).or_insert(message),
                None => {
                    damaged.insert(key.id);
                    continue;
                }
            },
        };
        if !is_due_key_of(&key, &message.envelope, &message.states) {
            found.keys.push(key);
        }
    }
    Ok(found)
}

impl Tally {
    /// What a message with recipients in these states counts.
    pub fn of(envelope: &Envelope, states: &[RecipientState]) -> Self {
        let waiting = states.iter().filter(|state| !state.status.is_settled()).count() as u64;
        let held = states.iter().filter(|state| state.held && !state.status.is_settled()).count() as u64;
        Self { recipients: waiting, held, ..Self::fresh(envelope) }
    }

    /// What a new message counts.
    pub fn fresh(envelope: &Envelope) -> Self {
        let in_tree = envelope.place == ContentPlace::Database;
        Self {
            recipients: envelope.recipients.len() as u64,
            bytes: envelope.size,
            tree_bytes: if in_tree { envelope.size } else { 0 },
            held: 0,
        }
    }
}

impl Counters {
    /// One more message.
    pub fn add(&mut self, tally: Tally) {
        self.messages += 1;
        self.recipients += tally.recipients;
        self.bytes += tally.bytes;
        self.tree_bytes += tally.tree_bytes;
        self.held += tally.held;
    }

    /// One message less.
    pub fn subtract(&mut self, tally: Tally) {
        self.messages = self.messages.saturating_sub(1);
        self.recipients = self.recipients.saturating_sub(tally.recipients);
        self.bytes = self.bytes.saturating_sub(tally.bytes);
        self.tree_bytes = self.tree_bytes.saturating_sub(tally.tree_bytes);
        self.held = self.held.saturating_sub(tally.held);
    }
}
