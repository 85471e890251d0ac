//! The patrol: looks through the whole queue, slowly, for what must never be, and puts it right.
//!
//! Each unsettled recipient of a message that is only on disk has its due key; the counters say what is there. A bug or a
//! damaged disk could break either, and mail that no key names would wait for ever (promise P7). It reads no content.

use std::time::Duration;

use actix::{Context, Handler, Message};
use tokio::time::Instant;

use super::Queue;
use crate::mail::id::QueueId;
use crate::spool::{Counters, Patrolled, SpoolError};

/// Messages looked at in one go.
const PER_LOOK: usize = 200;
/// From one look to the next: 1,000,000 messages take some 80 minutes.
const EVERY: Duration = Duration::from_secs(1);
/// From the end of one round to the next one, and from the start to the first.
const REST: Duration = Duration::from_secs(3_600);

/// How far the round is.
#[derive(Debug)]
pub(super) struct Patrol {
    /// Where the next look begins; `None` between rounds.
    from: Option<QueueId>,
    reading: bool,
    not_before: Instant,
    /// What this round has counted, and how many commits there were when it began.
    counted: Counters,
    commits: u64,
}

impl Patrol {
    /// The first round begins after a while: a start has other things to do.
    pub fn new(now: Instant) -> Self {
        Self { from: None, reading: false, not_before: now + REST, counted: Counters::default(), commits: 0 }
    }

    /// Whether a round is under way.
    pub fn is_under_way(&self) -> bool {
        self.from.is_some()
    }
}

/// Spool → Queue: what a look found.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Looked {
    ticket: u64,
    found: Result<Patrolled, SpoolError>,
}

impl Queue {
    /// Once a tick: the next look, when it is time for it.
    pub(super) fn patrol(&mut self) {
        let now = self.parts.clock.instant();
        let busy = self.draining || self.failed || self.unindexed.is_recovering();
        if busy || self.patrol.reading || self.patrol.not_before > now {
            return;
        }
        let Some(me) = self.me() else { return };
        let from = self.patrol.from.unwrap_or_else(|| {
            self.patrol.counted = Counters::default();
            self.patrol.commits = self.parts.metrics.commits_total.get();
            QueueId::from_bytes([0; 16])
        });
        (self.patrol.from, self.patrol.reading) = (Some(from), true);
        let ticket = self.residents.read_begins();
        self.parts.front.read(
            move |spool| Looked { ticket, found: spool.patrol(from, PER_LOOK) },
            move |looked| me.do_send(looked),
        );
    }

    fn looked(&mut self, looked: Looked) {
        self.patrol.reading = false;
        self.patrol.not_before = self.parts.clock.instant() + EVERY;
        match looked.found {
            Ok(found) => self.put_right(found),
            Err(error) => self.damaged(&error),
        }
        self.residents.read_ends(looked.ticket);
    }

    fn put_right(&mut self, found: Patrolled) {
        for stored in &found.lacking {
            let id = stored.envelope.id;
            // What is in memory may have got its keys, or lost them with reason, since it was read.
            if self.residents.get(id).is_none() && self.recovered(stored) {
                self.parts.metrics.patrol_repairs.inc();
                tracing::error!(%id, "a message had lost its due keys and would have waited for ever: it is in line again");
            }
        }
        for (id, reason) in found.damaged {
            self.quarantine(id, &reason);
        }
        let counted = &mut self.patrol.counted;
        counted.messages += found.counted.messages;
        counted.recipients += found.counted.recipients;
        counted.bytes += found.counted.bytes;
        counted.tree_bytes += found.counted.tree_bytes;
        counted.held += found.counted.held;
        self.patrol.from = found.next;
        if found.next.is_none() {
            self.patrol.not_before = self.parts.clock.instant() + REST;
            self.compare_counters();
        }
    }

    /// Only when nothing was written during the round, else the sums mean nothing.
    fn compare_counters(&mut self) {
        let quiet = self.patrol.commits == self.parts.metrics.commits_total.get()
            && self.open.is_empty()
            && self.under_way.is_none();
        let right = Counters {
            quarantined: self.counters.quarantined,
            unindexed_from: self.counters.unindexed_from,
            ..self.patrol.counted
        };
        if quiet && right != self.counters {
            self.parts.metrics.patrol_repairs.inc();
            tracing::error!(was = ?self.counters, is = ?right, "the counters were wrong: they are put right");
            self.counters = right;
            self.open.counters = true;
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
