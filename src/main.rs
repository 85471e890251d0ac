//! The program: parse the command line, do what it says, tell how it went. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser;
use posthaste::cli::Cli;

/// Cross-thread frees are what a message's way is made of; measured against the system's allocator in ARCHITECTURE.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
