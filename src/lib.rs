//! Posthaste: an outbound SMTP relay made of actors.
//!
//! Start with `embed::Server`: it opens the spool, wires the actors and listens. A message comes in through
//! `actors::session`, which drives the machine in `smtp::server`; `actors::queue` has it committed by `spool` and
//! only then lets the 250 go; `actors::delivery` plans hosts with `route`, speaks `smtp::client`, and reports what
//! `mail::outcome` makes of the facts; the Queue writes each recipient's fate in its next commit.
//!
//! Invariants: `smtp`, `mail` and `schedule` do no I/O and know no clock; only `actors` (and the HTTP side) know actix;
//! only `spool` and `migrations` know sled; only `clock` asks the system for the time; the relay never uses `sink`.
//! `ARCHITECTURE.md` is the map; `tests/it/tidy.rs` keeps these laws.

pub mod actors;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod embed;
pub mod log;
pub mod mail;
pub mod maillog;
pub mod metrics;
#[path = "../migrations/mod.rs"]
pub mod migrations;
pub mod route;
pub mod schedule;
pub mod sink;
pub mod smtp;
pub mod spool;
pub mod tls;
