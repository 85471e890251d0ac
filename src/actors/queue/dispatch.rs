//! Handing out connection slots: whose turn it is, and what an attempt carries.

use tokio::time::Instant;

use crate::actors::delivery::dials::Expected;
use crate::actors::delivery::messages::{Attempt, GiveWay, ReportGuard};
use crate::mail::id::QueueId;
use crate::route::table::Route;
use crate::schedule::slots::Standing;
use crate::smtp::address::Domain;

use super::destinations::Line;
use super::residents::Place;
use super::{Queue, SLOW_AFTER};

/// An attempt under way.
#[derive(Debug)]
pub(super) struct Running {
    pub destination: Domain,
    pub id: QueueId,
    pub recipients: Vec<u16>,
    pub started: Instant,
    /// The standing its slot is counted under.
    pub standing: Standing,
    pub slow: bool,
    /// Its destination was never tried before.
    pub stranger: bool,
    /// It was asked to make room.
    pub asked: bool,
    /// Counts it among those that have not connected yet.
    pub expected: Option<Expected>,
}

impl Queue {
    /// Puts a destination in line when it has mail to send and is not there yet under the standing it has now.
    pub(super) fn offer(&mut self, destination: &Domain) {
        let (now_ms, now) = (self.now_ms(), self.parts.clock.instant());
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        let line = Line::Ring(entry.asks_as());
        if entry.line != Line::Site && entry.line != line && entry.wants_slot(now_ms, now) {
            entry.line = line;
            self.rings.push(entry.asks_as(), destination.clone());
        }
    }

    pub(super) fn dispatch(&mut self) {
        if self.draining || self.failed {
            return;
        }
        while let Some((standing, destination)) = self.next_in_ring() {
            let (now_ms, now) = (self.now_ms(), self.parts.clock.instant());
            let Some(entry) = self.destinations.map.get_mut(&destination) else {
                self.offer_site(&destination);
                continue;
            };
            if entry.line != Line::Ring(standing) {
                continue;
            }
            entry.line = Line::Out;
            if !entry.wants_slot(now_ms, now) {
                self.offer_site(&destination);
                continue;
            }
            if !self.destinations.take_site(&destination) {
                continue;
            }
            if !self.start_attempt(&destination, now_ms) {
                self.free_site(&destination);
            }
            self.offer(&destination);
        }
    }

    /// Whose turn it is. Those that nobody has heard from and those that fail take turns as fast as they may connect.
    fn next_in_ring(&mut self) -> Option<(Standing, Domain)> {
        let (slots, dials) = (&self.slots, &self.parts.dials);
        self.rings
            .pop(|standing| slots.has_room(standing) && (standing == Standing::Proven || dials.has_room()))
    }

    /// Starts one attempt with what is ready; `false` when nothing was.
    fn start_attempt(&mut self, destination: &Domain, now_ms: u64) -> bool {
        let Some(me) = self.me.clone() else { return false };
        let Some((id, recipients)) = self.next_transaction(destination) else { return false };
        let Some(resident) = self.residents.get(id) else { return false };
        let (envelope, content) = (resident.envelope.clone(), resident.content.clone());
        let first = recipients.iter().any(|number| resident.states[usize::from(*number)].attempts == 0);
        let Some(entry) = self.destinations.map.get_mut(destination) else { return false };
        let standing = entry.asks_as();
        entry.attempts += 1;
        self.slots.take(standing);
        // The hosts of a static route are known, and its connections bounded, whoever the mail is for.
        let unknown = standing != Standing::Proven && matches!(entry.route, Route::Mx);
        let expected = unknown.then(|| self.parts.dials.expect());
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let deliveries = &self.parts.deliveries;
        let route = entry.route.clone();
        let handle = entry.delivery.get_or_insert_with(|| deliveries.start(destination, &route));
        let metrics = &self.parts.metrics;
        metrics.attempts_started.inc();
        if first {
            let waited = now_ms.saturating_sub(envelope.arrived_ms);
            metrics.first_attempt_seconds.observe(waited as f64 / 1e3);
        }
        handle.attempt.do_send(Attempt {
            ticket,
            destination: destination.clone(),
            route,
            envelope,
            content,
            recipients: recipients.clone(),
            expected: expected.clone(),
            report: ReportGuard::new(ticket, recipients.clone(), me.recipient()),
        });
        let running = Running {
            destination: destination.clone(),
            id,
            recipients,
            started: self.parts.clock.instant(),
            standing,
            slow: false,
            stranger: standing == Standing::Unknown,
            asked: false,
            expected,
        };
        self.attempts.insert(ticket, running);
        true
    }

    /// Takes the recipients at the front of the line that one transaction can carry: those of one message.
    fn next_transaction(&mut self, destination: &Domain) -> Option<(QueueId, Vec<u16>)> {
        let entry = self.destinations.map.get_mut(destination)?;
        let most = self.parts.settings.recipients_per_transaction;
        let mut found: Option<(QueueId, Vec<u16>)> = None;
        while let Some((id, number)) = entry.ready.front().copied() {
            let ready = self
                .residents
                .get(id)
                .is_some_and(|at| at.places[usize::from(number)] == Place::Ready && at.unfit.is_none());
            if ready {
                match &mut found {
                    None => found = Some((id, vec![number])),
                    Some((first, numbers)) if *first == id && numbers.len() < most => numbers.push(number),
                    Some(_) => break,
                }
                // At once: one that is in line twice must not be found twice.
                self.residents.put(id, number, Place::InFlight);
            }
            entry.ready.pop_front();
        }
        found
    }

    /// Gives back the connection of a shared route.
    pub(super) fn free_site(&mut self, destination: &Domain) {
        if let Some(site) = self.site_of(destination) {
            self.destinations.give_back_site(site);
            self.offer_site(destination);
        }
    }

    /// Lets the destination that waited longest for a connection of the shared route ask again, or the next one that
    /// still wants one: whoever does not use its turn must pass it on.
    fn offer_site(&mut self, destination: &Domain) {
        let Some(site) = self.site_of(destination) else { return };
        while let Some(next) = self.destinations.next_at_site(site) {
            self.offer(&next);
            if self.destinations.map.get(&next).is_some_and(|entry| entry.line != Line::Out) {
                return;
            }
        }
    }

    fn site_of(&self, destination: &Domain) -> Option<usize> {
        match self.destinations.map.get(destination) {
            Some(entry) => entry.route.site(),
            None => self.parts.settings.routes.route_for(destination).site(),
        }
    }

    /// Attempts that run for long count as trouble from then on, so that they can't fill the slots of others.
    pub(super) fn mark_slow_attempts(&mut self, now: Instant) {
        let mut slow = Vec::new();
        for running in self.attempts.values_mut() {
            if running.slow || now.saturating_duration_since(running.started) < SLOW_AFTER {
                continue;
            }
            running.slow = true;
            // Whatever it waits for: others must not wait for it.
            running.expected.take().iter().for_each(Expected::release);
            self.slots.reclassify(running.standing, Standing::Troubled);
            running.standing = Standing::Troubled;
            if let Some(entry) = self.destinations.map.get_mut(&running.destination) {
                entry.slow += 1;
                slow.push(running.destination.clone());
            }
        }
        let keep = self.low_water();
        slow.iter().for_each(|destination| self.unready(destination, keep));
    }

    /// Strangers that turned out to be slow hold more slots than trouble may have, and other strangers wait: the oldest
    /// of the excess give way, so that nobody waits for the time-out of another (promise P5). Their next attempts find
    /// slots among those of the troubled, and are not asked again.
    pub(super) fn make_way(&mut self) {
        let excess = self.slots.excess();
        if excess == 0 || !self.rings.has(Standing::Unknown) || self.slots.has_room(Standing::Unknown) {
            return;
        }
        let slow = self.attempts.iter().filter(|(_, at)| at.slow && at.stranger && !at.asked);
        let mut tickets: Vec<u64> = slow.map(|(ticket, _)| *ticket).collect();
        tickets.sort_unstable();
        for ticket in tickets.into_iter().take(excess) {
            let Some(running) = self.attempts.get_mut(&ticket) else { continue };
            running.asked = true;
            let entry = self.destinations.map.get(&running.destination);
            if let Some(handle) = entry.and_then(|entry| entry.delivery.as_ref()) {
                handle.give_way.do_send(GiveWay { ticket });
            }
        }
    }
}
