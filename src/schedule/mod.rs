//! What is due when.
//!
//! LAW: ids and times only. No mail bodies, no socket, no clock, no actor, no store: time and chance are arguments.

pub mod retry;
