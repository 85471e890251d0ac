//! `posthaste queue quarantine`, against a real relay and its spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal::SIGTERM;
use posthaste::config::SpoolConfig;
use posthaste::mail::id::QueueId;
use posthaste::spool::sled::SledSpool;
use posthaste::spool::{Op, Spool};
use uuid::Uuid;

use crate::support::PATIENCE;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};

/// What a verb prints; it must succeed.
#[track_caller]
fn said(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Sets all queued messages aside, as the relay does with what it can't use.
fn set_all_aside(relay: &Relay) -> Vec<QueueId> {
    let config = SpoolConfig { path: relay.folder().join("spool"), reserve: 0, ..SpoolConfig::default() };
    let spool = SledSpool::open(&config, Uuid::from_u128(1)).unwrap();
    let ids: Vec<QueueId> = spool.list(None, 100).unwrap().iter().map(|stored| stored.envelope.id).collect();
    let mut counters = spool.counters().unwrap();
    counters.messages -= ids.len() as u64;
    counters.recipients -= ids.len() as u64;
    counters.quarantined += ids.len() as u64;
    let aside = ids.iter().map(|id| Op::Quarantine(*id, "set aside by a test".to_owned()));
    let ops: Vec<Op> = aside.chain([Op::Counters(counters)]).collect();
    spool.commit(&ops).unwrap();
    ids
}

#[test]
fn an_operator_lists_shows_releases_and_discards_what_was_set_aside() {
    let closed = Arc::new(AtomicBool::new(true));
    let door = Arc::clone(&closed);
    let sink = Sink::with(move |moment| match moment {
        Moment::Greeting if door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
        _ => Manner::Accept,
    });
    let mut relay = Setup::new().route("*", sink.address()).start();
    // One small, one with its content in a file.
    let large = format!("Subject: large\r\n\r\n{}", "0123456789\r\n".repeat(10_000));
    assert_eq!(relay.submit(&["ann@x.test"], b"Subject: small\r\n\r\nhello\r\n").code, 250);
    assert_eq!(relay.submit(&["bob@x.test"], large.as_bytes()).code, 250);
    relay.signal(SIGTERM);
    relay.ended_within(PATIENCE).expect("it stops");
    let ids = set_all_aside(&relay);
    let [small, large] = ids[..] else { panic!("{ids:?}") };
    closed.store(false, Ordering::SeqCst);
    relay.restart();
    relay.await_ready();

    assert_eq!(said(&relay, &["queue", "list"]), "the queue is empty\n");
    let list = said(&relay, &["queue", "quarantine", "list"]);
    assert!(list.contains(&small.to_string()) && list.contains("set aside by a test"), "{list}");
    let shown = said(&relay, &["queue", "quarantine", "show", &small.to_string()]);
    assert!(shown.contains("ann@x.test"), "{shown}");
    said(&relay, &["queue", "quarantine", "release", &small.to_string()]);
    sink.await_mail_for("ann@x.test");
    let content = relay.folder().join("spool/content");
    assert_eq!(std::fs::read_dir(&content).unwrap().count(), 1);
    said(&relay, &["queue", "quarantine", "discard", &large.to_string()]);
    crate::support::wait_until("the content file to go", PATIENCE, || {
        std::fs::read_dir(&content).unwrap().count() == 0
    });
    assert_eq!(said(&relay, &["queue", "quarantine", "list"]), "nothing is in quarantine\n");
    assert!(sink.delivered_to("bob@x.test").is_empty());
    let twice = relay.verb(&["queue", "quarantine", "release", &small.to_string()]);
    assert!(!twice.status.success());
    let complaint = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert!(complaint.contains("is in quarantine"), "{complaint}");
}
