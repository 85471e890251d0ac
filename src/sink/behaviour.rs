//! When a sink doesn't simply take what it is given.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ReceivedMessage;
use crate::config::pattern::DomainPattern;
use crate::smtp::address::{Domain, ForwardPath};
use crate::smtp::server::Refusal;

/// Decides how a sink answers. Every decision defaults to [`Answer::Accept`].
///
/// Called from many tasks at once; must not block.
pub trait Behaviour: Debug + Send + Sync + 'static {
    /// A client connected: before the greeting.
    fn on_connect(&self, peer: SocketAddr) -> Answer {
        let _ = peer;
        Answer::Accept
    }

    /// RCPT that would be taken.
    fn on_recipient(&self, recipient: &ForwardPath) -> Answer {
        let _ = recipient;
        Answer::Accept
    }

    /// DATA, before 354, with the recipients that were taken. `Drop` lets the content begin and breaks the connection before its final dot.
    fn on_data(&self, recipients: &[ForwardPath]) -> Answer {
        let _ = recipients;
        Answer::Accept
    }

    /// The final dot, before its answer.
    fn on_message(&self, message: &ReceivedMessage) -> Answer {
        let _ = message;
        Answer::Accept
    }
}

/// What a sink does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Goes on; a message is kept.
    Accept,
    /// Goes on; a message is counted and thrown away.
    Discard,
    /// Answers this, 4yz or 5yz; 421 closes the connection.
    Refuse(Refusal),
    /// Never answers again, not even what was pipelined before: a tarpit. Stays until the client closes.
    Hang,
    /// Closes the connection without an answer.
    Drop,
    /// Keeps the message, then closes the connection without an answer: the relay can't know (RFC 5321 section 6.1).
    TakeAndDrop,
}

/// Takes everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptAll;

impl Behaviour for AcceptAll {}

/// When a rule of [`Rules`] is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the greeting; only rules for `*` are asked.
    Connect,
    /// At each RCPT.
    Recipient,
    /// At DATA, for the first recipient's domain.
    Data,
    /// After the final dot, for the first recipient's domain.
    Message,
}

/// A behaviour made of rules: the first one that matches and is not used up answers; without one, everything is taken.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    stage: Stage,
    pattern: DomainPattern,
    left: AtomicU32,
    answer: Answer,
}

impl Rules {
    /// No rules yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule that answers every time.
    #[must_use]
    pub fn always(self, stage: Stage, pattern: DomainPattern, answer: Answer) -> Self {
        self.first(u32::MAX, stage, pattern, answer)
    }

    /// Adds a rule that answers the first `times` times it matches; `u32::MAX` is always.
    #[must_use]
    pub fn first(mut self, times: u32, stage: Stage, pattern: DomainPattern, answer: Answer) -> Self {
        self.0.push(Rule { stage, pattern, left: AtomicU32::new(times), answer });
        self
    }

    fn answer(&self, stage: Stage, domain: Option<&Domain>) -> Answer {
        let found = self.0.iter().find(|rule| rule.stage == stage && rule.matches(domain) && rule.take());
        found.map_or(Answer::Accept, |rule| rule.answer.clone())
    }
}

impl Rule {
    fn matches(&self, domain: Option<&Domain>) -> bool {
        domain.map_or(self.pattern == DomainPattern::Any, |domain| self.pattern.matches(domain))
    }

    /// Uses the rule once, if it is not used up.
    fn take(&self) -> bool {
        let less = |left: u32| if left == u32::MAX { Some(left) } else { left.checked_sub(1) };
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl Behaviour for Rules {
    fn on_connect(&self, _: SocketAddr) -> Answer {
        self.answer(Stage::Connect, None)
    }

    fn on_recipient(&self, recipient: &ForwardPath) -> Answer {
        self.answer(Stage::Recipient, Some(recipient.domain()))
    }

    fn on_data(&self, recipients: &[ForwardPath]) -> Answer {
        self.answer(Stage::Data, recipients.first().map(ForwardPath::domain))
    }

    fn on_message(&self, message: &ReceivedMessage) -> Answer {
        self.answer(Stage::Message, message.recipients.first().map(ForwardPath::domain))
    }
}
