//! Holding back: recipients on hold, destinations that are suspended, and the end of both.
//!
//! Neither uses up an attempt, both are in the spool, and mail expires all the same. What is in flight goes on: a hold takes
//! effect when its attempt reports.

use std::mem;

use actix::{Context, Handler, ResponseFuture};
use tokio::sync::oneshot;

use super::Queue;
use super::destinations::{DestinationWish, Phase};
use super::messages::{
    CommandResult, DestinationCommand, DestinationInMemory, DestinationVerb, DestinationsInMemory,
    InspectDestinations,
};
use super::residents::Place;
use crate::mail::id::QueueId;
use crate::maillog::Rfc3339;
use crate::smtp::address::Domain;
use crate::spool::{DueKey, Op, UNTIL_RESUMED};

impl Queue {
    /// Takes a recipient out of the schedule (it keeps its due time, but no key names it), or puts it back where it was.
    pub(super) fn hold_recipient(&mut self, id: QueueId, number: u16, on: bool) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let state = &mut resident.states[usize::from(number)];
        if state.held == on || state.status.is_settled() {
            return;
        }
        state.held = on;
        resident.records = true;
        let (due_ms, written, indexed) = (state.due_ms, state.clone(), resident.indexed);
        self.count_hold(id, on);
        self.open.changes.push(Op::PutRecipient(id, number, written));
        let due = DueKey { destination: destination.clone(), due_ms, id, number };
        if !indexed {
            self.index(id);
        } else if on {
            self.open.changes.push(Op::DeleteDue(due));
        } else {
            self.open.changes.push(Op::PutDue(due));
            if let Some(at) = self.expect_mail(&destination, due_ms) {
                self.open.changes.push(Op::PutWake(at, destination.clone()));
            }
        }
        self.settling(id, number, &destination);
    }

    /// Its record is read first if it is not in memory; commands are few, so it gets its place whatever the bounds say.
    fn destination_command(&mut self, command: DestinationCommand) -> ResponseFuture<CommandResult> {
        let (answer, wait) = oneshot::channel();
        let DestinationCommand { destination, verb } = command;
        if !self.failed && !self.draining {
            match self.destinations.map.get_mut(&destination) {
                None => self.add_destination(&destination, Phase::Loading),
                Some(entry) if entry.phase == Phase::Parked => {
                    entry.phase = Phase::Loading;
                    self.load_destination(&destination);
                }
                Some(_) => self.keep_destination(&destination),
            }
            if let Some(entry) = self.destinations.map.get_mut(&destination) {
                entry.wishes.push(DestinationWish::Command(verb, answer));
            }
            self.grant_destination_wishes(&destination);
            self.settle_down(&destination);
        }
        Box::pin(async move { wait.await.unwrap_or(CommandResult::Unavailable) })
    }

    /// Lets a destination go on after its record has changed.
    fn settle_down(&mut self, destination: &Domain) {
        let now_ms = self.now_ms();
        self.refill(destination, now_ms);
        self.offer(destination);
        self.leave_if_idle(destination, now_ms);
    }

    /// Does what an operator asked for, once the destination's record is known.
    pub(super) fn grant_destination_wishes(&mut self, destination: &Domain) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if matches!(entry.phase, Phase::Loading | Phase::Parked) {
            return;
        }
        for wish in mem::take(&mut entry.wishes) {
            match wish {
                DestinationWish::Lift => self.lift(destination),
                DestinationWish::Command(verb, answer) => {
                    let result = match verb {
                        DestinationVerb::Suspend { until_ms } => self.suspend(destination, until_ms),
                        DestinationVerb::Resume => self.resume(destination),
                    };
                    self.answer_when_durable(result, answer);
                }
            }
        }
    }

    fn suspend(&mut self, destination: &Domain, until_ms: u64) -> CommandResult {
        let Some(entry) = self.destinations.map.get_mut(destination) else {
            return CommandResult::Unavailable;
        };
        entry.record.suspended_until_ms = until_ms;
        if until_ms == UNTIL_RESUMED {
            tracing::info!(%destination, "an operator suspended a destination until it is resumed");
        } else {
            tracing::info!(%destination, until = %Rfc3339(until_ms), "an operator suspended a destination");
        }
        self.write_destination(destination);
        self.unready(destination, 0);
        CommandResult::Done { recipients: 0, in_flight: self.in_flight_to(destination) }
    }

    fn resume(&mut self, destination: &Domain) -> CommandResult {
        let now_ms = self.now_ms();
        let Some(entry) = self.destinations.map.get_mut(destination) else {
            return CommandResult::Unavailable;
        };
        if entry.record.suspended_until_ms <= now_ms {
            return CommandResult::Impossible { reason: format!("{destination} is not suspended") };
        }
        entry.record.suspended_until_ms = 0;
        tracing::info!(%destination, "an operator resumed a destination");
        self.write_destination(destination);
        self.wake_now(destination, now_ms);
        CommandResult::Done { recipients: 0, in_flight: self.in_flight_to(destination) }
    }

    /// Ends a destination's back-off; a suspension stays.
    pub(super) fn lift(&mut self, destination: &Domain) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if entry.record.retry_at_ms > 0 {
            entry.record.retry_at_ms = 0;
            self.write_destination(destination);
        }
    }

    /// After a crash it must be looked at at once.
    pub(super) fn wake_now(&mut self, destination: &Domain, now_ms: u64) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if !entry.wakes.iter().any(|at| *at <= now_ms) {
            entry.wakes.push(now_ms);
            self.open.changes.push(Op::PutWake(now_ms, destination.clone()));
        }
    }

    /// Writes what is to be remembered of a destination.
    pub(super) fn write_destination(&mut self, destination: &Domain) {
        let Some(entry) = self.destinations.map.get(destination) else { return };
        self.open.changes.push(if entry.record.is_blank() {
            Op::DeleteDestination(destination.clone())
        } else {
            Op::PutDestination(destination.clone(), entry.record.clone())
        });
    }

    fn in_flight_to(&self, destination: &Domain) -> u32 {
        let running = self.attempts.values().filter(|running| running.destination == *destination);
        u32::try_from(running.map(|running| running.recipients.len()).sum::<usize>()).unwrap_or(u32::MAX)
    }

    fn destinations_in_memory(&self, after: Option<&Domain>, limit: usize) -> DestinationsInMemory {
        let mut names: Vec<&Domain> =
            self.destinations.map.keys().filter(|name| after.is_none_or(|after| *name > after)).collect();
        names.sort_unstable();
        names.truncate(limit);
        let of = |name: &Domain| {
            let attempts = self.destinations.map.get(name).map_or(0, |entry| entry.attempts);
            let mut found = DestinationInMemory { attempts, ..DestinationInMemory::default() };
            for (id, number) in self.residents.in_memory_for(name) {
                let Some(resident) = self.residents.get(id) else { continue };
                let state = &resident.states[usize::from(number)];
                found.in_flight += usize::from(resident.places[usize::from(number)] == Place::InFlight);
                found.fresh += usize::from(!resident.indexed && !state.status.is_settled());
            }
            found
        };
        DestinationsInMemory(names.into_iter().map(|name| (name.clone(), of(name))).collect())
    }
}

impl Handler<DestinationCommand> for Queue {
    type Result = ResponseFuture<CommandResult>;

    fn handle(&mut self, command: DestinationCommand, ctx: &mut Context<Self>) -> Self::Result {
        let answer = self.destination_command(command);
        self.turn(ctx);
        answer
    }
}

impl Handler<InspectDestinations> for Queue {
    type Result = DestinationsInMemory;

    fn handle(&mut self, ask: InspectDestinations, _: &mut Context<Self>) -> Self::Result {
        self.destinations_in_memory(ask.after.as_ref(), ask.limit)
    }
}
