//! The messages that are in memory, and where each of their recipients stands right now.
//!
//! What is here is the truth: stored state plus what is in the open commit. A reader of the spool may see an older
//! (or a not yet durable) state, so a message stays here until its last commit is on disk *and* every read that began
//! before that has come back.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::messages::CommandVerb;
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
    /// This many changes of it wait for their commits.
    Settling(u32),
}

/// What an operator asked for while the recipient was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Retry,
    Remove,
    Hold,
    Release,
}

impl From<CommandVerb> for Wish {
    fn from(verb: CommandVerb) -> Self {
        match verb {
            CommandVerb::Retry => Self::Retry,
            CommandVerb::Remove => Self::Remove,
            CommandVerb::Hold => Self::Hold,
            CommandVerb::Release => Self::Release,
        }
    }
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
    /// Whether its due and deadline keys are on disk or in the open commit.
    pub indexed: bool,
    /// The time of its deadline key; `None` when there is none or it is not known (paged in): found again when it fires.
    pub deadline_ms: Option<u64>,
    /// Why it can't be delivered as it is: it goes to quarantine once nothing of it is in flight.
    pub unfit: Option<String>,
    /// Wishes that wait for a report.
    pub wishes: Vec<(u16, Wish)>,
    held: usize,
    /// The last read that began before nothing held it any more.
    since: u64,
}

impl Resident {
    /// Recipients that have not met their fate.
    pub fn unsettled(&self) -> usize {
        self.waiting().count()
    }

    /// Their numbers.
    pub fn waiting(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.states).filter(|(_, state)| !state.status.is_settled()).map(|(number, _)| number)
    }
}

/// The ids of the messages that something holds in memory, for readers on other threads. What is here while a read runs is
/// in memory when its answer is dealt with.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Mutex<HashSet<QueueId>>>);

impl Known {
    pub fn contains(&self, id: QueueId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    fn insert(&self, id: QueueId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    fn remove(&self, id: QueueId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// All messages in memory.
#[derive(Debug, Default)]
pub(super) struct Residents {
    /// Boxed: a map has room for up to four times what is in it.
    messages: HashMap<QueueId, Box<Resident>>,
    known: Known,
    lingering: VecDeque<(u64, QueueId)>,
    reads: BTreeSet<u64>,
    next_read: u64,
    content_bytes: usize,
    held: usize,
    /// Recipients that pages under way may bring.
    asked: usize,
    /// The recipients in memory by destination: what a page skips, and why a destination must stay.
    by_destination: HashMap<Domain, HashSet<(QueueId, u16)>>,
}

impl Residents {
    pub fn get(&self, id: QueueId) -> Option<&Resident> {
        self.messages.get(&id).map(|resident| &**resident)
    }

    pub fn get_mut(&mut self, id: QueueId) -> Option<&mut Resident> {
        self.messages.get_mut(&id).map(|resident| &mut **resident)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Resident> {
        self.messages.values().map(|resident| &**resident)
    }

    /// The ids of all of them, for readers.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Whether something waits to be done to a recipient as soon as that can be.
    pub fn has_wish(&self, id: QueueId, number: u16) -> bool {
        self.messages.get(&id).is_some_and(|resident| resident.wishes.iter().any(|(who, _)| *who == number))
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

    /// Recipients in memory, and those that pages under way may bring.
    pub fn held_soon(&self) -> usize {
        self.held + self.asked
    }

    /// A page of so many recipients is asked for.
    pub fn page_asked(&mut self, limit: usize) {
        self.asked += limit;
    }

    /// It is there, or could not be read.
    pub fn page_came(&mut self, limit: usize) {
        self.asked -= limit;
    }

    /// Takes in a new message whose commit is still to come.
    pub fn arrive(&mut self, envelope: Arc<Envelope>, content: Option<Bytes>) {
        let count = envelope.recipients.len();
        for (number, recipient) in (0..).zip(&envelope.recipients) {
            let held = self.by_destination.entry(recipient.destination.clone()).or_default();
            held.insert((envelope.id, number));
        }
        let states = vec![RecipientState::fresh(envelope.arrived_ms); count];
        self.content_bytes += content.as_ref().map_or(0, Bytes::len);
        self.held += count;
        let resident = Box::new(Resident {
            states,
            places: vec![Place::Arriving; count],
            content,
            records: false,
            indexed: false,
            deadline_ms: None,
            unfit: None,
            wishes: Vec::new(),
            held: count,
            since: 0,
            envelope: envelope.clone(),
        });
        self.known.insert(envelope.id);
        self.messages.insert(envelope.id, resident);
    }

    /// Takes in a message that was read from the spool, unless it is here already, and returns what holds.
    pub fn adopt(&mut self, stored: &StoredMessage) -> &mut Resident {
        let read = || Resident {
            places: vec![Place::Disk; stored.states.len()],
            // One that was on hold and was released looks fresh, but has its record.
            records: true,
            states: stored.states.clone(),
            content: None,
            indexed: true,
            deadline_ms: None,
            unfit: None,
            wishes: Vec::new(),
            held: 0,
            since: 0,
            envelope: stored.envelope.clone(),
        };
        self.messages.entry(stored.envelope.id).or_insert_with(|| Box::new(read()))
    }

    /// Moves a recipient; going to [`Place::Disk`] may let the message go.
    pub fn put(&mut self, id: QueueId, number: u16, to: Place) {
        let Some(resident) = self.messages.get_mut(&id) else { return };
        let place = &mut resident.places[usize::from(number)];
        let was_held = *place != Place::Disk;
        *place = to;
        if was_held == (to != Place::Disk) {
            return;
        }
        let destination = &resident.envelope.recipients[usize::from(number)].destination;
        if was_held {
            resident.held -= 1;
            self.held -= 1;
            if let Some(held) = self.by_destination.get_mut(destination) {
                held.remove(&(id, number));
                if held.is_empty() {
                    self.by_destination.remove(destination);
                }
            }
            self.release(id);
        } else {
            resident.held += 1;
            self.known.insert(id);
            self.held += 1;
            self.by_destination.entry(destination.clone()).or_default().insert((id, number));
        }
    }

    /// Lets a message go when nothing holds it and no read can still bring an older state of it.
    pub fn release(&mut self, id: QueueId) {
        let Some(resident) = self.messages.get_mut(&id) else { return };
        if resident.held > 0 {
            return;
        }
        // A read that begins from now on does not keep it here.
        self.known.remove(id);
        self.content_bytes -= resident.content.take().map_or(0, |content| content.len());
        if self.reads.is_empty() {
            self.messages.remove(&id);
        } else {
            resident.since = self.next_read;
            self.lingering.push_back((self.next_read, id));
        }
    }

    /// The recipients of a destination that are in memory, for a page to skip.
    pub fn in_memory_for(&self, destination: &Domain) -> HashSet<(QueueId, u16)> {
        self.by_destination.get(destination).cloned().unwrap_or_default()
    }

    /// How many of them there are.
    pub fn held_for(&self, destination: &Domain) -> usize {
        self.by_destination.get(destination).map_or(0, HashSet::len)
    }

    /// Whether no read is under way that could still bring an older state.
    pub fn no_reads(&self) -> bool {
        self.reads.is_empty()
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
            // One that was held and let go again meanwhile stands in line once more, for later reads.
            let done = |resident: &Resident| resident.held == 0 && resident.since == since;
            if self.get(id).is_some_and(done) {
                self.messages.remove(&id);
            }
        }
    }
}
