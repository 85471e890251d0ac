//! The SMTP grammar and the two state machines.
//!
//! LAW: bytes in, bytes and events out. No socket, no clock, no actor, no store; nothing of the crate outside
//! this folder.

pub mod address;
pub mod client;
pub mod command;
pub mod framing;
pub mod reply;
pub mod scanner;
pub mod server;
pub mod strict;
