//! What an operator asks for, and what the gauges show.

use std::collections::HashMap;

use actix::{Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use super::Queue;
use super::destinations::{DestinationWish, Phase};
use super::messages::{Command, CommandResult, CommandVerb};
use super::residents::Place;
use crate::mail::envelope::{LastReply, Status, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::maillog::RecipientLine;
use crate::metrics::Outcome;
use crate::smtp::address::Domain;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{DestinationRecord, Op, Spool, SpoolError};

/// Failing destinations that a look at the metrics counts at most: it must stay cheap.
const FAILING_MAX: usize = 10_000;

/// Spool → Queue: the message that a command is about.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct CommandRead {
    ticket: u64,
    command: Command,
    found: Result<Found, SpoolError>,
    answer: oneshot::Sender<CommandResult>,
}

/// A message, and what is remembered of the destinations it waits for.
type Found = (Option<StoredMessage>, HashMap<Domain, DestinationRecord>);

fn look_up(spool: &dyn Spool, id: QueueId) -> Result<Found, SpoolError> {
    let mut records = HashMap::new();
    let stored = spool.message(id)?;
    for recipient in stored.iter().flat_map(|stored| &stored.envelope.recipients) {
        if !records.contains_key(&recipient.destination)
            && let Ok(Some(record)) = spool.destination(&recipient.destination)
        {
            records.insert(recipient.destination.clone(), record);
        }
    }
    Ok((stored, records))
}

impl Queue {
    pub(super) fn command(&mut self, command: Command) -> ResponseFuture<CommandResult> {
        let (answer, wait) = oneshot::channel();
        let unavailable = self.failed || self.draining;
        if let (Some(me), false) = (self.me(), unavailable) {
            let ticket = self.residents.read_begins();
            let id = command.id;
            self.parts.front.read(
                move |spool| look_up(spool, id),
                move |found| me.do_send(CommandRead { ticket, command, found, answer }),
            );
        }
        Box::pin(async move { wait.await.unwrap_or(CommandResult::Unavailable) })
    }

    fn command_read(&mut self, read: CommandRead) {
        let CommandRead { ticket, command, found, answer } = read;
        let result = match found {
            Ok((stored, records)) => {
                if let Some(stored) = stored {
                    self.residents.adopt(&stored);
                }
                self.carry_out(&command, &records)
            }
            Err(_) if self.residents.get(command.id).is_some() => self.carry_out(&command, &HashMap::new()),
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

    fn carry_out(
        &mut self,
        command: &Command,
        records: &HashMap<Domain, DestinationRecord>,
    ) -> CommandResult {
        let Command { id, verb, .. } = *command;
        let Some(resident) = self.residents.get_mut(id) else { return CommandResult::NotFound };
        let wanted: Vec<(u16, Place)> = (0..)
            .zip(resident.places.iter().zip(&resident.states))
            .filter(|(number, (_, state))| {
                !state.status.is_settled() && command.recipient.is_none_or(|only| only == *number)
            })
            .map(|(number, (place, _))| (number, *place))
            .collect();
        if wanted.is_empty() {
            return CommandResult::NotFound;
        }
        if let Some(reason) = self.hold_forbids(id, verb, &wanted) {
            return CommandResult::Impossible { reason };
        }
        let (mut recipients, mut in_flight) = (0, 0);
        for (number, place) in wanted {
            if matches!(place, Place::InFlight | Place::Arriving) {
                in_flight += 1;
                if let Some(resident) = self.residents.get_mut(id) {
                    resident.wishes.retain(|(who, _)| *who != number);
                    resident.wishes.push((number, verb.into()));
                }
                continue;
            }
            recipients += 1;
            match verb {
                CommandVerb::Remove => self.remove_recipient(id, number),
                CommandVerb::Retry => {
                    self.lift_if_unread(id, number, records);
                    self.retry_recipient(id, number);
                }
                CommandVerb::Hold => self.hold_recipient(id, number, true),
                CommandVerb::Release => self.hold_recipient(id, number, false),
            }
        }
        CommandResult::Done { recipients, in_flight }
    }

    /// Why nothing can be done to any of these recipients: all are on hold, or none is.
    fn hold_forbids(&self, id: QueueId, verb: CommandVerb, wanted: &[(u16, Place)]) -> Option<String> {
        let resident = self.residents.get(id)?;
        // What is in flight is not on hold, but may have to be released from a hold that is to come.
        let flying = wanted.iter().any(|(_, place)| matches!(place, Place::InFlight | Place::Arriving));
        let held = |(number, _): &(u16, Place)| resident.states[usize::from(*number)].held;
        match verb {
            CommandVerb::Retry if wanted.iter().all(held) => {
                Some(format!("it is on hold; to have it tried: posthaste queue release {id}"))
            }
            CommandVerb::Release if !flying && !wanted.iter().any(held) => {
                Some("it is not on hold".to_owned())
            }
            _ => None,
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
        if resident.states[usize::from(number)].held {
            return;
        }
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        if waits {
            self.reschedule(id, number, now_ms);
        }
        self.keep_destination(&destination);
        let Some(entry) = self.destinations.map.get_mut(&destination) else { return };
        entry.pause_until = None;
        entry.wishes.push(DestinationWish::Lift);
        self.grant_destination_wishes(&destination);
        self.wake_now(&destination, now_ms);
    }

    /// Ends the back-off of a destination that finds no place in memory: what was read of it is all there is.
    fn lift_if_unread(&mut self, id: QueueId, number: u16, records: &HashMap<Domain, DestinationRecord>) {
        let Some(resident) = self.residents.get(id) else { return };
        let destination = &resident.envelope.recipients[usize::from(number)].destination;
        let entry = self.destinations.map.get(destination);
        let unread = entry.map_or(self.destinations_are_full(), |entry| entry.phase == Phase::Parked);
        if let Some(record) = records.get(destination).filter(|_| unread) {
            let record = DestinationRecord { retry_at_ms: 0, ..record.clone() };
            self.open.changes.push(Op::PutDestination(destination.clone(), record));
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
        metrics.held_recipients.set(big(self.counters.held));
        let entries = &self.destinations.map;
        metrics.destinations_active.set(gauge(entries.len()));
        metrics.destinations_slow.set(gauge(entries.values().filter(|at| at.slow > 0).count()));
        metrics.recipients_ready.set(gauge(entries.values().map(|at| at.ready.len()).sum()));
        metrics.recipients_in_flight.set(gauge(self.attempts.values().map(|at| at.recipients.len()).sum()));
        metrics.slots_used.set(gauge(self.slots.used()));
        metrics.connects_expected.set(gauge(self.parts.dials.expected()));
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
            let look = |spool: &dyn Spool| {
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
            let suspended = failing.iter().filter(|(_, record)| record.suspended_until_ms > now_ms).count();
            metrics.destinations_suspended.set(i64::try_from(suspended).unwrap_or(i64::MAX));
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
