//! The actors: the only users of actix. Each owns its state and talks by messages; `wiring` introduces them.
//!
//! A message's way: Listener → Session ⇄ `smtp::server` → `Enqueue` → Queue → commit → 250 → `Attempt` → Delivery:
//! `route`, `smtp::client` → `AttemptReport` → Queue: settle, defer, or DSN.

pub mod delivery;
pub mod listener;
pub mod queue;
pub mod session;
pub mod space;
pub mod wiring;

use crate::mail::id::QueueId;

/// A new queue id for a message of this time. The random part comes from the system.
pub fn new_queue_id(now_ms: u64) -> QueueId {
    let source = uuid::Uuid::new_v4();
    let bytes = source.as_bytes();
    // Bytes 6 and 8 of a version 4 UUID carry its version and variant: take ten of the others.
    let random = [
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[7], bytes[9], bytes[10], bytes[11],
    ];
    QueueId::from_parts(now_ms, &random)
}
