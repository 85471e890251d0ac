//! Delay notices and expiry: they hold wherever a message is, through an index of their own.

use std::collections::HashMap;
use std::sync::Arc;

use actix::{Context, Handler, Message};

use super::Queue;
use super::destinations::Phase;
use super::residents::Place;
use super::settle::{Failed, expired};
use super::wakes::READ_AGAIN_MS;
use crate::mail::dsn::ReportKind;
use crate::mail::envelope::{Envelope, LastReply, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::schedule::retry::{self, Deadline, RetryRules};
use crate::smtp::address::{Domain, ReversePath};
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{DestinationRecord, Op, Spool, SpoolError};

/// Deadline keys read at once.
const KEYS_PER_READ: usize = 64;
/// When to look again at a recipient that was in flight at its deadline, that nobody could try yet, or whose report is being made.
pub(super) const LOOK_AGAIN_MS: u64 = 60_000;
/// How long after a start, or a jump of wall time, nothing expires that nobody has tried since: by then whatever was overdue
/// has had its turn, unless something keeps it from it for good.
const GRACE_MS: u64 = 12 * 3_600_000;

/// How far the deadline index has been read.
#[derive(Debug, Default)]
pub(super) struct Index {
    cursor: Option<(u64, QueueId)>,
    next_ms: Option<u64>,
    known: bool,
    /// A read of the keys before this time is under way.
    reading: Option<u64>,
}

impl Index {
    /// When to read again.
    pub fn next_ms(&self) -> Option<u64> {
        match (self.reading, self.known) {
            (Some(_), _) => None,
            (None, false) => Some(0),
            (None, true) => self.next_ms,
        }
    }

    /// A key is on disk.
    pub fn note(&mut self, at_ms: u64) {
        self.next_ms = Some(self.next_ms.map_or(at_ms, |known| known.min(at_ms)));
        let passed = self.cursor.is_some_and(|(cursor, _)| cursor >= at_ms);
        if passed || self.reading.is_some_and(|until| until > at_ms) {
            // It was written later than others that have come already, or come with the read that may not see it.
            (self.cursor, self.known) = (None, false);
        }
    }
}

/// Spool → Queue: deadlines that have come, with their messages, and when the next one comes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct DeadlinesRead {
    ticket: u64,
    read: Result<(Vec<Due>, Option<u64>), SpoolError>,
}

/// A deadline that has come, its message, and what is remembered of the destinations it still waits for.
#[derive(Debug)]
struct Due {
    key: (u64, QueueId),
    message: Result<Option<StoredMessage>, SpoolError>,
    records: Records,
}

type Records = HashMap<Domain, DestinationRecord>;

/// What a message's recipients need at its deadline.
#[derive(Debug, Default)]
struct Verdicts {
    expired: Vec<Failed>,
    delayed: Vec<Failed>,
    next_ms: Option<u64>,
}

impl Queue {
    /// The time of a new message's deadline key.
    pub(super) fn first_deadline(&self, envelope: &Envelope) -> u64 {
        let silent = envelope.reverse_path == ReversePath::Null;
        let times = envelope.recipients.iter().map(|recipient| {
            let policy = self.parts.settings.retry.policy_for(&recipient.destination);
            retry::next_deadline(policy, envelope.arrived_ms, envelope.arrived_ms, silent).at_ms()
        });
        times.min().unwrap_or(u64::MAX)
    }

    /// When there is a deadline key to read.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.next_ms().filter(|_| !self.draining)
    }

    /// The deadline keys that a message may have: the one that is known, or all that policies give.
    pub(super) fn deadline_keys(&self, envelope: &Envelope, known: Option<u64>) -> Vec<u64> {
        if let Some(at) = known {
            return vec![at];
        }
        deadline_times(&self.parts.settings.retry, envelope)
    }

    pub(super) fn read_deadlines(&mut self, now_ms: u64) {
        if self.deadlines.cursor.is_some_and(|(at, _)| at > now_ms) && self.deadlines.reading.is_none() {
            self.deadlines = Index::default();
        }
        let Some(me) = self.me() else { return };
        if self.next_deadline_ms().is_none_or(|at| at >= now_ms) {
            return;
        }
        self.deadlines.reading = Some(now_ms);
        self.deadlines.known = true;
        self.deadlines.next_ms = None;
        let (ticket, after) = (self.residents.read_begins(), self.deadlines.cursor);
        self.parts.front.read(
            move |spool| deadlines_until(spool, after, now_ms),
            move |read| me.do_send(DeadlinesRead { ticket, read }),
        );
    }

    fn deadlines_read(&mut self, read: DeadlinesRead) {
        self.watch_clock();
        self.deadlines.reading = None;
        match read.read {
            Ok((due, next_ms)) => {
                for Due { key, message, records } in due {
                    match message {
                        Ok(stored) => self.deadline_came(key, stored, &records),
                        // What is in memory holds.
                        Err(_) if self.residents.get(key.1).is_some() => {
                            self.deadline_came(key, None, &records)
                        }
                        Err(error @ SpoolError::Damaged { .. }) => {
                            self.open.changes.push(Op::DeleteDeadline(key.0, key.1));
                            self.quarantine(key.1, &error.to_string());
                        }
                        Err(error) => {
                            self.damaged(&error);
                            let again = self.now_ms() + READ_AGAIN_MS;
                            self.deadlines.note(again);
                            break;
                        }
                    }
                    if self.deadlines.known {
                        self.deadlines.cursor = Some(key);
                    }
                }
                next_ms.into_iter().for_each(|at| self.deadlines.note(at));
            }
            Err(error) => {
                self.damaged(&error);
                let again = self.now_ms() + READ_AGAIN_MS;
                self.deadlines.note(again);
            }
        }
        self.residents.read_ends(read.ticket);
    }

    fn deadline_came(&mut self, (at, id): (u64, QueueId), stored: Option<StoredMessage>, records: &Records) {
        let resident = match &stored {
            Some(stored) => self.residents.adopt(stored),
            None => match self.residents.get_mut(id) {
                Some(resident) => resident,
                None => return self.open.changes.push(Op::DeleteDeadline(at, id)),
            },
        };
        if resident.unsettled() == 0 || resident.deadline_ms.is_some_and(|known| known != at) {
            // Settled, or moved on, since the key was read.
            self.open.changes.push(Op::DeleteDeadline(at, id));
            return self.residents.release(id);
        }
        let envelope = resident.envelope.clone();
        let (states, places) = (resident.states.clone(), resident.places.clone());
        let verdicts = self.judge(&envelope, &states, &places, records);
        self.open.changes.push(Op::DeleteDeadline(at, id));
        if let Some(next) = verdicts.next_ms {
            self.open.changes.push(Op::PutDeadline(next, id));
            self.open.deadlines.push(next);
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
        records: &Records,
    ) -> Verdicts {
        let now_ms = self.now_ms();
        let mut verdicts = Verdicts::default();
        // A report may be made for a later commit than this one: after a crash between the two somebody must look again.
        let look_again_ms = now_ms + LOOK_AGAIN_MS;
        for (number, (state, place)) in (0..).zip(states.iter().zip(places)) {
            if state.status.is_settled() {
                continue;
            }
            let destination = &envelope.recipients[usize::from(number)].destination;
            let policy = self.parts.settings.retry.policy_for(destination);
            let trouble = self.trouble(destination, records);
            let busy = !matches!(place, Place::Disk | Place::Ready);
            let failed = || {
                let held_back = self.held_back(destination, state, records);
                let cause = held_back.unwrap_or_else(|| last_cause(state, trouble));
                Failed { number, cause, host: None }
            };
            let is_expired = policy.is_expired(envelope.arrived_ms, now_ms);
            let silent = state.delay_notified || envelope.reverse_path == ReversePath::Null;
            let deadline = |silent| retry::next_deadline(policy, envelope.arrived_ms, now_ms, silent);
            let next = if busy
                || (is_expired && !self.had_its_chance(envelope.arrived_ms, now_ms, state, trouble))
            {
                look_again_ms
            } else if is_expired {
                verdicts.expired.push(Failed { cause: expired(failed().cause), ..failed() });
                look_again_ms
            } else {
                match deadline(silent) {
                    Deadline::Notice(at) if at <= now_ms => {
                        verdicts.delayed.push(failed());
                        deadline(true).at_ms().min(look_again_ms)
                    }
                    later => later.at_ms(),
                }
            };
            verdicts.next_ms = Some(verdicts.next_ms.map_or(next, |known: u64| known.min(next)));
        }
        verdicts
    }

    /// Why nobody tries a recipient, if an operator wants it so.
    fn held_back(&self, destination: &Domain, state: &RecipientState, records: &Records) -> Option<Cause> {
        let record = self.record_of(destination, records);
        let text = if state.held {
            "it is held back by the operator of the relay"
        } else if record.is_some_and(|record| record.suspended_until_ms > self.now_ms()) {
            "delivery to its destination is suspended by the operator of the relay"
        } else {
            return None;
        };
        Some(Cause {
            class: CauseClass::Operator,
            status: EnhancedStatus::new(4, 3, 0),
            reply: None,
            text: text.to_owned(),
        })
    }

    /// How a destination failed as a whole, if it did.
    fn trouble<'a>(&'a self, destination: &Domain, records: &'a Records) -> Option<&'a LastReply> {
        let record = self.record_of(destination, records)?;
        record.last.as_ref().filter(|_| record.failures > 0)
    }

    /// What is remembered of a destination: what the Queue knows, else what the spool has.
    fn record_of<'a>(&'a self, destination: &Domain, records: &'a Records) -> Option<&'a DestinationRecord> {
        let here = self
            .destinations
            .map
            .get(destination)
            .filter(|entry| matches!(entry.phase, Phase::Active | Phase::Leaving));
        here.map(|entry| &entry.record).or_else(|| records.get(destination))
    }

    /// Whether a recipient whose time is over may expire. The time during which the relay stood still, or over which its
    /// clock jumped, must not count against it (design section 6). So one of these must hold, since the start or the last
    /// jump:
    ///
    /// - it was tried;
    /// - its destination is known to have failed;
    /// - it arrived: then all of its time passed while the relay could try it, and an address that is full or slots that
    ///   others hold are no reason to keep it for ever;
    /// - [`GRACE_MS`] has passed.
    fn had_its_chance(
        &self,
        arrived_ms: u64,
        now_ms: u64,
        state: &RecipientState,
        trouble: Option<&LastReply>,
    ) -> bool {
        let heard = [state.last.as_ref(), trouble].into_iter().flatten();
        let tried = heard.map(|last| last.at_ms).any(|at_ms| at_ms >= self.since_ms);
        tried || arrived_ms >= self.since_ms || now_ms >= self.since_ms.saturating_add(GRACE_MS)
    }
}

/// All times at which a message's deadline key may be by its policies.
pub(super) fn deadline_times(rules: &RetryRules, envelope: &Envelope) -> Vec<u64> {
    let mut times: Vec<u64> = Vec::with_capacity(2);
    for recipient in &envelope.recipients {
        let policy = rules.policy_for(&recipient.destination);
        for silent in [false, true] {
            let at = retry::next_deadline(policy, envelope.arrived_ms, envelope.arrived_ms, silent).at_ms();
            if !times.contains(&at) {
                times.push(at);
            }
        }
    }
    times
}

fn deadlines_until(
    spool: &dyn Spool,
    after: Option<(u64, QueueId)>,
    until_ms: u64,
) -> Result<(Vec<Due>, Option<u64>), SpoolError> {
    let keys = spool.deadlines(after, KEYS_PER_READ)?;
    let full = keys.len() == KEYS_PER_READ;
    let later = keys.iter().map(|(at, _)| *at).find(|at| *at >= until_ms);
    let mut due = Vec::new();
    for key in keys.into_iter().take_while(|(at, _)| *at < until_ms) {
        let message = spool.message(key.1);
        let mut records = Records::new();
        if let Ok(Some(stored)) = &message {
            let waiting = stored.envelope.recipients.iter().zip(&stored.states);
            for (recipient, _) in waiting.filter(|(_, state)| !state.status.is_settled()) {
                if !records.contains_key(&recipient.destination)
                    && let Ok(Some(record)) = spool.destination(&recipient.destination)
                {
                    records.insert(recipient.destination.clone(), record);
                }
            }
        }
        due.push(Due { key, message, records });
    }
    Ok((due, later.or(full.then_some(until_ms))))
}

/// Why a recipient waits, for a report.
fn last_cause(state: &RecipientState, trouble: Option<&LastReply>) -> Cause {
    state.last.as_ref().or(trouble).map_or_else(
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
