//! What needs root: a disk that is really full.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod full_disk;
#[path = "../support/mod.rs"]
mod support;
