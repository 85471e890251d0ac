//! Why recipients wait, as a table, and how lists and times read.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::mail::envelope::{BodyType, ContentPlace, Envelope, Recipient};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply::EnhancedStatus;

/// Noon of a day.
pub(crate) const NOW: u64 = 1_700_049_600_000;
const MINUTE: u64 = 60_000;

fn recipient(address: &str) -> Recipient {
    let path = ForwardPath::new(Mailbox::parse(address).unwrap());
    Recipient { destination: path.domain().clone(), path }
}

pub(crate) fn last(at_ms: u64, text: &str) -> LastReply {
    LastReply {
        at_ms,
        host: Some("mx.one.example[192.0.2.1]:25".to_owned()),
        cause: Cause {
            class: CauseClass::Connect,
            status: EnhancedStatus::new(4, 4, 1),
            reply: None,
            text: text.to_owned(),
        },
    }
}

pub(crate) fn message(states: Vec<RecipientState>) -> StoredMessage {
    let envelope = Envelope {
        id: QueueId::from_parts(NOW - MINUTE, &[7; 10]),
        reverse_path: ReversePath::parse("sender@app.example").unwrap(),
        body: BodyType::SevenBit,
        arrived_ms: NOW - MINUTE,
        origin: Origin::Embedded,
        size: 4096,
        place: ContentPlace::Database,
        recipients: (0..states.len()).map(|number| recipient(&format!("r{number}@one.example"))).collect(),
    };
    StoredMessage { envelope: Arc::new(envelope), states }
}

pub(crate) fn queued(due_ms: u64) -> RecipientState {
    RecipientState { due_ms, ..RecipientState::fresh(NOW) }
}

/// The reason and the next attempt (seconds from now) of the only recipient of a message.
fn check(
    state: RecipientState,
    retry_at_ms: Option<u64>,
    memory: InMemory,
    expected: Option<(WaitingKind, &str)>,
    next: Option<u64>,
) {
    let record = retry_at_ms.map(|retry_at_ms| DestinationRecord {
        failures: 3,
        retry_at_ms,
        last: Some(last(NOW - MINUTE, "connection refused")),
        suspended_until_ms: 0,
    });
    let view = MessageView::new(&message(vec![state]), &[record], &memory, NOW);
    let shown = &view.recipients[0];
    let waiting = shown.waiting.as_ref().map(|waiting| (waiting.kind, waiting.text.as_str()));
    assert_eq!(waiting, expected);
    assert_eq!(shown.next_attempt.as_ref().map(|moment| moment.in_seconds), next);
}

#[test]
fn each_recipient_tells_why_it_waits_and_when_it_is_tried_next() {
    use WaitingKind as K;
    let nothing = InMemory::default;
    let flying = || InMemory { in_flight: vec![0], ready: vec![] };
    let ready = || InMemory { in_flight: vec![], ready: vec![0] };
    let later = NOW + 5 * MINUTE;
    check(queued(NOW - 1), None, nothing(), Some((K::Due, "due now")), Some(0));
    check(queued(NOW - 1), None, flying(), Some((K::InFlight, "in flight: it is being attempted now")), None);
    check(queued(NOW), None, ready(), Some((K::Slot, "waiting for a connection slot")), Some(0));
    check(
        queued(later),
        None,
        nothing(),
        Some((K::Scheduled, "next attempt at 2023-11-15T12:05:00.000Z (in 5m)")),
        Some(300),
    );
    check(
        queued(NOW + MINUTE),
        Some(later),
        nothing(),
        Some((
            K::BackingOff,
            "destination backing off, next try at 2023-11-15T12:05:00.000Z (in 5m): 4.4.1 connection refused",
        )),
        Some(300),
    );
    check(
        queued(later),
        Some(later),
        nothing(),
        Some((
            K::BackingOff,
            "destination backing off, next try at 2023-11-15T12:05:00.000Z (in 5m): 4.4.1 connection refused",
        )),
        Some(300),
    );
    check(
        queued(later),
        Some(NOW + MINUTE),
        nothing(),
        Some((K::Scheduled, "next attempt at 2023-11-15T12:05:00.000Z (in 5m)")),
        Some(300),
    );
    let settled = RecipientState { status: Status::Bounced, ..queued(later) };
    check(settled, Some(later), flying(), None, None);
}

#[test]
fn a_summary_counts_only_who_still_waits() {
    let mut states = vec![queued(NOW + 2 * MINUTE), queued(NOW + MINUTE), queued(NOW)];
    states[0].attempts = 4;
    states[0].last = Some(last(NOW - 2 * MINUTE, "older"));
    states[1].last = Some(last(NOW - MINUTE, "newer"));
    states[2].status = Status::Delivered;
    let backing_off =
        DestinationRecord { failures: 1, retry_at_ms: NOW + 90_000, ..DestinationRecord::default() };
    let summary = MessageSummary::new(&message(states), &[None, Some(backing_off), None], NOW);
    assert_eq!((summary.recipients, summary.waiting, summary.attempts), (3, 2, 4));
    assert_eq!(summary.to, ["r0@one.example", "r1@one.example"]);
    assert_eq!((summary.arrived.as_str(), summary.age_seconds), ("2023-11-15T11:59:00.000Z", 60));
    assert_eq!(summary.next_attempt.unwrap().in_seconds, 90, "its destination backs off");
    assert_eq!(summary.last_reply.unwrap().text, "4.4.1 newer");
}

#[test]
fn what_is_due_is_in_no_seconds_and_says_so() {
    let json = |at_ms| serde_json::to_string(&Moment::new(at_ms, NOW)).unwrap();
    assert_eq!(json(NOW - MINUTE), r#"{"at":"2023-11-15T11:59:00.000Z","in_seconds":0,"due":true}"#);
    assert_eq!(json(NOW), r#"{"at":"2023-11-15T12:00:00.000Z","in_seconds":0,"due":true}"#);
    assert_eq!(json(NOW + 100), r#"{"at":"2023-11-15T12:00:00.100Z","in_seconds":1,"due":false}"#);
}

#[test]
fn the_last_reply_has_its_time_as_plain_text() {
    let json = serde_json::to_value(LastReplyView::new(&last(NOW - MINUTE, "refused"), NOW)).unwrap();
    assert_eq!((&json["at"], &json["age_seconds"]), (&"2023-11-15T11:59:00.000Z".into(), &60.into()));
}

#[test]
fn seconds_read_well() {
    for (seconds, expected) in
        [(0, "0s"), (42, "42s"), (60, "1m"), (310, "5m 10s"), (7_384, "2h 3m"), (349_200, "4d 1h")]
    {
        assert_eq!(human_seconds(seconds), expected);
    }
}
