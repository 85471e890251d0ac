//! A small internet: names, hosts, and the relay that sends mail there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use posthaste::sink::nameserver::{Nameserver, Zone};
use posthaste::sink::{AcceptAll, Answer, Behaviour, ReceivedMessage, Sink};
use posthaste::smtp::address::ForwardPath;
use posthaste::smtp::server::Refusal;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::support::message::{self, Chance, Made};
use crate::support::relay::{Relay, Setup};
use crate::support::smtp::{Client, Reply, stuffed};
use crate::support::{http, place, wait_for, wait_until};

/// For what takes a few retries, or the time for which a failed look-up is remembered, on a busy machine.
pub const LONG: Duration = Duration::from_secs(90);

/// Who sends in these tests; reports to them arrive at [`World::home`].
pub const SENDER: &str = "ledger@sender.test";

/// The hosts, before the relay starts.
pub struct Net {
    runtime: Runtime,
    setup: Setup,
    home: Sink,
}

/// All of it, running.
pub struct World {
    /// The relay; it logs JSON.
    pub relay: Relay,
    /// Its only name server.
    pub names: Nameserver,
    /// The MX host of `sender.test`.
    pub home: Sink,
    runtime: Runtime,
}

/// When a host made by [`Net::host`] is asked how to go on.
pub enum Moment<'a> {
    /// Before the greeting.
    Connect,
    /// RCPT.
    Recipient(&'a str),
    /// The final dot.
    Message,
}

struct Manners<F>(F);

impl<F> fmt::Debug for Manners<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Manners")
    }
}

impl<F: Fn(Moment<'_>) -> Answer + Send + Sync + 'static> Behaviour for Manners<F> {
    fn on_connect(&self, _: SocketAddr) -> Answer {
        (self.0)(Moment::Connect)
    }

    fn on_recipient(&self, recipient: &ForwardPath) -> Answer {
        (self.0)(Moment::Recipient(recipient.as_str()))
    }

    fn on_message(&self, _: &ReceivedMessage) -> Answer {
        (self.0)(Moment::Message)
    }
}

/// A refusal with a plain status of its class.
pub fn refuse(code: u16) -> Answer {
    let class = if code >= 500 { 5 } else { 4 };
    Answer::Refuse(Refusal::new(code, (class, 2, 0), "says the host"))
}

impl Net {
    /// Only `sender.test` has a host yet.
    pub fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let setup = Setup::new().set("log.format", "\"json\"").set("retry.schedule", "[\"1s\"]");
        let home = bind(&runtime, SocketAddr::new(place::own_address(), setup.smtp.port()), AcceptAll);
        Self { runtime, setup, home }
    }

    /// The port of all hosts; the relay listens on the same, at an address of its own.
    pub fn port(&self) -> u16 {
        self.setup.smtp.port()
    }

    /// Where the relay will listen.
    pub fn relay_address(&self) -> Ipv4Addr {
        v4(self.setup.smtp)
    }

    /// A host that takes everything.
    pub fn sink(&self) -> Sink {
        self.host(|_| Answer::Accept)
    }

    /// A host with a mind of its own.
    pub fn host(&self, answer: impl Fn(Moment<'_>) -> Answer + Send + Sync + 'static) -> Sink {
        self.host_at(place::own_address(), answer)
    }

    /// A host at this address.
    pub fn host_at(
        &self,
        address: IpAddr,
        answer: impl Fn(Moment<'_>) -> Answer + Send + Sync + 'static,
    ) -> Sink {
        bind(&self.runtime, SocketAddr::new(address, self.port()), Manners(answer))
    }

    /// An address where nobody listens: it refuses connections.
    pub fn dead(&self) -> Ipv4Addr {
        v4(SocketAddr::new(place::own_address(), 0))
    }

    /// Names for `sender.test`; nothing is cached for long.
    pub fn zone(&self) -> Zone {
        Zone::new()
            .ttl(0)
            .mx("sender.test", 10, "home.sender.test")
            .a("home.sender.test", v4(self.home.address()))
    }

    /// Starts the relay with one name server that knows `zone`.
    #[track_caller]
    pub fn start(self, zone: Zone) -> World {
        self.start_with(zone, |setup| setup)
    }

    /// As [`Net::start`], with other settings.
    #[track_caller]
    pub fn start_with(self, zone: Zone, change: impl FnOnce(Setup) -> Setup) -> World {
        let names =
            self.runtime.block_on(Nameserver::bind(SocketAddr::new(place::own_address(), 0), zone)).unwrap();
        let port = self.port();
        let setup = self
            .setup
            .set("dns.servers", &format!("[\"{}\"]", names.address()))
            .set("delivery.port", &port.to_string());
        World { relay: change(setup).start(), names, home: self.home, runtime: self.runtime }
    }
}

fn bind(runtime: &Runtime, at: SocketAddr, behaviour: impl Behaviour) -> Sink {
    let _here = runtime.enter();
    Sink::bind(at, Arc::new(behaviour)).unwrap_or_else(|error| panic!("no host at {at}: {error}"))
}

fn v4(address: SocketAddr) -> Ipv4Addr {
    match address.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is no IPv4 address"),
    }
}

/// The address of a host.
pub fn ip(sink: &Sink) -> Ipv4Addr {
    v4(sink.address())
}

/// MX records for a domain: the hosts' addresses, best first.
pub fn with_mx(zone: Zone, domain: &str, hosts: &[Ipv4Addr]) -> Zone {
    hosts.iter().zip(1_u16..).fold(zone, |zone, (address, number)| {
        let host = format!("mx{number}.{domain}");
        zone.mx(domain, number * 10, &host).a(&host, *address)
    })
}

/// A message of some KiB with a name.
pub fn made(id: &str) -> Made {
    message::make(id, 3000, &mut Chance::new(11))
}

/// What stands behind the `Received:` field that the relay puts in front, which must be there.
#[track_caller]
pub fn behind_received(content: &[u8]) -> &[u8] {
    let text = String::from_utf8_lossy(&content[..content.len().min(300)]).into_owned();
    assert!(content.starts_with(b"Received: from "), "no Received field in front: {text}");
    let mut at = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if at > 0 && !line.starts_with(b" ") && !line.starts_with(b"\t") {
            break;
        }
        at += line.len();
    }
    &content[at..]
}

/// The messages that a host took for this recipient.
pub fn mail_for(sink: &Sink, to: &str) -> Vec<ReceivedMessage> {
    let mut all = sink.received();
    all.retain(|message| message.recipients.iter().any(|path| path.as_str() == to));
    all
}

/// Waits for the first of them.
#[track_caller]
pub fn await_mail(sink: &Sink, to: &str) -> ReceivedMessage {
    wait_for(&format!("mail for {to} at {}", sink.address()), LONG, || mail_for(sink, to).into_iter().next())
}

/// The queue id in the reply to the final dot.
#[track_caller]
pub fn queue_id(reply: &Reply) -> String {
    assert_eq!(reply.code, 250, "{reply:?}");
    let id = reply.text.split([' ', '\n']).find(|word| word.len() == 32);
    id.unwrap_or_else(|| panic!("no queue id in {reply:?}")).to_owned()
}

impl World {
    /// Submits a small message from [`SENDER`]; its queue id.
    #[track_caller]
    pub fn send(&self, to: &[&str]) -> String {
        self.send_from(SENDER, to)
    }

    /// Submits a small message; its queue id.
    #[track_caller]
    pub fn send_from(&self, from: &str, to: &[&str]) -> String {
        let to: Vec<String> = to.iter().map(|path| (*path).to_owned()).collect();
        let reply = self.relay.client().mail(from, &to, &stuffed(&made("small").content));
        queue_id(&reply.unwrap_or_else(|error| panic!("the session broke: {error}")))
    }

    /// Submits `count` messages to `path(number)` over one session.
    #[track_caller]
    pub fn send_many(&self, count: usize, path: impl Fn(usize) -> String) {
        let mut client: Client = self.relay.client();
        let wire = stuffed(&made("many").content);
        for number in 0..count {
            let reply = client.mail(SENDER, &[path(number)], &wire).unwrap();
            assert_eq!(reply.code, 250, "message {number}: {reply:?}");
        }
    }

    /// All mail events so far.
    pub fn events(&self) -> Vec<Value> {
        let output = self.relay.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["event"].is_string()).collect()
    }

    /// The events of this kind about this recipient.
    pub fn events_of(&self, event: &str, to: &str) -> Vec<Value> {
        let mut all = self.events();
        all.retain(|line| line["event"] == event && line["to"] == to);
        all
    }

    /// Waits for the first of them.
    #[track_caller]
    pub fn await_event(&self, event: &str, to: &str) -> Value {
        wait_for(&format!("\"{event}\" for {to} in the log"), LONG, || {
            self.events_of(event, to).into_iter().next()
        })
    }

    /// Waits for the `number`th report to [`SENDER`] (from 1) and returns it.
    #[track_caller]
    pub fn await_report(&self, number: usize) -> String {
        let report = wait_for(&format!("report {number} to the sender"), LONG, || {
            mail_for(&self.home, SENDER).into_iter().nth(number - 1)
        });
        assert_eq!(report.reverse_path.as_str(), "", "a report has a null reverse-path");
        String::from_utf8(report.content.to_vec()).expect("a report is ASCII")
    }

    /// Waits until the queue is empty.
    #[track_caller]
    pub fn await_empty_queue(&self) {
        wait_until("the queue to be empty", LONG, || self.metric("posthaste_queue_messages", &[]) == 0.0);
    }

    /// The sum of a metric's samples with these labels.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        http::metric(&self.relay.metrics(), name, labels)
            .unwrap_or_else(|| panic!("no metric {name}{labels:?}"))
    }

    /// Takes the name server away and returns its address.
    pub fn stop_names(&mut self) -> SocketAddr {
        let elsewhere = Nameserver::bind(SocketAddr::new(place::own_address(), 0), Zone::new());
        let other = self.runtime.block_on(elsewhere).unwrap();
        std::mem::replace(&mut self.names, other).address()
    }

    /// Brings a name server back at this address.
    #[track_caller]
    pub fn start_names(&mut self, address: SocketAddr, zone: &Zone) {
        self.names = wait_for("the name server's address to be free", LONG, || {
            self.runtime.block_on(Nameserver::bind(address, zone.clone())).ok()
        });
    }
}
