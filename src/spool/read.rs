//! From records to what the relay knows. Runs beside commits: each function says why what it sees fits together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use sled::IVec;

use super::database::Tree;
use super::record::{self, Kind, Unreadable};
use super::{COUNTED_MAX, Counters, DestinationRecord, DueKey, DuePage, SpoolError, Survey, Waiting, keys};
use crate::mail::envelope::{Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

/// What stands in the way of a record: the tree, or the record itself.
#[derive(Debug)]
enum Trouble {
    Tree(SpoolError),
    Record(Unreadable),
}

impl From<SpoolError> for Trouble {
    fn from(error: SpoolError) -> Self {
        Self::Tree(error)
    }
}

impl From<Unreadable> for Trouble {
    fn from(error: Unreadable) -> Self {
        Self::Record(error)
    }
}

impl Trouble {
    fn of(self, what: impl FnOnce() -> String) -> SpoolError {
        match self {
            Self::Tree(error) => error,
            Self::Record(error) => damaged(what(), &error),
        }
    }
}

fn damaged(what: String, error: &Unreadable) -> SpoolError {
    SpoolError::Damaged { what, reason: error.to_string() }
}

pub(super) fn due<T: Tree>(
    tree: &T,
    destination: &Domain,
    until_ms: u64,
    skip: &HashSet<(QueueId, u16)>,
    limit: usize,
    known: &dyn Fn(QueueId) -> bool,
) -> Result<DuePage, SpoolError> {
    let mut page = DuePage::default();
    let mut found = Vec::new();
    let prefix = keys::due_prefix(destination);
    tree.scan(&prefix, &keys::end_of(&prefix), &mut |key, _| {
        let Some((due_ms, id, number)) = keys::read_due(key) else { return true };
        if skip.contains(&(id, number)) {
            return true;
        }
        if due_ms > until_ms || found.len() >= limit {
            page.next_due_ms = Some(due_ms);
            return false;
        }
        found.push(DueKey { destination: destination.clone(), due_ms, id, number });
        true
    })?;
    page.items.reserve(found.len());
    let mut messages = HashMap::new();
    for key in found {
        if known(key.id) {
            page.items.push((key, None));
            continue;
        }
        let message = match messages.get(&key.id) {
            Some(message) => message,
            None => {
                let looked_up = look_up(tree, &key, &mut page.damaged)?;
                messages.entry(key.id).or_insert(looked_up)
            }
        };
        if let Some(message) = message {
            page.items.push((key, Some(message.clone())));
        }
    }
    Ok(page)
}

/// The message of a due key. One that is not there was either removed since the key was read, together with the
/// key, or is damaged.
pub(super) fn look_up<T: Tree>(
    tree: &T,
    key: &DueKey,
    damaged: &mut Vec<(QueueId, String)>,
) -> Result<Option<Arc<StoredMessage>>, SpoolError> {
    match message(tree, key.id) {
        Ok(Some(message)) => return Ok(Some(Arc::new(message))),
        Ok(None) => {
            if tree.get(&keys::due(key))?.is_some() {
                damaged.push((key.id, "its envelope is missing".to_owned()));
            }
        }
        Err(error @ SpoolError::Damaged { .. }) => damaged.push((key.id, error.to_string())),
        Err(error) => return Err(error),
    }
    Ok(None)
}

/// The states first: a message whose envelope is still there afterwards was there all the time, since its envelope
/// never changes and its id never comes again.
pub(super) fn message<T: Tree>(tree: &T, id: QueueId) -> Result<Option<StoredMessage>, SpoolError> {
    let mut written = Vec::new();
    let mut trouble = None;
    let prefix = keys::of_message(keys::STATE, id);
    tree.scan(&prefix, &keys::end_of(&prefix), &mut |key, value| {
        match (keys::read_number(key), record::read_state(value)) {
            (Some(number), Ok(state)) => written.push((number, state)),
            (None, Ok(_)) => trouble = Some(Unreadable::Field("key")),
            (_, Err(error)) => trouble = Some(error),
        }
        trouble.is_none()
    })?;
    let Some(envelope) = envelope(tree, id)? else { return Ok(None) };
    if let Some(error) = trouble {
        return Err(damaged(format!("a recipient of message {id}"), &error));
    }
    let mut states = vec![RecipientState::fresh(envelope.arrived_ms); envelope.recipients.len()];
    for (number, state) in written {
        let place = states
            .get_mut(usize::from(number))
            .ok_or_else(|| damaged(format!("message {id}"), &Unreadable::Field("number of recipients")))?;
        *place = state;
    }
    Ok(Some(StoredMessage { envelope: Arc::new(envelope), states }))
}

fn envelope<T: Tree>(tree: &T, id: QueueId) -> Result<Option<Envelope>, SpoolError> {
    let name = || format!("the envelope of message {id}");
    match chunks(tree, Kind::Envelope, id) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            record::read_envelope(id, &bytes).map(Some).map_err(|error| damaged(name(), &error))
        }
        // Removed between two of its chunks: then it is not damaged, but gone.
        Err(Trouble::Record(Unreadable::Chunk(_)))
            if tree.get(&keys::chunk(keys::ENVELOPE, id, 0))?.is_none() =>
        {
            Ok(None)
        }
        Err(trouble) => Err(trouble.of(name)),
    }
}

fn chunks<T: Tree>(tree: &T, kind: Kind, id: QueueId) -> Result<Option<Bytes>, Trouble> {
    let prefix = if kind == Kind::Envelope { keys::ENVELOPE } else { keys::CONTENT };
    record::read_chunks(kind, |number| Ok(tree.get(&keys::chunk(prefix, id, number))?))
}

pub(super) fn content<T: Tree>(tree: &T, id: QueueId) -> Result<Bytes, SpoolError> {
    let name = || format!("the content of message {id}");
    chunks(tree, Kind::Content, id)
        .map_err(|trouble| trouble.of(name))?
        .ok_or_else(|| damaged(name(), &Unreadable::Chunk(0)))
}

pub(super) fn list<T: Tree>(
    tree: &T,
    after: Option<QueueId>,
    limit: usize,
) -> Result<Vec<StoredMessage>, SpoolError> {
    let mut messages = Vec::new();
    let mut last = after;
    while messages.len() < limit {
        let ids = ids(tree, keys::ENVELOPE, last, limit - messages.len())?;
        let Some(end) = ids.last() else { break };
        last = Some(*end);
        for id in ids {
            match message(tree, id) {
                Ok(found) => messages.extend(found),
                Err(SpoolError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(messages)
}

pub(super) fn survey<T: Tree>(tree: &T, from: QueueId, limit: usize) -> Result<Survey, SpoolError> {
    let first = keys::of_message(keys::ENVELOPE, from).to_vec();
    let mut ids = ids_from(tree, keys::ENVELOPE, &first, limit.saturating_add(1))?;
    let mut survey = Survey { next: ids.get(limit).copied(), ..Survey::default() };
    ids.truncate(limit);
    for id in ids {
        match message(tree, id) {
            Ok(found) => survey.messages.extend(found),
            Err(error @ SpoolError::Damaged { .. }) => survey.damaged.push((id, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(survey)
}

/// Up to `limit` ids above `after` that have keys with this prefix.
fn ids<T: Tree>(
    tree: &T,
    prefix: u8,
    after: Option<QueueId>,
    limit: usize,
) -> Result<Vec<QueueId>, SpoolError> {
    let from = after.map_or_else(|| vec![prefix], |id| keys::end_of(&keys::of_message(prefix, id)));
    ids_from(tree, prefix, &from, limit)
}

/// Up to `limit` ids that have keys with this prefix from the key `from` on.
fn ids_from<T: Tree>(tree: &T, prefix: u8, from: &[u8], limit: usize) -> Result<Vec<QueueId>, SpoolError> {
    let mut ids = Vec::new();
    tree.scan(from, &[prefix + 1], &mut |key, _| {
        if let Some(id) = keys::read_id(key)
            && ids.last() != Some(&id)
        {
            if ids.len() >= limit {
                return false;
            }
            ids.push(id);
        }
        true
    })?;
    Ok(ids)
}

pub(super) fn wakes<T: Tree>(
    tree: &T,
    after: Option<&(u64, Domain)>,
    limit: usize,
) -> Result<Vec<(u64, Domain)>, SpoolError> {
    let after = after.map(|(at_ms, destination)| keys::wake(*at_ms, destination));
    index(tree, keys::WAKE, after, limit, keys::read_wake)
}

pub(super) fn deadlines<T: Tree>(
    tree: &T,
    after: Option<(u64, QueueId)>,
    limit: usize,
) -> Result<Vec<(u64, QueueId)>, SpoolError> {
    let after = after.map(|(at_ms, id)| keys::deadline(at_ms, id));
    index(tree, keys::DEADLINE, after, limit, keys::read_deadline)
}

/// Up to `limit` keys of an index, as `parse` reads them, after the key `after`.
fn index<T: Tree, E>(
    tree: &T,
    prefix: u8,
    after: Option<Vec<u8>>,
    limit: usize,
    parse: fn(&[u8]) -> Option<E>,
) -> Result<Vec<E>, SpoolError> {
    let from = after.map_or_else(|| vec![prefix], keys::after);
    let mut entries = Vec::new();
    tree.scan(&from, &[prefix + 1], &mut |key, _| {
        if entries.len() < limit {
            entries.extend(parse(key));
        }
        entries.len() < limit
    })?;
    Ok(entries)
}

pub(super) fn destination<T: Tree>(
    tree: &T,
    destination: &Domain,
) -> Result<Option<DestinationRecord>, SpoolError> {
    let record = tree.get(&keys::destination(destination))?;
    record
        .map(|record| record::read_destination(&record))
        .transpose()
        .map_err(|error| damaged(format!("destination {destination}"), &error))
}

pub(super) fn destinations<T: Tree>(
    tree: &T,
    after: Option<&Domain>,
    limit: usize,
) -> Result<Vec<(Domain, DestinationRecord)>, SpoolError> {
    let after = after.map(keys::destination);
    pairs(tree, keys::DESTINATION, after, limit, keys::read_destination, record::read_destination)
}

pub(super) fn queued<T: Tree>(
    tree: &T,
    after: Option<&Domain>,
    limit: usize,
) -> Result<Vec<(Domain, Waiting)>, SpoolError> {
    let mut from = after.map_or_else(|| vec![keys::DUE], |name| keys::end_of(&keys::due_prefix(name)));
    let mut found = Vec::new();
    while found.len() < limit {
        let mut first = None;
        tree.scan(&from, &[keys::DUE + 1], &mut |key, _| {
            first = Some(key.to_vec());
            false
        })?;
        let Some(first) = first else { break };
        let Some(destination) = keys::read_due_key(&first).map(|key| key.destination) else {
            from = keys::after(first);
            continue;
        };
        let prefix = keys::due_prefix(&destination);
        let mut waiting = Waiting::default();
        tree.scan(&prefix, &keys::end_of(&prefix), &mut |key, _| {
            waiting.more = waiting.recipients >= COUNTED_MAX;
            waiting.recipients += u64::from(!waiting.more);
            if let (None, Some((due_ms, _, _))) = (waiting.next_due_ms, keys::read_due(key)) {
                waiting.next_due_ms = Some(due_ms);
            }
            !waiting.more
        })?;
        found.push((destination, waiting));
        from = keys::end_of(&prefix);
    }
    Ok(found)
}

pub(super) fn quarantined<T: Tree>(
    tree: &T,
    after: Option<QueueId>,
    limit: usize,
) -> Result<Vec<(QueueId, String)>, SpoolError> {
    let after = after.map(|id| keys::of_message(keys::REASON, id).to_vec());
    // A message must not be lost from sight because the reason can't be read.
    let reason_of = |record: &[u8]| Ok(reason(record));
    pairs(tree, keys::REASON, after, limit, keys::read_id, reason_of)
}

/// Why a message is in quarantine.
pub(super) fn reason(record: &[u8]) -> String {
    record::read_reason(record).unwrap_or_else(|error| format!("its reason can't be read: {error}"))
}

/// Up to `limit` keys and records after the key `after`; what can't be read is left out.
fn pairs<T: Tree, K, V>(
    tree: &T,
    prefix: u8,
    after: Option<Vec<u8>>,
    limit: usize,
    key_of: fn(&[u8]) -> Option<K>,
    record_of: fn(&[u8]) -> Result<V, Unreadable>,
) -> Result<Vec<(K, V)>, SpoolError> {
    let from = after.map_or_else(|| vec![prefix], keys::after);
    let mut entries = Vec::new();
    tree.scan(&from, &[prefix + 1], &mut |key, value| {
        if entries.len() < limit {
            entries.extend(key_of(key).zip(record_of(value).ok()));
        }
        entries.len() < limit
    })?;
    Ok(entries)
}

/// Any record counts: of a message that lost its envelope the rest is still to be quarantined.
pub(super) fn holds<T: Tree>(tree: &T, id: QueueId) -> Result<bool, SpoolError> {
    let kinds = [keys::ENVELOPE, keys::STATE, keys::CONTENT].map(|kind| keys::of_message(kind, id));
    let mut found = tree.get(&keys::of_message(keys::REASON, id))?.is_some();
    for prefix in kinds.iter().flat_map(|key| [key.to_vec(), keys::quarantined(key)]) {
        if !found {
            tree.scan(&prefix, &keys::end_of(&prefix), &mut |_, _| {
                found = true;
                false
            })?;
        }
    }
    Ok(found)
}

pub(super) fn counters<T: Tree>(tree: &T) -> Result<Counters, SpoolError> {
    let record: Option<IVec> = tree.get(keys::META_COUNTERS)?;
    record.map_or_else(
        || Ok(Counters::default()),
        |record| record::read_counters(&record).map_err(|error| damaged("the counters".to_owned(), &error)),
    )
}
