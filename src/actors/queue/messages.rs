//! What the Queue takes: mail, reports, and an operator's commands.

use actix::{Message, MessageResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::mail::envelope::{Content, Envelope};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

/// Session → Queue: keep this message. The answer comes after the commit that holds it.
///
/// Sent with `do_send`: the credits bound how many can be under way.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Enqueue {
    /// The envelope; `size` and `place` tell of the content.
    pub envelope: Envelope,
    /// The content.
    pub content: Content,
    /// The commit credit and the memory budget; given back when the commit is answered.
    pub credits: Vec<OwnedSemaphorePermit>,
    /// Answered `Ok` only when the message is on stable storage.
    pub answer: oneshot::Sender<Result<(), NotQueued>>,
}

/// Why a message was not taken; the client keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// The relay is stopping: 421 4.3.2.
    #[error("the relay is stopping")]
    Draining,
    /// The disk is full or failed: 452 4.3.1 / 451 4.3.0.
    #[error("the spool can't take mail")]
    Spool,
}

/// Operator → Queue: do something to a message, or to one of its recipients.
#[derive(Clone, Debug, Message)]
#[rtype(result = "CommandResult")]
pub struct Command {
    /// The message.
    pub id: QueueId,
    /// Which recipient, by number; `None` for all that are not settled.
    pub recipient: Option<u16>,
    /// What to do.
    pub verb: CommandVerb,
}

/// What an operator can do to queued recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandVerb {
    /// Make the next attempt due now, back-off of the destination included.
    Retry,
    /// Remove without telling the sender.
    Remove,
    /// No attempt until it is released.
    Hold,
    /// The opposite: the schedule goes on where it was.
    Release,
}

/// What came of a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, MessageResponse)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum CommandResult {
    /// Done, and durable.
    Done {
        /// Recipients it was done to at once.
        recipients: u32,
        /// Recipients that are in flight: it takes effect when their attempt reports.
        in_flight: u32,
    },
    /// No such message (or recipient) is queued.
    NotFound,
    /// It can't be done to this message, and why.
    Impossible {
        /// A sentence.
        reason: String,
    },
    /// The relay is stopping or the spool failed.
    Unavailable,
}

/// Operator → Queue: do something to a destination as a whole.
#[derive(Clone, Debug, Message)]
#[rtype(result = "CommandResult")]
pub struct DestinationCommand {
    /// The destination; it need not have mail.
    pub destination: Domain,
    /// What to do.
    pub verb: DestinationVerb,
}

/// What an operator can do to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationVerb {
    /// No attempt before this wall time (ms); [`UNTIL_RESUMED`](crate::spool::UNTIL_RESUMED): until it is resumed.
    Suspend {
        /// Wall time in milliseconds.
        until_ms: u64,
    },
    /// The opposite: its mail goes by its schedule again.
    Resume,
}

/// API → Queue: what is in memory of the destinations after a name, in order of name.
#[derive(Clone, Debug, Message)]
#[rtype(result = "DestinationsInMemory")]
pub struct InspectDestinations {
    /// Begin after this one.
    pub after: Option<Domain>,
    /// How many at most.
    pub limit: usize,
}

/// Destinations in memory, in order of name.
#[derive(Clone, Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct DestinationsInMemory(pub Vec<(Domain, DestinationInMemory)>);

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationInMemory {
    /// Attempts under way.
    pub attempts: u32,
    /// Recipients that are being attempted.
    pub in_flight: usize,
    /// Recipients that the spool's due index does not name yet.
    pub fresh: usize,
}

/// Operator → Queue: decide on a message in quarantine.
#[derive(Clone, Debug, Message)]
#[rtype(result = "CommandResult")]
pub struct QuarantineCommand {
    /// The message.
    pub id: QueueId,
    /// What to do.
    pub verb: QuarantineVerb,
}

/// What an operator can do to a message in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineVerb {
    /// Queue it again, if its records can be read.
    Release,
    /// Remove it for good without telling the sender.
    Discard,
}

/// API → Queue: what the Queue knows of a message beyond its records.
#[derive(Clone, Debug, Message)]
#[rtype(result = "InMemory")]
pub struct Inspect {
    /// The message.
    pub id: QueueId,
}

/// Recipients in memory, for `show`.
#[derive(Clone, Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct InMemory {
    /// Numbers of recipients that are being attempted now.
    pub in_flight: Vec<u16>,
    /// Numbers of recipients that wait for a connection slot.
    pub ready: Vec<u16>,
}

/// Metrics → Queue: refresh the gauges that are computed, not counted.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Observe;

/// Main → Queue: begin to stop. Answered when nothing is in flight and the last commit is on disk.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Main → Queue: the drain time is over; abort what is in flight, then commit and answer.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Abort;
