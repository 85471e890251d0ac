//! The JSON of the queue API, shared by the server and the command line, and how it is made from records. Pure.

pub mod destinations;

use serde::{Deserialize, Serialize};

use crate::actors::queue::messages::InMemory;
use crate::mail::envelope::{LastReply, Origin, RecipientState, Status, StoredMessage};
use crate::maillog::Rfc3339;
use crate::spool::{DestinationRecord, UNTIL_RESUMED};

/// Unsettled recipients that a summary names.
const NAMED: usize = 3;

/// Answer to `GET /api/queue`: a page of the queue in order of id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePage {
    /// The messages.
    pub messages: Vec<MessageSummary>,
    /// Give this as `after` for the next page; none when this was the last one.
    pub next: Option<String>,
}

/// One message in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageSummary {
    /// Queue id.
    pub id: String,
    /// When it was accepted: RFC 3339, UTC.
    pub arrived: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Reverse-path without brackets; empty for a report.
    pub from: String,
    /// Content bytes.
    pub size: u64,
    /// How many recipients it has.
    pub recipients: usize,
    /// How many of them still wait.
    pub waiting: usize,
    /// How many of those an operator holds.
    pub held: usize,
    /// The first few that wait.
    pub to: Vec<String>,
    /// The most attempts that a waiting recipient has behind it.
    pub attempts: u32,
    /// The earliest next attempt of a waiting recipient, the back-off of its destination included.
    pub next_attempt: Option<Moment>,
    /// The latest reply to a waiting recipient.
    pub last_reply: Option<LastReplyView>,
}

/// Answer to `GET /api/queue/{id}`: one message with every recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Queue id.
    pub id: String,
    /// When it was accepted: RFC 3339, UTC.
    pub arrived: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Reverse-path without brackets; empty for a report.
    pub from: String,
    /// Content bytes.
    pub size: u64,
    /// Who handed it in: `smtp ADDRESS (HELO)`, `embedded` or `report`.
    pub origin: String,
    /// Its recipients, by number.
    pub recipients: Vec<RecipientView>,
}

/// Answer to `GET /api/quarantine`: a page of what was set aside, in order of id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinePage {
    /// The messages.
    pub messages: Vec<QuarantineEntry>,
    /// Give this as `after` for the next page; none when this was the last one.
    pub next: Option<String>,
}

/// One message in quarantine, in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// Queue id.
    pub id: String,
    /// Why it was set aside.
    pub reason: String,
}

/// Answer to `GET /api/quarantine/{id}`: what is known of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineView {
    /// Queue id.
    pub id: String,
    /// Why it was set aside.
    pub reason: String,
    /// Records that are kept of it.
    pub records: usize,
    /// Bytes in them.
    pub bytes: u64,
    /// The message, when its envelope and its recipients can be read.
    pub message: Option<MessageView>,
    /// Why it can't be released: what of it can't be read.
    pub unreadable: Option<String>,
}

/// One recipient: why it waits, what was said last, when it is tried next (promise P7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientView {
    /// Its number in the message, from 0.
    pub number: u16,
    /// Forward-path without brackets.
    pub address: String,
    /// What its mail is queued for.
    pub destination: String,
    /// `queued`, or how it ended.
    pub status: String,
    /// Attempts that counted.
    pub attempts: u32,
    /// Why it still waits; none once it ended.
    pub waiting: Option<Waiting>,
    /// When it is tried next; none while it is tried, and once it ended.
    pub next_attempt: Option<Moment>,
    /// What was heard last about it; of one that was delivered, before that.
    pub last_reply: Option<LastReplyView>,
}

/// Why a recipient is still in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// One of the kinds, for programs.
    pub kind: WaitingKind,
    /// A sentence, for people.
    pub text: String,
}

/// The kinds of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingKind {
    /// It is being attempted.
    InFlight,
    /// It is due and waits for a connection slot.
    Slot,
    /// It is due; the queue takes it next.
    Due,
    /// Its own next attempt is later.
    Scheduled,
    /// Its destination failed as a whole and is left alone for a while.
    BackingOff,
    /// An operator suspended its destination.
    Suspended,
    /// An operator holds it.
    Held,
}

/// What was heard last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReplyView {
    /// When: RFC 3339, UTC.
    pub at: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// The remote host as `name[address]:port`, if one was reached or tried.
    pub host: Option<String>,
    /// What it said, or what happened.
    pub text: String,
    /// The kind of trouble: a metric label.
    pub class: String,
}

/// When something will be done, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// RFC 3339, UTC. May be past: then it is done as soon as what it waits for allows.
    pub at: String,
    /// Seconds from now; 0 once it is due.
    pub in_seconds: u64,
    /// Whether the time has come.
    pub due: bool,
}

/// Any answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// What is wrong and what to do.
    pub error: String,
}

/// Answer to `/readyz` and `/livez`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// Whether all is well.
    pub ready: bool,
    /// If not, why.
    pub reasons: Vec<String>,
}

impl Moment {
    /// `at_ms` as seen at `now_ms`, both wall time in milliseconds.
    pub fn new(at_ms: u64, now_ms: u64) -> Self {
        // Whole seconds; what is due in 0.1 s is not due yet.
        let in_seconds = at_ms.saturating_sub(now_ms).div_ceil(1000);
        Self { at: Rfc3339(at_ms).to_string(), in_seconds, due: at_ms <= now_ms }
    }
}

/// Whole seconds from `at_ms` to `now_ms`; 0 when the clock was set back.
fn age_seconds(at_ms: u64, now_ms: u64) -> u64 {
    now_ms.saturating_sub(at_ms) / 1000
}

impl LastReplyView {
    fn new(last: &LastReply, now_ms: u64) -> Self {
        Self {
            at: Rfc3339(last.at_ms).to_string(),
            age_seconds: age_seconds(last.at_ms, now_ms),
            host: last.host.clone(),
            text: last.cause.to_string(),
            class: last.cause.class.word().to_owned(),
        }
    }
}

impl MessageSummary {
    /// The summary of a message, with the records of its recipients' destinations by recipient number.
    pub fn new(message: &StoredMessage, destinations: &[Option<DestinationRecord>], now_ms: u64) -> Self {
        let envelope = &message.envelope;
        let all = envelope.recipients.iter().zip(&message.states).enumerate();
        let waiting: Vec<_> = all.filter(|(_, (_, state))| !state.status.is_settled()).collect();
        let states = || waiting.iter().map(|(_, (_, state))| *state);
        let last = states().filter_map(|state| state.last.as_ref()).max_by_key(|last| last.at_ms);
        let next = waiting.iter().filter(|(_, (_, state))| !state.held).filter_map(|(number, (_, state))| {
            let record = destinations.get(*number).and_then(Option::as_ref);
            let not_before = record.map_or(0, DestinationRecord::not_before_ms);
            (not_before != UNTIL_RESUMED).then(|| state.due_ms.max(not_before))
        });
        Self {
            id: envelope.id.to_string(),
            arrived: Rfc3339(envelope.arrived_ms).to_string(),
            age_seconds: age_seconds(envelope.arrived_ms, now_ms),
            from: envelope.reverse_path.as_str().to_owned(),
            size: envelope.size,
            recipients: envelope.recipients.len(),
            waiting: waiting.len(),
            held: states().filter(|state| state.held).count(),
            to: waiting.iter().take(NAMED).map(|(_, (to, _))| to.path.as_str().to_owned()).collect(),
            attempts: states().map(|state| state.attempts).max().unwrap_or(0),
            next_attempt: next.min().map(|next| Moment::new(next, now_ms)),
            last_reply: last.map(|last| LastReplyView::new(last, now_ms)),
        }
    }
}

impl MessageView {
    /// A message with what the Queue knows of it (`memory`) and the records of its recipients' destinations, by
    /// recipient number.
    pub fn new(
        message: &StoredMessage,
        destinations: &[Option<DestinationRecord>],
        memory: &InMemory,
        now_ms: u64,
    ) -> Self {
        let envelope = &message.envelope;
        let recipients = envelope.recipients.iter().zip(&message.states).zip(0_u16..);
        Self {
            id: envelope.id.to_string(),
            arrived: Rfc3339(envelope.arrived_ms).to_string(),
            age_seconds: age_seconds(envelope.arrived_ms, now_ms),
            from: envelope.reverse_path.as_str().to_owned(),
            size: envelope.size,
            origin: origin(&envelope.origin),
            recipients: recipients
                .map(|((recipient, state), number)| {
                    let record = destinations.get(usize::from(number)).and_then(Option::as_ref);
                    let (waiting, next_ms) = why(number, state, record, memory, now_ms);
                    RecipientView {
                        number,
                        address: recipient.path.as_str().to_owned(),
                        destination: recipient.destination.to_string(),
                        status: state.status.word().to_owned(),
                        attempts: state.attempts,
                        waiting,
                        next_attempt: next_ms.map(|next| Moment::new(next, now_ms)),
                        last_reply: state.last.as_ref().map(|last| LastReplyView::new(last, now_ms)),
                    }
                })
                .collect(),
        }
    }
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Smtp { peer, helo, .. } => format!("smtp {peer} ({helo})"),
        Origin::Embedded => "embedded".to_owned(),
        Origin::Report => "report".to_owned(),
    }
}

/// Why a recipient still waits and when it is tried next: the most immediate reason wins.
fn why(
    number: u16,
    state: &RecipientState,
    record: Option<&DestinationRecord>,
    memory: &InMemory,
    now_ms: u64,
) -> (Option<Waiting>, Option<u64>) {
    if state.status != Status::Queued {
        return (None, None);
    }
    let reason = |kind, text: String| Some(Waiting { kind, text });
    if memory.in_flight.contains(&number) {
        return (reason(WaitingKind::InFlight, "in flight: it is being attempted now".to_owned()), None);
    }
    if state.held {
        return (reason(WaitingKind::Held, "on hold until an operator releases it".to_owned()), None);
    }
    let suspended_ms = record.map_or(0, |record| record.suspended_until_ms);
    if suspended_ms == UNTIL_RESUMED {
        let text = "its destination is suspended until an operator resumes it".to_owned();
        return (reason(WaitingKind::Suspended, text), None);
    }
    let retry_ms = record.map_or(0, DestinationRecord::not_before_ms);
    let next_ms = state.due_ms.max(retry_ms);
    let waiting = if memory.ready.contains(&number) {
        reason(WaitingKind::Slot, "waiting for a connection slot".to_owned())
    } else if next_ms <= now_ms {
        reason(WaitingKind::Due, "due now".to_owned())
    } else if suspended_ms == retry_ms && retry_ms >= state.due_ms {
        reason(
            WaitingKind::Suspended,
            format!("its destination is suspended, next try {}", at(retry_ms, now_ms)),
        )
    } else if retry_ms >= state.due_ms {
        // The mail that found its destination failing is due when that is tried again.
        reason(WaitingKind::BackingOff, backing_off(record, retry_ms, now_ms))
    } else {
        reason(WaitingKind::Scheduled, format!("next attempt {}", at(next_ms, now_ms)))
    };
    (waiting, Some(next_ms))
}

fn backing_off(record: Option<&DestinationRecord>, retry_ms: u64, now_ms: u64) -> String {
    let until = at(retry_ms, now_ms);
    match record.and_then(|record| record.last.as_ref()) {
        Some(last) => format!("destination backing off, next try {until}: {}", last.cause),
        None => format!("destination backing off, next try {until}"),
    }
}

fn at(at_ms: u64, now_ms: u64) -> String {
    let moment = Moment::new(at_ms, now_ms);
    format!("at {} (in {})", moment.at, human_seconds(moment.in_seconds))
}

/// A number of seconds in its two largest units: `42s`, `5m 10s`, `2h 3m`, `4d 1h`.
pub fn human_seconds(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = UNITS.iter().position(|(size, _)| seconds >= *size).unwrap_or(3);
    let (size, unit) = UNITS[first];
    let rest = UNITS.get(first + 1).map(|(size, unit)| (seconds % UNITS[first].0 / size, unit));
    match rest {
        Some((count, rest)) if count > 0 => format!("{}{unit} {count}{rest}", seconds / size),
        _ => format!("{}{unit}", seconds / size),
    }
}

#[cfg(test)]
pub(crate) mod tests;
