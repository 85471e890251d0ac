//! The messages that are in memory, and where each of their recipients stands right now.
//!
//! What is here is the truth: stored state plus what is in the open commit. A reader of the spool may see an older
//! (or a not yet durable) state, so a message stays here until its last commit is on disk *and* every read that began
//! before that has come back.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::mail::envelope::{Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

/// Where a recipient of a resident message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Only on disk, to be found through the due index.
    Disk,
    /// Waiting for the commit that makes it ours.
    Arriving,
    /// In its destination's window, waiting for a slot.
    Ready,
    /// With a Delivery, or waiting for its report to be written.
    InFlight,
    /// Its change waits for its commit.
    Settling,
}

/// What an operator asked for while the recipient was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Retry,
    Remove,
}

/// A message in memory.
#[derive(Debug)]
pub(super) struct Resident {
    pub envelope: Arc<Envelope>,
    pub states: Vec<RecipientState>,
    pub places: Vec<Place>,
    /// The content while it is fresh; `None` once it must be read back.
    pub content: Option<Bytes>,
    /// Whether state records were ever written.
    pub records: bool,
    /// The time of its deadline key; `None` when not known (paged in): found again when it fires.
    pub deadline_ms: Option<u64>,
    /// Wishes that wait for a report.
    pub wishes: Vec<(u16, Wish)>,
    held: usize,
}

impl Resident {
    /// Recipients that have not met their fate.
    pub fn unsettled(&self) -> usize {
        self.states.iter().filter(|state| !state.status.is_settled()).count()
    }
}

/// All messages in memory.
#[derive(Debug, Default)]
pub(super) struct Residents {
    messages: HashMap<QueueId, Resident>,
    lingering: VecDeque<(u64, QueueId)>,
    reads: BTreeSet<u64>,
    next_read: u64,
    content_bytes: usize,
    held: usize,
}

impl Residents {
    pub fn get(&self, id: QueueId) -> Option<&Resident> {
        self.messages.get(&id)
    }

    pub fn get_mut(&mut self, id: QueueId) -> Option<&mut Resident> {
        self.messages.get_mut(&id)
    }

    /// Bytes of fresh content in memory.
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }

    /// Messages in memory.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Recipients in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in a new message whose commit is still to come.
    pub fn arrive(&mut self, envelope: Arc<Envelope>, content: Option<Bytes>, deadline_ms: u64) {
        let count = envelope.recipients.len();
        let states = vec![RecipientState::fresh(envelope.arrived_ms); count];
        self.content_bytes += content.as_ref().map_or(0, Bytes::len);
        self.held += count;
        let resident = Resident {
            states,
            places: vec![Place::Arriving; count],
            content,
            records: false,
            deadline_ms: Some(deadline_ms),
            wishes: Vec::new(),
            held: count,
            envelope: envelope.clone(),
        };
        self.messages.insert(envelope.id, resident);
    }

    /// Takes in a message that was read from the spool, unless it is here already, and returns what holds.
    pub fn adopt(&mut self, stored: &StoredMessage) -> &mut Resident {
        self.messages.entry(stored.envelope.id).or_insert_with(|| Resident {
            places: vec![Place::Disk; stored.states.len()],
            records: stored
                .states
                .iter()
                .any(|state| *state != RecipientState::fresh(stored.envelope.arrived_ms)),
            states: stored.states.clone(),
            content: None,
            deadline_ms: None,
            wishes: Vec::new(),
            held: 0,
            envelope: stored.envelope.clone(),
        })
    }

    /// Moves a recipient; going to [`Place::Disk`] may let the message go. Returns the change in how many of the
    /// message's recipients are held in memory (+1, 0 or -1).
    pub fn put(&mut self, id: QueueId, number: u16, to: Place) -> i32 {
        let Some(resident) = self.messages.get_mut(&id) else { return 0 };
        let place = &mut resident.places[usize::from(number)];
        let was_held = *place != Place::Disk;
        *place = to;
        match (was_held, to != Place::Disk) {
            (false, true) => {
                resident.held += 1;
                self.held += 1;
                1
            }
            (true, false) => {
                resident.held -= 1;
                self.held -= 1;
                self.release(id);
                -1
            }
            _ => 0,
        }
    }

    /// Lets a message go when nothing holds it and no read can still bring an older state of it.
    pub fn release(&mut self, id: QueueId) {
        let Some(resident) = self.messages.get_mut(&id) else { return };
        if resident.held > 0 {
            return;
        }
        self.content_bytes -= resident.content.take().map_or(0, |content| content.len());
        if self.reads.is_empty() {
            self.messages.remove(&id);
        } else {
            self.lingering.push_back((self.next_read, id));
        }
    }

    /// The recipients of a destination that are in memory, for a page to skip.
    pub fn in_memory_for(&self, destination: &Domain) -> HashSet<(QueueId, u16)> {
        let of = |resident: &Resident| {
            let id = resident.envelope.id;
            (0..)
                .zip(resident.places.iter().zip(&resident.envelope.recipients))
                .filter(|(_, (place, recipient))| {
                    **place != Place::Disk && recipient.destination == *destination
                })
                .map(|(number, _)| (id, number))
                .collect::<Vec<_>>()
        };
        self.messages.values().flat_map(of).collect()
    }

    /// A read of the spool begins; its ticket comes back with the answer.
    pub fn read_begins(&mut self) -> u64 {
        self.next_read += 1;
        self.reads.insert(self.next_read);
        self.next_read
    }

    /// A read has been dealt with. Call it after its results were adopted.
    pub fn read_ends(&mut self, ticket: u64) {
        self.reads.remove(&ticket);
        let oldest = self.reads.first().copied().unwrap_or(u64::MAX);
        while let Some((since, id)) = self.lingering.front().copied() {
            if since >= oldest {
                break;
            }
            self.lingering.pop_front();
            if self.messages.get(&id).is_some_and(|resident| resident.held == 0) {
                self.messages.remove(&id);
            }
        }
    }
}
