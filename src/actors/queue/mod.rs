//! The queue.
pub mod messages;
