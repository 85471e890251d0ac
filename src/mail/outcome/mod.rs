//! What an attempt found, and the one place that decides what it means: next host, defer, or bounce.

mod decide;

use std::fmt;
use std::net::SocketAddr;

pub use decide::{Decision, Finding, Next, decide};

use crate::smtp::reply::{EnhancedStatus, Reply};

/// Why a recipient or a destination is not delivered (or, for a positive reply, how it was).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What kind of trouble: the label of metrics and logs.
    pub class: CauseClass,
    /// The status for DSNs (RFC 3463): the remote's own when it gave one that fits.
    pub status: EnhancedStatus,
    /// What the remote said, if it is the remote's answer.
    pub reply: Option<Reply>,
    /// What happened, in our words, when there is no reply ("connection refused"); may be empty with one.
    pub text: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reply, self.text.as_str()) {
            (Some(reply), "") => write!(f, "{reply}"),
            (Some(reply), text) => write!(f, "{text}: {reply}"),
            (None, text) => write!(f, "{} {text}", self.status),
        }
    }
}

/// The kinds of trouble (a bounded set of metric labels).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CauseClass {
    /// A positive reply.
    Accepted,
    /// The remote answered 4yz.
    Reply4xx,
    /// The remote answered 5yz.
    Reply5xx,
    /// The domain does not exist, has no host, or has a null MX.
    NoHost,
    /// The name servers failed or timed out.
    Dns,
    /// No connection to any host.
    Connect,
    /// The remote was silent too long.
    Timeout,
    /// The connection broke.
    ConnectionLost,
    /// The remote broke the protocol.
    Protocol,
    /// TLS was required and could not be had.
    Tls,
    /// AUTH failed.
    Auth,
    /// Too many hops, or the mail would come back to this relay.
    Loop,
    /// `retry.give_up_after` passed.
    Expired,
    /// The delivery code failed.
    Crashed,
    /// An operator's command.
    Operator,
    /// Something of this relay: a content file that can't be read.
    Local,
}

impl CauseClass {
    /// Every class, for metrics that start at zero.
    pub const ALL: [Self; 16] = [
        Self::Accepted,
        Self::Reply4xx,
        Self::Reply5xx,
        Self::NoHost,
        Self::Dns,
        Self::Connect,
        Self::Timeout,
        Self::ConnectionLost,
        Self::Protocol,
        Self::Tls,
        Self::Auth,
        Self::Loop,
        Self::Expired,
        Self::Crashed,
        Self::Operator,
        Self::Local,
    ];

    /// The word for logs, metrics and the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Reply4xx => "reply_4xx",
            Self::Reply5xx => "reply_5xx",
            Self::NoHost => "no_host",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::ConnectionLost => "connection_lost",
            Self::Protocol => "protocol",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Loop => "loop",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
            Self::Operator => "operator",
            Self::Local => "local",
        }
    }

    /// The class with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.word() == word)
    }
}

/// The host an attempt talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteHost {
    /// Its name as the MX record or the route gives it; an address literal's text for one.
    pub name: String,
    /// Where it was reached.
    pub address: SocketAddr,
}

impl fmt::Display for RemoteHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]:{}", self.name, self.address.ip(), self.address.port())
    }
}

/// What one attempt means for one of its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The remote took responsibility.
    Delivered(Cause),
    /// Try again later; counts as an attempt.
    Deferred(Cause),
    /// Never try again; tell the sender.
    Bounced(Cause),
    /// Try again at once in the next transaction; does not count (RFC 5321 section 4.5.3.1.10).
    Again,
    /// Not tried for want of a connection slot at the remote address; does not count, asked again soon.
    Busy,
    /// The drain time ended while the remote owed its answer to the final dot; does not count.
    Interrupted,
    /// The delivery code panicked; counts as an attempt.
    Crashed(Cause),
    /// The stored content is damaged: no attempt can send it, the message goes to quarantine.
    Damaged(Cause),
}

/// What one attempt means for its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEffect {
    /// A host of the destination answered properly: forget its failures.
    Healthy,
    /// No host could be used, 421, or 4xx to greeting or EHLO: back off as a whole.
    Failed(Cause),
    /// Says nothing about the destination.
    Untouched,
}

/// The facts and fates of one finished attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptResult {
    /// The fate of each recipient number of the attempt.
    pub fates: Vec<(u16, Fate)>,
    /// What it means for the destination.
    pub effect: DestinationEffect,
    /// The last host spoken to or tried.
    pub host: Option<RemoteHost>,
    /// Whether the transaction ran under TLS, for the log.
    pub tls: bool,
}
