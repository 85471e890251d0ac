//! Delay notices and expiry: they hold wherever a message is, through an index of their own.

use std::sync::Arc;

use actix::{Context, Handler, Message};

use super::Queue;
use super::residents::Place;
use super::settle::{Failed, expired};
use crate::mail::dsn::ReportKind;
use crate::mail::envelope::{Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::schedule::retry::{self, Deadline};
use crate::smtp::address::ReversePath;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{Op, SpoolError};

/// Deadline keys read at once.
const KEYS_PER_READ: usize = 64;
/// When to look again at a recipient that was in flight at its deadline, or that nobody could try yet.
const LOOK_AGAIN_MS: u64 = 60_000;

/// How far the deadline index has been read.
#[derive(Debug, Default)]
pub(super) struct Index {
    cursor: Option<(u64, QueueId)>,
    next_ms: Option<u64>,
    known: bool,
    reading: bool,
}

impl Index {
    /// When to read again.
    pub fn next_ms(&self) -> Option<u64> {
        match (self.reading, self.known) {
            (true, _) => None,
            (false, false) => Some(0),
            (false, true) => self.next_ms,
        }
    }

    fn note(&mut self, at_ms: u64) {
        self.next_ms = Some(self.next_ms.map_or(at_ms, |known| known.min(at_ms)));
    }
}

/// Spool → Queue: deadlines that have come, with their messages, and when the next one comes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct DeadlinesRead {
    ticket: u64,
    read: Result<(Vec<Due>, Option<u64>), SpoolError>,
}

type Due = ((u64, QueueId), Result<Option<StoredMessage>, SpoolError>);

/// What a message's recipients need at its deadline.
#[derive(Debug, Default)]
struct Verdicts {
    expired: Vec<Failed>,
    delayed: Vec<Failed>,
    next_ms: Option<u64>,
}

impl Queue {
    /// The time of a new message's deadline key.
    pub(super) fn first_deadline(&mut self, envelope: &Envelope) -> u64 {
        let silent = envelope.reverse_path == ReversePath::Null;
        let times = envelope.recipients.iter().map(|recipient| {
            let policy = self.parts.settings.retry.policy_for(&recipient.destination);
            retry::next_deadline(policy, envelope.arrived_ms, envelope.arrived_ms, silent).at_ms()
        });
        let at = times.min().unwrap_or(u64::MAX);
        self.deadlines.note(at);
        at
    }

    pub(super) fn read_deadlines(&mut self, now_ms: u64) {
        if self.deadlines.cursor.is_some_and(|(at, _)| at > now_ms) {
            self.deadlines = Index::default();
        }
        let due = self.deadlines.next_ms().is_some_and(|at| at <= now_ms);
        let Some(me) = self.me() else { return };
        if !due || self.draining {
            return;
        }
        self.deadlines.reading = true;
        self.deadlines.known = true;
        self.deadlines.next_ms = None;
        let (ticket, after) = (self.residents.read_begins(), self.deadlines.cursor);
        self.parts.front.read(
            move |spool| {
                let read = spool.deadlines(after, KEYS_PER_READ).map(|keys| {
                    let full = keys.len() == KEYS_PER_READ;
                    let later = keys.iter().map(|(at, _)| *at).find(|at| *at >= now_ms);
                    let due: Vec<Due> = keys
                        .into_iter()
                        .take_while(|(at, _)| *at < now_ms)
                        .map(|key| (key, spool.message(key.1)))
                        .collect();
                    (due, later.or(full.then_some(now_ms)))
                });
                DeadlinesRead { ticket, read }
            },
            move |read| me.do_send(read),
        );
    }

    fn deadlines_read(&mut self, read: DeadlinesRead) {
        self.deadlines.reading = false;
        match read.read {
            Ok((due, next_ms)) => {
                next_ms.into_iter().for_each(|at| self.deadlines.note(at));
                for (key, stored) in due {
                    self.deadlines.cursor = Some(key);
                    match stored {
                        Ok(stored) => self.deadline_came(key, stored),
                        Err(error) => {
                            self.open.changes.push(Op::DeleteDeadline(key.0, key.1));
                            self.quarantine(key.1, &error.to_string());
                        }
                    }
                }
            }
            Err(error) => self.damaged(&error),
        }
        self.residents.read_ends(read.ticket);
    }

    fn deadline_came(&mut self, (at, id): (u64, QueueId), stored: Option<StoredMessage>) {
        let now_ms = self.now_ms();
        let resident = match &stored {
            Some(stored) => self.residents.adopt(stored),
            None => match self.residents.get_mut(id) {
                Some(resident) => resident,
                None => return self.open.changes.push(Op::DeleteDeadline(at, id)),
            },
        };
        if resident.unsettled() == 0 || resident.deadline_ms.is_some_and(|known| known != at) {
            // Settled, or moved on, since the key was read; the commit that did so deletes it.
            return self.residents.release(id);
        }
        let envelope = resident.envelope.clone();
        let (states, places) = (resident.states.clone(), resident.places.clone());
        let verdicts = self.judge(&envelope, &states, &places, now_ms);
        self.open.changes.push(Op::DeleteDeadline(at, id));
        if let Some(next) = verdicts.next_ms {
            self.open.changes.push(Op::PutDeadline(next, id));
            self.deadlines.note(next);
        }
        if let Some(resident) = self.residents.get_mut(id) {
            resident.deadline_ms = verdicts.next_ms;
        }
        if !verdicts.expired.is_empty() {
            self.report(id, ReportKind::Expired, verdicts.expired);
        }
        if !verdicts.delayed.is_empty() {
            self.report(id, ReportKind::Delayed, verdicts.delayed);
        }
        self.residents.release(id);
    }

    fn judge(
        &self,
        envelope: &Arc<Envelope>,
        states: &[RecipientState],
        places: &[Place],
        now_ms: u64,
    ) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for (number, (state, place)) in (0..).zip(states.iter().zip(places)) {
            if state.status.is_settled() {
                continue;
            }
            let policy =
                self.parts.settings.retry.policy_for(&envelope.recipients[usize::from(number)].destination);
            let busy = !matches!(place, Place::Disk | Place::Ready);
            let failed = || Failed { number, cause: last_cause(state), host: None };
            let is_expired = policy.is_expired(envelope.arrived_ms, now_ms);
            let silent = state.delay_notified || envelope.reverse_path == ReversePath::Null;
            let deadline = |silent| retry::next_deadline(policy, envelope.arrived_ms, now_ms, silent);
            let next = if busy || (is_expired && !self.was_tried(envelope, number, state)) {
                now_ms + LOOK_AGAIN_MS
            } else if is_expired {
                verdicts.expired.push(Failed { cause: expired(last_cause(state)), ..failed() });
                continue;
            } else {
                match deadline(silent) {
                    Deadline::Notice(at) if at <= now_ms => {
                        verdicts.delayed.push(failed());
                        deadline(true).at_ms()
                    }
                    later => later.at_ms(),
                }
            };
            verdicts.next_ms = Some(verdicts.next_ms.map_or(next, |known: u64| known.min(next)));
        }
        verdicts
    }

    /// Nothing expires that was never tried, unless its destination is known to fail (design section 6).
    fn was_tried(&self, envelope: &Envelope, number: u16, state: &RecipientState) -> bool {
        let destination = &envelope.recipients[usize::from(number)].destination;
        state.attempts > 0
            || self.destinations.map.get(destination).is_none_or(|entry| entry.record.failures > 0)
    }
}

/// Why a recipient waits, for a report.
fn last_cause(state: &RecipientState) -> Cause {
    state.last.as_ref().map_or_else(
        || Cause {
            class: CauseClass::Connect,
            status: EnhancedStatus::new(4, 4, 1),
            reply: None,
            text: "its destination could not be reached".to_owned(),
        },
        |last| last.cause.clone(),
    )
}

impl Handler<DeadlinesRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: DeadlinesRead, ctx: &mut Context<Self>) {
        self.deadlines_read(read);
        self.turn(ctx);
    }
}
