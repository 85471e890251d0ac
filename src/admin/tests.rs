//! The routes, asked over a real socket on loopback by the command line's own client.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::thread::JoinHandle;

use actix::{Actor, Context, Handler, ResponseFuture};
use actix_web::dev::ServerHandle;

use super::*;
use crate::actors::queue::messages::{
    CommandResult, DestinationVerb, DestinationsInMemory, InMemory, QuarantineCommand, QuarantineVerb,
};
use crate::admin::view::tests::{NOW, message, queued};
use crate::admin::view::{QuarantinePage, QuarantineView};
use crate::cli::client::{Client, ClientError};
use crate::clock::Clock;
use crate::mail::envelope::{Content, StoredMessage};
use crate::mail::id::QueueId;
use crate::spool::memory::MemorySpool;
use crate::spool::{Op, Spool};

/// A relay that is only its HTTP side: the spool holds `messages`, the Queue answers as told.
pub(crate) struct FakeRelay {
    pub(crate) address: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    server: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl FakeRelay {
    /// Starts it at the wall time `now_ms`.
    pub(crate) fn start(messages: Vec<StoredMessage>, queue: FakeQueue, now_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let token = token::read_or_create(folder.path()).unwrap();
        let (metrics, health) = (Metrics::new().unwrap(), Arc::new(Health::new()));
        let (metrics2, health2) = (Arc::clone(&metrics), Arc::clone(&health));
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix::System::new().block_on(async move {
                let queue = queue.start();
                let queue = QueueRecipients {
                    inspect: queue.clone().recipient(),
                    command: queue.clone().recipient(),
                    destinations: queue.clone().recipient(),
                    destination: queue.clone().recipient(),
                    quarantine: queue.clone().recipient(),
                    observe: queue.recipient(),
                };
                let context = AdminContext {
                    metrics: metrics2,
                    health: health2,
                    spool: spool(messages),
                    queue,
                    token,
                    hosts: vec!["relay.example".to_owned()],
                    clock: Arc::new(StoppedClock(now_ms)),
                };
                let server = serve(listener, context).unwrap();
                started.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        let server = starting.recv().unwrap();
        Self { address, folder, metrics, health, server, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::new(self.address).with_token(self.folder.path()).unwrap()
    }
}

impl Drop for FakeRelay {
    fn drop(&mut self) {
        drop(self.server.stop(false));
        self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Debug)]
struct StoppedClock(u64);

impl Clock for StoppedClock {
    fn now_ms(&self) -> u64 {
        self.0
    }
}

/// A spool that holds these messages.
fn spool(messages: Vec<StoredMessage>) -> Front {
    let spool = MemorySpool::new();
    for StoredMessage { envelope, states } in messages {
        let content = Content::Memory(vec![b'x'; 4096].into());
        let id = envelope.id;
        let states = (0_u16..).zip(states).map(|(number, state)| Op::PutRecipient(id, number, state));
        let ops: Vec<_> = [Op::PutMessage(envelope, content)].into_iter().chain(states).collect();
        spool.commit(&ops).unwrap();
    }
    Front::inline(Arc::new(spool))
}

/// Answers the API's messages; an `Observe` counts, or is never answered when `stuck`.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeQueue {
    pub(crate) memory: InMemory,
    pub(crate) stuck: bool,
}

impl Actor for FakeQueue {
    type Context = Context<Self>;
}

impl Handler<Inspect> for FakeQueue {
    type Result = InMemory;

    fn handle(&mut self, _: Inspect, _: &mut Context<Self>) -> InMemory {
        self.memory.clone()
    }
}

impl Handler<Command> for FakeQueue {
    type Result = CommandResult;

    fn handle(&mut self, command: Command, _: &mut Context<Self>) -> CommandResult {
        match command.recipient {
            None => CommandResult::Done { recipients: 2, in_flight: 1 },
            Some(0) => CommandResult::Done { recipients: 1, in_flight: 0 },
            Some(1) => CommandResult::Unavailable,
            Some(_) => CommandResult::NotFound,
        }
    }
}

impl Handler<InspectDestinations> for FakeQueue {
    type Result = DestinationsInMemory;

    fn handle(&mut self, _: InspectDestinations, _: &mut Context<Self>) -> DestinationsInMemory {
        DestinationsInMemory::default()
    }
}

impl Handler<DestinationCommand> for FakeQueue {
    type Result = CommandResult;

    fn handle(&mut self, command: DestinationCommand, _: &mut Context<Self>) -> CommandResult {
        match command.verb {
            DestinationVerb::Suspend { until_ms } if until_ms > NOW => {
                CommandResult::Done { recipients: 0, in_flight: 1 }
            }
            _ => CommandResult::Impossible { reason: format!("{} is not suspended", command.destination) },
        }
    }
}

impl Handler<QuarantineCommand> for FakeQueue {
    type Result = CommandResult;

    fn handle(&mut self, command: QuarantineCommand, _: &mut Context<Self>) -> CommandResult {
        match command.verb {
            QuarantineVerb::Release => CommandResult::Impossible { reason: "it can't be read".to_owned() },
            QuarantineVerb::Discard => CommandResult::Done { recipients: 2, in_flight: 0 },
        }
    }
}

impl Handler<Observe> for FakeQueue {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> ResponseFuture<()> {
        if self.stuck { Box::pin(std::future::pending()) } else { Box::pin(std::future::ready(())) }
    }
}

fn relay(queue: FakeQueue) -> FakeRelay {
    FakeRelay::start(vec![message(vec![queued(NOW + 60_000)])], queue, NOW)
}

/// The status of a request written by hand.
fn status(relay: &FakeRelay, request: &str) -> u16 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(relay.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer[9..12].parse().unwrap()
}

#[test]
fn metrics_show_what_the_relay_counts() {
    let relay = relay(FakeQueue::default());
    relay.metrics.messages_accepted.inc();
    let text = String::from_utf8(Client::new(relay.address).request("GET", "/metrics").unwrap()).unwrap();
    assert!(text.contains("posthaste_messages_accepted_total 1\n"), "{text}");
    assert!(text.contains("posthaste_queue_unresponsive 0\n"), "{text}");
}

#[test]
fn metrics_are_served_when_the_queue_is_stuck_and_say_so() {
    let relay = relay(FakeQueue { stuck: true, ..FakeQueue::default() });
    let text = String::from_utf8(Client::new(relay.address).request("GET", "/metrics").unwrap()).unwrap();
    assert!(text.contains("posthaste_queue_unresponsive 1\n"), "{text}");
}

#[test]
fn readyz_gives_the_reasons_and_livez_does_not_care() {
    let relay = relay(FakeQueue::default());
    let client = Client::new(relay.address);
    let error = client.request("GET", "/readyz").unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 503, .. }), "{error}");
    client.request("GET", "/livez").unwrap();
    relay.health.set(Health::STARTING, None);
    let answer: HealthView = client.json("GET", "/readyz").unwrap();
    assert!(answer.ready && answer.reasons.is_empty());
}

#[test]
fn the_api_needs_the_token_and_everything_needs_an_own_name() {
    let relay = relay(FakeQueue::default());
    let token = token::read(relay.folder.path()).unwrap();
    for (line, host, authorization, expected) in [
        ("GET /api/queue", "localhost", String::new(), 401),
        ("GET /api/queue", "localhost", format!("Authorization: Bearer {token}x\r\n"), 401),
        ("GET /api/queue", "localhost", format!("Authorization: Basic {token}\r\n"), 401),
        ("GET /api/nothing", "localhost", String::new(), 401),
        ("GET /api/queue", "localhost", format!("Authorization: Bearer {token}\r\n"), 200),
        ("GET /api/queue", "relay.example:9925", format!("Authorization: Bearer {token}\r\n"), 200),
        ("GET /api/queue", "evil.example", format!("Authorization: Bearer {token}\r\n"), 421),
        ("GET /metrics", "evil.example", String::new(), 421),
        ("GET /livez", "evil.example", String::new(), 421),
        ("GET /nothing", "localhost", String::new(), 404),
        ("GET http://evil.example/metrics", "localhost", String::new(), 421),
        ("GET http://localhost@evil.example/livez", "localhost", String::new(), 421),
        ("GET http://localhost/livez", "evil.example", String::new(), 421),
        ("GET http://localhost:9925/livez", "localhost", String::new(), 200),
        ("CONNECT evil.example:443", "localhost", String::new(), 421),
    ] {
        let request = format!("{line} HTTP/1.0\r\nHost: {host}\r\n{authorization}\r\n");
        assert_eq!(status(&relay, &request), expected, "{request}");
    }
    assert_eq!(status(&relay, "GET /livez HTTP/1.0\r\n\r\n"), 421, "no Host at all");
}

#[test]
fn commands_answer_what_came_of_them() {
    let relay = relay(FakeQueue::default());
    let id = message(vec![]).envelope.id;
    let check = |method: &str, path: String| relay.client().json::<CommandResult>(method, &path);
    let done = check("POST", format!("/api/queue/{id}/retry")).unwrap();
    assert_eq!(done, CommandResult::Done { recipients: 2, in_flight: 1 });
    let done = check("DELETE", format!("/api/queue/{id}?recipient=0")).unwrap();
    assert_eq!(done, CommandResult::Done { recipients: 1, in_flight: 0 });
    for (method, path) in [
        ("GET", "/api/queue?limit=0"),
        ("GET", "/api/destinations?limit=0"),
        ("POST", "/api/destinations/a.example/suspend?seconds=0"),
    ] {
        let error = relay.client().json::<serde_json::Value>(method, path).unwrap_err().to_string();
        assert!(error.contains(" is 0") && error.contains("write 1 or more"), "{path}: {error}");
    }
    for (path, expected) in [
        (format!("/api/queue/{id}?recipient=1"), 503),
        (format!("/api/queue/{id}?recipient=2"), 404),
        (format!("/api/queue/{id}?recipient=x"), 400),
        ("/api/queue/nonsense".to_owned(), 400),
    ] {
        let error = check("DELETE", path.clone()).unwrap_err();
        assert!(
            matches!(error, ClientError::Refused { status, .. } if status == expected),
            "{path}: {error}"
        );
    }
}

#[test]
fn a_page_leads_to_the_next_one() {
    let messages: Vec<_> = (0..5)
        .map(|number| {
            let mut one = message(vec![queued(NOW)]);
            Arc::make_mut(&mut one.envelope).id = QueueId::from_parts(NOW + number, &[0; 10]);
            one
        })
        .collect();
    let relay = FakeRelay::start(messages, FakeQueue::default(), NOW);
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page: view::QueuePage =
            relay.client().json("GET", &format!("/api/queue?limit=2{after}")).unwrap();
        seen.extend(page.messages.into_iter().map(|message| message.id));
        let Some(next) = page.next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted());
}

#[test]
fn quarantine_is_listed_shown_and_decided_on() {
    let relay = relay(FakeQueue::default());
    let client = relay.client();
    let page: QuarantinePage = client.json("GET", "/api/quarantine").unwrap();
    assert_eq!(page, QuarantinePage { messages: Vec::new(), next: None });
    let id = message(Vec::new()).envelope.id;
    let missing = client.json::<QuarantineView>("GET", &format!("/api/quarantine/{id}")).unwrap_err();
    assert_eq!(missing.to_string(), format!("no message {id} is in quarantine"));
    let refused = client.json::<CommandResult>("POST", &format!("/api/quarantine/{id}/release")).unwrap_err();
    assert_eq!(refused.to_string(), "it can't be read");
    let done: CommandResult = client.json("DELETE", &format!("/api/quarantine/{id}")).unwrap();
    assert_eq!(done, CommandResult::Done { recipients: 2, in_flight: 0 });
}
