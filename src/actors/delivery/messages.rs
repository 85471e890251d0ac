//! What a Delivery takes and what it answers.

use std::sync::Arc;
use std::time::Duration;

use actix::{Message, Recipient};
use bytes::Bytes;

use super::dials::Expected;
use crate::mail::envelope::Envelope;
use crate::mail::outcome::{AttemptResult, Cause, CauseClass, DestinationEffect, Fate};
use crate::route::table::Route;
use crate::smtp::address::Domain;
use crate::smtp::reply::EnhancedStatus;

/// Queue → Delivery: one connection slot and one transaction to use it for.
///
/// The Delivery answers every `Attempt` with exactly one [`AttemptReport`] of the same ticket, whatever happens:
/// a guard that is dropped without one reports `crashed`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Attempt {
    /// Names the attempt; never reused within a run.
    pub ticket: u64,
    /// The destination whose slot is granted.
    pub destination: Domain,
    /// Where the destination's mail goes: MX or a static route.
    pub route: Route,
    /// The message.
    pub envelope: Arc<Envelope>,
    /// Its content, when the Queue still has it in memory; else the Delivery reads it from the spool.
    pub content: Option<Bytes>,
    /// The numbers of the recipients to send to; at least one, at most `delivery.recipients_per_transaction`.
    pub recipients: Vec<u16>,
    /// For a destination whose hosts have not answered before: the Delivery releases it when it connects, and connects in
    /// the lane of the others.
    pub expected: Option<Expected>,
    /// Answers the Queue, whatever happens.
    pub report: ReportGuard,
}

/// Holds the one answer that every [`Attempt`] owes: dropped unused, by a panic or with a dead actor's mailbox, it
/// reports every recipient as crashed.
#[derive(Debug)]
pub struct ReportGuard {
    ticket: u64,
    recipients: Vec<u16>,
    to: Option<Recipient<AttemptReport>>,
}

impl ReportGuard {
    /// A guard for the attempt with this ticket and these recipients.
    pub fn new(ticket: u64, recipients: Vec<u16>, to: Recipient<AttemptReport>) -> Self {
        Self { ticket, recipients, to: Some(to) }
    }

    /// Answers.
    pub fn send(mut self, result: AttemptResult, took: Duration) {
        if let Some(to) = self.to.take() {
            to.do_send(AttemptReport { ticket: self.ticket, result, took });
        }
    }
}

impl Drop for ReportGuard {
    fn drop(&mut self) {
        let Some(to) = self.to.take() else { return };
        let cause = Cause {
            class: CauseClass::Crashed,
            status: EnhancedStatus::new(4, 3, 0),
            reply: None,
            text: "the delivery code failed; this is a bug of the relay".to_owned(),
        };
        let fates = self.recipients.iter().map(|number| (*number, Fate::Crashed(cause.clone()))).collect();
        let result = AttemptResult { fates, effect: DestinationEffect::Untouched, host: None, tls: false };
        to.do_send(AttemptReport { ticket: self.ticket, result, took: Duration::ZERO });
    }
}

/// Delivery → Queue: what came of an attempt.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AttemptReport {
    /// The attempt.
    pub ticket: u64,
    /// What it found.
    pub result: AttemptResult,
    /// From the start of the attempt to its end.
    pub took: Duration,
}

/// Queue → Delivery: close what is idle; attempts under way finish.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Queue → Delivery: this attempt has been silent for long, and destinations that were never tried wait for its slot.
/// When no transaction has begun yet, it gives up and reports; else it goes on, since what it sent may be taken.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct GiveWay {
    /// The attempt.
    pub ticket: u64,
}

/// Queue → Delivery: the drain time is over. Whatever still runs reports now: `interrupted` for recipients whose
/// final dot was sent and not answered, `again` for the others.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Abort;
