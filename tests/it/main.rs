//! Everything that needs no other program: the laws of the folders, and the real binary as a black box.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod drain;
mod output;
mod startup;
mod tidy;
mod tools;
