//! New mail: from `Enqueue` to its 250 and its first place in memory.

use std::sync::Arc;
use std::time::Duration;

use super::Queue;
use super::commit::{Arrival, Waiting};
use super::destinations::{Destination, Phase};
use super::indexing::deadlines;
use super::messages::{Enqueue, NotQueued};
use super::migrating::Migration;
use super::residents::Place;
use crate::mail::envelope::{Content, Envelope};
use crate::mail::id::QueueId;
use crate::schedule::slots::Standing;
use crate::smtp::address::Domain;
use crate::spool::Op;

/// Recipients that any destination may have in memory though memory is full: the queues of others must not stop it.
pub(super) const HELD_MIN: usize = 4;

impl Queue {
    pub(super) fn enqueue(&mut self, message: Enqueue) {
        let Enqueue { envelope, content, credits, answer } = message;
        if self.failed {
            let _ = answer.send(Err(NotQueued::Spool));
            return;
        }
        let waiting = Waiting { answer, _credits: credits };
        let arrival = self.arrival(envelope, content, Some(waiting));
        self.open.arrivals.push_back(arrival);
    }

    /// Queues a DSN of our own in the commit that settles what it reports.
    pub(super) fn enqueue_report(&mut self, envelope: Envelope, content: Content) {
        let arrival = self.arrival(envelope, content, None);
        self.open.reports.push(arrival);
    }

    fn arrival(&mut self, envelope: Envelope, mut content: Content, waiting: Option<Waiting>) -> Arrival {
        let envelope = Arc::new(envelope);
        let fresh = match &mut content {
            Content::Memory(bytes) => Some(bytes.clone()),
            Content::File { whole, .. } => whole.take().filter(|bytes| self.room_for_large(bytes.len())),
        };
        self.residents.arrive(envelope.clone(), fresh);
        self.unindexed.insert(envelope.id);
        let now_ms = self.now_ms();
        let mut room = !self.draining;
        for recipient in &envelope.recipients {
            self.keep_destination(&recipient.destination);
            room = room && self.room_for_fresh(&recipient.destination, now_ms);
        }
        let mut keys = if room { Vec::new() } else { self.index_keys(envelope.id) };
        // Wake keys go at once: others rely on them from now on, and this message may be in a later commit.
        let wakes = keys.extract_if(.., |key| matches!(key, Op::PutWake(..)));
        self.open.changes.extend(wakes);
        Arrival { envelope, content, keys, waiting }
    }

    /// Whether content that has a file may stay in memory for its first attempt: content that would have to be read
    /// from the database comes first.
    fn room_for_large(&self, len: usize) -> bool {
        self.residents.content_bytes() + len <= self.parts.settings.memory.content / 2
    }

    /// A destination has mail on disk; returns the wake key to write when none of its keys is early enough.
    pub(super) fn expect_mail(&mut self, destination: &Domain, due_ms: u64) -> Option<u64> {
        self.keep_destination(destination);
        let entry = self.destinations.map.get_mut(destination)?;
        if entry.wakes.iter().any(|at| *at <= due_ms) {
            return None;
        }
        entry.wakes.push(due_ms);
        Some(due_ms)
    }

    /// Makes sure that a destination whose mail is in memory is there too.
    pub(super) fn keep_destination(&mut self, destination: &Domain) {
        match self.destinations.map.get_mut(destination) {
            Some(entry) if entry.phase == Phase::Leaving => entry.phase = Phase::Active,
            Some(_) => {}
            None => {
                let full = self.destinations_are_full()
                    && !self.destinations.may_exceed(destination, self.parts.settings.memory.destinations);
                let phase = if full { Phase::Parked } else { Phase::Loading };
                self.add_destination(destination, phase);
            }
        }
    }

    pub(super) fn destinations_are_full(&self) -> bool {
        self.destinations.map.len() >= self.parts.settings.memory.destinations
    }

    pub(super) fn add_destination(&mut self, destination: &Domain, phase: Phase) {
        let settings = &self.parts.settings;
        let route = settings.routes.route_for(destination);
        let mut entry = Destination::new(route, phase, settings.connections_per_destination);
        entry.standing = self.destinations.standing_of(destination);
        entry.until_ms = self.unlooked.remove(destination).unwrap_or(0).max(self.horizon_ms);
        self.destinations.map.insert(destination.clone(), entry);
        if phase == Phase::Loading {
            self.load_destination(destination);
        }
    }

    /// The commit under way is on disk.
    pub(super) fn committed(&mut self, took: Duration) {
        let metrics = &self.parts.metrics;
        metrics.commits_total.inc();
        metrics.commit_seconds.observe(took.as_secs_f64());
        let Some(done) = self.under_way.take() else { return };
        for answer in done.answers {
            let _ = answer.send(());
        }
        if done.migrate {
            self.migration = Migration::Unknown;
        }
        done.deadlines.into_iter().for_each(|at| self.deadlines.note(at));
        for (id, number) in done.settling {
            self.settled_on_disk(id, number);
        }
        for arrival in done.arrivals {
            self.accepted(arrival);
        }
        for (destination, leaving) in done.leaving {
            self.forget_if_leaving(&destination, leaving);
        }
        if self.residents.no_reads() {
            self.condemned.clear();
        }
    }

    fn accepted(&mut self, arrival: Arrival) {
        let Arrival { envelope, waiting, keys, .. } = arrival;
        if let Some(waiting) = waiting {
            // From here on the message is ours.
            let _ = waiting.answer.send(Ok(()));
            let metrics = &self.parts.metrics;
            metrics.messages_accepted.inc();
            metrics.recipients_accepted.inc_by(envelope.recipients.len() as u64);
            metrics.bytes_accepted.inc_by(envelope.size);
            self.parts.maillog.accepted(&envelope, self.now_ms());
        }
        deadlines(&keys).for_each(|at| self.deadlines.note(at));
        let now_ms = self.now_ms();
        for (number, recipient) in (0..).zip(&envelope.recipients) {
            let room = self.residents.has_wish(envelope.id, number)
                || self.room_for_fresh(&recipient.destination, now_ms);
            let Some(entry) = self.destinations.map.get_mut(&recipient.destination) else { continue };
            if room {
                entry.ready.push_back((envelope.id, number));
                self.residents.put(envelope.id, number, Place::Ready);
                self.offer(&recipient.destination);
            } else {
                entry.more_on_disk = true;
                self.drop_to_disk(envelope.id, number, &recipient.destination);
            }
            self.grant_wish(envelope.id, number);
        }
    }

    /// Whether a fresh recipient of a destination may wait for its slot in memory.
    ///
    /// While older mail waits on disk there is little room, so that pages of the older mail find theirs; but some, so that
    /// deliveries need not wait for the disk.
    fn room_for_fresh(&self, destination: &Domain, now_ms: u64) -> bool {
        let memory = &self.parts.settings.memory;
        let Some(entry) = self.destinations.map.get(destination) else { return false };
        if entry.phase == Phase::Parked
            || entry.backs_off(now_ms)
            || self.residents.content_bytes() > memory.content
            || (self.residents.held() > memory.recipients && self.residents.held_for(destination) > HELD_MIN)
        {
            return false;
        }
        let room = match entry.asks_as() {
            _ if entry.has_backlog(now_ms) => (self.low_water() / 2).max(1),
            Standing::Troubled => self.low_water(),
            Standing::Unknown | Standing::Proven => memory.window,
        };
        entry.ready.len() < room
    }

    /// Drops a recipient from memory; it is found again through the due index, once it has its keys.
    pub(super) fn drop_to_disk(&mut self, id: QueueId, number: u16, destination: &Domain) {
        if self.lacks_keys(id, number) {
            self.index(id);
            return self.settling(id, number, destination);
        }
        self.residents.put(id, number, Place::Disk);
        let now_ms = self.now_ms();
        let Some(entry) = self.destinations.map.get(destination) else { return };
        if entry.phase != Phase::Parked {
            self.leave_if_idle(destination, now_ms);
        } else if self.residents.held_for(destination) == 0 {
            self.forget(destination);
        }
    }

    /// The spool failed: everyone who waits is told, and keeps the mail.
    pub(super) fn refuse_all(&mut self) {
        let under_way = self.under_way.take().unwrap_or_default();
        for arrival in under_way.arrivals.into_iter().chain(self.open.arrivals.drain(..)) {
            if let Some(waiting) = arrival.waiting {
                let _ = waiting.answer.send(Err(NotQueued::Spool));
            }
        }
        self.open = super::commit::OpenCommit::default();
    }
}
