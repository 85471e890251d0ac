//! Posthaste: an outbound SMTP relay made of actors.

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
