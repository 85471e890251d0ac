//! What is due when, and whose turn it is.
//!
//! LAW: ids and times only. No mail bodies, no socket, no clock, no actor, no store: time and chance are arguments.

pub mod jumps;
pub mod ramp;
pub mod retry;
pub mod rings;
pub mod slots;
pub mod window;
