//! What came of an attempt: settle, defer, or report, each with its records in the next commit.

use std::time::Duration;

use tokio::time::Instant;

use actix::{Handler, Message};

use super::Queue;
use super::dispatch::Running;
use super::residents::{Place, Wish};
use crate::actors::delivery::messages::AttemptReport;
use crate::mail::dsn::ReportKind;
use crate::mail::envelope::{LastReply, Status};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass, DestinationEffect, Fate, RemoteHost};
use crate::maillog::RecipientLine;
use crate::metrics::{self, Outcome};
use crate::schedule::retry;
use crate::schedule::slots::Standing;
use crate::smtp::address::Domain;
use crate::spool::{DueKey, Op, Tally};

/// Attempts in a row that may crash before the message goes to quarantine.
const CRASHES_MAX: u32 = 3;
/// Recipients whose crashes are counted; a relay that crashes at every message must not fill its memory with counts.
const CRASHES_COUNTED: usize = 10_000;
/// How long a destination waits when its remote addresses had no room.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// A destination's pause is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Resume {
    destination: Domain,
}

impl Handler<Resume> for Queue {
    type Result = ();

    fn handle(&mut self, resume: Resume, ctx: &mut actix::Context<Self>) {
        self.offer(&resume.destination);
        self.turn(ctx);
    }
}

/// One recipient to report to the sender.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub number: u16,
    pub cause: Cause,
    pub host: Option<RemoteHost>,
}

/// What a report tells besides the fates.
struct Context {
    id: QueueId,
    host: Option<RemoteHost>,
    tls: bool,
    now_ms: u64,
}

impl Queue {
    pub(super) fn attempt_reported(&mut self, report: AttemptReport) {
        let Some(running) = self.attempts.remove(&report.ticket) else { return };
        let now_ms = self.now_ms();
        self.slots.give_back(running.standing);
        self.free_site(&running.destination);
        self.parts.metrics.attempt_seconds.observe(report.took.as_secs_f64());
        self.apply_effect(&running, &report.result.effect, report.result.host.as_ref(), now_ms);
        let context = Context { id: running.id, host: report.result.host, tls: report.result.tls, now_ms };
        let mut fates = report.result.fates;
        if fates.iter().any(|(_, fate)| matches!(fate, Fate::Crashed(_))) {
            self.parts.metrics.panicked(metrics::Place::Delivery);
        }
        let (mut refused, mut expired) = (Vec::new(), Vec::new());
        for number in &running.recipients {
            let found = fates.iter().position(|(who, _)| who == number);
            let fate = found.map_or_else(left_out, |at| fates.swap_remove(at).1);
            match self.apply_fate(&context, *number, fate) {
                Some((ReportKind::Expired, failed)) => expired.push(failed),
                Some((_, failed)) => refused.push(failed),
                None => {}
            }
        }
        for (kind, failed) in [(ReportKind::Failed, refused), (ReportKind::Expired, expired)] {
            if !failed.is_empty() {
                self.report(running.id, kind, failed);
            }
        }
        self.set_aside_unfit(running.id);
        self.refill(&running.destination, now_ms);
        self.offer(&running.destination);
        self.leave_if_idle(&running.destination, now_ms);
    }

    fn apply_effect(
        &mut self,
        running: &Running,
        effect: &DestinationEffect,
        host: Option<&RemoteHost>,
        now_ms: u64,
    ) {
        let name = &running.destination;
        let Some(entry) = self.destinations.map.get_mut(name) else { return };
        entry.attempts = entry.attempts.saturating_sub(1);
        entry.slow = entry.slow.saturating_sub(u32::from(running.slow));
        match effect {
            DestinationEffect::Healthy => {
                entry.window.grow();
                entry.standing = Standing::Proven;
                if entry.record.failures > 0 {
                    entry.forget_failures();
                    self.write_destination(name);
                }
            }
            DestinationEffect::Failed(_) if entry.backs_off(now_ms) => {}
            DestinationEffect::Failed(cause) => {
                entry.window.probe();
                entry.standing = Standing::Troubled;
                entry.record.failures = entry.record.failures.saturating_add(1);
                let delay = delay_after(&self.parts.settings.retry, &running.id, name, entry.record.failures);
                entry.record.retry_at_ms = now_ms + delay;
                entry.record.last = Some(LastReply {
                    at_ms: now_ms,
                    host: host.map(ToString::to_string),
                    cause: cause.clone(),
                });
                self.write_destination(name);
                self.unready(name, 0);
            }
            DestinationEffect::Untouched => {}
        }
    }

    /// Does what one fate asks for; returns the recipient when its sender is to be told, and of what.
    fn apply_fate(&mut self, context: &Context, number: u16, fate: Fate) -> Option<(ReportKind, Failed)> {
        let resident = self.residents.get(context.id)?;
        if resident.states[usize::from(number)].status.is_settled() {
            // Its message went to quarantine meanwhile.
            return None;
        }
        let crashes = self.crashes_in_a_row(context.id, number, &fate);
        match fate {
            Fate::Delivered(cause) => self.delivered(context, number, cause),
            Fate::Deferred(cause) => return self.deferred(context, number, cause),
            Fate::Crashed(cause) if crashes >= CRASHES_MAX => self.condemn(context, number, cause),
            Fate::Damaged(cause) => self.condemn(context, number, cause),
            Fate::Crashed(cause) => return self.deferred(context, number, cause),
            Fate::Bounced(cause) => {
                return Some((ReportKind::Failed, Failed { number, cause, host: context.host.clone() }));
            }
            Fate::Again => {
                self.count(context.id, number, Outcome::Again, CauseClass::Accepted);
                self.back_in_line(context.id, number, None);
            }
            Fate::Busy => {
                self.count(context.id, number, Outcome::Busy, CauseClass::Connect);
                self.no_room(context.id, number);
            }
            Fate::Interrupted => {
                let cause = Cause {
                    class: CauseClass::ConnectionLost,
                    status: crate::smtp::reply::EnhancedStatus::new(4, 4, 2),
                    reply: None,
                    text: "the drain time ended before the remote answered; it may be delivered twice"
                        .to_owned(),
                };
                self.count(context.id, number, Outcome::Interrupted, cause.class);
                self.log(context, number, &cause, |log, line| log.interrupted(line));
                self.back_in_line(context.id, number, None);
            }
        }
        None
    }

    fn delivered(&mut self, context: &Context, number: u16, cause: Cause) {
        self.count(context.id, number, Outcome::Delivered, CauseClass::Accepted);
        if let Some(resident) = self.residents.get(context.id) {
            let age = context.now_ms.saturating_sub(resident.envelope.arrived_ms);
            self.parts.metrics.delivery_seconds.observe(age as f64 / 1e3);
        }
        self.count_attempt(context.id, number);
        self.log(context, number, &cause, |log, line| log.delivered(line));
        self.finish(context.id, number, Status::Delivered, None);
    }

    fn count_attempt(&mut self, id: QueueId, number: u16) {
        if let Some(resident) = self.residents.get_mut(id) {
            let state = &mut resident.states[usize::from(number)];
            state.attempts = state.attempts.saturating_add(1);
        }
    }

    /// A later attempt, or the end of patience.
    fn deferred(&mut self, context: &Context, number: u16, cause: Cause) -> Option<(ReportKind, Failed)> {
        self.count_attempt(context.id, number);
        let settings = &self.parts.settings;
        let resident = self.residents.get_mut(context.id)?;
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let state = &mut resident.states[usize::from(number)];
        let policy = settings.retry.policy_for(&destination);
        if policy.is_expired(resident.envelope.arrived_ms, context.now_ms) {
            let failed = Failed { number, cause: expired(cause), host: context.host.clone() };
            return Some((ReportKind::Expired, failed));
        }
        let delay = delay_after(&settings.retry, &context.id, &destination, state.attempts);
        let retry_at = self.destinations.map.get(&destination).map_or(0, |entry| entry.record.retry_at_ms);
        let due_ms = (context.now_ms + delay).max(retry_at);
        let last = LastReply {
            at_ms: context.now_ms,
            host: context.host.as_ref().map(ToString::to_string),
            cause: cause.clone(),
        };
        state.last = Some(last);
        self.count(
            context.id,
            number,
            if cause.class == CauseClass::Crashed { Outcome::Crashed } else { Outcome::Deferred },
            cause.class,
        );
        self.log(context, number, &cause, |log, line| log.deferred(line, due_ms));
        self.reschedule(context.id, number, due_ms);
        self.grant_wish(context.id, number);
        None
    }

    /// Gives a recipient another due time and writes its state.
    pub(super) fn reschedule(&mut self, id: QueueId, number: u16, due_ms: u64) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let state = &mut resident.states[usize::from(number)];
        let old = DueKey { destination: destination.clone(), due_ms: state.due_ms, id, number };
        state.due_ms = due_ms;
        resident.records = true;
        let held = state.held;
        self.open.changes.push(Op::PutRecipient(id, number, state.clone()));
        if !resident.indexed {
            self.index(id);
        } else if !held {
            self.open.changes.push(Op::DeleteDue(old.clone()));
            self.open.changes.push(Op::PutDue(DueKey { due_ms, ..old }));
        }
        self.settling(id, number, &destination);
        if let Some(entry) = self.destinations.map.get_mut(&destination).filter(|_| !held) {
            entry.note_due(due_ms);
        }
    }

    /// The recipient has met its fate: out of the indexes, and the message with its last one.
    pub(super) fn finish(&mut self, id: QueueId, number: u16, status: Status, last: Option<LastReply>) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let state = &mut resident.states[usize::from(number)];
        if state.status.is_settled() {
            return;
        }
        state.status = status;
        state.last = last.or_else(|| state.last.take());
        let held = state.held;
        if resident.indexed && !held {
            let due = DueKey { destination: destination.clone(), due_ms: state.due_ms, id, number };
            self.open.changes.push(Op::DeleteDue(due));
        }
        if resident.unsettled() == 0 {
            let (envelope, deadline, states) =
                (resident.envelope.clone(), resident.deadline_ms, resident.records);
            let last = Tally { recipients: 1, ..Tally::of(&envelope, &resident.states) };
            if resident.indexed {
                for at in self.deadline_keys(&envelope, deadline) {
                    self.open.changes.push(Op::DeleteDeadline(at, id));
                }
            }
            self.unindexed.remove(id);
            self.count_out(id, last);
            self.open.changes.push(Op::RemoveMessage { envelope, states });
        } else {
            let state = resident.states[usize::from(number)].clone();
            resident.records = true;
            self.open.changes.push(Op::PutRecipient(id, number, state));
            self.count_settled(id);
        }
        if held {
            self.count_hold(id, false);
        }
        self.settling(id, number, &destination);
    }

    /// The recipient stays in memory until the open commit is on disk.
    pub(super) fn settling(&mut self, id: QueueId, number: u16, destination: &Domain) {
        let Some(resident) = self.residents.get(id) else { return };
        let changes = match resident.places[usize::from(number)] {
            Place::Settling(changes) => changes,
            _ => 0,
        };
        self.keep_destination(destination);
        self.residents.put(id, number, Place::Settling(changes.saturating_add(1)));
        self.open.settling.push((id, number));
    }

    pub(super) fn settled_on_disk(&mut self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get(id) else { return };
        let Place::Settling(changes) = resident.places[usize::from(number)] else { return };
        if changes > 1 {
            // One more is in a later commit; until then a page would bring back what this one wrote.
            return self.residents.put(id, number, Place::Settling(changes - 1));
        }
        let state = &resident.states[usize::from(number)];
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        if !state.status.is_settled()
            && !state.held
            && let Some(entry) = self.destinations.map.get_mut(&destination)
        {
            // Only now: pages that were read since it was rescheduled have skipped it.
            entry.note_due(state.due_ms);
        }
        self.drop_to_disk(id, number, &destination);
        self.refill(&destination, self.now_ms());
    }

    /// The remote address has no room for one more connection: go on with those there are, or ask again soon.
    fn no_room(&mut self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let running = self.destinations.map.get_mut(&destination).map_or(0, |entry| {
            entry.window.limit_to(entry.attempts);
            entry.attempts
        });
        if running > 0 {
            return self.back_in_line(id, number, None);
        }
        self.back_in_line(id, number, Some(self.parts.clock.instant() + BUSY_PAUSE));
        if let Some(me) = self.me() {
            actix_rt::spawn(async move {
                tokio::time::sleep(BUSY_PAUSE).await;
                me.do_send(Resume { destination });
            });
        }
    }

    /// Back to the window without having counted; to the disk when the relay drains or the destination backs off.
    fn back_in_line(&mut self, id: QueueId, number: u16, pause_until: Option<Instant>) {
        // What an operator asked for goes first: out of memory it would be forgotten.
        self.grant_wish(id, number);
        let Some(resident) = self.residents.get(id) else { return };
        if resident.places[usize::from(number)] != Place::InFlight {
            return;
        }
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        let now_ms = self.now_ms();
        self.keep_destination(&destination);
        let Some(entry) = self.destinations.map.get_mut(&destination) else { return };
        entry.pause_until = entry.pause_until.max(pause_until);
        if self.draining || entry.backs_off(now_ms) {
            entry.more_on_disk = true;
            self.drop_to_disk(id, number, &destination);
        } else {
            entry.ready.push_front((id, number));
            self.residents.put(id, number, Place::Ready);
        }
    }

    /// Does what an operator asked for while the recipient was in flight.
    pub(super) fn grant_wish(&mut self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        let Some(at) = resident.wishes.iter().position(|(who, _)| *who == number) else { return };
        let (_, wish) = resident.wishes.swap_remove(at);
        match wish {
            Wish::Remove => self.remove_recipient(id, number),
            Wish::Retry => self.retry_recipient(id, number),
            Wish::Hold => self.hold_recipient(id, number, true),
            Wish::Release => self.hold_recipient(id, number, false),
        }
    }

    /// Counts crashes in a row. After a restart the last of them is still known from the recipient's record.
    fn crashes_in_a_row(&mut self, id: QueueId, number: u16, fate: &Fate) -> u32 {
        if !matches!(fate, Fate::Crashed(_)) {
            if !self.crashes.is_empty() {
                self.crashes.remove(&(id, number));
            }
            return 0;
        }
        let last = self.residents.get(id).and_then(|at| at.states[usize::from(number)].last.as_ref());
        let known = u32::from(last.is_some_and(|last| last.cause.class == CauseClass::Crashed));
        if self.crashes.len() >= CRASHES_COUNTED {
            self.crashes.clear();
        }
        let count = self.crashes.entry((id, number)).or_insert(known);
        *count += 1;
        let count = *count;
        if count >= CRASHES_MAX {
            self.crashes.remove(&(id, number));
        }
        count
    }

    /// Notes that a message can't be delivered as it is. It goes to quarantine once none of its recipients is in flight.
    fn condemn(&mut self, context: &Context, number: u16, cause: Cause) {
        let id = context.id;
        let outcome = if cause.class == CauseClass::Crashed {
            self.count_attempt(id, number);
            Outcome::Crashed
        } else {
            self.parts.metrics.damaged_records.inc();
            Outcome::Damaged
        };
        self.count(id, number, outcome, cause.class);
        let Some(resident) = self.residents.get_mut(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        resident.unfit.get_or_insert_with(|| format!("recipient {number}: {cause}"));
        let host = context.host.as_ref().map(ToString::to_string);
        let state = &mut resident.states[usize::from(number)];
        state.last = Some(LastReply { at_ms: context.now_ms, host, cause });
        resident.records = true;
        self.open.changes.push(Op::PutRecipient(id, number, state.clone()));
        self.settling(id, number, &destination);
        self.grant_wish(id, number);
    }

    /// Counts an outcome, over all and for the recipient's destination.
    pub(super) fn count(&self, id: QueueId, number: u16, outcome: Outcome, class: CauseClass) {
        let metrics = &self.parts.metrics;
        metrics.outcome(outcome, class);
        if let Some(resident) = self.residents.get(id) {
            let destination = &resident.envelope.recipients[usize::from(number)].destination;
            metrics.destinations.count(destination, outcome);
        }
    }

    fn log(
        &self,
        context: &Context,
        number: u16,
        cause: &Cause,
        write: impl FnOnce(&crate::maillog::MailLog, &RecipientLine<'_>),
    ) {
        let Some(resident) = self.residents.get(context.id) else { return };
        write(
            &self.parts.maillog,
            &RecipientLine {
                envelope: &resident.envelope,
                number,
                host: context.host.as_ref(),
                cause,
                attempts: resident.states[usize::from(number)].attempts,
                tls: context.tls,
                now_ms: context.now_ms,
            },
        );
    }
}

/// The fate of a recipient that a report leaves out: the Delivery is at fault, and the recipient must not wait for ever.
fn left_out() -> Fate {
    Fate::Crashed(Cause {
        class: CauseClass::Crashed,
        status: crate::smtp::reply::EnhancedStatus::new(4, 3, 0),
        reply: None,
        text: "the delivery code told nothing of this recipient; this is a bug of the relay".to_owned(),
    })
}

/// The delay in milliseconds after this many attempts; the draw is the same for all recipients of one transaction.
pub(super) fn delay_after(
    rules: &retry::RetryRules,
    id: &QueueId,
    destination: &Domain,
    attempts: u32,
) -> u64 {
    let policy = rules.policy_for(destination);
    let draw = retry::draw(id.as_bytes(), destination.as_str(), attempts);
    let delay: Duration = retry::delay(&policy.schedule, policy.jitter, attempts, draw);
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

/// The cause of an expiry: what stood in the way last, as a permanent failure (RFC 3463, 5.4.7 and 4.4.7).
pub(super) fn expired(cause: Cause) -> Cause {
    Cause {
        class: CauseClass::Expired,
        status: crate::smtp::reply::EnhancedStatus::new(5, 4, 7),
        text: format!("not delivered in time; the last attempt failed: {cause}"),
        reply: None,
    }
}
