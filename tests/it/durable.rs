//! Promise P1 from the outside: a 250 means that the message is on stable storage. The real Listener, Sessions and Queue
//! over a spool whose commits end when the test says so.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Context, Handler};
use bytes::Bytes;
use posthaste::actors::delivery::messages::{Abort, Attempt, Drain, GiveWay};
use posthaste::actors::delivery::{Deliveries, DeliveryHandle, Dials};
use posthaste::actors::queue::{MemoryBounds, QueueParts, QueueSettings};
use posthaste::actors::session::{Credits, SessionContext};
use posthaste::actors::wiring::Arbiters;
use posthaste::admin::Health;
use posthaste::clock::SystemClock;
use posthaste::config::{Config, LogFormat};
use posthaste::mail::envelope::StoredMessage;
use posthaste::mail::id::QueueId;
use posthaste::maillog::MailLog;
use posthaste::metrics::Metrics;
use posthaste::route::table::{Route, RouteTable};
use posthaste::schedule::retry::RetryRules;
use posthaste::smtp::address::Domain;
use posthaste::spool::front::Front;
use posthaste::spool::memory::MemorySpool;
use posthaste::spool::{
    Counters, Deadlines, DestinationRecord, DueKey, DuePage, Op, Patrolled, Spool, SpoolError, Strays,
    Survey, Waiting,
};
use tokio::sync::{Semaphore, watch};

use crate::support::PATIENCE;
use crate::support::smtp::Client;

/// How long a client waits for a 250 that must not come.
const A_WHILE: Duration = Duration::from_millis(500);

/// A spool over a disk that takes its time: a commit ends when it is told how.
struct Stuck {
    memory: MemorySpool,
    /// Told when a commit has begun.
    began: Sender<()>,
    /// Whether the commit is good. Without a sender it never is.
    verdict: Mutex<Receiver<bool>>,
}

impl Spool for Stuck {
    fn commit(&self, ops: &[Op]) -> Result<(), SpoolError> {
        let _ = self.began.send(());
        match self.verdict.lock().unwrap().recv() {
            Ok(true) => self.memory.commit(ops),
            Ok(false) | Err(_) => Err(SpoolError::Closed("the disk is gone".to_owned())),
        }
    }

    fn due(
        &self,
        destination: &Domain,
        until_ms: u64,
        skip: &HashSet<(QueueId, u16)>,
        limit: usize,
        known: &dyn Fn(QueueId) -> bool,
    ) -> Result<DuePage, SpoolError> {
        self.memory.due(destination, until_ms, skip, limit, known)
    }

    fn wakes(&self, after: Option<&(u64, Domain)>, limit: usize) -> Result<Vec<(u64, Domain)>, SpoolError> {
        self.memory.wakes(after, limit)
    }

    fn deadlines(
        &self,
        after: Option<(u64, QueueId)>,
        limit: usize,
    ) -> Result<Vec<(u64, QueueId)>, SpoolError> {
        self.memory.deadlines(after, limit)
    }

    fn message(&self, id: QueueId) -> Result<Option<StoredMessage>, SpoolError> {
        self.memory.message(id)
    }

    fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<StoredMessage>, SpoolError> {
        self.memory.list(after, limit)
    }

    fn survey(&self, from: QueueId, limit: usize) -> Result<Survey, SpoolError> {
        self.memory.survey(from, limit)
    }

    fn patrol(
        &self,
        from: QueueId,
        limit: usize,
        deadlines: &Deadlines<'_>,
    ) -> Result<Patrolled, SpoolError> {
        self.memory.patrol(from, limit, deadlines)
    }

    fn strays(&self, after: Option<&DueKey>, limit: usize) -> Result<Strays, SpoolError> {
        self.memory.strays(after, limit)
    }

    fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        self.memory.content(id)
    }

    fn destination(&self, destination: &Domain) -> Result<Option<DestinationRecord>, SpoolError> {
        self.memory.destination(destination)
    }

    fn destinations(
        &self,
        after: Option<&Domain>,
        limit: usize,
    ) -> Result<Vec<(Domain, DestinationRecord)>, SpoolError> {
        self.memory.destinations(after, limit)
    }

    fn queued(&self, after: Option<&Domain>, limit: usize) -> Result<Vec<(Domain, Waiting)>, SpoolError> {
        self.memory.queued(after, limit)
    }

    fn counters(&self) -> Result<Counters, SpoolError> {
        self.memory.counters()
    }

    fn syncs(&self) -> u64 {
        self.memory.syncs()
    }
}

/// Takes attempts and drops them: they report themselves crashed.
struct Idle;

impl Actor for Idle {
    type Context = Context<Self>;
}

impl Handler<Attempt> for Idle {
    type Result = ();

    fn handle(&mut self, _: Attempt, _: &mut Self::Context) {}
}

impl Handler<Drain> for Idle {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

impl Handler<Abort> for Idle {
    type Result = ();

    fn handle(&mut self, _: Abort, _: &mut Self::Context) {}
}

impl Handler<GiveWay> for Idle {
    type Result = ();

    fn handle(&mut self, _: GiveWay, _: &mut Self::Context) {}
}

struct NoDeliveries;

impl Deliveries for NoDeliveries {
    fn start(&self, _: &Domain, _: &Route) -> DeliveryHandle {
        let idle = Idle.start();
        DeliveryHandle {
            attempt: idle.clone().recipient(),
            drain: idle.clone().recipient(),
            abort: idle.clone().recipient(),
            give_way: idle.recipient(),
        }
    }
}

/// A relay that receives, and the ends of its disk.
struct Rig {
    smtp: SocketAddr,
    began: Receiver<()>,
    verdict: Option<Sender<bool>>,
    front: Front,
    arbiters: Arbiters,
}

impl Rig {
    async fn start() -> Self {
        let (began_here, began) = channel();
        let (verdict, verdict_here) = channel();
        let stuck =
            Stuck { memory: MemorySpool::new(), began: began_here, verdict: Mutex::new(verdict_here) };
        let front = Front::threaded(Arc::new(stuck), None, 1, 1).unwrap();
        let arbiters = Arbiters::start(1);
        let metrics = Metrics::new().unwrap();
        let (maillog, clock) = (MailLog::discard(LogFormat::Text), Arc::new(SystemClock));
        let parts = QueueParts {
            settings: QueueSettings {
                hostname: "relay.test".into(),
                retry: RetryRules::new(&Config::default().retry),
                routes: RouteTable::default(),
                connections: 1,
                connections_per_destination: 1,
                recipients_per_transaction: 100,
                memory: MemoryBounds::default(),
            },
            clock: clock.clone(),
            front: front.clone(),
            deliveries: Box::new(NoDeliveries),
            dials: Dials::new(1000, clock.clone()),
            metrics: metrics.clone(),
            maillog: maillog.clone(),
            health: Arc::new(Health::new()),
            failure: watch::Sender::new(None),
        };
        let queue = arbiters.start_queue(parts, Counters::default()).await.unwrap();
        let limits = Config::default().limits;
        let context = SessionContext {
            hostname: "relay.test".into(),
            message_size: limits.message_size,
            recipients: limits.recipients,
            errors: limits.errors,
            idle_timeout: limits.idle_timeout,
            data_timeout: limits.data_timeout,
            content_threshold: 32 << 10,
            instance: "test".to_owned(),
            credits: Credits {
                messages: Arc::new(Semaphore::new(100)),
                memory: Arc::new(Semaphore::new(1024)),
            },
            room: Arc::default(),
            queue: queue.recipient(),
            front: front.clone(),
            clock,
            metrics,
            maillog,
        };
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let smtp = socket.local_addr().unwrap();
        socket.set_nonblocking(true).unwrap();
        let networks = Config::default().relay.networks;
        arbiters.start_listener(vec![socket], networks, 10, Arc::new(context));
        Self { smtp, began, verdict: Some(verdict), front, arbiters }
    }

    /// The disk goes, the threads end.
    fn end(mut self) {
        self.verdict = None;
        self.front.close_and_wait();
        self.arbiters.stop();
    }
}

/// Runs the blocking part of a test beside a relay.
fn with_relay(test: impl FnOnce(Rig) + Send + 'static) {
    actix_rt::System::new().block_on(async {
        let rig = Rig::start().await;
        tokio::task::spawn_blocking(move || test(rig)).await.unwrap();
    });
}

/// A client that has sent a whole message and its final dot, once the commit of it has begun.
fn sent(rig: &Rig) -> Client {
    let mut client = Client::greet(rig.smtp).unwrap();
    assert_eq!(client.begin("a@sender.test", &["b@x.test".to_owned()]).unwrap(), None);
    client.send(b"Subject: hello\r\n\r\nHello.\r\n.\r\n").unwrap();
    rig.began.recv_timeout(PATIENCE).unwrap();
    client
}

#[test]
fn with_a_spool_whose_sync_never_returns_no_250_is_ever_sent() {
    with_relay(|rig| {
        let first = sent(&rig);
        // One more that comes while the first commit hangs, and so is in none yet.
        let mut second = Client::greet(rig.smtp).unwrap();
        assert_eq!(second.begin("a@sender.test", &["b@x.test".to_owned()]).unwrap(), None);
        second.send(b"Hello.\r\n.\r\n").unwrap();
        for mut client in [first, second] {
            assert_eq!(client.heard_within(A_WHILE).unwrap(), "", "an answer without a sync");
        }
        // Who connects meanwhile is served up to the same point: the relay itself does not hang.
        assert_eq!(Client::greet(rig.smtp).unwrap().command("NOOP").unwrap().code, 250);
        rig.end();
    });
}

#[test]
fn the_250_comes_with_the_end_of_the_commit() {
    with_relay(|rig| {
        let mut client = sent(&rig);
        rig.verdict.as_ref().unwrap().send(true).unwrap();
        assert_eq!(client.reply().unwrap().code, 250);
        rig.end();
    });
}

#[test]
fn a_commit_that_fails_is_451_for_all_who_wait() {
    with_relay(|rig| {
        let mut client = sent(&rig);
        rig.verdict.as_ref().unwrap().send(false).unwrap();
        assert_eq!(client.reply().unwrap().code, 451);
        // The spool is final in its errors: nobody is told 250 from here on.
        assert_eq!(client.begin("a@sender.test", &["b@x.test".to_owned()]).unwrap(), None);
        client.send(b"Hello.\r\n.\r\n").unwrap();
        assert_eq!(client.reply().unwrap().code, 451);
        rig.end();
    });
}
