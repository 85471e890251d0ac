//! New mail: from `Enqueue` to its 250 and its first place in memory.

use std::sync::Arc;
use std::time::Duration;

use super::Queue;
use super::commit::{Arrival, Waiting};
use super::destinations::{Destination, Phase};
use super::messages::{Enqueue, NotQueued};
use super::residents::Place;
use crate::mail::envelope::{Content, Envelope};
use crate::smtp::address::Domain;

/// While older mail waits on disk, fresh mail fills at most this part of a window, so that the older gets its turn.
const FRESH_SHARE: usize = 4;

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

    fn arrival(&mut self, envelope: Envelope, content: Content, waiting: Option<Waiting>) -> Arrival {
        let envelope = Arc::new(envelope);
        let deadline_ms = self.first_deadline(&envelope);
        let fresh = match &content {
            Content::Memory(bytes) => Some(bytes.clone()),
            Content::File { .. } => None,
        };
        self.residents.arrive(envelope.clone(), fresh, deadline_ms);
        let mut wakes = Vec::new();
        for recipient in &envelope.recipients {
            let at = self.expect_mail(&recipient.destination, envelope.arrived_ms);
            wakes.extend(at.map(|at| (at, recipient.destination.clone())));
        }
        Arrival { envelope, content, deadline_ms, wakes, waiting }
    }

    /// Counts one more resident recipient of a destination; returns the wake key to write when it has none.
    fn expect_mail(&mut self, destination: &Domain, arrived_ms: u64) -> Option<u64> {
        if !self.destinations.map.contains_key(destination) {
            let full = self.destinations.map.len() >= self.parts.settings.memory.destinations;
            let phase = if full { Phase::Parked } else { Phase::Loading };
            self.add_destination(destination, phase);
        }
        let entry = self.destinations.map.get_mut(destination)?;
        entry.resident += 1;
        if entry.phase == Phase::Leaving {
            entry.phase = Phase::Active;
        }
        if entry.wakes.is_empty() {
            entry.wakes.push(arrived_ms);
            return Some(arrived_ms);
        }
        None
    }

    pub(super) fn add_destination(&mut self, destination: &Domain, phase: Phase) -> &mut Destination {
        let settings = &self.parts.settings;
        let route = settings.routes.route_for(destination);
        let entry = Destination::new(route, phase, settings.connections_per_destination);
        if phase == Phase::Loading {
            self.load_destination(destination);
        }
        self.destinations.map.entry(destination.clone()).or_insert(entry)
    }

    /// The commit under way is on disk.
    pub(super) fn committed(&mut self, took: Duration) {
        let metrics = &self.parts.metrics;
        metrics.commits_total.inc();
        metrics.commit_seconds.observe(took.as_secs_f64());
        let Some(done) = self.under_way.take() else { return };
        done.answers.into_iter().for_each(|answer| drop(answer.send(())));
        for (id, number) in done.settling {
            self.settled_on_disk(id, number);
        }
        for arrival in done.arrivals {
            self.accepted(arrival);
        }
        for destination in done.leaving {
            self.forget_if_leaving(&destination);
        }
    }

    fn accepted(&mut self, arrival: Arrival) {
        let Arrival { envelope, waiting, .. } = arrival;
        if let Some(waiting) = waiting {
            // From here on the message is ours.
            let _ = waiting.answer.send(Ok(()));
            let metrics = &self.parts.metrics;
            metrics.messages_accepted.inc();
            metrics.recipients_accepted.inc_by(envelope.recipients.len() as u64);
            metrics.bytes_accepted.inc_by(envelope.size);
            self.parts.maillog.accepted(&envelope, self.now_ms());
        }
        let window = self.parts.settings.memory.window;
        for (number, recipient) in (0..).zip(&envelope.recipients) {
            let memory_full = self.residents.content_bytes() > self.parts.settings.memory.content
                || self.residents.held() > self.parts.settings.memory.recipients;
            let Some(entry) = self.destinations.map.get_mut(&recipient.destination) else { continue };
            let room = if entry.more_on_disk { window / FRESH_SHARE } else { window };
            let backs_off = entry.record.retry_at_ms > envelope.arrived_ms;
            if memory_full || entry.phase == Phase::Parked || backs_off || entry.ready.len() >= room {
                entry.more_on_disk = true;
                self.to_disk(envelope.id, number, &recipient.destination);
            } else {
                entry.ready.push_back((envelope.id, number));
                self.residents.put(envelope.id, number, Place::Ready);
                self.offer(&recipient.destination);
            }
        }
    }

    /// Drops a recipient from memory; it is found again through the due index.
    pub(super) fn to_disk(&mut self, id: crate::mail::id::QueueId, number: u16, destination: &Domain) {
        let change = self.residents.put(id, number, Place::Disk);
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if change < 0 {
            entry.resident = entry.resident.saturating_sub(1);
        }
        let now_ms = self.parts.clock.now_ms();
        if entry.phase == Phase::Parked && entry.resident == 0 {
            self.destinations.map.remove(destination);
        } else {
            self.leave_if_idle(destination, now_ms);
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
