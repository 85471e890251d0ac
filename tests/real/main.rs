//! The relay among real programs: `swaks`, Postfix's `smtp-source` and `smtp-sink`, Python's `smtplib`, `curl`,
//! `dnsmasq` as its name server, and `prometheus` that scrapes it. All on loopback and unprivileged ports. `make test`
//! installs the programs.
//!
//! One module per program, named as `make test` names what it has to leave out.
#![allow(clippy::unwrap_used, reason = "tests")]

mod curl;
mod dnsmasq;
mod peer;
mod postfix;
mod prometheus;
mod python;
#[path = "../support/mod.rs"]
mod support;
mod swaks;
