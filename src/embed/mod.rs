//! The library: a relay inside another program.
//!
//! ```no_run
//! use posthaste::{config::Config, embed::{Message, Server}};
//!
//! actix_rt::System::new().block_on(async {
//!     let server = Server::start(Config::default()).await?;
//!     let message = Message::new("app@example.org", ["user@example.com"], "Subject: hello\r\n\r\nHello.\r\n")?;
//!     let id = server.submit(message).await?; // durable when it returns
//!     println!("queued as {id}");
//!     server.stop().await;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! }).unwrap();
//! ```
//!
//! Linux only: the spool makes sled's writes durable through a symbol of the C library that this crate defines
//! (see `spool::sync`).

mod shared;
mod start;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use bytes::{Bytes, BytesMut};
use tokio::sync::{broadcast, oneshot, watch};

use self::shared::Shared;
use self::start::{Plan, Sockets};
use crate::actors::listener::{self, Listener};
use crate::actors::queue::Queue;
use crate::actors::queue::messages::{Abort, Drain, Enqueue, NotQueued};
use crate::actors::wiring::{Arbiters, WorkerDeliveries};
use crate::admin::{self, Health};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::mail::envelope::{BodyType, ContentPlace, Envelope, Origin, Recipient};
use crate::mail::id::QueueId;
use crate::mail::trace;
use crate::metrics::Metrics;
use crate::smtp::address::{AddressError, ForwardPath, ReversePath};
use crate::smtp::strict::{self, Stray};
use crate::spool::SpoolError;
use crate::tls::TlsClients;
pub use start::{enough_files, metrics, unavailable};

/// How long the spool may take to make the next start short.
const LAST_WRITES: Duration = Duration::from_secs(20);
/// How long the last commit may take after the drain time.
const LAST_COMMIT: Duration = Duration::from_secs(5);
/// How long waiting log lines may take at the end.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Why a relay did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration can't work.
    #[error("{0}")]
    Config(String),
    /// An address can't be listened on.
    #[error("can't listen on {address}: {source}; {remedy}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The spool can't be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Something of the system is missing.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// What a server is made with besides its configuration.
pub struct Extras {
    /// Where mail log lines go. Default: standard output.
    pub log: Box<dyn std::io::Write + Send>,
    /// The time.
    pub clock: SharedClock,
    /// Where it counts. Default: metrics of its own.
    pub metrics: Option<Arc<Metrics>>,
}

impl Default for Extras {
    fn default() -> Self {
        Self { log: Box::new(std::io::stdout()), clock: Arc::new(SystemClock), metrics: None }
    }
}

/// A message of the embedding program.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where failures are reported to.
    pub from: ReversePath,
    /// The recipients; at least one.
    pub to: Vec<ForwardPath>,
    /// Header and body with CRLF line ends. `Received:` and a missing `Date:` or `Message-ID:` are added.
    pub content: Bytes,
}

impl Message {
    /// A message from its parts; an empty `from` is the null reverse-path.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new<'a>(
        from: &str,
        to: impl IntoIterator<Item = &'a str>,
        content: impl Into<Bytes>,
    ) -> Result<Self, AddressError> {
        let to =
            to.into_iter().map(|path| ForwardPath::parse(path, "localhost")).collect::<Result<_, _>>()?;
        Ok(Self { from: ReversePath::parse(from)?, to, content: content.into() })
    }
}

/// Why a message was not taken. The caller still has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// No recipient, or more than `limits.recipients`.
    #[error("a message needs at least one recipient, and no more than limits.recipients")]
    Recipients,
    /// Larger than `limits.message_size`.
    #[error("the message is larger than limits.message_size")]
    TooLarge,
    /// A line ends with something else than CRLF: it would be refused, or split in two, down the road.
    #[error("every line of the content must end with CRLF")]
    LineEnds,
    /// It has a NUL character: remote hosts refuse it, or read another message than we do.
    #[error("the content has a NUL character; encode it as base64 or quoted-printable")]
    Nul,
    /// The relay is stopping.
    #[error("the relay is stopping")]
    Draining,
    /// The disk is nearly full (`spool.min_free`).
    #[error("the relay's disk is nearly full")]
    NoRoom,
    /// The spool failed.
    #[error("the spool can't take mail")]
    Spool,
}

/// A running relay. Dropping it does not drain: call [`Server::stop`].
pub struct Server {
    smtp: Vec<SocketAddr>,
    http: SocketAddr,
    /// Recipients and bytes of a message.
    limits: (usize, u64),
    shared: Shared,
    arbiters: Arbiters,
    queue: Addr<Queue>,
    listener: Addr<Listener>,
    admin: admin::Handle,
    watch: actix_rt::task::JoinHandle<()>,
    failure: watch::Receiver<Option<String>>,
    drain_timeout: Duration,
}

impl Server {
    /// Starts a relay: listens, opens the spool, and answers. Call it inside an actix system.
    ///
    /// # Errors
    /// What stands in the way, and what to do about it.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Extras::default()).await
    }

    /// As [`Server::start`], with other surroundings.
    ///
    /// # Errors
    /// The same.
    pub async fn start_with(config: Config, extras: Extras) -> Result<Self, StartError> {
        let plan = Plan::make(&config)?;
        let sockets = Sockets::bind(&config)?;
        let (smtp, http) = (sockets.smtp_addresses()?, sockets.http_address()?);
        let (shared, counters) = Shared::open(&config, extras)?;
        let tls = TlsClients::load().map_err(|error| StartError::Config(error.to_string()))?;
        let resolver = start::resolver(&config, shared.clock.clone())?;
        let token = admin::token::read_or_create(&config.spool.path);
        let token =
            token.map_err(system("can't read or write the API token, which is in the spool folder"))?;

        let arbiters = Arbiters::start(config.server.workers);
        let targets = start::targets(&config, &smtp, &shared.hostname);
        let deliveries = WorkerDeliveries {
            context: Arc::new(shared.delivery_context(&config, resolver, targets, tls)),
            workers: arbiters.workers(),
        };
        let (failed, failure) = watch::channel(None);
        let parts = shared.queue_parts(&config, plan.routes, plan.connections, Box::new(deliveries), failed);
        let queue = arbiters.start_queue(parts, counters).await;
        let queue = queue.ok_or_else(|| StartError::Config("the queue's thread ended at once".to_owned()))?;
        let context = shared.session_context(&config, &queue);
        let networks = config.relay.networks.clone();
        let listener = arbiters.start_listener(sockets.smtp, networks, plan.sessions, Arc::new(context));
        let context = shared.admin_context(&config, &queue, token);
        let admin = admin::serve(sockets.http, context).map_err(system("can't start the HTTP server"))?;
        let stop_admin = admin.handle();
        actix_rt::spawn(admin);
        shared.front.sweep(&shared.instance);
        let watch = shared.space_watch(&config);
        watch.look().await;
        let watch = actix_rt::spawn(watch.run());
        shared.health.set(Health::STARTING, None);
        let reads = shared.front.spool().reads();
        tracing::info!(
            queued = counters.messages,
            records_read = reads.records,
            of_messages = reads.of_messages,
            "ready: mail is accepted and delivered"
        );
        Ok(Self {
            smtp,
            http,
            limits: (config.limits.recipients, config.limits.message_size),
            shared,
            arbiters,
            queue,
            listener,
            admin: stop_admin,
            watch,
            failure,
            drain_timeout: config.server.drain_timeout,
        })
    }

    /// Where SMTP clients connect.
    pub fn smtp_addresses(&self) -> &[SocketAddr] {
        &self.smtp
    }

    /// Where metrics, health and the queue API are.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// The relay's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// The mail log, line by line, from now on.
    pub fn log_lines(&self) -> broadcast::Receiver<Arc<str>> {
        self.shared.maillog.tap()
    }

    /// Hands in a message; when this returns `Ok` it is on stable storage, and ours.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn submit(&self, message: Message) -> Result<QueueId, SubmitError> {
        let (recipients_max, size_max) = self.limits;
        if message.to.is_empty() || message.to.len() > recipients_max {
            return Err(SubmitError::Recipients);
        }
        if message.content.len() as u64 > size_max {
            return Err(SubmitError::TooLarge);
        }
        check_content(&message.content)?;
        if self.shared.room.is_short() {
            return Err(SubmitError::NoRoom);
        }
        let now_ms = self.shared.clock.now_ms();
        let mut envelope = Envelope {
            id: crate::actors::new_queue_id(now_ms),
            reverse_path: message.from,
            body: if message.content.is_ascii() { BodyType::SevenBit } else { BodyType::EightBitMime },
            arrived_ms: now_ms,
            origin: Origin::Embedded,
            size: 0,
            place: ContentPlace::Database,
            recipients: message
                .to
                .into_iter()
                .map(|path| Recipient { destination: path.domain().clone(), path })
                .collect(),
        };
        let prefix = trace::prefix(&envelope, &self.shared.hostname, trace::scan_headers(&message.content));
        let mut content = BytesMut::with_capacity(prefix.len() + message.content.len());
        content.extend_from_slice(&prefix);
        content.extend_from_slice(&message.content);
        envelope.size = content.len() as u64;
        let id = envelope.id;
        let credit = self.shared.credits.messages.clone().acquire_owned().await;
        let content = self.shared.store(&mut envelope, content.freeze()).await.map_err(|error| {
            tracing::error!(%error, "content can't be stored");
            SubmitError::Spool
        })?;
        let (answer, committed) = oneshot::channel();
        self.queue.do_send(Enqueue { envelope, content, credits: credit.into_iter().collect(), answer });
        match committed.await {
            Ok(Ok(())) => Ok(id),
            Ok(Err(NotQueued::Draining)) => Err(SubmitError::Draining),
            Ok(Err(NotQueued::Spool)) | Err(_) => Err(SubmitError::Spool),
        }
    }

    /// Comes back when the relay can't go on, with the reason: end the process and start it again.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the queue ended".to_owned(),
        }
    }

    /// Drains and ends: no new sessions, running transactions and attempts finish within `server.drain_timeout`.
    pub async fn stop(self) {
        self.shared.health.set(Health::DRAINING, Some("the relay is stopping".to_owned()));
        let drained = async {
            // Told first, so that no new attempt begins while the sessions end.
            let queue_told = self.queue.send(Drain);
            let (_, _) = futures_util::future::join(self.listener.send(listener::Drain), queue_told).await;
            // What the last sessions handed in is committed now.
            let _ = self.queue.send(Drain).await;
        };
        if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
            tracing::warn!("the drain time ended before everything did");
            let _ = self.queue.send(Abort).await;
            let _ = tokio::time::timeout(LAST_COMMIT, self.queue.send(Drain)).await;
        }
        self.watch.abort();
        self.admin.stop(false).await;
        self.shared.front.close();
        self.arbiters.stop();
        if tokio::time::timeout(LAST_WRITES, self.shared.front.closed()).await.is_err() {
            tracing::warn!("the spool's threads still work: the next start may take longer");
        }
        self.shared.maillog.flush_within(LAST_LINES);
    }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Refuses what a session would.
fn check_content(content: &[u8]) -> Result<(), SubmitError> {
    strict::check(content).map_err(|stray| match stray {
        Stray::LineEnd => SubmitError::LineEnds,
        Stray::Nul => SubmitError::Nul,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_with_stray_line_ends_or_a_nul_is_refused() {
        for (content, expected) in [
            ("a\r\n\r\nb\r\n", Ok(())),
            ("", Ok(())),
            ("a\nb\r\n", Err(SubmitError::LineEnds)),
            ("a\r", Err(SubmitError::LineEnds)),
            ("a\r\nb\0c\r\n", Err(SubmitError::Nul)),
        ] {
            assert_eq!(check_content(content.as_bytes()), expected, "{content:?}");
        }
    }
}
