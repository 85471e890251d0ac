//! The Queue: decides and persists what happens to every accepted message.
//!
//! It owns the open commit, the messages and destinations in memory, and every connection slot. Sockets and disks
//! are elsewhere: it tells Deliveries and the spool writer what to do and hears back by messages.
//!
//! | takes | from | when full |
//! |---|---|---|
//! | [`Enqueue`] | Session | bounded by the commit credits: sessions wait, then answer `452 4.3.1` |
//! | [`AttemptReport`] | Delivery | bounded by the slots; never refused |
//! | [`Command`], `DestinationCommand`, `QuarantineCommand`, [`Inspect`], [`Observe`] | operator's API | the API waits for its answer |
//! | `Committed`, `PageRead`, `WakesRead`, … | spool threads | one per request that was made |
//! | [`Drain`], [`Abort`] | main | once |

mod commands;
mod commit;
mod deadlines;
mod destinations;
mod dispatch;
mod indexing;
mod intake;
pub mod messages;
mod migrating;
mod operator;
mod paging;
mod patrol;
mod quarantine;
mod reports;
mod residents;
mod settle;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod wakes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::commit::{Committed, OpenCommit, UnderWay};
use self::destinations::Destinations;
use self::dispatch::Running;
use self::indexing::Unindexed;
use self::messages::{Abort, Command, CommandResult, Drain, Enqueue, InMemory, Inspect, Observe};
use self::migrating::Migration;
use self::patrol::Patrol;
use self::residents::{Place, Residents};
use crate::actors::delivery::messages as delivery;
use crate::actors::delivery::messages::AttemptReport;
use crate::actors::delivery::{Deliveries, Dials};
use crate::admin::Health;
use crate::clock::SharedClock;
use crate::mail::id::QueueId;
use crate::maillog::MailLog;
use crate::metrics::Metrics;
use crate::route::table::RouteTable;
use crate::schedule::jumps::Jumps;
use crate::schedule::retry::RetryRules;
use crate::schedule::rings::Rings;
use crate::schedule::slots::Slots;
use crate::smtp::address::Domain;
use crate::spool::front::Front;
use crate::spool::{Counters, SpoolError};

/// How often attempts are looked at while some are under way.
const TICK: Duration = Duration::from_secs(1);
/// The longest sleep: bounds how late a jump of wall time is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// An attempt that runs longer than this is slow, and so is its destination.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// When wall time and monotonic time part by more than this, wall time has jumped.
const JUMP_MS: u64 = 3_600_000;
/// How far ahead of a clock that then went back mail may have been put off.
const HORIZON_MS: u64 = 7 * 86_400_000;

/// What the Queue needs to know.
#[derive(Debug)]
pub struct QueueSettings {
    /// The relay's name in DSNs.
    pub hostname: Arc<str>,
    /// Schedules and give-up times per destination.
    pub retry: RetryRules,
    /// Static routes.
    pub routes: RouteTable,
    /// Connection slots over all.
    pub connections: usize,
    /// Connections per destination.
    pub connections_per_destination: u32,
    /// Recipients of one transaction.
    pub recipients_per_transaction: usize,
    /// Bounds of what is kept in memory.
    pub memory: MemoryBounds,
}

/// Bounds of what the Queue keeps in memory (promise P4).
#[derive(Clone, Copy, Debug)]
pub struct MemoryBounds {
    /// Recipients in memory for one destination.
    pub window: usize,
    /// Recipients in memory over all.
    pub recipients: usize,
    /// Destinations in memory.
    pub destinations: usize,
    /// Bytes of fresh content kept for delivery from memory.
    pub content: usize,
}

impl Default for MemoryBounds {
    fn default() -> Self {
        Self { window: 2_000, recipients: 20_000, destinations: 10_000, content: 32 << 20 }
    }
}

/// What the Queue works with.
pub struct QueueParts {
    /// Its settings.
    pub settings: QueueSettings,
    /// The time.
    pub clock: SharedClock,
    /// The spool's threads.
    pub front: Front,
    /// Starts Delivery actors.
    pub deliveries: Box<dyn Deliveries>,
    /// How fast they may connect.
    pub dials: Dials,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it tells.
    pub maillog: MailLog,
    /// What `/readyz` says.
    pub health: Arc<Health>,
    /// Where it says that it can't go on: the relay then ends.
    pub failure: watch::Sender<Option<String>>,
}

/// The actor.
pub struct Queue {
    parts: QueueParts,
    me: Option<Addr<Self>>,
    residents: Residents,
    destinations: Destinations,
    rings: Rings,
    slots: Slots,
    attempts: HashMap<u64, Running>,
    last_ticket: u64,
    open: OpenCommit,
    under_way: Option<UnderWay>,
    commit_began: Option<Instant>,
    counters: Counters,
    unindexed: Unindexed,
    wakes: wakes::Index,
    deadlines: deadlines::Index,
    patrol: Patrol,
    migration: Migration,
    timer: Option<(Instant, SpawnHandle)>,
    /// Wall and monotonic time as last seen.
    seen: (u64, Instant),
    /// The start, or the last jump of wall time: what is older says nothing of whether mail can be delivered.
    since_ms: u64,
    /// Stretches of wall time that were jumped over.
    jumps: Jumps,
    /// Wall time went back: until each destination was looked at once, mail is due up to this time. Else zero.
    horizon_ms: u64,
    /// Destinations that backed off when they were looked at for that, and until when their mail is due.
    unlooked: HashMap<Domain, u64>,
    /// When the attempts and destinations in memory were last looked after.
    looked: Option<Instant>,
    /// Crashes in a row, of recipients whose last attempt crashed.
    crashes: HashMap<(QueueId, u16), u32>,
    /// Messages on their way to quarantine.
    condemned: HashSet<QueueId>,
    /// Reports to senders whose original is being read.
    writing: usize,
    failed: bool,
    draining: bool,
    drained: Vec<oneshot::Sender<()>>,
}

impl Queue {
    /// A queue over a spool with these counters.
    pub fn new(parts: QueueParts, counters: Counters) -> Self {
        let (now_ms, now) = (parts.clock.now_ms(), parts.clock.instant());
        let slots = Slots::new(parts.settings.connections);
        parts.metrics.slots_limit.set(i64::try_from(slots.total()).unwrap_or(i64::MAX));
        Self {
            parts,
            me: None,
            residents: Residents::default(),
            destinations: Destinations::default(),
            rings: Rings::default(),
            slots,
            attempts: HashMap::new(),
            last_ticket: 0,
            open: OpenCommit::default(),
            under_way: None,
            commit_began: None,
            counters,
            unindexed: Unindexed::resume(counters.unindexed_from),
            wakes: wakes::Index::default(),
            deadlines: deadlines::Index::default(),
            patrol: Patrol::new(now, counters.is_guess()),
            migration: Migration::default(),
            timer: None,
            seen: (now_ms, now),
            since_ms: now_ms,
            jumps: Jumps::default(),
            horizon_ms: 0,
            unlooked: HashMap::new(),
            looked: None,
            crashes: HashMap::new(),
            condemned: HashSet::new(),
            writing: 0,
            failed: false,
            draining: false,
            drained: Vec::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.parts.clock.now_ms()
    }

    fn me(&self) -> Option<Addr<Self>> {
        self.me.clone()
    }

    /// What every handler ends with: see what time it is, hand out slots, start a commit, set the alarm.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let now_ms = self.watch_clock();
        self.read_wakes(now_ms);
        self.read_deadlines(now_ms);
        self.recover();
        self.migrate();
        self.dispatch();
        if self.draining {
            self.index_all();
        }
        self.start_commit();
        self.set_timer(ctx);
        self.finish_drain();
    }

    /// Notices a jump of wall time (design section 6).
    fn watch_clock(&mut self) -> u64 {
        let (now_ms, now) = (self.now_ms(), self.parts.clock.instant());
        let passed = now.saturating_duration_since(self.seen.1).as_millis();
        let expected = self.seen.0.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        if now_ms.abs_diff(expected) > JUMP_MS {
            tracing::warn!(from_ms = expected, to_ms = now_ms, "wall time has jumped");
            self.since_ms = now_ms;
            self.jumps.note(expected, now_ms);
            self.shift_back_offs();
            if now_ms < expected {
                self.horizon_ms = expected.saturating_add(HORIZON_MS);
                self.wakes.start_over();
            }
        }
        self.jumps.see(now_ms);
        self.seen = (now_ms, now);
        now_ms
    }

    fn start_commit(&mut self) {
        if self.under_way.is_some() || self.open.is_empty() || self.failed {
            return;
        }
        let Some(me) = self.me() else { return };
        self.counters.unindexed_from = self.unindexed.from();
        let (ops, under_way) = self.open.take(&mut self.counters);
        if self.patrol.is_under_way() {
            under_way.arrivals.iter().for_each(|arrival| self.note_arrival(&arrival.envelope));
        }
        self.parts.metrics.commit_operations.observe(ops.len() as f64);
        self.parts.metrics.commit_messages.observe(under_way.arrivals.len() as f64);
        self.under_way = Some(under_way);
        self.commit_began = Some(self.parts.clock.instant());
        self.parts.front.commit(
            ops,
            Box::new(move |result| me.do_send(Committed { result: result.map(|stats| stats.took) })),
        );
    }

    fn spool_failed(&mut self, error: &SpoolError) {
        tracing::error!(%error, "the spool failed: no more mail is accepted and the relay ends");
        self.failed = true;
        self.parts.metrics.spool_failed.set(1);
        self.parts.health.set("spool", Some(error.to_string()));
        self.parts.failure.send_replace(Some(error.to_string()));
        self.refuse_all();
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        if self.failed || self.me.is_none() {
            return;
        }
        let now_ms = self.now_ms();
        let mut sleep = SLEEP_MAX;
        let busy = !self.attempts.is_empty() || !self.destinations.map.is_empty();
        if busy || self.unindexed.is_recovering() || self.patrol.is_under_way() {
            sleep = TICK;
        }
        for next in [self.next_wake_ms(), self.next_deadline_ms()].into_iter().flatten() {
            // Keys of this very millisecond are read in the next one.
            sleep = sleep.min(Duration::from_millis(next.saturating_add(1).saturating_sub(now_ms).max(1)));
        }
        let at = self.parts.clock.instant() + sleep;
        if let Some((armed, handle)) = self.timer {
            if armed <= at {
                return;
            }
            ctx.cancel_future(handle);
        }
        let handle = ctx.run_later(sleep, |queue, ctx| {
            queue.timer = None;
            queue.tick();
            queue.turn(ctx);
        });
        self.timer = Some((at, handle));
    }

    /// Looks after what is in memory, at most once in [`TICK`]: the timer also rings for single wake keys.
    fn tick(&mut self) {
        let now = self.parts.clock.instant();
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < TICK) {
            return;
        }
        self.looked = Some(now);
        self.mark_slow_attempts(now);
        self.make_way();
        self.index_slow(self.now_ms());
        self.patrol();
        self.look_after_destinations(self.now_ms());
    }

    fn finish_drain(&mut self) {
        let idle = self.attempts.is_empty()
            && self.writing == 0
            && self.under_way.is_none()
            && (self.open.is_empty() || self.failed);
        if self.draining && idle {
            for waiting in self.drained.drain(..) {
                let _ = waiting.send(());
            }
        }
    }
}

impl Actor for Queue {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.me = Some(ctx.address());
        // A start reads no message: this one waits until mail is taken.
        ctx.run_later(TICK, |queue, _| queue.look_ahead());
        self.turn(ctx);
    }
}

impl Handler<Enqueue> for Queue {
    type Result = ();

    fn handle(&mut self, message: Enqueue, ctx: &mut Self::Context) {
        self.enqueue(message);
        self.turn(ctx);
    }
}

impl Handler<Committed> for Queue {
    type Result = ();

    fn handle(&mut self, message: Committed, ctx: &mut Self::Context) {
        match message.result {
            Ok(took) => self.committed(took),
            Err(error) => self.spool_failed(&error),
        }
        self.turn(ctx);
    }
}

impl Handler<AttemptReport> for Queue {
    type Result = ();

    fn handle(&mut self, report: AttemptReport, ctx: &mut Self::Context) {
        self.attempt_reported(report);
        self.turn(ctx);
    }
}

impl Handler<Command> for Queue {
    type Result = ResponseFuture<CommandResult>;

    fn handle(&mut self, command: Command, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.command(command);
        self.turn(ctx);
        answer
    }
}

impl Handler<Inspect> for Queue {
    type Result = InMemory;

    fn handle(&mut self, message: Inspect, _: &mut Self::Context) -> InMemory {
        let Some(resident) = self.residents.get(message.id) else { return InMemory::default() };
        let at = |wanted: Place| {
            (0..)
                .zip(&resident.places)
                .filter(|(_, place)| **place == wanted)
                .map(|(number, _)| number)
                .collect()
        };
        InMemory { in_flight: at(Place::InFlight), ready: at(Place::Ready) }
    }
}

impl Handler<Observe> for Queue {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        self.observe()
    }
}

impl Handler<Drain> for Queue {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.draining = true;
        for destination in self.destinations.map.values() {
            destination.delivery.iter().for_each(|handle| handle.drain.do_send(delivery::Drain));
        }
        let (done, wait) = oneshot::channel();
        self.drained.push(done);
        self.turn(ctx);
        Box::pin(async move { drop(wait.await) })
    }
}

impl Handler<Abort> for Queue {
    type Result = ();

    fn handle(&mut self, _: Abort, ctx: &mut Self::Context) {
        for destination in self.destinations.map.values() {
            destination.delivery.iter().for_each(|handle| handle.abort.do_send(delivery::Abort));
        }
        self.turn(ctx);
    }
}
