//! The verbs of the command line.

pub mod client;
pub mod queue;
