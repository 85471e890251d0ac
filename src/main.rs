//! The program: parse the command line, do what it says, tell how it went. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser;
use posthaste::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
