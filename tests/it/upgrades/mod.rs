//! Spools of every released format are taken over by this program, and their mail is delivered.

mod fixture;

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal::SIGTERM;
use posthaste::config::SpoolConfig;
use posthaste::spool::Spool;
use posthaste::spool::sled::SledSpool;
use uuid::Uuid;

use self::fixture::{Ended, Item};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::Sink;
use crate::support::{PATIENCE, http, wait_until};

/// Unpacks a fixture as the spool of a relay that is not started yet; all its mail goes to `sink`.
fn unpack(name: &str, sink: &Sink) -> Setup {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let setup = Setup::new().route("*", sink.address());
    let spool = setup.folder().join("spool");
    fs::create_dir(&spool).unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&spool).status().unwrap();
    assert!(unpacked.success(), "{}", archive.display());
    setup
}

/// Each message arrives once for each of its recipients, byte by byte; what was set aside is still there, and arrives after
/// its release.
fn delivers_all(relay: &Relay, sink: &Sink) {
    let (aside, mail): (Vec<Item>, Vec<Item>) =
        fixture::items().into_iter().partition(|item| item.made.id == "aside");
    mail.iter().for_each(|item| await_item(sink, item));
    let waiting = || http::metric(&relay.metrics(), "posthaste_queue_messages", &[]);
    wait_until("the queue to be empty", PATIENCE, || waiting() == Some(0.0));
    assert_eq!(http::metric(&relay.metrics(), "posthaste_quarantined_messages", &[]), Some(1.0));
    let list = relay.verb(&["queue", "quarantine", "list"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let id = list.lines().nth(1).and_then(|line| line.split(' ').next()).unwrap_or_else(|| panic!("{list}"));
    let released = relay.verb(&["queue", "quarantine", "release", id]);
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    retry_all(relay);
    aside.iter().for_each(|item| await_item(sink, item));
    wait_until("the queue to be empty", PATIENCE, || waiting() == Some(0.0));
    assert!(sink.delivered_to("bob@done.test").is_empty(), "it had its mail already");
}

/// Its schedule goes on: to be tried now, mail needs an operator.
fn retry_all(relay: &Relay) {
    let list = relay.verb(&["queue", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    for message in list["messages"].as_array().unwrap() {
        // What is gone by now was overdue.
        relay.verb(&["queue", "retry", message["id"].as_str().unwrap()]);
    }
}

fn await_item(sink: &Sink, item: &Item) {
    for path in &item.waiting {
        sink.await_mail_for(path);
        let arrived = sink.delivered_to(path);
        assert_eq!(arrived.len(), 1, "{path}");
        assert_eq!(arrived[0].seen, Some((item.made.id.clone(), item.made.crc)), "{path}");
    }
}

#[test]
fn a_spool_that_this_program_left_is_taken_over() {
    for ended in [Ended::Cleanly, Ended::Killed] {
        let sink = Sink::friendly();
        let relay = fixture::make(ended).with_setup(|setup| setup.reroute(sink.address()));
        retry_all(&relay);
        delivers_all(&relay, &sink);
    }
}

#[test]
fn spools_of_older_formats_are_carried_over_and_their_mail_is_delivered() {
    let fixtures = [1, 2].into_iter().flat_map(|format| ["cleanly", "killed"].map(|ended| (format, ended)));
    for (format, ended) in fixtures {
        let name = format!("v{format:04}-{ended}.tar.gz");
        let sink = Sink::friendly();
        let mut relay = unpack(&name, &sink).start();
        retry_all(&relay);
        delivers_all(&relay, &sink);
        let carried = format!("from={format} to=3");
        assert!(relay.output().contains(&carried), "{name}: {}", relay.last_lines(40));
        relay.signal(SIGTERM);
        relay.ended_within(PATIENCE).expect("it stops");
        let config = SpoolConfig { path: relay.folder().join("spool"), reserve: 0, ..SpoolConfig::default() };
        let spool = SledSpool::open(&config, Uuid::from_u128(1)).unwrap();
        assert_eq!(spool.migration().unwrap(), None, "{name}: nothing is left to carry over");
    }
}

#[test]
fn an_old_spool_is_carried_over_without_a_running_relay() {
    let sink = Sink::friendly();
    let setup = unpack("v0001-cleanly.tar.gz", &sink);
    let ended = setup.run(&["migrate", "--config", "posthaste.toml"]);
    assert!(ended.status.success() && ended.output.contains("format 3"), "{}", ended.output);
    let again = setup.run(&["migrate", "--config", "posthaste.toml"]);
    assert!(again.output.contains("nothing to do"), "{}", again.output);
    let relay = setup.start();
    delivers_all(&relay, &sink);
}
