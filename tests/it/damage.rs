//! Damage on disk, met by the real relay: what it belongs to goes to quarantine, the rest flows, and nothing is sent in part.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal::SIGTERM;

use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, wait_until};

/// A sink that takes nothing until its door is opened.
fn closed_sink() -> (Sink, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let door = Arc::clone(&open);
    let sink = Sink::with(move |moment| match moment {
        Moment::Greeting if !door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
        _ => Manner::Accept,
    });
    (sink, open)
}

fn said(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(args);
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn quarantined(relay: &Relay) -> usize {
    said(relay, &["queue", "quarantine", "list"])
        .lines()
        .filter(|line| line.contains("damaged record"))
        .count()
}

/// The content file that holds this text.
fn file_with(relay: &Relay, text: &str) -> PathBuf {
    let folder = relay.folder().join("spool/content");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let holds = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).contains(text);
    files.into_iter().find(holds).unwrap_or_else(|| panic!("no content file with {text}"))
}

fn id_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().split('.').next().unwrap().to_owned()
}

fn cut(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[test]
fn content_whose_file_is_gone_cut_or_too_long_is_never_sent_and_goes_out_once_it_is_restored() {
    let (sink, open) = closed_sink();
    let relay = Setup::new().route("*", sink.address()).start();
    let large = |name: &str| format!("Subject: {name}\r\n\r\n{}", "0123456789\r\n".repeat(30_000));
    for name in ["gone", "cut", "long"] {
        assert_eq!(relay.submit(&[&format!("{name}@x.test")], large(name).as_bytes()).code, 250);
    }
    assert_eq!(relay.submit(&["small@x.test"], b"Subject: small\r\n\r\nhello\r\n").code, 250);
    let files = ["gone", "cut", "long"].map(|name| file_with(&relay, &format!("Subject: {name}")));
    let whole: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::remove_file(&files[0]).unwrap();
    cut(&files[1], 200_000);
    fs::write(&files[2], [&whole[2][..], b"more\r\n"].concat()).unwrap();
    open.store(true, Ordering::SeqCst);

    sink.await_mail_for("small@x.test");
    wait_until("three messages in quarantine", PATIENCE, || quarantined(&relay) == 3);
    assert_eq!(sink.answered(), 1, "nothing of them was delivered");
    for path in &files {
        let shown = said(&relay, &["queue", "quarantine", "show", &id_of(path)]);
        assert!(shown.contains("readable  no") && shown.contains("@x.test"), "{shown}");
        let refused = relay.verb(&["queue", "quarantine", "release", &id_of(path)]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains("restore its content, or discard it"), "{text}");
    }
    let metrics = relay.metrics();
    assert!(metrics.contains("posthaste_quarantined_messages 3\n"), "{metrics}");
    assert!(metrics.contains("posthaste_queue_messages 0\n"), "{metrics}");
    for (path, content) in files.iter().zip(&whole) {
        fs::write(path, content).unwrap();
    }
    for (name, path) in ["gone", "cut"].iter().zip(&files) {
        let released = said(&relay, &["queue", "quarantine", "release", &id_of(path)]);
        assert!(released.contains("is queued again"), "{released}");
        let arrived = sink.await_mail_for(&format!("{name}@x.test"));
        assert!(arrived.text().ends_with(&large(name)), "whole");
    }
    said(&relay, &["queue", "quarantine", "discard", &id_of(&files[2])]);
    let content = relay.folder().join("spool/content");
    wait_until("no content file to be left", PATIENCE, || fs::read_dir(&content).unwrap().count() == 0);
    assert!(relay.output().contains("quarantined"), "the mail log tells");
}

/// Flips a bit in the middle of a file.
fn flip_in(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn content_with_a_changed_byte_is_named_by_a_check_and_lands_in_quarantine_not_at_the_host() {
    let (sink, open) = closed_sink();
    let mut relay = Setup::new().route("*", sink.address()).start();
    // Sent in one piece, in several.
    let large = |name: &str| {
        let lines = if name == "one" { 10_000 } else { 60_000 };
        format!("Subject: {name}\r\n\r\n{}", "0123456789\r\n".repeat(lines))
    };
    for name in ["one", "several", "whole"] {
        assert_eq!(relay.submit(&[&format!("{name}@x.test")], large(name).as_bytes()).code, 250);
    }
    relay.signal(SIGTERM);
    relay.ended_within(PATIENCE).expect("it stops");
    let files = ["one", "several"].map(|name| file_with(&relay, &format!("Subject: {name}")));
    files.iter().for_each(|path| flip_in(path));
    let checked = said(&relay, &["spool", "check"]);
    for path in &files {
        let id = id_of(path);
        let damage = format!("of message {id} can't be delivered: its checksum is wrong");
        assert!(checked.contains(&damage), "{damage} is not in\n{checked}");
    }
    assert!(checked.contains("DAMAGED: 2 findings"), "{checked}");
    open.store(true, Ordering::SeqCst);
    relay.restart();
    relay.await_ready();

    sink.await_mail_for("whole@x.test");
    wait_until("two messages in quarantine", PATIENCE, || quarantined(&relay) == 2);
    assert_eq!(sink.answered(), 1, "nothing of them was delivered");
    for (name, path) in ["one", "several"].iter().zip(&files) {
        let refused = said(&relay, &["queue", "quarantine", "release", &id_of(path)]);
        assert!(refused.contains("its checksum is wrong"), "{refused}");
        flip_in(path);
        let released = said(&relay, &["queue", "quarantine", "release", &id_of(path)]);
        assert!(released.contains("is queued again"), "{released}");
        assert!(sink.await_mail_for(&format!("{name}@x.test")).text().ends_with(&large(name)), "whole");
    }
}

/// Flips the last bit of the first record whose key starts so.
fn flip(database: &sled::Db, prefix: &[u8]) {
    let (key, value) = database.scan_prefix(prefix).next().unwrap().unwrap();
    let mut bytes = value.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    database.insert(key, bytes).unwrap();
}

#[test]
fn damaged_records_of_every_kind_do_not_stop_a_start_nor_the_other_mail() {
    let (sink, open) = closed_sink();
    let mut relay = Setup::new().route("*", sink.address()).start();
    for number in 0..20 {
        let to = format!("u{number}@d{}.test", number % 2);
        let content = format!("Subject: {number}\r\n\r\nhello\r\n");
        assert_eq!(relay.submit(&[&to], content.as_bytes()).code, 250);
    }
    wait_until("both destinations to be tried", PATIENCE, || {
        let output = relay.output();
        let deferred = |to: &str| output.lines().any(|line| line.contains("deferred") && line.contains(to));
        deferred("@d0.test") && deferred("@d1.test")
    });
    relay.signal(SIGTERM);
    relay.ended_within(PATIENCE).expect("it stops");
    let database = sled::open(relay.folder().join("spool")).unwrap();
    let ids = |kind: &[u8]| -> Vec<Vec<u8>> {
        database.scan_prefix(kind).keys().map(|key| key.unwrap()[1..17].to_vec()).collect()
    };
    assert_eq!(ids(b"e").len(), 20);
    let with_state = ids(b"s").swap_remove(0);
    let mut others = ids(b"e").into_iter().filter(|id| *id != with_state);
    flip(&database, &[&b"s"[..], &with_state].concat());
    flip(&database, &[&b"e"[..], &others.next().unwrap()].concat());
    flip(&database, &[&b"c"[..], &others.next().unwrap()].concat());
    for prefix in [&b"mcounters"[..], b"mstart", b"nd0.test", b"nd1.test"] {
        flip(&database, prefix);
    }
    database.flush().unwrap();
    drop(database);
    open.store(true, Ordering::SeqCst);
    relay.restart();
    relay.await_ready();

    wait_until("three messages in quarantine", PATIENCE, || quarantined(&relay) == 3);
    wait_until("the other mail at the sink", PATIENCE, || sink.answered() == 17);
    wait_until("counters that are exact", PATIENCE, || {
        let metrics = relay.metrics();
        metrics.contains("posthaste_quarantined_messages 3\n")
            && metrics.contains("posthaste_queue_messages 0\n")
    });
    assert!(!relay.metrics().contains("posthaste_damaged_records_total 0\n"));
    assert_eq!(relay.submit(&["again@d0.test"], b"Subject: again\r\n\r\nhello\r\n").code, 250);
    sink.await_mail_for("again@d0.test");
}
