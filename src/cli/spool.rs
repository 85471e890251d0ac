//! `posthaste spool`: verbs for a spool that no relay runs on.

use std::process::ExitCode;

use clap::Subcommand;

use super::rescue::{self, RescueArgs};

/// The verbs of `posthaste spool`.
#[derive(Debug, Subcommand)]
pub enum SpoolVerb {
    /// Save what can be read from a spool whose database can't be opened, into a new spool
    Rescue(RescueArgs),
}

/// Does what the verb says.
pub fn run(verb: SpoolVerb) -> ExitCode {
    match verb {
        SpoolVerb::Rescue(args) => rescue::run(args),
    }
}
