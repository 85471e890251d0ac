//! An operator decides on messages in quarantine.

use actix::{Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use super::Queue;
use super::commit::tree_bytes;
use super::messages::{CommandResult, QuarantineCommand, QuarantineVerb};
use crate::mail::envelope::{ContentPlace, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::maillog::RecipientLine;
use crate::metrics::Outcome;
use crate::spool::{Op, Quarantined, SpoolError};

/// Spool → Queue: the message in quarantine that a command is about.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct QuarantinedRead {
    ticket: u64,
    command: QuarantineCommand,
    found: Result<Option<Quarantined>, SpoolError>,
    answer: oneshot::Sender<CommandResult>,
}

impl Queue {
    fn quarantined_read(&mut self, read: QuarantinedRead) {
        let QuarantinedRead { ticket, command, found, answer } = read;
        let result = match found {
            _ if self.failed || self.draining => CommandResult::Unavailable,
            Ok(Some(found)) => self.decide(command.verb, found),
            Ok(None) => CommandResult::NotFound,
            Err(error) => {
                self.damaged(&error);
                CommandResult::Unavailable
            }
        };
        self.residents.read_ends(ticket);
        self.answer_when_durable(result, answer);
    }

    fn decide(&mut self, verb: QuarantineVerb, found: Quarantined) -> CommandResult {
        let id = found.id;
        if self.residents.get(id).is_some() {
            let reason = "it is on its way into quarantine; try again in a moment".to_owned();
            return CommandResult::Impossible { reason };
        }
        let recipients = match (verb, found.message) {
            (QuarantineVerb::Release, Ok(stored)) => self.release(&stored),
            (QuarantineVerb::Release, Err(why)) => {
                let reason = format!("it can't be delivered as it is ({why}); discard it");
                return CommandResult::Impossible { reason };
            }
            (QuarantineVerb::Discard, message) => self.discard(id, message.ok().as_ref()),
        };
        self.condemned.remove(&id);
        self.counters.quarantined = self.counters.quarantined.saturating_sub(1);
        CommandResult::Done { recipients, in_flight: 0 }
    }

    fn release(&mut self, stored: &StoredMessage) -> u32 {
        let envelope = &stored.envelope;
        let waiting = stored.states.iter().filter(|state| !state.status.is_settled()).count();
        tracing::info!(id = %envelope.id, "an operator released a message from quarantine");
        self.open.changes.push(Op::Release(envelope.id));
        self.counters.messages += 1;
        self.counters.recipients += waiting as u64;
        self.counters.held +=
            stored.states.iter().filter(|at| at.held && !at.status.is_settled()).count() as u64;
        self.counters.bytes += envelope.size;
        self.counters.tree_bytes += tree_bytes(envelope);
        // As after a crash: its records are there, its keys are not.
        self.recovered(stored);
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    fn discard(&mut self, id: QueueId, message: Option<&StoredMessage>) -> u32 {
        tracing::info!(%id, "an operator discarded a message in quarantine");
        let file = message.and_then(|stored| match &stored.envelope.place {
            ContentPlace::File(name) => Some(name.clone()),
            ContentPlace::Database => None,
        });
        self.open.changes.push(Op::Discard(id, file));
        message.map_or(0, |stored| self.log_discarded(stored))
    }

    fn log_discarded(&self, stored: &StoredMessage) -> u32 {
        let cause = Cause {
            class: CauseClass::Operator,
            status: crate::smtp::reply::EnhancedStatus::new(5, 7, 0),
            reply: None,
            text: "discarded from quarantine by an operator".to_owned(),
        };
        let mut count = 0;
        for (number, state) in (0..).zip(&stored.states).filter(|(_, state)| !state.status.is_settled()) {
            self.parts.maillog.removed(&RecipientLine {
                envelope: &stored.envelope,
                number,
                host: None,
                cause: &cause,
                attempts: state.attempts,
                tls: false,
                now_ms: self.now_ms(),
            });
            self.parts.metrics.outcome(Outcome::Removed, CauseClass::Operator);
            count += 1;
        }
        count
    }
}

impl Handler<QuarantineCommand> for Queue {
    type Result = ResponseFuture<CommandResult>;

    fn handle(&mut self, command: QuarantineCommand, _: &mut Context<Self>) -> Self::Result {
        let (answer, wait) = oneshot::channel();
        let unavailable = self.failed || self.draining;
        if let (Some(me), false) = (self.me(), unavailable) {
            let (ticket, id) = (self.residents.read_begins(), command.id);
            self.parts.front.read(
                move |spool| spool.in_quarantine(id),
                move |found| me.do_send(QuarantinedRead { ticket, command, found, answer }),
            );
        }
        Box::pin(async move { wait.await.unwrap_or(CommandResult::Unavailable) })
    }
}

impl Handler<QuarantinedRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: QuarantinedRead, ctx: &mut Context<Self>) {
        self.quarantined_read(read);
        self.turn(ctx);
    }
}
