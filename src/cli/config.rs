//! `posthaste config`: the annotated sample.

use std::process::ExitCode;

use super::say;
use crate::config::sample::sample;

/// Prints the sample, which is a configuration file with all defaults.
pub fn run() -> ExitCode {
    say(sample().trim_end());
    ExitCode::SUCCESS
}
