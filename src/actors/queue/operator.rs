//! What an operator asks for, and what the gauges show.

use actix::{Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use super::Queue;
use super::destinations::Phase;
use super::messages::{Command, CommandResult, CommandVerb};
use super::residents::{Place, Wish};
use crate::mail::envelope::{LastReply, Status, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::maillog::RecipientLine;
use crate::metrics::Outcome;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{Op, SpoolError};

/// Failing destinations that a look at the metrics counts at most: it must stay cheap.
const FAILING_MAX: usize = 10_000;

/// Spool → Queue: the message that a command is about.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct CommandRead {
    ticket: u64,
    command: Command,
    stored: Result<Option<StoredMessage>, SpoolError>,
    answer: oneshot::Sender<CommandResult>,
}

impl Queue {
    pub(super) fn command(&mut self, command: Command) -> ResponseFuture<CommandResult> {
        let (answer, wait) = oneshot::channel();
        let unavailable = self.failed || self.draining;
        if let (Some(me), false) = (self.me(), unavailable) {
            let ticket = self.residents.read_begins();
            let id = command.id;
            self.parts.front.read(
                move |spool| spool.message(id),
                move |stored| me.do_send(CommandRead { ticket, command, stored, answer }),
            );
        }
        Box::pin(async move { wait.await.unwrap_or(CommandResult::Unavailable) })
    }

    fn command_read(&mut self, read: CommandRead) {
        let CommandRead { ticket, command, stored, answer } = read;
        let result = match stored {
            Ok(stored) => {
                if let Some(stored) = stored {
                    self.residents.adopt(&stored);
                }
                self.carry_out(&command)
            }
            Err(_) if self.residents.get(command.id).is_some() => self.carry_out(&command),
            Err(error) => self.not_read(command.id, &error),
        };
        self.residents.release(command.id);
        self.residents.read_ends(ticket);
        self.answer_when_durable(result, answer);
    }

    /// The message of a command can't be read.
    fn not_read(&mut self, id: QueueId, error: &SpoolError) -> CommandResult {
        if !matches!(error, SpoolError::Damaged { .. }) {
            self.damaged(error);
            return CommandResult::Unavailable;
        }
        self.quarantine(id, &error.to_string());
        CommandResult::Impossible { reason: format!("it can't be read and goes to quarantine: {error}") }
    }

    /// Answers a command when its changes are on disk.
    pub(super) fn answer_when_durable(
        &mut self,
        result: CommandResult,
        answer: oneshot::Sender<CommandResult>,
    ) {
        if !matches!(result, CommandResult::Done { .. }) {
            return drop(answer.send(result));
        }
        let (durable, wait) = oneshot::channel();
        self.open.answers.push(durable);
        actix_rt::spawn(async move {
            let result = wait.await.map_or(CommandResult::Unavailable, |()| result);
            drop(answer.send(result));
        });
    }

    fn carry_out(&mut self, command: &Command) -> CommandResult {
        let id = command.id;
        let Some(resident) = self.residents.get_mut(id) else { return CommandResult::NotFound };
        let wanted: Vec<(u16, Place)> = (0..)
            .zip(resident.places.iter().zip(&resident.states))
            .filter(|(number, (_, state))| {
                !state.status.is_settled() && command.recipient.is_none_or(|only| only == *number)
            })
            .map(|(number, (place, _))| (number, *place))
            .collect();
        let (mut recipients, mut in_flight) = (0, 0);
        for (number, place) in &wanted {
            match (place, command.verb) {
                (Place::InFlight | Place::Arriving, verb) => {
                    in_flight += 1;
                    let wish = if verb == CommandVerb::Remove { Wish::Remove } else { Wish::Retry };
                    if let Some(resident) = self.residents.get_mut(id) {
                        resident.wishes.retain(|(who, _)| who != number);
                        resident.wishes.push((*number, wish));
                    }
                }
                (_, CommandVerb::Remove) => {
                    recipients += 1;
                    self.remove_recipient(id, *number);
                }
                (_, CommandVerb::Retry) => {
                    recipients += 1;
                    self.retry_recipient(id, *number);
                }
            }
        }
        if wanted.is_empty() {
            CommandResult::NotFound
        } else {
            CommandResult::Done { recipients, in_flight }
        }
    }

    pub(super) fn remove_recipient(&mut self, id: QueueId, number: u16) {
        let now_ms = self.now_ms();
        let Some(resident) = self.residents.get(id) else { return };
        if resident.states[usize::from(number)].status.is_settled() {
            return;
        }
        let cause = Cause {
            class: CauseClass::Operator,
            status: EnhancedStatus::new(5, 7, 0),
            reply: None,
            text: "removed by an operator".to_owned(),
        };
        self.parts.maillog.removed(&RecipientLine {
            envelope: &resident.envelope,
            number,
            host: None,
            cause: &cause,
            attempts: resident.states[usize::from(number)].attempts,
            tls: false,
            now_ms,
        });
        self.count(id, number, Outcome::Removed, CauseClass::Operator);
        self.finish(id, number, Status::Removed, Some(LastReply { at_ms: now_ms, host: None, cause }));
    }

    /// Makes a recipient due now and lifts the back-off of its destination.
    pub(super) fn retry_recipient(&mut self, id: QueueId, number: u16) {
        let now_ms = self.now_ms();
        let Some(resident) = self.residents.get(id) else { return };
        let waits = matches!(resident.places[usize::from(number)], Place::Disk | Place::Settling(_));
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        if waits {
            self.reschedule(id, number, now_ms);
        }
        self.keep_destination(&destination);
        let Some(entry) = self.destinations.map.get_mut(&destination) else { return };
        entry.pause_until = None;
        entry.record.retry_at_ms = 0;
        if matches!(entry.phase, Phase::Active | Phase::Leaving) {
            if entry.record.failures > 0 {
                self.open.changes.push(Op::PutDestination(destination.clone(), entry.record.clone()));
            }
        } else {
            // Its record is not in memory: forget its failures, so that it is tried at once.
            entry.lifted = true;
            self.open.changes.push(Op::DeleteDestination(destination.clone()));
        }
        if !entry.wakes.contains(&now_ms) {
            entry.wakes.push(now_ms);
            self.open.changes.push(Op::PutWake(now_ms, destination));
        }
    }

    /// Refreshes the gauges that are computed, not counted; done when the spool has told its part.
    pub(super) fn observe(&self) -> ResponseFuture<()> {
        let metrics = &self.parts.metrics;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let big = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let now_ms = self.now_ms();
        metrics.queue_messages.set(big(self.counters.messages));
        metrics.queue_recipients.set(big(self.counters.recipients));
        metrics.queue_bytes.set(big(self.counters.bytes));
        metrics.quarantined_messages.set(big(self.counters.quarantined));
        let entries = &self.destinations.map;
        metrics.destinations_active.set(gauge(entries.len()));
        metrics.destinations_slow.set(gauge(entries.values().filter(|at| at.slow > 0).count()));
        metrics.recipients_ready.set(gauge(entries.values().map(|at| at.ready.len()).sum()));
        metrics.recipients_in_flight.set(gauge(self.attempts.values().map(|at| at.recipients.len()).sum()));
        metrics.slots_used.set(gauge(self.slots.used()));
        metrics.memory_content_bytes.set(gauge(self.residents.content_bytes()));
        metrics.enqueue_waiting.set(gauge(self.open.arrivals.len()));
        let next_wake = self.wakes.next_ms().filter(|at| *at > 0);
        metrics.next_wake_seconds.set(next_wake.map_or(0.0, |at| (at as f64 - now_ms as f64) / 1e3));
        self.observe_spool(now_ms)
    }

    /// The age of the oldest message, the syncs and the destinations that back off are asked of the spool.
    fn observe_spool(&self, now_ms: u64) -> ResponseFuture<()> {
        let (metrics, front) = (self.parts.metrics.clone(), self.parts.front.clone());
        Box::pin(async move {
            let look = |spool: &dyn crate::spool::Spool| {
                (spool.list(None, 1), spool.destinations(None, FAILING_MAX), spool.syncs())
            };
            let Some((oldest, failing, syncs)) = front.read_async(look).await else { return };
            if let Ok(oldest) = oldest {
                let arrived = oldest.first().map(|first| first.envelope.arrived_ms);
                let age_ms = arrived.map_or(0, |at| now_ms.saturating_sub(at));
                metrics.queue_oldest_seconds.set(age_ms as f64 / 1e3);
            }
            metrics.set_syncs(syncs);
            let failing = failing.unwrap_or_default();
            let backing_off = failing.iter().filter(|(_, record)| record.retry_at_ms > now_ms);
            metrics.set_backing_off(backing_off.map(|(destination, record)| {
                let class = record.last.as_ref().map_or(CauseClass::Connect, |last| last.cause.class);
                (destination, class)
            }));
        })
    }
}

impl Handler<CommandRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: CommandRead, ctx: &mut Context<Self>) {
        self.command_read(read);
        self.turn(ctx);
    }
}
