//! The actors: the only users of actix. Each owns its state and talks by messages; `wiring` introduces them.

pub mod delivery;
pub mod queue;
