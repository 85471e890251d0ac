//! From a destination to the hosts to dial, in order.
//!
//! LAW: choosing and ordering are pure (`table`, `mx`); hickory is named in `resolver.rs` only.

pub mod bounded;
pub mod cache;
pub mod mx;
pub mod own;
pub mod plan;
pub mod resolver;
pub mod table;
