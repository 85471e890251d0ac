//! The patrol: looks through the whole queue, slowly, for what must never be, and puts it right.
//!
//! Each unsettled recipient of a message that is only on disk has exactly one due key, its message a deadline key; the
//! counters say what is there. A bug or a damaged disk could break any of it, and mail that no key names would wait for
//! ever (promise P7). A round looks through the messages, then through the due keys. It reads no content.

use std::time::Duration;

use actix::{Context, Handler, Message};
use tokio::time::Instant;

use super::Queue;
use super::deadlines::{LOOK_AGAIN_MS, deadline_times};
use super::residents::{Place, Resident};
use crate::mail::envelope::{Envelope, StoredMessage};
use crate::mail::id::QueueId;
use crate::spool::{Counters, Deadlines, DueKey, Op, Patrolled, SpoolError, Strays, Tally};

/// Messages or keys looked at in one go.
const PER_LOOK: usize = 200;
/// From one look to the next: 1,000,000 messages of one recipient take some 3 hours.
const EVERY: Duration = Duration::from_secs(1);
/// From the end of one round to the next one, and from the start to the first.
const REST: Duration = Duration::from_secs(3_600);

/// How far the round is.
#[derive(Clone, Debug)]
enum Stage {
    /// Between rounds.
    Resting,
    /// The messages from this id on come next.
    Messages(QueueId),
    /// The due keys after this one come next.
    Keys(Option<DueKey>),
}

/// The rounds.
#[derive(Debug)]
pub(super) struct Patrol {
    stage: Stage,
    reading: bool,
    not_before: Instant,
    /// What the messages count that this round has looked at, as of now.
    counted: Counters,
    /// What one of them counted got lost with its records: this round can't tell.
    spoiled: bool,
    /// Messages were set aside whose share of the counters nobody knows: the next round tells.
    inexact: bool,
}

impl Patrol {
    /// The first round begins after a while: a start has other things to do, unless its counters are a guess.
    pub fn new(now: Instant, inexact: bool) -> Self {
        let not_before = if inexact { now } else { now + REST };
        let counted = Counters::default();
        Self { stage: Stage::Resting, reading: false, not_before, counted, spoiled: false, inexact }
    }

    /// Rests for ever.
    #[cfg(test)]
    pub fn pause(&mut self) {
        self.not_before += Duration::from_secs(365 * 86_400);
    }

    /// Whether a round is under way.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Resting)
    }

    /// Whether this round has looked at a message already: what happens to it now must be noted.
    fn has_seen(&self, id: QueueId) -> bool {
        matches!(self.stage, Stage::Messages(from) if id < from)
    }

    /// A message that can't be read goes to quarantine, and nobody knows what it counts.
    pub fn lost(&mut self, id: QueueId, now: Instant) {
        self.spoiled |= self.has_seen(id);
        self.inexact = true;
        if !self.is_under_way() {
            self.not_before = now;
        }
    }
}

/// Spool → Queue: what a look found.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Looked {
    ticket: u64,
    found: Result<Found, SpoolError>,
}

#[derive(Debug)]
enum Found {
    Messages(Patrolled),
    Keys(Strays),
}

impl Queue {
    /// A message joins those that the counters count.
    pub(super) fn count_in(&mut self, id: QueueId, tally: Tally) {
        self.counters.add(tally);
        if self.patrol.has_seen(id) {
            self.patrol.counted.add(tally);
        }
    }

    /// A new message is in the commit that begins; the counters have it.
    pub(super) fn note_arrival(&mut self, envelope: &Envelope) {
        if self.patrol.has_seen(envelope.id) {
            self.patrol.counted.add(Tally::fresh(envelope));
        }
    }

    /// One recipient has met its fate.
    pub(super) fn count_settled(&mut self, id: QueueId) {
        self.counters.recipients = self.counters.recipients.saturating_sub(1);
        if self.patrol.has_seen(id) {
            self.patrol.counted.recipients = self.patrol.counted.recipients.saturating_sub(1);
        }
    }

    /// A recipient goes on hold, or off it.
    pub(super) fn count_hold(&mut self, id: QueueId, on: bool) {
        let change = |held: u64| if on { held + 1 } else { held.saturating_sub(1) };
        self.counters.held = change(self.counters.held);
        if self.patrol.has_seen(id) {
            self.patrol.counted.held = change(self.patrol.counted.held);
        }
    }

    /// A message, with what of it still counted, leaves the queue.
    pub(super) fn count_out(&mut self, id: QueueId, tally: Tally) {
        self.counters.subtract(tally);
        if self.patrol.has_seen(id) {
            self.patrol.counted.subtract(tally);
        }
    }

    /// Once a tick: the next look, when it is time for it.
    pub(super) fn patrol(&mut self) {
        let now = self.parts.clock.instant();
        let busy = self.draining || self.failed || self.unindexed.is_recovering();
        if busy || self.patrol.reading || self.patrol.not_before > now {
            return;
        }
        let Some(me) = self.me() else { return };
        if matches!(self.patrol.stage, Stage::Resting) {
            self.patrol.counted = Counters::default();
            self.patrol.spoiled = false;
            self.patrol.stage = Stage::Messages(QueueId::from_bytes([0; 16]));
        }
        self.patrol.reading = true;
        let (ticket, stage) = (self.residents.read_begins(), self.patrol.stage.clone());
        let (rules, until_ms) = (self.parts.settings.retry.clone(), self.now_ms() + LOOK_AGAIN_MS);
        self.parts.front.read(
            move |spool| match stage {
                Stage::Resting => Ok(Found::Keys(Strays::default())),
                Stage::Messages(from) => {
                    let deadlines = Deadlines { of: &|envelope| deadline_times(&rules, envelope), until_ms };
                    spool.patrol(from, PER_LOOK, &deadlines).map(Found::Messages)
                }
                Stage::Keys(after) => spool.strays(after.as_ref(), PER_LOOK).map(Found::Keys),
            },
            move |found| me.do_send(Looked { ticket, found }),
        );
    }

    fn looked(&mut self, looked: Looked) {
        self.patrol.reading = false;
        self.patrol.not_before = self.parts.clock.instant() + EVERY;
        match looked.found {
            Ok(Found::Messages(found)) => self.messages_looked_at(found),
            Ok(Found::Keys(found)) => self.keys_looked_at(found),
            Err(error) => self.damaged(&error),
        }
        self.residents.read_ends(looked.ticket);
    }

    fn messages_looked_at(&mut self, found: Patrolled) {
        for stored in &found.lacking {
            let id = stored.envelope.id;
            // What is in memory may have got its keys, or lost them with reason, since it was read.
            if self.residents.get(id).is_none() && self.recovered(stored) {
                self.parts.metrics.patrol_repairs.inc();
                tracing::error!(%id, "a message had lost its due keys and would have waited for ever: it is in line again");
            }
        }
        let lost = self.date(&found.undated);
        if lost > 0 {
            self.parts.metrics.patrol_repairs.inc_by(lost);
            tracing::error!(
                messages = lost,
                "messages had no deadline and would never have expired: they have one again"
            );
        }
        self.date(&found.misdated);
        self.count_seen(&found.tallies, found.next);
        // These are not among what was counted: so before they count as seen.
        for (id, reason) in found.damaged {
            self.quarantine(id, &reason);
        }
        self.patrol.stage = found.next.map_or(Stage::Keys(None), Stage::Messages);
        if found.next.is_none() {
            self.compare_counters();
        }
    }

    /// Gives messages the deadline key that they would have had from the beginning by today's retry times; returns how many.
    fn date(&mut self, messages: &[StoredMessage]) -> u64 {
        let mut count = 0;
        for StoredMessage { envelope, .. } in messages {
            if self.residents.get(envelope.id).is_none() {
                let at_ms = self.first_deadline(envelope);
                self.open.changes.push(Op::PutDeadline(at_ms, envelope.id));
                self.open.deadlines.push(at_ms);
                count += 1;
            }
        }
        count
    }

    /// Counts what a look has seen, as the counters have it: what is in memory holds, not what was read.
    fn count_seen(&mut self, tallies: &[(QueueId, Tally)], next: Option<QueueId>) {
        let Stage::Messages(from) = self.patrol.stage else { return };
        let counted = &mut self.patrol.counted;
        let on_disk = tallies.iter().filter(|(id, _)| self.residents.get(*id).is_none());
        on_disk.for_each(|(_, tally)| counted.add(*tally));
        let in_range = |id: QueueId| id >= from && next.is_none_or(|next| id < next);
        let under_way = self.under_way.as_ref().map_or(&[][..], |under_way| &under_way.arrivals);
        let arriving: std::collections::HashSet<QueueId> =
            under_way.iter().map(|arrival| arrival.envelope.id).collect();
        let counts = |resident: &Resident| {
            !resident.places.contains(&Place::Arriving) || arriving.contains(&resident.envelope.id)
        };
        for resident in self.residents.all().filter(|at| in_range(at.envelope.id) && counts(at)) {
            let tally = Tally::of(&resident.envelope, &resident.states);
            if tally.recipients > 0 {
                counted.add(tally);
            }
        }
    }

    fn compare_counters(&mut self) {
        if self.patrol.spoiled {
            return;
        }
        let right = Counters {
            quarantined: self.counters.quarantined,
            unindexed_from: self.counters.unindexed_from,
            ..self.patrol.counted
        };
        let expected = std::mem::take(&mut self.patrol.inexact);
        if right == self.counters {
            return;
        }
        if expected {
            tracing::info!(was = ?self.counters, is = ?right, "the counters are exact again");
        } else {
            self.parts.metrics.patrol_repairs.inc();
            tracing::error!(was = ?self.counters, is = ?right, "the counters were wrong: they are put right");
        }
        self.counters = right;
        self.open.counters = true;
    }

    fn keys_looked_at(&mut self, found: Strays) {
        let mut count = 0_u64;
        for key in found.keys {
            // Of what is in memory keys come and go.
            if self.residents.get(key.id).is_none() {
                self.open.changes.push(Op::DeleteDue(key));
                count += 1;
            }
        }
        self.strays_removed(count);
        for (id, reason) in found.damaged {
            self.quarantine(id, &reason);
        }
        match found.next {
            Some(after) => self.patrol.stage = Stage::Keys(Some(after)),
            None => {
                self.patrol.stage = Stage::Resting;
                let rest = if self.patrol.inexact { EVERY } else { REST };
                self.patrol.not_before = self.parts.clock.instant() + rest;
            }
        }
    }

    /// Due keys were found that name no recipient that is due then.
    pub(super) fn strays_removed(&self, count: u64) {
        if count > 0 {
            self.parts.metrics.patrol_repairs.inc_by(count);
            tracing::error!(keys = count, "due keys led to nothing that was due: they are removed");
        }
    }
}

impl Handler<Looked> for Queue {
    type Result = ();

    fn handle(&mut self, looked: Looked, ctx: &mut Context<Self>) {
        self.looked(looked);
        self.turn(ctx);
    }
}
