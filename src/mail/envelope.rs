//! The envelope: who sent a message, to whom it goes, and where each recipient stands.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::id::QueueId;
use super::outcome::Cause;
use crate::smtp::address::{Domain, ForwardPath, ReversePath};

/// The part of an accepted message that never changes after the commit (RFC 5321 section 2.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The name of the message.
    pub id: QueueId,
    /// Where failures are reported to; null for a report.
    pub reverse_path: ReversePath,
    /// What the client declared of the content (RFC 6152).
    pub body: BodyType,
    /// Wall time of acceptance, milliseconds since the Unix epoch.
    pub arrived_ms: u64,
    /// Who handed the message in.
    pub origin: Origin,
    /// Content length in bytes, as stored (with CRLF line ends, not dot-stuffed).
    pub size: u64,
    /// Where the content is.
    pub place: ContentPlace,
    /// The recipients; a recipient's number is its index here.
    pub recipients: Vec<Recipient>,
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The address as the client gave it.
    pub path: ForwardPath,
    /// The destination its mail is queued for: the recipient domain.
    pub destination: Domain,
}

/// The BODY parameter of MAIL (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyType {
    /// `BODY=7BIT`, or no parameter.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// Who handed a message in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An SMTP client.
    Smtp {
        /// Its address.
        peer: SocketAddr,
        /// What it called itself in HELO or EHLO.
        helo: String,
        /// True after EHLO, false after HELO.
        extended: bool,
    },
    /// The program that embeds the library.
    Embedded,
    /// The relay itself: a DSN.
    Report,
}

/// Where stored content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentPlace {
    /// In the database, in chunks.
    Database,
    /// In a file of its own; the name is relative to the content folder of the spool.
    File(String),
}

/// Content on its way into the spool.
#[derive(Clone, Debug)]
pub enum Content {
    /// Whole, in memory.
    Memory(Bytes),
    /// Already in a file that is synced, with its folder.
    File {
        /// Relative to the content folder of the spool.
        name: String,
        /// Length in bytes.
        size: u64,
        /// The same bytes, while they are in memory.
        whole: Option<Bytes>,
    },
}

/// Where one recipient stands: the part of a message that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientState {
    /// Its fate so far.
    pub status: Status,
    /// Attempts that counted.
    pub attempts: u32,
    /// When the next attempt is due, wall time in milliseconds; meaningless once settled.
    pub due_ms: u64,
    /// True once the sender was told that delivery is delayed.
    pub delay_notified: bool,
    /// Why it is not delivered yet, or how it ended.
    pub last: Option<LastReply>,
    /// An operator holds it: no attempt until it is released. It expires all the same.
    pub held: bool,
}

impl RecipientState {
    /// The state of a recipient that was never tried: due since the message arrived.
    pub fn fresh(arrived_ms: u64) -> Self {
        Self {
            status: Status::Queued,
            attempts: 0,
            due_ms: arrived_ms,
            delay_notified: false,
            last: None,
            held: false,
        }
    }
}

/// The fate of a recipient (promise P2: exactly one of the settled ones in the end).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Still ours.
    Queued,
    /// The remote answered 250 to the final dot.
    Delivered,
    /// Refused for good; the sender was told unless the reverse-path is null.
    Bounced,
    /// Given up after `retry.give_up_after`; the sender was told unless the reverse-path is null.
    Expired,
    /// An operator removed it.
    Removed,
}

impl Status {
    /// Whether the recipient needs nothing more.
    pub fn is_settled(self) -> bool {
        self != Self::Queued
    }

    /// The word for logs, metrics, API and CLI.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }
}

/// What was last heard about a recipient or a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReply {
    /// Wall time, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The remote host that answered, or that was tried, as `name[address]:port`.
    pub host: Option<String>,
    /// What happened.
    pub cause: Cause,
}

/// A message as the spool holds it: the envelope and the state of each recipient, by number.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// What never changes.
    pub envelope: Arc<Envelope>,
    /// One state for each recipient, settled ones included.
    pub states: Vec<RecipientState>,
}
