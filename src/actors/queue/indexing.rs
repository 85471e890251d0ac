//! The indexes of a message on disk (due, deadline and wake keys), and when it gets them.
//!
//! A fresh message is delivered from memory, and most leave the spool with their first attempt. So its keys are written
//! only when something may have to find it on disk: when one of its recipients leaves memory or waits for a later
//! attempt, when its first attempt takes long, and when the relay stops. Each commit says below which id every message is
//! indexed; after a crash the few messages from that id on are looked through and get the keys they lack.

use std::collections::BTreeSet;
use std::time::Duration;

use actix::{Context, Handler, Message};
use tokio::time::Instant;

use super::Queue;
use super::residents::{Place, Resident};
use super::wakes::READ_AGAIN_MS;
use crate::mail::envelope::StoredMessage;
use crate::mail::id::QueueId;
use crate::spool::{DueKey, Op, SpoolError, Survey};

/// A message that is in memory for longer gets its keys, so that a start after a crash has little to look through.
const INDEX_AFTER_MS: u64 = 10_000;
/// Messages that get their keys in one tick, so that no commit grows too large.
const INDEXED_PER_TICK: usize = 1_000;
/// Messages read at once after a crash.
const PER_SURVEY: usize = 250;

/// The messages that are not indexed, and how far an earlier run's were looked through.
#[derive(Debug, Default)]
pub(super) struct Unindexed {
    ids: BTreeSet<QueueId>,
    recovery: Option<Recovery>,
}

/// The look through what a crash left.
#[derive(Debug)]
struct Recovery {
    from: QueueId,
    reading: bool,
    not_before: Option<Instant>,
    found: usize,
}

impl Unindexed {
    /// What the last commit of an earlier run said.
    pub fn resume(from: Option<QueueId>) -> Self {
        let recovery = from.map(|from| Recovery { from, reading: false, not_before: None, found: 0 });
        Self { ids: BTreeSet::new(), recovery }
    }

    /// A message that has no keys.
    pub fn insert(&mut self, id: QueueId) {
        self.ids.insert(id);
    }

    /// It has its keys, or is gone.
    pub fn remove(&mut self, id: QueueId) {
        self.ids.remove(&id);
    }

    /// Below this id every message is indexed; `None`: all are.
    pub fn from(&self) -> Option<QueueId> {
        let left_behind = self.recovery.as_ref().map(|recovery| recovery.from);
        left_behind.into_iter().chain(self.ids.first().copied()).min()
    }

    /// Whether messages of an earlier run are still looked for.
    pub fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }
}

/// Spool → Queue: messages that an earlier run may have left without keys.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Surveyed {
    ticket: u64,
    survey: Result<Survey, SpoolError>,
}

impl Queue {
    /// The keys of a message that has none yet; from now on it counts as indexed.
    pub(super) fn index_keys(&mut self, id: QueueId) -> Vec<Op> {
        let Some(resident) = self.residents.get_mut(id) else { return Vec::new() };
        if resident.indexed {
            return Vec::new();
        }
        resident.indexed = true;
        self.unindexed.remove(id);
        let envelope = resident.envelope.clone();
        let state = |number: u16| &resident.states[usize::from(number)];
        // What is on hold is found by its deadline, and by whoever releases it.
        let free = resident.waiting().filter(|number| !state(*number).held);
        let waiting: Vec<(u16, u64)> = free.map(|number| (number, state(number).due_ms)).collect();
        let mut keys = Vec::with_capacity(waiting.len() + 2);
        for (number, due_ms) in waiting {
            let destination = envelope.recipients[usize::from(number)].destination.clone();
            if let Some(at) = self.expect_mail(&destination, due_ms) {
                keys.push(Op::PutWake(at, destination.clone()));
            }
            keys.push(Op::PutDue(DueKey { destination, due_ms, id, number }));
        }
        let deadline_ms = self.first_deadline(&envelope);
        keys.push(Op::PutDeadline(deadline_ms, id));
        if let Some(resident) = self.residents.get_mut(id) {
            resident.deadline_ms = Some(deadline_ms);
        }
        keys
    }

    /// Writes the keys of a message that has none yet. Its arrival must be on disk or under way.
    pub(super) fn index(&mut self, id: QueueId) {
        let keys = self.index_keys(id);
        self.open.deadlines.extend(deadlines(&keys));
        self.open.changes.extend(keys);
    }

    /// Whether a recipient that is not settled could not be found on disk.
    pub(super) fn lacks_keys(&self, id: QueueId, number: u16) -> bool {
        let settled = |resident: &Resident| resident.states[usize::from(number)].status.is_settled();
        self.residents.get(id).is_some_and(|resident| !resident.indexed && !settled(resident))
    }

    /// Once a tick: messages whose first attempt takes long get their keys.
    pub(super) fn index_slow(&mut self, now_ms: u64) {
        let old = |id: &&QueueId| {
            let resident = self.residents.get(**id);
            resident.is_some_and(|at| now_ms.abs_diff(at.envelope.arrived_ms) >= INDEX_AFTER_MS)
        };
        let ids = self.unindexed.ids.iter().take(INDEXED_PER_TICK);
        let slow: Vec<QueueId> = ids.filter(old).filter(|id| self.has_arrived(**id)).copied().collect();
        slow.into_iter().for_each(|id| self.index(id));
    }

    /// The relay stops: whatever is in memory must be found by the next start.
    pub(super) fn index_all(&mut self) {
        let ids = self.unindexed.ids.iter().filter(|id| self.has_arrived(**id));
        let all: Vec<QueueId> = ids.copied().collect();
        all.into_iter().for_each(|id| self.index(id));
    }

    /// Whether the commit that brings it is on disk: its keys must not be there before it.
    fn has_arrived(&self, id: QueueId) -> bool {
        self.residents.get(id).is_some_and(|resident| !resident.places.contains(&Place::Arriving))
    }

    /// Looks through what an earlier run may have left without keys.
    pub(super) fn recover(&mut self) {
        let now = self.parts.clock.instant();
        let busy =
            self.draining || self.failed || self.residents.held() > self.parts.settings.memory.recipients;
        let (Some(me), Some(recovery)) = (self.me(), &mut self.unindexed.recovery) else { return };
        if busy || recovery.reading || recovery.not_before.is_some_and(|at| at > now) {
            return;
        }
        recovery.reading = true;
        let (ticket, from) = (self.residents.read_begins(), recovery.from);
        self.parts.front.read(
            move |spool| spool.survey(from, PER_SURVEY),
            move |survey| me.do_send(Surveyed { ticket, survey }),
        );
    }

    fn surveyed(&mut self, surveyed: Surveyed) {
        match surveyed.survey {
            Ok(survey) => {
                let found = survey.messages.iter().filter(|stored| self.recovered(stored)).count();
                for (id, reason) in survey.damaged {
                    self.quarantine(id, &reason);
                }
                self.surveyed_until(survey.next, found);
            }
            Err(error) => {
                self.damaged(&error);
                let again = self.parts.clock.instant() + Duration::from_millis(READ_AGAIN_MS);
                if let Some(recovery) = &mut self.unindexed.recovery {
                    (recovery.reading, recovery.not_before) = (false, Some(again));
                }
            }
        }
        self.residents.read_ends(surveyed.ticket);
    }

    fn surveyed_until(&mut self, next: Option<QueueId>, found: usize) {
        let Some(recovery) = &mut self.unindexed.recovery else { return };
        recovery.reading = false;
        recovery.found += found;
        if let Some(from) = next {
            recovery.from = from;
            return;
        }
        tracing::info!(
            messages = recovery.found,
            "messages that the last run had in memory are in line again"
        );
        self.unindexed.recovery = None;
        // The next start has nothing to look through: say so, even when there was nothing to write.
        self.open.counters = true;
    }

    /// Gives a message of an earlier run its keys, whether or not it has them; `false` when it is this run's business.
    pub(super) fn recovered(&mut self, stored: &StoredMessage) -> bool {
        let id = stored.envelope.id;
        let resident = self.residents.adopt(stored);
        if resident.places.iter().any(|place| *place != Place::Disk) || resident.unsettled() == 0 {
            self.residents.release(id);
            return false;
        }
        resident.indexed = false;
        let waiting: Vec<u16> = resident.waiting().collect();
        let envelope = resident.envelope.clone();
        self.index(id);
        if let Some(resident) = self.residents.get_mut(id) {
            // It may have another one already.
            resident.deadline_ms = None;
        }
        for number in waiting {
            self.settling(id, number, &envelope.recipients[usize::from(number)].destination);
        }
        true
    }
}

/// The times of the deadline keys among these, to be noted when they are on disk.
pub(super) fn deadlines(keys: &[Op]) -> impl Iterator<Item = u64> {
    keys.iter().filter_map(|key| match key {
        Op::PutDeadline(at_ms, _) => Some(*at_ms),
        _ => None,
    })
}

impl Handler<Surveyed> for Queue {
    type Result = ();

    fn handle(&mut self, surveyed: Surveyed, ctx: &mut Context<Self>) {
        self.surveyed(surveyed);
        self.turn(ctx);
    }
}
