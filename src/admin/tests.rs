//! The routes, asked over a real socket on loopback.
#![allow(clippy::unwrap_used)]
