//! Nouns and pure decisions about mail.
//!
//! LAW: no socket, no clock, no actor, no store. Everything here is a value or a function of values; may use
//! `smtp` for addresses, replies and the facts of a conversation, nothing else of the crate.

pub mod dsn;
pub mod envelope;
pub mod id;
pub mod outcome;
pub mod trace;
