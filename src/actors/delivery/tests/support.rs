//! A peer that plays scripts on a loopback port, and a Queue that takes reports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::actors::delivery::content::{ContentSource, Loaded, PieceReader};
use crate::actors::delivery::messages::{Attempt, AttemptReport, ReportGuard};
use crate::actors::delivery::slots::AddressSlots;
use crate::actors::delivery::{Delivery, DeliveryContext, Dials};
use crate::clock::SystemClock;
use crate::config::{DeliveryConfig, TlsPolicy};
use crate::mail::envelope::{BodyType, ContentPlace, Envelope, Origin, Recipient};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, DestinationEffect, Fate};
use crate::metrics::Metrics;
use crate::route::mx::MxRecord;
use crate::route::plan::PlanSettings;
use crate::route::resolver::{DnsFailure, Resolve};
use crate::route::table::{Credentials, Route, RouteHost, RouteTarget, StaticRoute};
use crate::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::spool::SpoolError;
use crate::tls::TlsClients;

/// What a pipelining server says at first, for one message to one recipient, and at the end.
pub(super) const HELLO: &str = "S: 220 hi\nC: EHLO\nS: 250-mx|250 PIPELINING\n";
pub(super) const TAKE: &str =
    "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nC: .\nS: 250 2.6.0 queued\n";
pub(super) const BYE: &str = "C: QUIT\nS: 221 bye\nclose\n";

/// A certificate for `mx.test` that nobody trusts but who is told to.
pub(super) fn certificate() -> (TlsAcceptor, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["mx.test".to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key.into())
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), der)
}

/// A peer: each connection it accepts plays the next script.
///
/// `S: a|b` says lines, `C: x` reads one that begins with x, `C: .` reads content, `tls` does a handshake, `garble` answers
/// one with nonsense, `close` drops the connection, `eof` waits for the client to do so, `silent` says nothing any more and tells so.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) silent: Arc<Notify>,
    pub(super) contents: mpsc::UnboundedReceiver<Vec<u8>>,
    player: JoinHandle<()>,
}

struct Stage {
    silent: Arc<Notify>,
    contents: mpsc::UnboundedSender<Vec<u8>>,
    acceptor: Option<TlsAcceptor>,
}

trait Socket: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Socket for T {}

impl Peer {
    pub(super) async fn new(scripts: &[&str]) -> Self {
        Self::with_tls(scripts, None).await
    }

    pub(super) async fn with_tls(scripts: &[&str], acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, contents) = mpsc::unbounded_channel();
        let silent = Arc::new(Notify::new());
        let stage = Arc::new(Stage { silent: Arc::clone(&silent), contents: sender, acceptor });
        let scripts: Vec<String> = scripts.iter().map(|script| (*script).to_owned()).collect();
        let player = tokio::spawn(async move {
            let mut players = Vec::new();
            for script in scripts {
                let (socket, _) = listener.accept().await.unwrap();
                let stage = Arc::clone(&stage);
                players.push(tokio::spawn(async move { play(&stage, script, Box::new(socket)).await }));
            }
            for player in players {
                player.await.unwrap();
            }
        });
        Self { address, silent, contents, player }
    }

    /// Waits until every script was played to its end.
    pub(super) async fn finish(self) {
        self.player.await.unwrap();
    }
}

async fn play(stage: &Stage, script: String, socket: Box<dyn Socket + Send>) {
    let mut socket = BufReader::new(socket);
    for line in script.lines().map(str::trim) {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("S", said) => {
                let said = said.replace('|', "\r\n") + "\r\n";
                socket.write_all(said.as_bytes()).await.unwrap();
                socket.flush().await.unwrap();
            }
            ("C", ".") => stage.contents.send(read_content(&mut socket).await).unwrap(),
            ("C", expected) => {
                let mut heard = String::new();
                socket.read_line(&mut heard).await.unwrap();
                assert!(heard.starts_with(expected), "{heard:?} instead of {expected:?} in\n{script}");
            }
            ("tls", _) => {
                let acceptor = stage.acceptor.as_ref().unwrap();
                let Ok(stream) = acceptor.accept(socket.into_inner()).await else { return };
                socket = BufReader::new(Box::new(stream));
            }
            ("garble", _) => {
                socket.fill_buf().await.unwrap();
                socket.write_all(b"this is no TLS\r\n").await.unwrap();
            }
            ("eof", _) => {
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest).await;
                assert!(rest.is_empty(), "{:?} instead of the end", String::from_utf8_lossy(&rest));
            }
            ("silent", _) => {
                stage.silent.notify_one();
                let _ = socket.read_to_end(&mut Vec::new()).await;
            }
            ("close", _) => return,
            _ => panic!("what is {line:?}?"),
        }
    }
}

async fn read_content(socket: &mut BufReader<Box<dyn Socket + Send>>) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        assert!(socket.read_until(b'\n', &mut content).await.unwrap() > 0, "content without an end");
        if &content[start..] == b".\r\n" {
            content.truncate(start);
            return content;
        }
    }
}

/// Takes reports and hands them to the test.
struct Reports(mpsc::UnboundedSender<AttemptReport>);

impl Actor for Reports {
    type Context = Context<Self>;
}

impl Handler<AttemptReport> for Reports {
    type Result = ();

    fn handle(&mut self, report: AttemptReport, _: &mut Self::Context) {
        let _ = self.0.send(report);
    }
}

/// No names but these.
#[derive(Debug)]
struct Names(SocketAddr);

impl Resolve for Names {
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>> {
        let answer = match domain.as_str() {
            "panic.test" => panic!("the resolver fails, as this test wants"),
            "none.test" => Err(DnsFailure::NoSuchDomain),
            "mute.test" => Err(DnsFailure::Temporary("MX mute.test: no answer in time".to_owned())),
            _ => Ok(vec![MxRecord { preference: 10, exchange: "mx.test".to_owned() }]),
        };
        async { answer }.boxed()
    }

    fn addresses<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<std::net::IpAddr>, DnsFailure>> {
        let address = self.0.ip();
        async move { Ok(vec![address]) }.boxed()
    }
}

/// Content that is never there.
struct NoContent;

impl ContentSource for NoContent {
    fn load(&self, _: Arc<Envelope>) -> BoxFuture<'static, Result<Loaded, SpoolError>> {
        async { Err(damaged("missing chunk")) }.boxed()
    }
}

fn damaged(reason: &str) -> SpoolError {
    SpoolError::Damaged { what: "content".to_owned(), reason: reason.to_owned() }
}

/// Content in pieces: a long one, then those of a text at each `|`; `!` is one that can't be read, `?` one that is damaged.
pub(super) struct Pieces(Vec<Bytes>);

struct PiecesOfOne(std::vec::IntoIter<Bytes>);

impl Pieces {
    pub(super) fn new(head: &[u8], tail: &str) -> Arc<Self> {
        let tail = tail.split('|').map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        Arc::new(Self(std::iter::once(Bytes::copy_from_slice(head)).chain(tail).collect()))
    }
}

impl ContentSource for Pieces {
    fn load(&self, _: Arc<Envelope>) -> BoxFuture<'static, Result<Loaded, SpoolError>> {
        let reader = Box::new(PiecesOfOne(self.0.clone().into_iter()));
        async move { Ok(Loaded::File(reader as Box<dyn PieceReader>)) }.boxed()
    }
}

impl PieceReader for PiecesOfOne {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SpoolError>> {
        let piece = self.0.next();
        let read = match piece.as_deref() {
            Some(b"!") => Err(SpoolError::Failed("bad sector".to_owned())),
            Some(b"?") => Err(damaged("it has 6 bytes instead of 7")),
            _ => Ok(piece),
        };
        async move { read }.boxed()
    }
}

/// One delivery to peers, and what it reports.
pub(super) struct Bench {
    pub(super) delivery: Addr<Delivery>,
    pub(super) context: Arc<DeliveryContext>,
    pub(super) route: Route,
    pub(super) content: Option<Bytes>,
    destination: Domain,
    reports: mpsc::UnboundedReceiver<AttemptReport>,
    queue: Addr<Reports>,
    tickets: u64,
}

/// What a bench is made with.
pub(super) struct Plan {
    pub(super) settings: DeliveryConfig,
    pub(super) tls: TlsPolicy,
    pub(super) login: bool,
    /// The authority that is trusted.
    pub(super) trusted: Option<CertificateDer<'static>>,
    pub(super) content: Option<Arc<dyn ContentSource>>,
    /// Route by MX, whose only host is the first address.
    pub(super) mx: bool,
    pub(super) destination: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        let settings = DeliveryConfig { idle_timeout: Duration::from_secs(60), ..DeliveryConfig::default() };
        let destination = "b.test";
        Self {
            settings,
            tls: TlsPolicy::Opportunistic,
            login: false,
            trusted: None,
            content: None,
            mx: false,
            destination,
        }
    }
}

impl Bench {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        Self::with(addresses, Plan::default())
    }

    pub(super) fn with(addresses: &[SocketAddr], plan: Plan) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        plan.trusted.into_iter().for_each(|certificate| roots.add(certificate).unwrap());
        let slots = AddressSlots::new(plan.settings.connections_per_address);
        let settings = DeliveryConfig { port: addresses[0].port(), tls: plan.tls, ..plan.settings };
        let context = Arc::new(DeliveryContext {
            hostname: "me.test".into(),
            plan: PlanSettings {
                port: settings.port,
                own: Vec::new(),
                hostname: "me.test".to_owned(),
                addresses: settings.addresses_per_attempt,
            },
            settings,
            resolver: Arc::new(Names(addresses[0])),
            tls: TlsClients::with_roots(roots).unwrap(),
            content: plan.content.unwrap_or_else(|| Arc::new(NoContent)),
            clock: Arc::new(SystemClock),
            metrics: Metrics::new().unwrap(),
            slots,
            dials: Dials::new(1000, Arc::new(SystemClock)),
        });
        let credentials =
            plan.login.then(|| Credentials { username: "tim".to_owned(), password: "tanstaaf".to_owned() });
        let hosts = addresses.iter().map(|address| route_host(*address));
        let route =
            StaticRoute { index: 0, hosts: hosts.collect(), tls: plan.tls, credentials, connections: 20 };
        let destination = Domain::parse(plan.destination).unwrap();
        let (sender, reports) = mpsc::unbounded_channel();
        Self {
            delivery: Delivery::new(destination.clone(), Arc::clone(&context)).start(),
            context,
            route: if plan.mx { Route::Mx } else { Route::Static(Arc::new(route)) },
            content: Some(Bytes::from_static(b"Subject: x\r\n\r\nhello\r\n")),
            destination,
            reports,
            queue: Reports(sender).start(),
            tickets: 0,
        }
    }

    /// Another destination with the same context.
    pub(super) fn neighbour(&self, destination: &str) -> Self {
        let destination = Domain::parse(destination).unwrap();
        let (sender, reports) = mpsc::unbounded_channel();
        Self {
            delivery: Delivery::new(destination.clone(), Arc::clone(&self.context)).start(),
            context: Arc::clone(&self.context),
            route: self.route.clone(),
            content: self.content.clone(),
            destination,
            reports,
            queue: Reports(sender).start(),
            tickets: 0,
        }
    }

    /// Begins an attempt for so many recipients.
    pub(super) fn send(&mut self, recipients: u16) {
        self.tickets += 1;
        let numbers: Vec<u16> = (0..recipients).collect();
        let to = self.queue.clone().recipient();
        self.delivery.do_send(Attempt {
            ticket: self.tickets,
            destination: self.destination.clone(),
            route: self.route.clone(),
            envelope: Arc::new(self.envelope(recipients)),
            content: self.content.clone(),
            recipients: numbers.clone(),
            expected: Some(self.context.dials.expect()),
            report: ReportGuard::new(self.tickets, numbers, to),
        });
    }

    /// The next report in short: `fate, fate → effect`.
    pub(super) async fn report(&mut self) -> String {
        let report = self.reports.recv().await.unwrap();
        let fates: Vec<_> = report.result.fates.iter().map(|(_, fate)| tell(fate)).collect();
        let effect = match report.result.effect {
            DestinationEffect::Healthy => "healthy",
            DestinationEffect::Failed(_) => "failed",
            DestinationEffect::Untouched => "untouched",
        };
        format!("{}{} → {effect}", fates.join(", "), if report.result.tls { " (tls)" } else { "" })
    }

    /// Sends to one recipient and waits for the report.
    pub(super) async fn deliver(&mut self) -> String {
        self.send(1);
        self.report().await
    }

    /// Connections opened and transactions over used ones.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.context.metrics.connections_opened.get(), self.context.metrics.connections_reused.get())
    }

    fn envelope(&self, recipients: u16) -> Envelope {
        let path = |number| {
            let mailbox = Mailbox::parse(&format!("r{number}@{}", self.destination)).unwrap();
            Recipient { path: ForwardPath::new(mailbox), destination: self.destination.clone() }
        };
        Envelope {
            id: QueueId::from_parts(1_700_000_000_000, &[7; 10]),
            reverse_path: ReversePath::parse("s@a.test").unwrap(),
            body: BodyType::SevenBit,
            arrived_ms: 0,
            origin: Origin::Embedded,
            size: self.content.as_ref().map_or(0, |content| content.len() as u64),
            place: ContentPlace::Database,
            recipients: (0..recipients).map(path).collect(),
        }
    }
}

fn route_host(address: SocketAddr) -> RouteHost {
    RouteHost { target: RouteTarget::Address(address.ip()), port: address.port() }
}

fn tell(fate: &Fate) -> String {
    let why = |cause: &Cause| format!("{} {}", cause.class.word(), cause.status);
    match fate {
        Fate::Delivered(cause) => format!("delivered {}", cause.status),
        Fate::Deferred(cause) => format!("deferred {}", why(cause)),
        Fate::Bounced(cause) => format!("bounced {}", why(cause)),
        Fate::Crashed(_) => "crashed".to_owned(),
        Fate::Damaged(cause) => format!("damaged {}", why(cause)),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A port of loopback on which nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
