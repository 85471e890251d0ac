//! The tests that need sockets: loopback only, on ports that the system picks.
#![allow(clippy::unwrap_used)]

mod dns;
