//! The other side of a relay, for demos, benchmarks and tests.
//!
//! LAW: nothing here is used by the relay itself; hickory is named in `nameserver` only.

pub mod nameserver;
