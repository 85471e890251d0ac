//! One actor per active destination.
pub mod messages;
