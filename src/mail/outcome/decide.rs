//! From facts to fates: (where it went wrong) × (what was said) → next host, deferral or bounce. The only place.
//!
//! | scope | 4yz, silence, a broken connection | 5yz |
//! |---|---|---|
//! | host: connect, greeting, EHLO, TLS | next host, then the destination waits | next host, then the destination waits |
//! | host: AUTH | next host, then the destination waits | the destination waits: our configuration, not the mail |
//! | message: MAIL, DATA, content | its recipients wait | its recipients bounce |
//! | recipient: RCPT | it waits | it bounces |
//!
//! Content that is damaged on our side is no matter of time: its message goes to quarantine, whatever the host.
//! 421 is about the host at any step. A connection that breaks before the final dot leads to the next host; after it
//! the mail waits, because the remote may have it.

use super::{Cause, CauseClass, DestinationEffect, Fate};
use crate::smtp::client::{End, Facts, RcptAnswer, Step, TlsUse, Trouble, TroubleKind};
use crate::smtp::reply::{EnhancedStatus, Reply};

/// What was found at one host, or on the way to one.
#[derive(Clone, Debug)]
pub enum Finding {
    /// The route has no host to dial, and why.
    NoRoute(Cause),
    /// No connection, with the system's words.
    NotConnected(String),
    /// The conversation ended before a transaction began.
    Session {
        /// Where and why.
        trouble: Trouble,
        /// How TLS was meant to be used.
        tls: TlsUse,
    },
    /// A transaction ended.
    Transaction(Facts),
    /// The content can't be read from the spool now, with the reason.
    Unreadable(String),
    /// The content in the spool is damaged or gone, with the reason.
    Damaged(String),
    /// The drain time ended between two steps.
    Aborted,
    /// The host was silent, before a transaction began, while others waited for the connection slot.
    GaveWay,
}

/// What a [`Finding`] means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The fate of each recipient, in the order of the transaction; none: still open.
    pub fates: Vec<Option<Fate>>,
    /// What to do about those that are open.
    pub next: Next,
}

/// How an attempt goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Every recipient has its fate.
    Done(DestinationEffect),
    /// The next host; when there is none, the open recipients are deferred for this cause, with this effect.
    Host(Cause, DestinationEffect),
    /// The same address once more, without TLS (RFC 7435).
    ClearText,
}

/// Decides for `count` recipients.
pub fn decide(finding: Finding, count: usize) -> Decision {
    let all = |fate: Fate, effect| Decision { fates: vec![Some(fate); count], next: Next::Done(effect) };
    match finding {
        Finding::NoRoute(cause) if cause.status.class == 5 => {
            all(Fate::Bounced(cause), DestinationEffect::Untouched)
        }
        Finding::NoRoute(cause) => all(Fate::Deferred(cause.clone()), DestinationEffect::Failed(cause)),
        Finding::NotConnected(why) => {
            let cause = ours(CauseClass::Connect, EnhancedStatus::new(4, 4, 1), why);
            Decision {
                fates: vec![None; count],
                next: Next::Host(cause.clone(), DestinationEffect::Failed(cause)),
            }
        }
        Finding::Unreadable(why) => {
            let trouble = Trouble { step: Step::Content, kind: TroubleKind::Local(why) };
            all(Fate::Deferred(cause_of(trouble)), DestinationEffect::Untouched)
        }
        Finding::Damaged(why) => {
            let trouble = Trouble { step: Step::Content, kind: TroubleKind::Damaged(why) };
            all(Fate::Damaged(cause_of(trouble)), DestinationEffect::Untouched)
        }
        Finding::GaveWay => {
            let why = "no answer yet, and others waited for the connection".to_owned();
            let cause = ours(CauseClass::Timeout, EnhancedStatus::new(4, 4, 2), why);
            all(Fate::Deferred(cause.clone()), DestinationEffect::Failed(cause))
        }
        Finding::Aborted => all(Fate::Again, DestinationEffect::Untouched),
        Finding::Session { trouble, tls } => {
            Decision { fates: vec![None; count], next: session(trouble, tls) }.settle_open()
        }
        Finding::Transaction(facts) => transaction(facts),
    }
}

impl Decision {
    /// Gives the open recipients a fate when there is nothing more to try.
    fn settle_open(mut self) -> Self {
        let fate = match &self.next {
            Next::Done(DestinationEffect::Failed(cause)) => Fate::Deferred(cause.clone()),
            Next::Done(_) => Fate::Again,
            Next::Host(..) | Next::ClearText => return self,
        };
        for open in self.fates.iter_mut().filter(|open| open.is_none()) {
            *open = Some(fate.clone());
        }
        self
    }
}

/// The conversation ended before a transaction began.
fn session(trouble: Trouble, tls: TlsUse) -> Next {
    let handshake = trouble.step == Step::StartTls
        && matches!(
            trouble.kind,
            TroubleKind::TlsHandshake(_)
                | TroubleKind::Lost(_)
                | TroubleKind::Timeout
                | TroubleKind::Protocol(_)
        );
    if handshake && tls == TlsUse::WhenOffered {
        return Next::ClearText;
    }
    if trouble.kind == TroubleKind::Aborted {
        return Next::Done(DestinationEffect::Untouched);
    }
    let password_refused = trouble.step == Step::Auth
        && matches!(&trouble.kind, TroubleKind::Refused(reply) if reply.code.is_permanent());
    let cause = cause_of(trouble);
    let effect = DestinationEffect::Failed(cause.clone());
    // The other hosts know the same password, and some count wrong ones.
    if password_refused { Next::Done(effect) } else { Next::Host(cause, effect) }
}

fn transaction(facts: Facts) -> Decision {
    use DestinationEffect::Healthy;
    let answers = facts.recipients;
    match facts.end {
        End::Accepted(reply) => {
            let status = reply.enhanced.unwrap_or(EnhancedStatus::new(2, 0, 0));
            let text = String::new();
            let cause = Cause { class: CauseClass::Accepted, status, reply: Some(reply), text };
            settle(answers, Some(&Fate::Delivered(cause)), Next::Done(Healthy))
        }
        End::Refused { step, reply } => settle(answers, Some(&refused(step, reply)), Next::Done(Healthy)),
        End::NoRecipient => settle(answers, Some(&Fate::Again), Next::Done(Healthy)),
        End::TooLarge { limit } => {
            let text = format!("the message is larger than the {limit} bytes that the host takes");
            let cause = ours(CauseClass::Reply5xx, EnhancedStatus::new(5, 3, 4), text);
            settle(answers, Some(&Fate::Bounced(cause)), Next::Done(Healthy))
        }
        End::Broken(trouble) => broken(answers, trouble),
    }
}

/// The connection ended within a transaction.
fn broken(answers: Vec<RcptAnswer>, trouble: Trouble) -> Decision {
    let step = trouble.step;
    let local = matches!(trouble.kind, TroubleKind::Local(_));
    let damaged = matches!(trouble.kind, TroubleKind::Damaged(_));
    let closing = matches!(trouble.kind, TroubleKind::Refused(_));
    if trouble.kind == TroubleKind::Aborted {
        let fate = if step == Step::FinalDot { Fate::Interrupted } else { Fate::Again };
        return settle(answers, Some(&fate), Next::Done(DestinationEffect::Untouched));
    }
    let mut cause = cause_of(trouble);
    // A host that went silent or away after it took MAIL may have stumbled over this message.
    let effect = if closing || step <= Step::Mail {
        DestinationEffect::Failed(cause.clone())
    } else {
        DestinationEffect::Untouched
    };
    if local || damaged {
        let fate = if damaged { Fate::Damaged(cause) } else { Fate::Deferred(cause) };
        return settle(answers, Some(&fate), Next::Done(DestinationEffect::Untouched));
    }
    if step == Step::FinalDot {
        if !closing {
            cause.text.push_str("; the message may be delivered twice");
        }
        return settle(answers, Some(&Fate::Deferred(cause)), Next::Done(effect));
    }
    if answers.iter().all(|answer| matches!(answer, RcptAnswer::Refused(_))) {
        return settle(answers, Some(&Fate::Again), Next::Done(effect));
    }
    settle(answers, None, Next::Host(cause, effect))
}

/// Refused recipients get what their answer means, the others what became of the message.
fn settle(answers: Vec<RcptAnswer>, others: Option<&Fate>, next: Next) -> Decision {
    let mut accepted_before = false;
    let fates = answers.into_iter().map(|answer| match answer {
        // Too many recipients at once (RFC 5321 section 4.5.3.1.10), or a full mailbox: alone it will show which.
        RcptAnswer::Refused(reply) if accepted_before && matches!(reply.code.get(), 452 | 552) => {
            Some(Fate::Again)
        }
        RcptAnswer::Refused(reply) => Some(refused(Step::Rcpt, reply)),
        RcptAnswer::Accepted => {
            accepted_before = true;
            others.cloned()
        }
        RcptAnswer::Unanswered => others.cloned(),
    });
    Decision { fates: fates.collect(), next }
}

/// A refusal of a message or a recipient.
fn refused(step: Step, reply: Reply) -> Fate {
    let permanent = reply.code.is_permanent();
    let cause = replied(step, reply, if permanent { 5 } else { 4 });
    if permanent { Fate::Bounced(cause) } else { Fate::Deferred(cause) }
}

/// The cause of a deferral for what ended a conversation.
fn cause_of(trouble: Trouble) -> Cause {
    let text = trouble.to_string();
    let (class, subject, detail) = match trouble.kind {
        TroubleKind::Refused(reply) => return replied(trouble.step, reply, 4),
        TroubleKind::Timeout => (CauseClass::Timeout, 4, 2),
        TroubleKind::Lost(_) => (CauseClass::ConnectionLost, 4, 2),
        TroubleKind::Protocol(_) => (CauseClass::Protocol, 5, 0),
        TroubleKind::TlsNotOffered => (CauseClass::Tls, 7, 4),
        TroubleKind::TlsHandshake(_) => (CauseClass::Tls, 7, 5),
        TroubleKind::AuthNotOffered => (CauseClass::Auth, 7, 0),
        TroubleKind::Local(_) | TroubleKind::Damaged(_) | TroubleKind::Aborted => (CauseClass::Local, 3, 0),
    };
    ours(class, EnhancedStatus::new(4, subject, detail), text)
}

/// A cause that is the remote's answer. `class` is what it means to us: a 5yz greeting only defers.
fn replied(step: Step, reply: Reply, class: u8) -> Cause {
    let status = match reply.enhanced {
        Some(status) => EnhancedStatus { class, ..status },
        None if step == Step::StartTls || step == Step::Auth => EnhancedStatus::new(class, 7, 0),
        None => EnhancedStatus::new(class, 0, 0),
    };
    let cause_class = match step {
        _ if reply.code.get() == 421 => CauseClass::Reply4xx,
        Step::Auth => CauseClass::Auth,
        Step::StartTls => CauseClass::Tls,
        _ if reply.code.is_permanent() => CauseClass::Reply5xx,
        _ => CauseClass::Reply4xx,
    };
    Cause { class: cause_class, status, reply: Some(reply), text: format!("{} refused", step.noun()) }
}

fn ours(class: CauseClass, status: EnhancedStatus, text: String) -> Cause {
    Cause { class, status, reply: None, text }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
