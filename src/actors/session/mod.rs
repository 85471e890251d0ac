//! One Session per inbound connection: drives the receiving machine and hands finished messages to the Queue.
//!
//! | takes | from | when full |
//! |---|---|---|
//! | [`Drain`] | Listener | once |
//! | the answer to its `Enqueue` | Queue | waits for it |
//!
//! The socket is driven by one `async fn`; it stops reading while a verdict or a credit is pending. The actor ends
//! when the Listener, told by [`SessionEnded`], lets go of its address.

mod content;
mod driver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient};
use tokio::sync::{Semaphore, watch};

use crate::actors::queue::messages::Enqueue;
use crate::clock::SharedClock;
use crate::maillog::MailLog;
use crate::metrics::{Metrics, Place};
use crate::spool::front::Front;
use crate::spool::space::Room;

/// Session → Listener: the connection is closed.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct SessionEnded {
    /// The number the Listener gave it.
    pub number: u64,
}

/// Listener → Session: finish the running transaction, then answer 421 and close.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// What all sessions share.
#[derive(Debug)]
pub struct SessionContext {
    /// The relay's name.
    pub hostname: Arc<str>,
    /// Largest message in bytes.
    pub message_size: u64,
    /// Recipients of one transaction.
    pub recipients: usize,
    /// Errors of one session since its last accepted message.
    pub errors: usize,
    /// Silence of a client: how long it may take for a whole command, or for the next byte of content.
    pub idle_timeout: Duration,
    /// The envelope of one message, and then its DATA phase: so long each.
    pub data_timeout: Duration,
    /// Content up to this many bytes stays in memory and goes into the database.
    pub content_threshold: usize,
    /// Names this run in content files.
    pub instance: String,
    /// What bounds the mail between sessions and the spool.
    pub credits: Credits,
    /// Whether the spool has room for new mail.
    pub room: Arc<Room>,
    /// Where mail goes.
    pub queue: Recipient<Enqueue>,
    /// For content files.
    pub front: Front,
    /// The time.
    pub clock: SharedClock,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it tells.
    pub maillog: MailLog,
}

/// Credits: how many messages, and how much content, may be between sessions and the spool.
#[derive(Clone, Debug)]
pub struct Credits {
    /// One per message, taken at MAIL.
    pub messages: Arc<Semaphore>,
    /// KiB of content, a whole threshold taken before 354.
    pub memory: Arc<Semaphore>,
}

/// The actor.
#[derive(Debug)]
pub struct Session {
    drain: watch::Sender<bool>,
    start: Option<Start>,
}

/// What a session starts with.
#[derive(Debug)]
pub struct Start {
    /// The connection.
    pub stream: std::net::TcpStream,
    /// Its client.
    pub peer: SocketAddr,
    /// Whether the client may relay.
    pub may_relay: bool,
    /// Its number.
    pub number: u64,
    /// What all sessions share.
    pub context: Arc<SessionContext>,
    /// Who wants to know when it ends.
    pub ended: Recipient<SessionEnded>,
}

impl Session {
    /// A session over an accepted connection.
    pub fn new(start: Start) -> Self {
        Self { drain: watch::Sender::new(false), start: Some(start) }
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        let Some(start) = self.start.take() else { return };
        let guard = EndGuard {
            ended: start.ended.clone(),
            number: start.number,
            metrics: start.context.metrics.clone(),
        };
        let drain = self.drain.subscribe();
        actix_rt::spawn(async move {
            let _guard = guard;
            if let Err(error) = driver::drive(start, drain).await {
                tracing::debug!(%error, "a session ended early");
            }
        });
    }
}

impl Handler<Drain> for Session {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.drain.send_replace(true);
    }
}

/// Tells the Listener that the session is over, however it ended; a panic ends this session only, and is counted.
struct EndGuard {
    ended: Recipient<SessionEnded>,
    number: u64,
    metrics: Arc<Metrics>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.metrics.panicked(Place::Session);
        }
        self.ended.do_send(SessionEnded { number: self.number });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
