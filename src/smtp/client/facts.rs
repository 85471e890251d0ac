//! What a conversation found, as facts: who said what at which step. What they mean is decided in `mail::outcome`.

use std::fmt;
use std::time::Duration;

use crate::smtp::reply::Reply;

/// A step of a conversation, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Waiting for the 220 of a new connection.
    Greeting,
    /// EHLO, or HELO after it.
    Ehlo,
    /// STARTTLS and its handshake.
    StartTls,
    /// AUTH.
    Auth,
    /// RSET between transactions.
    Rset,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, until its 354.
    Data,
    /// The content is being sent.
    Content,
    /// The final dot was sent: from here on the remote may have the message.
    FinalDot,
    /// QUIT.
    Quit,
}

impl Step {
    /// The end of "timed out while …".
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Greeting => "waiting for the greeting",
            Self::Ehlo => "saying EHLO",
            Self::StartTls => "starting TLS",
            Self::Auth => "authenticating",
            Self::Rset => "sending RSET",
            Self::Mail => "sending MAIL",
            Self::Rcpt => "sending RCPT",
            Self::Data => "sending DATA",
            Self::Content => "sending the content",
            Self::FinalDot => "waiting for the answer to the final dot",
            Self::Quit => "sending QUIT",
        }
    }

    /// What a refusal at this step is called.
    pub const fn noun(self) -> &'static str {
        match self {
            // Not "connection": that is refused by a machine on which nobody listens.
            Self::Greeting => "session",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Rset => "RSET",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Content | Self::FinalDot => "message",
            Self::Quit => "QUIT",
        }
    }
}

/// How long a remote may be silent, by what it owes (RFC 5321 section 4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The 220 greeting: 5 min.
    Greeting,
    /// EHLO, HELO, STARTTLS with its handshake, AUTH and RSET: 5 min.
    Command,
    /// MAIL: 5 min.
    Mail,
    /// RCPT: 5 min.
    Rcpt,
    /// The 354 after DATA: 2 min.
    DataInit,
    /// One write of content: 3 min.
    DataBlock,
    /// The answer to the final dot: 10 min, because giving up earlier makes duplicates.
    DataDone,
    /// The 221 after QUIT: 5 s, for nothing depends on it.
    Quit,
}

impl Timer {
    /// The time.
    pub const fn duration(self) -> Duration {
        match self {
            Self::Greeting | Self::Command | Self::Mail | Self::Rcpt => Duration::from_secs(300),
            Self::DataInit => Duration::from_secs(120),
            Self::DataBlock => Duration::from_secs(180),
            Self::DataDone => Duration::from_secs(600),
            Self::Quit => Duration::from_secs(5),
        }
    }
}

/// Why a conversation ended before its work was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Where it was.
    pub step: Step,
    /// What happened.
    pub kind: TroubleKind,
}

/// What ends a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// A negative reply to a step that concerns the whole connection, or 421 to any.
    Refused(Reply),
    /// Silence for as long as the step's [`Timer`] allows.
    Timeout,
    /// The connection broke, with the system's words.
    Lost(String),
    /// The remote said what no server says here.
    Protocol(String),
    /// TLS is required and STARTTLS is not offered.
    TlsNotOffered,
    /// The TLS handshake failed, with the reason.
    TlsHandshake(String),
    /// A login is configured and no AUTH mechanism we know is offered, or there is no TLS to protect it.
    AuthNotOffered,
    /// The content could not be read on our side, with the reason.
    Local(String),
    /// The content is not what was stored, with the reason: reading it again is of no use.
    Damaged(String),
    /// The relay gave up waiting: its drain time is over.
    Aborted,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phrase = self.step.phrase();
        match &self.kind {
            TroubleKind::Refused(_) => write!(f, "{} refused", self.step.noun()),
            TroubleKind::Timeout => write!(f, "timed out while {phrase}"),
            TroubleKind::Lost(why) => write!(f, "connection lost while {phrase}: {why}"),
            TroubleKind::Protocol(why) => write!(f, "protocol error while {phrase}: {why}"),
            TroubleKind::TlsNotOffered => {
                f.write_str("TLS is required, and the host does not offer STARTTLS")
            }
            TroubleKind::TlsHandshake(why) => write!(f, "the TLS handshake failed: {why}"),
            TroubleKind::AuthNotOffered => f.write_str(
                "a login is configured, and the host does not offer AUTH PLAIN or LOGIN under TLS",
            ),
            TroubleKind::Local(why) => write!(f, "the content can't be read: {why}"),
            TroubleKind::Damaged(why) => write!(f, "the content is damaged: {why}"),
            TroubleKind::Aborted => write!(f, "the relay stopped while {phrase}"),
        }
    }
}

/// What one transaction found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The answer to each RCPT, in the order they were given.
    pub recipients: Vec<RcptAnswer>,
    /// How the transaction ended.
    pub end: End,
}

/// What was answered to one RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RcptAnswer {
    /// Nothing yet, or nothing that counts because MAIL was refused.
    Unanswered,
    /// 2yz.
    Accepted,
    /// 4yz or 5yz, but not 421.
    Refused(Reply),
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The remote took responsibility for the accepted recipients.
    Accepted(Reply),
    /// MAIL, DATA or the content was refused with 4yz or 5yz.
    Refused {
        /// Which of them.
        step: Step,
        /// The answer.
        reply: Reply,
    },
    /// Every RCPT was refused.
    NoRecipient,
    /// The message is larger than the remote's SIZE allows; nothing was sent.
    TooLarge {
        /// The limit it announced, in bytes.
        limit: u64,
    },
    /// The connection can't be used any more.
    Broken(Trouble),
}

impl Facts {
    /// Whether the connection was closed before it heard of this transaction. On a connection that was idle before,
    /// that says nothing about host or message: the remote had ended it in the meantime.
    pub fn nothing_was_heard(&self) -> bool {
        let End::Broken(trouble) = &self.end else { return false };
        matches!(trouble.step, Step::Rset | Step::Mail)
            && matches!(trouble.kind, TroubleKind::Lost(_) | TroubleKind::Refused(_))
    }
}
