//! Into quarantine: messages that can't be read, whose content is damaged, or that crash their delivery. And out of it
//! again, when an operator decides so.

use actix::{Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use super::Queue;
use super::messages::{CommandResult, QuarantineCommand, QuarantineVerb};
use super::residents::Place;
use crate::mail::envelope::{ContentPlace, Status, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::maillog::RecipientLine;
use crate::metrics::Outcome;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{Op, Quarantined, SpoolError, Tally};

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
    /// A record could not be read: say so; what can be named goes to quarantine where it is met.
    pub(super) fn damaged(&self, error: &SpoolError) {
        self.parts.metrics.damaged_records.inc();
        tracing::error!(%error, "a record of the spool can't be read");
    }

    /// Sets a message aside whose records can't be used; `false` when that must wait because it is in memory.
    pub(super) fn quarantine(&mut self, id: QueueId, reason: &str) -> bool {
        if self.residents.get(id).is_some_and(|resident| resident.places.iter().any(|at| *at != Place::Disk))
        {
            return false;
        }
        // A read that began before the commit finds it once more.
        if self.condemned.insert(id) {
            tracing::error!(%id, reason, "a message goes to quarantine: its records can't be used");
            self.parts.metrics.damaged_records.inc();
            self.counters.quarantined += 1;
            self.counters.messages = self.counters.messages.saturating_sub(1);
            if self.counters.messages == 0 {
                // How many recipients and bytes it had is not known.
                self.counters.tree_bytes = 0;
                (self.counters.recipients, self.counters.bytes, self.counters.held) = (0, 0, 0);
            }
            self.patrol.lost(id, self.parts.clock.instant());
            self.open.changes.push(Op::Quarantine(id, reason.to_owned()));
        }
        true
    }

    /// Sets a message aside that can't be delivered as it is, once none of its recipients is in flight: what an attempt
    /// still finds is its fate.
    pub(super) fn set_aside_unfit(&mut self, id: QueueId) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        if resident.places.contains(&Place::InFlight) {
            return;
        }
        let Some(reason) = resident.unfit.take() else { return };
        let waiting: Vec<u16> = resident.waiting().collect();
        if waiting.is_empty() {
            return;
        }
        let envelope = resident.envelope.clone();
        let tally = Tally::of(&envelope, &resident.states);
        for number in &waiting {
            self.log_set_aside(id, *number);
            // Out of memory for good: whatever comes back of it finds it settled.
            if let Some(resident) = self.residents.get_mut(id) {
                resident.states[usize::from(*number)].status = Status::Removed;
            }
            self.crashes.remove(&(id, *number));
            self.settling(id, *number, &envelope.recipients[usize::from(*number)].destination);
        }
        tracing::error!(%id, reason, "a message goes to quarantine: it can't be delivered as it is");
        self.unindexed.remove(id);
        self.count_out(id, tally);
        self.counters.quarantined += 1;
        self.open.changes.push(Op::Quarantine(id, reason));
    }

    fn log_set_aside(&self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get(id) else { return };
        let state = &resident.states[usize::from(number)];
        let cause = state.last.as_ref().map_or_else(without_attempt, |last| last.cause.clone());
        self.parts.maillog.quarantined(&RecipientLine {
            envelope: &resident.envelope,
            number,
            host: None,
            cause: &cause,
            attempts: state.attempts,
            tls: false,
            now_ms: self.now_ms(),
        });
    }

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
        let recipients = match (verb, found.message, found.obstacle) {
            (QuarantineVerb::Release, Ok(stored), None) => self.release(&stored),
            (QuarantineVerb::Release, Ok(_), Some(why)) => {
                let reason =
                    format!("it can't be delivered as it is ({why}); restore its content, or discard it");
                return CommandResult::Impossible { reason };
            }
            (QuarantineVerb::Release, Err(why), _) => {
                let reason = format!("it can't be delivered as it is ({why}); discard it");
                return CommandResult::Impossible { reason };
            }
            (QuarantineVerb::Discard, message, _) => self.discard(id, message.ok().as_ref()),
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
        self.count_in(envelope.id, Tally::of(envelope, &stored.states));
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
            status: EnhancedStatus::new(5, 7, 0),
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

/// The cause of a recipient's quarantine that was not tried itself.
fn without_attempt() -> Cause {
    Cause {
        class: CauseClass::Local,
        status: EnhancedStatus::new(4, 3, 0),
        reply: None,
        text: "its message can't be delivered as it is".to_owned(),
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
