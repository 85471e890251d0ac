//! What needs root: a disk that is really full, a power that really fails.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod full_disk;
mod power_cut;
#[path = "../support/mod.rs"]
mod support;
