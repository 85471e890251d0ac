//! The real Queue on one arbiter, in simulated time, over a spool in memory and remote hosts that follow a script.

mod chance;
mod clock;
mod commits;
mod damage;
mod destinations;
mod expiry;
mod fates;
mod faulty;
mod holding;
mod indexing;
mod memory;
mod neighbours;
mod operator;
mod patrol;
mod quarantine;
mod ramp;
mod remote;
mod residents;
mod restarts;
mod retries;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, Context, Handler, Message};
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use self::remote::{Answer, Remote, ScriptedDeliveries, SharedRemote, Tried, Try, lock};
use super::messages::{
    Command, CommandResult, CommandVerb, DestinationCommand, DestinationVerb, Drain, Enqueue, NotQueued,
};
use super::{MemoryBounds, Queue, QueueParts, QueueSettings};
use crate::actors::delivery::Dials;
use crate::admin::Health;
use crate::clock::{Clock, SimulatedClock};
use crate::config::{Config, LogFormat, RetryConfig};
use crate::mail::envelope::{
    BodyType, Content, ContentPlace, Envelope, Origin, Recipient, Status, StoredMessage,
};
use crate::mail::id::QueueId;
use crate::maillog::MailLog;
use crate::metrics::Metrics;
use crate::route::table::RouteTable;
use crate::schedule::retry::RetryRules;
use crate::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::spool::front::Front;
use crate::spool::memory::MemorySpool;
use crate::spool::{Counters, Spool, UNTIL_RESUMED};

/// When simulated time begins, wall time in milliseconds.
const START_MS: u64 = 1_700_000_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// Runs a scene in simulated time: sleeping costs nothing, and time stands still while anybody has something to do.
fn simulate<F: Future>(scene: impl FnOnce() -> F) -> F::Output {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    actix_rt::System::with_tokio_rt(runtime).block_on(async { scene().await })
}

async fn sleep(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Lets everybody do what can be done now.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn settings() -> QueueSettings {
    QueueSettings {
        hostname: "relay.example".into(),
        retry: RetryRules::new(&RetryConfig { jitter: 0.0, ..RetryConfig::default() }),
        routes: RouteTable::build(&Config::default()).expect("no routes"),
        connections: 100,
        connections_per_destination: 20,
        recipients_per_transaction: 100,
        memory: MemoryBounds::default(),
    }
}

/// A relay's inside: what survives a restart, what is outside, and the Queue.
struct World {
    spool: Arc<MemorySpool>,
    clock: Arc<SimulatedClock>,
    remote: SharedRemote,
    queue: Addr<Queue>,
    metrics: Arc<Metrics>,
    failure: watch::Receiver<Option<String>>,
    settings: Box<dyn Fn() -> QueueSettings>,
    next_id: AtomicU64,
    /// Recipients whose message was answered 250.
    accepted: Arc<Mutex<HashMap<String, QueueId>>>,
}

impl World {
    fn new(script: impl FnMut(&Try<'_>) -> Answer + Send + 'static) -> Self {
        Self::with(settings, script)
    }

    fn with(
        settings: impl Fn() -> QueueSettings + 'static,
        script: impl FnMut(&Try<'_>) -> Answer + Send + 'static,
    ) -> Self {
        let spool = Arc::new(MemorySpool::new());
        let front = Front::inline(spool.clone());
        Self::over(front, spool, settings, script)
    }

    /// A world whose Queue reaches its spool through this front.
    fn over(
        front: Front,
        spool: Arc<MemorySpool>,
        settings: impl Fn() -> QueueSettings + 'static,
        script: impl FnMut(&Try<'_>) -> Answer + Send + 'static,
    ) -> Self {
        let clock = Arc::new(SimulatedClock::new(START_MS));
        let remote = Remote::new(script);
        let (queue, metrics, failure) = start(front, &spool, &clock, &remote, settings());
        Self {
            spool,
            clock,
            remote,
            queue,
            metrics,
            failure,
            settings: Box::new(settings),
            next_id: AtomicU64::new(0),
            accepted: Arc::default(),
        }
    }

    /// The process dies, and another one starts over the same spool.
    async fn restart(&mut self) {
        let front = Front::inline(self.spool.clone());
        self.restart_over(front, || ()).await;
    }

    /// As [`World::restart`]; `killed` is called at the moment of death.
    async fn restart_over(&mut self, front: Front, killed: impl FnOnce()) {
        lock(&self.remote).life += 1;
        self.look(|queue, ctx| {
            queue.failed = true;
            ctx.stop();
        })
        .await;
        killed();
        settle().await;
        let started = start(front, &self.spool, &self.clock, &self.remote, (self.settings)());
        (self.queue, self.metrics, self.failure) = started;
    }

    /// Looks into the Queue.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Queue, &mut Context<Queue>) -> T + Send + 'static,
    ) -> T {
        let (answer, wait) = oneshot::channel();
        let look = move |queue: &mut Queue, ctx: &mut Context<Queue>| drop(answer.send(look(queue, ctx)));
        self.queue.do_send(Look(Box::new(look)));
        wait.await.expect("the Queue lives")
    }

    fn envelope(&self, from: &str, to: &[&str], size: usize) -> Envelope {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        let arrived_ms = self.clock.now_ms();
        let recipient = |text: &&str| {
            let path = ForwardPath::new(Mailbox::parse(text).expect("a mailbox"));
            Recipient { destination: path.domain().clone(), path }
        };
        Envelope {
            id: QueueId::from_parts(arrived_ms, &random),
            reverse_path: ReversePath::parse(from).expect("a path"),
            body: BodyType::SevenBit,
            arrived_ms,
            origin: Origin::Embedded,
            size: size as u64,
            place: ContentPlace::Database,
            recipients: to.iter().map(recipient).collect(),
        }
    }

    /// Hands a message in without waiting for its commit.
    fn hand_in(&self, from: &str, to: &[&str]) -> (QueueId, oneshot::Receiver<Result<(), NotQueued>>) {
        let content = Bytes::from(format!("Subject: to {}\r\n\r\nhello\r\n", to[0]));
        let envelope = self.envelope(from, to, content.len());
        let (answer, wait) = oneshot::channel();
        let id = envelope.id;
        self.queue.do_send(Enqueue {
            envelope,
            content: Content::Memory(content),
            credits: Vec::new(),
            answer,
        });
        (id, wait)
    }

    /// A message from `joe@sender.example`, answered 250.
    async fn accept(&self, to: &[&str]) -> QueueId {
        self.accept_from("joe@sender.example", to).await
    }

    async fn accept_from(&self, from: &str, to: &[&str]) -> QueueId {
        let (id, wait) = self.hand_in(from, to);
        wait.await.expect("an answer").expect("taken");
        id
    }

    fn tried(&self) -> Vec<Tried> {
        lock(&self.remote).tried.clone()
    }

    /// When a recipient was tried, in seconds since the start.
    fn tries_of(&self, to: &str) -> Vec<u64> {
        let tried = self.tried();
        tried.iter().filter(|tried| tried.to.iter().any(|name| name == to)).map(|tried| tried.at_s).collect()
    }

    /// When a recipient's mail was taken by its remote host.
    fn taken_by(&self, to: &str) -> Vec<u64> {
        let remote = lock(&self.remote);
        remote.taken.iter().filter(|(name, ..)| name == to).map(|(_, _, at_s, _)| *at_s).collect()
    }

    /// The content of all mail that this recipient got.
    fn mail_of(&self, to: &str) -> Vec<String> {
        let remote = lock(&self.remote);
        remote.taken.iter().filter(|(name, ..)| name == to).map(|(.., content)| content.clone()).collect()
    }

    fn stored(&self, id: QueueId) -> Option<StoredMessage> {
        self.spool.message(id).expect("readable")
    }

    /// What the counters should say, counted one by one.
    fn scan(&self) -> Counters {
        let mut counters = Counters::default();
        for message in self.spool.list(None, usize::MAX).expect("readable") {
            counters.messages += 1;
            counters.bytes += message.envelope.size;
            counters.tree_bytes += message.envelope.size;
            let waiting = || message.states.iter().filter(|state| !state.status.is_settled());
            counters.recipients += waiting().count() as u64;
            counters.held += waiting().filter(|state| state.held).count() as u64;
        }
        counters.quarantined = self.spool.quarantined(None, usize::MAX).expect("readable").len() as u64;
        counters
    }

    async fn command(&self, id: QueueId, recipient: Option<u16>, verb: CommandVerb) -> CommandResult {
        self.queue.send(Command { id, recipient, verb }).await.expect("the Queue lives")
    }

    async fn suspend(&self, destination: &str, seconds: Option<u64>) -> CommandResult {
        let until_ms = seconds.map_or(UNTIL_RESUMED, |seconds| self.clock.now_ms() + seconds * 1_000);
        self.destination_command(destination, DestinationVerb::Suspend { until_ms }).await
    }

    async fn resume(&self, destination: &str) -> CommandResult {
        self.destination_command(destination, DestinationVerb::Resume).await
    }

    async fn destination_command(&self, destination: &str, verb: DestinationVerb) -> CommandResult {
        let destination = Domain::parse(destination).expect("a domain");
        self.queue.send(DestinationCommand { destination, verb }).await.expect("the Queue lives")
    }

    /// What must hold whenever nothing happens: the counters are right, whoever has mail is going to be woken in time,
    /// nobody else is, and nothing is kept in memory for nothing.
    async fn check_idle(&self) {
        assert_eq!(self.spool.counters().expect("readable"), self.scan(), "counters");
        let (held, content, attempts, slots, messages, destinations) = self
            .look(|queue, _| {
                let residents = &queue.residents;
                (
                    residents.held(),
                    residents.content_bytes(),
                    queue.attempts.len(),
                    queue.slots.used(),
                    residents.len(),
                    queue.destinations.map.len(),
                )
            })
            .await;
        let kept = (held, content, attempts, slots, messages, destinations);
        assert_eq!(kept, (0, 0, 0, 0, 0, 0), "memory of an idle Queue");
        self.check_wakes();
    }

    fn check_wakes(&self) {
        let wakes = self.spool.wakes(None, usize::MAX).expect("readable");
        let mut next = HashMap::<Domain, u64>::new();
        for message in self.spool.list(None, usize::MAX).expect("readable") {
            for (recipient, state) in message.envelope.recipients.iter().zip(&message.states) {
                if state.status == Status::Queued && !state.held {
                    let due = next.entry(recipient.destination.clone()).or_insert(u64::MAX);
                    *due = state.due_ms.min(*due);
                }
            }
        }
        for (destination, due) in &mut next {
            let record = self.spool.destination(destination).expect("readable").unwrap_or_default();
            *due = (*due).max(record.not_before_ms());
            if *due == UNTIL_RESUMED {
                // Whoever resumes it looks for its mail.
                continue;
            }
            let woken = wakes.iter().find(|(_, name)| name == destination).map(|(at, _)| *at);
            assert!(
                woken.is_some_and(|at| at <= *due),
                "{destination} is due at {due} and woken at {woken:?}"
            );
        }
        for (at, destination) in wakes {
            let record = self.spool.destination(&destination).expect("readable").unwrap_or_default();
            assert!(
                next.contains_key(&destination) || record.suspended_until_ms > 0,
                "{destination} has no mail and is woken at {at}"
            );
        }
    }

    /// Keys that are left, the counters and those of these kinds aside: how many of each kind.
    fn check_left(&self, allowed: &str) {
        let mut left = std::collections::BTreeMap::<char, usize>::new();
        for key in self.spool.keys() {
            let kind = char::from(key[0]);
            if kind != 'm' && !allowed.contains(kind) {
                *left.entry(kind).or_default() += 1;
            }
        }
        let messages = || self.spool.list(None, 3).expect("readable");
        assert!(left.is_empty(), "left in the spool: {left:?} {:?}", messages());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.queue.do_send(Look(Box::new(|_, ctx| ctx.stop())));
    }
}

fn start(
    front: Front,
    spool: &Arc<MemorySpool>,
    clock: &Arc<SimulatedClock>,
    remote: &SharedRemote,
    settings: QueueSettings,
) -> (Addr<Queue>, Arc<Metrics>, watch::Receiver<Option<String>>) {
    let metrics = Metrics::new().expect("good metrics");
    let (failure, failed) = watch::channel(None);
    let deliveries =
        ScriptedDeliveries { remote: remote.clone(), spool: spool.clone(), clock: clock.clone() };
    let parts = QueueParts {
        settings,
        clock: clock.clone(),
        front,
        deliveries: Box::new(deliveries),
        dials: Dials::new(1000, clock.clone()),
        metrics: metrics.clone(),
        maillog: MailLog::discard(LogFormat::Text),
        health: Arc::new(Health::new()),
        failure,
    };
    (Queue::new(parts, spool.counters().expect("readable")).start(), metrics, failed)
}

/// Runs a closure inside the Queue.
#[derive(Message)]
#[rtype(result = "()")]
struct Look(Inside);

type Inside = Box<dyn FnOnce(&mut Queue, &mut Context<Queue>) + Send>;

impl Handler<Look> for Queue {
    type Result = ();

    fn handle(&mut self, look: Look, ctx: &mut Context<Self>) {
        (look.0)(self, ctx);
    }
}
