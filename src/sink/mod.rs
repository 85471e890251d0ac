//! The other side of a relay, for the demo, tests and benchmarks: a receiver of mail, and a name server.
//!
//! LAW: nothing here is used by the relay itself; hickory is named in `nameserver` only. The receiver's dialogue is that
//! of `smtp::server`, so whatever a sink takes is what a relay would take; a [`Behaviour`] decides when it answers
//! otherwise.

pub mod behaviour;
mod connection;
pub mod nameserver;
mod receiver;

pub use behaviour::{AcceptAll, Answer, Behaviour, Rules, Stage};
pub use receiver::{ReceivedMessage, Sink};

#[cfg(test)]
mod tests;
