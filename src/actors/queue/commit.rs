//! The group commit: while one commit is on its way to the disk, the next one gathers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::Message;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::messages::NotQueued;
use crate::mail::envelope::{Content, Envelope};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::spool::{Counters, Op, SpoolError, Tally};

/// New mail in one commit: entries and content bytes (design section 5, measured: larger batches stall).
const ARRIVALS_MAX: usize = 1_000;
const BYTES_MAX: u64 = 4 << 20;

/// A message on its way into the spool.
#[derive(Debug)]
pub(super) struct Arrival {
    pub envelope: Arc<Envelope>,
    pub content: Content,
    /// The keys by which it is found on disk, if it does not stay in memory.
    pub keys: Vec<Op>,
    /// Who waits for its 250; nobody for a DSN.
    pub waiting: Option<Waiting>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub answer: oneshot::Sender<Result<(), NotQueued>>,
    /// Held until the commit is answered.
    pub _credits: Vec<OwnedSemaphorePermit>,
}

/// What waits for the next commit.
#[derive(Debug, Default)]
pub(super) struct OpenCommit {
    /// Reports, removals and commands: never refused, always in the very next commit.
    pub changes: Vec<Op>,
    /// Whether the counters changed though nothing else did.
    pub counters: bool,
    /// Whether it carries a step of a migration.
    pub migrate: bool,
    /// The times of deadline keys in `changes`.
    pub deadlines: Vec<u64>,
    /// Recipients whose change is in `changes`.
    pub settling: Vec<(QueueId, u16)>,
    /// Destinations that leave memory with it.
    pub leaving: Vec<(Domain, u64)>,
    /// Commands that wait for it.
    pub answers: Vec<oneshot::Sender<()>>,
    /// DSNs: as new mail, but never refused and never left for a later commit.
    pub reports: Vec<Arrival>,
    /// New mail.
    pub arrivals: VecDeque<Arrival>,
}

/// The commit that is on its way to the disk.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    pub arrivals: Vec<Arrival>,
    pub migrate: bool,
    pub deadlines: Vec<u64>,
    pub settling: Vec<(QueueId, u16)>,
    pub leaving: Vec<(Domain, u64)>,
    pub answers: Vec<oneshot::Sender<()>>,
}

/// Spool writer → Queue: the commit is done.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Committed {
    pub result: Result<Duration, SpoolError>,
}

impl OpenCommit {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.reports.is_empty()
            && self.arrivals.is_empty()
            && self.answers.is_empty()
            && self.leaving.is_empty()
            && !self.counters
            && !self.migrate
    }

    /// Takes what the next commit carries: every change, every report, and new mail up to the bounds.
    pub fn take(&mut self, counters: &mut Counters) -> (Vec<Op>, UnderWay) {
        let mut ops = std::mem::take(&mut self.changes);
        let migrate = std::mem::take(&mut self.migrate);
        if migrate {
            ops.insert(0, Op::Migrate);
        }
        let mut arrivals = std::mem::take(&mut self.reports);
        let mut bytes = 0;
        while let Some(arrival) = self.arrivals.front() {
            bytes += database_bytes(arrival);
            if arrivals.len() >= ARRIVALS_MAX || (bytes > BYTES_MAX && !arrivals.is_empty()) {
                break;
            }
            arrivals.extend(self.arrivals.pop_front());
        }
        ops.reserve(arrivals.len() + 1);
        for arrival in &arrivals {
            arrival.write(&mut ops, counters);
        }
        ops.push(Op::Counters(*counters));
        self.counters = false;
        let under_way = UnderWay {
            arrivals,
            deadlines: std::mem::take(&mut self.deadlines),
            settling: std::mem::take(&mut self.settling),
            leaving: std::mem::take(&mut self.leaving),
            answers: std::mem::take(&mut self.answers),
            migrate,
        };
        (ops, under_way)
    }
}

fn database_bytes(arrival: &Arrival) -> u64 {
    match &arrival.content {
        Content::Memory(content) => content.len() as u64,
        Content::File { .. } => 0,
    }
}

impl Arrival {
    fn write(&self, ops: &mut Vec<Op>, counters: &mut Counters) {
        let envelope = &self.envelope;
        ops.push(Op::PutMessage(envelope.clone(), self.content.clone()));
        ops.extend(self.keys.iter().cloned());
        counters.add(Tally::fresh(envelope));
    }
}
