//! The JSON of destinations. Pure.

use serde::{Deserialize, Serialize};

use super::{LastReplyView, Moment};
use crate::actors::queue::messages::DestinationInMemory;
use crate::smtp::address::Domain;
use crate::spool::{DestinationRecord, UNTIL_RESUMED, Waiting};

/// Answer to `GET /api/destinations`: a page in order of name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationsPage {
    /// The destinations with mail, in trouble, or suspended.
    pub destinations: Vec<DestinationView>,
    /// Give this as `after` for the next page; none when this was the last one.
    pub next: Option<String>,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// Its name: a domain.
    pub name: String,
    /// What is done with its mail.
    pub status: DestinationStatus,
    /// Recipients that wait for it, held ones not counted.
    pub waiting: u64,
    /// Whether there are more than were counted.
    pub more: bool,
    /// Recipients that are being attempted.
    pub in_flight: usize,
    /// Attempts under way, each over a connection of its own.
    pub attempts: u32,
    /// Failures in a row of the destination as a whole.
    pub failures: u32,
    /// When its mail is tried next, as far as the destination is concerned; none when nothing waits, and while it is suspended
    /// without end.
    pub next_attempt: Option<Moment>,
    /// The end of its suspension, if it has one: RFC 3339, UTC.
    pub suspended_until: Option<String>,
    /// Why it failed last.
    pub last_reply: Option<LastReplyView>,
}

/// What is done with a destination's mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationStatus {
    /// It goes by its schedule.
    Active,
    /// The destination failed as a whole and is left alone for a while.
    BackingOff,
    /// An operator suspended it.
    Suspended,
}

impl DestinationStatus {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::BackingOff => "backing off",
            Self::Suspended => "suspended",
        }
    }
}

/// All that is known of a destination.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its mail in the spool.
    pub waiting: Waiting,
    /// Its record in the spool.
    pub record: DestinationRecord,
    /// What the Queue has of it in memory.
    pub memory: DestinationInMemory,
}

impl DestinationView {
    /// A destination as seen at `now_ms` (wall time).
    pub fn new(name: &Domain, known: &Known, now_ms: u64) -> Self {
        let Known { waiting, record, memory } = known;
        let suspended = record.suspended_until_ms > now_ms;
        let status = match record.retry_at_ms > now_ms {
            _ if suspended => DestinationStatus::Suspended,
            true => DestinationStatus::BackingOff,
            false => DestinationStatus::Active,
        };
        let has_mail = waiting.recipients > 0 || memory.fresh > 0;
        let next_ms = waiting.next_due_ms.unwrap_or(now_ms).max(record.not_before_ms());
        let forever = record.suspended_until_ms == UNTIL_RESUMED;
        Self {
            name: name.to_string(),
            status,
            waiting: waiting.recipients.saturating_add(memory.fresh as u64),
            more: waiting.more,
            in_flight: memory.in_flight,
            attempts: memory.attempts,
            failures: record.failures,
            next_attempt: (has_mail && !forever).then(|| Moment::new(next_ms, now_ms)),
            suspended_until: (suspended && !forever)
                .then(|| Moment::new(record.suspended_until_ms, now_ms).at),
            last_reply: record.last.as_ref().map(|last| LastReplyView::new(last, now_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn view(record: DestinationRecord, waiting: u64) -> DestinationView {
        let waiting = Waiting { recipients: waiting, more: false, next_due_ms: Some(NOW - 1) };
        let known = Known { waiting, record, memory: DestinationInMemory::default() };
        DestinationView::new(&Domain::parse("a.example").expect("a domain"), &known, NOW)
    }

    #[test]
    fn a_suspension_goes_before_a_back_off_and_a_back_off_before_the_schedule() {
        let failing =
            DestinationRecord { failures: 2, retry_at_ms: NOW + 5_000, ..DestinationRecord::default() };
        let until = DestinationRecord { suspended_until_ms: NOW + 60_000, ..failing.clone() };
        let forever = DestinationRecord { suspended_until_ms: UNTIL_RESUMED, ..failing.clone() };
        let over = DestinationRecord { suspended_until_ms: NOW, ..DestinationRecord::default() };
        for (record, status, next) in [
            (DestinationRecord::default(), DestinationStatus::Active, Some(0)),
            (over, DestinationStatus::Active, Some(0)),
            (failing, DestinationStatus::BackingOff, Some(5)),
            (until, DestinationStatus::Suspended, Some(60)),
            (forever, DestinationStatus::Suspended, None),
        ] {
            let view = view(record, 1);
            assert_eq!((view.status, view.next_attempt.map(|next| next.in_seconds)), (status, next));
        }
        assert_eq!(view(DestinationRecord::default(), 0).next_attempt, None, "nothing waits");
    }
}
