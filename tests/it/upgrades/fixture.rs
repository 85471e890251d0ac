//! What a spool of a fixture holds, and how it is made: by the program of that version, through SMTP.
//!
//! `FIXTURE=folder cargo test --release --test it upgrades` leaves a copy of each spool that it makes in that folder. That
//! is how those in `tests/fixtures` came to be; they are never made again.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal::SIGTERM;
use posthaste::config::SpoolConfig;
use posthaste::spool::sled::SledSpool;
use posthaste::spool::{Op, Spool};
use uuid::Uuid;

use crate::support::message::{self, Chance, Made};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, place, smtp, wait_until};

/// How the relay that left the spool ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With SIGTERM.
    Cleanly,
    /// With `kill -9`, with mail in flight.
    Killed,
}

/// One message of a fixture.
#[derive(Debug)]
pub struct Item {
    pub made: Made,
    /// Who still waits for it; one of several recipients may have it.
    pub waiting: Vec<String>,
}

/// What waits in every fixture. The contents are the same each time.
pub fn items() -> Vec<Item> {
    let mut chance = Chance::new(1);
    let many: Vec<String> = (0..150).map(|number| format!("many{number}@later.test")).collect();
    let to = |path: &str| vec![path.to_owned()];
    [
        ("small", 400, to("ann@later.test")),
        ("partly", 700, to("cat@later.test")),
        ("chunks", 14_000, to("dan@later.test")),
        ("file", 100_000, to("eve@later.test")),
        ("failing", 500, to("fay@gone.test")),
        ("many", 300, many),
        ("aside", 600, to("gus@later.test")),
        ("fresh", 900, to("hal@hang.test")),
    ]
    .map(|(id, size, waiting)| Item { made: message::make(id, size, &mut chance), waiting })
    .into()
}

/// Hangs for `hang.test`, defers `later.test`, takes mail for `done.test`.
fn unready_sink() -> Sink {
    Sink::with(|moment| match moment {
        Moment::Recipient(path) if path.ends_with("@later.test") => Manner::Say("451 4.2.1 not yet"),
        Moment::Recipient(path) if path.ends_with("@hang.test") => Manner::Slow(PATIENCE * 4),
        _ => Manner::Accept,
    })
}

/// Lets a relay take all items and try what it tries at once, and ends it. The folder holds its spool.
pub fn make(ended: Ended) -> Relay {
    let sink = unready_sink();
    let mut relay = Setup::new()
        .set("retry.schedule", "[\"1h\", \"4h\"]")
        .set("server.drain_timeout", "\"1s\"")
        .route("gone.test", place::free_place())
        .route("*", sink.address())
        .start();
    let items = items();
    let mut tried = 0;
    for item in items.iter().filter(|item| item.made.id != "fresh") {
        hand_in(&relay, item);
        tried += item.waiting.len();
    }
    let line = || relay.output().lines().filter(|line| line.contains(" deferred ")).count();
    wait_until("each recipient to be deferred", PATIENCE, || line() >= tried);
    relay.signal(SIGTERM);
    relay.ended_within(PATIENCE).expect("it stops");
    set_aside(relay.folder(), "gus@later.test");
    relay.restart();
    relay.await_ready();
    items.iter().filter(|item| item.made.id == "fresh").for_each(|item| hand_in(&relay, item));
    wait_until("the fresh message to be in flight", PATIENCE, || sink.open() == 1);
    match ended {
        Ended::Killed => relay.kill(),
        Ended::Cleanly => {
            relay.signal(SIGTERM);
            relay.ended_within(PATIENCE).expect("it stops");
        }
    }
    if let Some(out) = std::env::var_os("FIXTURE") {
        copy(&relay.folder().join("spool"), &Path::new(&out).join(format!("{ended:?}").to_lowercase()));
    }
    relay
}

fn hand_in(relay: &Relay, item: &Item) {
    let mut to = item.waiting.clone();
    if item.made.id == "partly" {
        to.insert(0, "bob@done.test".to_owned());
    }
    // A report, too: it has no reverse-path.
    let from = if item.made.id == "small" { "" } else { "ledger@sender.test" };
    let reply = relay.client().mail(from, &to, &smtp::stuffed(&item.made.content)).unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
}

/// Sets the message for this recipient aside, as the relay does with what it can't use.
fn set_aside(folder: &Path, path: &str) {
    let config = SpoolConfig { path: folder.join("spool"), reserve: 0, ..SpoolConfig::default() };
    let spool = SledSpool::open(&config, Uuid::from_u128(1)).unwrap();
    let all = spool.list(None, 100).unwrap();
    let mut envelopes = all.iter().map(|stored| &stored.envelope);
    let envelope = envelopes.find(|envelope| envelope.recipients[0].path.as_str() == path).unwrap();
    let mut counters = spool.counters().unwrap();
    counters.messages -= 1;
    counters.recipients -= 1;
    counters.bytes -= envelope.size;
    counters.tree_bytes -= envelope.size;
    counters.quarantined += 1;
    spool
        .commit(&[Op::Quarantine(envelope.id, "set aside by a test".to_owned()), Op::Counters(counters)])
        .unwrap();
}

/// Copies a spool, but for what a relay makes anew.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (name, path) = (entry.file_name(), entry.path());
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if !["lock", "reserve", "api-token"].iter().any(|left_out| name == *left_out) {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}
