//! `posthaste migrate`: carries the spool of a stopped relay over to the format of this program.
//!
//! A relay does the same by itself while it works; this is for those who want it over before.

use std::process::ExitCode;

use super::words::spool_trouble;
use super::{complain, say};
use crate::config::Config;
use crate::migrations;
use crate::spool::sled::SledSpool;
use crate::spool::{Op, Spool, SpoolError};

/// Runs `posthaste migrate`.
pub fn run(config: &Config) -> ExitCode {
    match migrate(config) {
        Ok(None) => say(format_args!("the spool has format {}: nothing to do", migrations::CURRENT)),
        Ok(Some(from)) => {
            say(format_args!(
                "the spool is carried over from format {from} to format {}",
                migrations::CURRENT
            ));
        }
        Err(error) => {
            complain(format_args!("posthaste: {}", spool_trouble(&error)));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The format that the spool had, if it was an older one.
fn migrate(config: &Config) -> Result<Option<u32>, SpoolError> {
    SledSpool::must_exist(&config.spool)?;
    let spool = SledSpool::open(&config.spool, uuid::Uuid::new_v4())?;
    let began = spool.migration()?;
    while spool.migration()?.is_some() {
        spool.commit(&[Op::Migrate])?;
    }
    Ok(began.map(|migration| migration.from))
}
