//! Everything that needs no other program: the laws of the folders, whole dialogues, and the real binary as a black
//! box. Loopback only, on ports that the system picks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../filled/mod.rs"]
mod filled;
#[path = "../support/mod.rs"]
mod support;

mod clients;
mod damage;
mod dashboards;
mod delivery;
mod dns;
mod drain;
mod durable;
mod large;
mod million;
mod output;
mod quarantine;
mod rescue;
mod spool_tools;
mod startup;
mod tidy;
mod tools;
mod transcripts;
mod upgrades;
