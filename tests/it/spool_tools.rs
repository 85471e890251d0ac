//! `posthaste spool check|export|import|compact`, against real relays and what they leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal::SIGTERM;
use posthaste::config::SpoolConfig;
use posthaste::smtp::address::Domain;
use posthaste::spool::sled::SledSpool;
use posthaste::spool::{DestinationRecord, DueKey, Op, Spool};
use serde_json::Value;
use uuid::Uuid;

use crate::support::clients::Clients;
use crate::support::message::{self, Chance, Made};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, wait_until};

/// A host that defers every recipient of some names and refuses connections while its door is closed.
struct Host {
    sink: Sink,
    closed: Arc<AtomicBool>,
}

impl Host {
    fn new(at_greeting: bool) -> Self {
        let closed = Arc::new(AtomicBool::new(true));
        let door = Arc::clone(&closed);
        let sink = Sink::with(move |moment| match moment {
            _ if !door.load(Ordering::SeqCst) => Manner::Accept,
            Moment::Greeting if at_greeting => Manner::Say("421 4.3.2 not yet"),
            Moment::Recipient(path) if !at_greeting && path.starts_with("later") => {
                Manner::Say("451 4.7.1 greylisted")
            }
            _ => Manner::Accept,
        });
        Self { sink, closed }
    }

    fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

/// What is retried is retried by a command only.
fn patient(grey: &Host, down: &Host) -> Setup {
    Setup::new()
        .set("retry.schedule", "[\"1h\"]")
        .route("grey.test", grey.sink.address())
        .route("down.test", down.sink.address())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// What a verb prints; it must succeed.
#[track_caller]
fn said(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// What a verb prints; it must fail with code 1.
#[track_caller]
fn refused(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output));
    text(&output)
}

fn json(relay: &Relay, args: &[&str]) -> Value {
    serde_json::from_slice(&relay.verb(&[args, &["--json"]].concat()).stdout).unwrap()
}

fn ids(relay: &Relay) -> Vec<String> {
    let page = json(relay, &["queue", "list", "--limit", "1000"]);
    let messages = page["messages"].as_array().unwrap();
    messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect()
}

/// Of each recipient: its address, attempts, next attempt and last reply.
fn schedule(relay: &Relay) -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::new();
    for id in ids(relay) {
        let message = json(relay, &["queue", "show", &id]);
        let recipients = message["recipients"].as_array().unwrap().iter().map(|recipient| {
            let reply = &recipient["last_reply"];
            serde_json::json!([
                recipient["address"],
                recipient["status"],
                recipient["attempts"],
                recipient["waiting"]["kind"],
                recipient["next_attempt"]["at"],
                reply["text"],
                reply["at"],
                reply["host"],
            ])
        });
        all.insert(id, recipients.collect());
    }
    all
}

fn stop(relay: &mut Relay) {
    relay.signal(SIGTERM);
    assert!(relay.ended_within(PATIENCE).expect("it stops").success());
}

fn submit(relay: &Relay, to: &str, size: usize, chance: &mut Chance) -> Made {
    let made = message::make(to, size, chance);
    assert_eq!(relay.submit(&[to], &made.content).code, 250);
    made
}

/// Submits mail that can't go yet, small and large: 6 that were tried each, 3 whose destination backs off.
fn deferred_mail(relay: &Relay, grey: &Host, down: &Host) -> Vec<(String, Made)> {
    let mut chance = Chance::new(42);
    let mut sent = Vec::new();
    for (number, size) in [300, 20_000, 31_000, 100_000, 500_000, 2_000_000].into_iter().enumerate() {
        let to = format!("later{number}@grey.test");
        let made = submit(relay, &to, size, &mut chance);
        sent.push((to, made));
    }
    for (number, size) in [300, 20_000, 100_000].into_iter().enumerate() {
        let to = format!("any{number}@down.test");
        let made = submit(relay, &to, size, &mut chance);
        sent.push((to, made));
    }
    // Each with its reason, and none in flight.
    wait_until("all mail to be deferred", PATIENCE, || {
        let schedule = schedule(relay);
        let settled = |recipient: &Value| matches!(recipient[3].as_str(), Some("scheduled" | "backing_off"));
        schedule.len() == sent.len() && schedule.values().flatten().all(settled)
    });
    assert_eq!((grey.sink.answered(), down.sink.answered()), (0, 0));
    sent
}

/// Opens the doors, retries all, and sees each message arrive once and whole.
fn delivers(relay: &Relay, grey: &Host, down: &Host, sent: &[(String, Made)]) {
    let before = grey.sink.answered() + down.sink.answered();
    grey.open();
    down.open();
    for id in ids(relay) {
        // To retry one is to try its destination: another one may be gone by now.
        let told = text(&relay.verb(&["queue", "retry", &id]));
        assert!(
            told.contains("due now")
                || told.contains("in flight")
                || told.contains("may have been delivered"),
            "{told}"
        );
    }
    for (to, made) in sent {
        let sink = if to.ends_with("grey.test") { &grey.sink } else { &down.sink };
        assert_eq!(sink.await_mail_for(to).seen, Some((made.id.clone(), made.crc)), "{to}");
    }
    wait_until("the queue to be empty", PATIENCE, || ids(relay).is_empty());
    assert_eq!(grey.sink.answered() + down.sink.answered() - before, sent.len(), "each of them once");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn mail_goes_to_another_spool_with_its_schedule_and_is_delivered_once() {
    let (grey, down) = (Host::new(false), Host::new(true));
    let mut old = patient(&grey, &down).start();
    let sent = deferred_mail(&old, &grey, &down);
    let before = schedule(&old);
    assert!(before.values().flatten().any(|recipient| recipient[2] == 1), "{before:?}");
    stop(&mut old);
    let export = old.folder().join("export");
    // As one that was killed leaves it.
    std::fs::write(old.folder().join("export.part"), "half").unwrap();
    let told = said(&old, &["spool", "export", "--output", path(&export)]);
    assert!(!old.folder().join("export.part").exists());
    assert!(told.contains("exported 9 messages, 0 in quarantine and 1 destination"), "{told}");
    assert!(refused(&old, &["spool", "export", "--output", path(&export)]).contains("remove it"));
    assert!(said(&old, &["spool", "check"]).ends_with("everything fits together\n"));

    let new = patient(&grey, &down);
    let told = new.run(&["spool", "import", path(&export)]);
    assert!(told.status.success(), "{}", told.output);
    assert!(
        told.output.contains("imported 9 messages, 0 in quarantine and 1 destination"),
        "{}",
        told.output
    );
    let told = new.run(&["spool", "import", path(&export)]);
    assert!(
        told.output.contains("imported 0 messages") && told.output.contains("10 were there already"),
        "{}",
        told.output
    );
    let told = new.run(&["spool", "check"]);
    assert!(told.output.ends_with("everything fits together\n"), "{}", told.output);
    let files = std::fs::read_dir(new.folder().join("spool/content")).unwrap().count();
    assert_eq!(files, 4, "content above the threshold, once");

    let mut new = new.start();
    assert_eq!(schedule(&new), before);
    delivers(&new, &grey, &down, &sent);
    stop(&mut new);
    assert!(said(&new, &["spool", "check"]).contains("messages       0 "));
}

#[test]
fn an_export_goes_through_a_pipe() {
    let (grey, down) = (Host::new(false), Host::new(true));
    let mut old = patient(&grey, &down).start();
    let sent = deferred_mail(&old, &grey, &down);
    let before = schedule(&old);
    stop(&mut old);
    let new = patient(&grey, &down);
    std::fs::write(new.folder().join("posthaste.toml"), new.toml()).unwrap();
    let mut export = crate::support::relay::command(old.folder())
        .args(["spool", "export"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let import = crate::support::relay::command(new.folder())
        .args(["spool", "import", "-"])
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success());
    assert!(import.status.success(), "{}", text(&import));
    let new = new.start();
    assert_eq!(schedule(&new), before);
    delivers(&new, &grey, &down, &sent);
}

#[test]
fn a_spool_is_sound_after_a_clean_stop_and_after_a_kill() {
    let grey = Host::new(false);
    let mut relay =
        Setup::new().set("retry.schedule", "[\"1s\", \"1h\"]").route("*", grey.sink.address()).start();
    for round in 0..6 {
        let clients = Clients::start(6, relay.smtp(), round);
        let chance = &mut Chance::new(round);
        for number in 0..10 {
            submit(&relay, &format!("later{number}@grey{number}.test"), 300, chance);
        }
        let answered = clients.answered();
        wait_until("some load", PATIENCE, || clients.answered() > answered + 200);
        if round % 2 == 0 {
            relay.kill();
        } else {
            stop(&mut relay);
        }
        drop(clients);
        let told = said(&relay, &["spool", "check"]);
        assert!(
            told.contains("everything fits together") || told.contains("no damage"),
            "round {round}: {told}"
        );
        relay.restart();
        relay.await_ready();
    }
}

/// Opens the spool of a relay that is stopped.
fn open_spool(folder: &Path) -> SledSpool {
    let config = SpoolConfig { path: folder.join("spool"), reserve: 0, ..SpoolConfig::default() };
    SledSpool::open(&config, Uuid::from_u128(1)).unwrap()
}

#[test]
fn damage_makes_the_check_fail_and_names_what_it_is_of() {
    let (grey, down) = (Host::new(false), Host::new(true));
    let mut relay = patient(&grey, &down).start();
    deferred_mail(&relay, &grey, &down);
    stop(&mut relay);
    let spool = open_spool(relay.folder());
    let stored = spool.list(None, 100).unwrap();
    let lost = &stored[0].envelope;
    let destination = lost.recipients[0].destination.clone();
    let due = DueKey { destination, due_ms: stored[0].states[0].due_ms, id: lost.id, number: 0 };
    let mut counters = spool.counters().unwrap();
    counters.bytes += 1;
    spool.commit(&[Op::DeleteDue(due), Op::Counters(counters)]).unwrap();
    drop(spool);
    let file = std::fs::read_dir(relay.folder().join("spool/content")).unwrap().next().unwrap().unwrap();
    std::fs::remove_file(file.path()).unwrap();

    let told = refused(&relay, &["spool", "check"]);
    let missing = format!("damage: the content file {} of message", file.file_name().to_str().unwrap());
    for words in [
        format!("damage: 1 of 1 recipients of message {} have no due key", lost.id),
        missing.clone(),
        "damage: the counters are wrong".to_owned(),
        "DAMAGED: 3 findings".to_owned(),
    ] {
        assert!(told.contains(&words), "{words} is not in\n{told}");
    }
    let output = relay.verb(&["spool", "check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0]["finding"]["gravity"], "damage");
    assert_eq!((&lines[3]["summary"]["damage"], &lines[3]["summary"]["messages"]), (&3.into(), &9.into()));

    // The mail whose content is gone goes into quarantine with what there is; all other mail is as before.
    let export = relay.folder().join("export");
    let told = said(&relay, &["spool", "export", "--output", path(&export)]);
    assert!(told.contains("exported 8 messages, 1 in quarantine") && told.contains("1 of those"), "{told}");
}

#[test]
fn a_compacted_spool_is_smaller_and_delivers_all_that_is_left() {
    let (grey, down) = (Host::new(false), Host::new(true));
    let mut relay = patient(&grey, &down).start();
    let sent = deferred_mail(&relay, &grey, &down);
    let before = schedule(&relay);
    let chance = &mut Chance::new(3);
    for number in 0..300 {
        submit(&relay, &format!("gone{number}@grey.test"), 30_000, chance);
    }
    wait_until("the rest to be delivered", PATIENCE, || ids(&relay).len() == sent.len());
    let gone = grey.sink.answered();
    stop(&mut relay);
    // How far the file has grown by now depends on how fast the mail went out.
    grow(&open_spool(relay.folder()));
    let told = said(&relay, &["spool", "compact"]);
    let numbers: Vec<u64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [had, has] = numbers[..] else { panic!("{told}") };
    assert_eq!(has, std::fs::metadata(relay.folder().join("spool/db")).unwrap().len());
    assert!(has < had, "{told}");
    assert!(said(&relay, &["spool", "check"]).ends_with("everything fits together\n"));
    relay.restart();
    relay.await_ready();
    assert_eq!(schedule(&relay), before);
    assert_eq!(gone, 300);
    delivers(&relay, &grey, &down, &sent);
}

/// An export of this many messages, every fifth with its content in a file.
fn made_export(count: u64) -> String {
    use base64::Engine as _;
    let mut chance = Chance::new(5);
    let header = "{\"kind\":\"posthaste spool export\",\"version\":1,\"writer\":\"0.1.0\"}\n".to_owned();
    let messages = (0..count).map(|number| {
        let content = message::make("m", if number % 5 == 0 { 40_000 } else { 5_000 }, &mut chance).content;
        let line = serde_json::json!({ "message": {
            "id": format!("{:032x}", u128::from(number) + (1 << 112)),
            "reverse_path": "a@sender.test", "body": "8BITMIME", "arrived_ms": 1_700_000_000_000_u64,
            "origin": "embedded", "size": content.len(),
            "recipients": [{ "path": "x@grey.test", "destination": "grey.test", "status": "queued", "attempts": 1,
                "due_ms": 4_000_000_000_000_u64 }],
            "content": base64::engine::general_purpose::STANDARD.encode(&content),
        }});
        format!("{line}\n")
    });
    let end = format!("{{\"end\":{{\"destinations\":0,\"messages\":{count},\"quarantined\":0}}}}\n");
    [header].into_iter().chain(messages).chain([end]).collect()
}

/// Runs a verb and kills it after a while, later and later, until it ends by itself. The spool must be sound each time.
fn kill_again_and_again(setup: &Setup, verb: &[&str], before: impl Fn(), sound: impl Fn(&str)) {
    std::fs::write(setup.folder().join("posthaste.toml"), setup.toml()).unwrap();
    for round in 0..2_000 {
        before();
        let mut child = crate::support::relay::command(setup.folder()).args(verb).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(2 + round * 10));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if setup.folder().join("spool/db").exists() {
            let told = setup.run(&["spool", "check"]);
            assert!(told.status.success(), "round {round}: {}", told.output);
            sound(&told.output);
        }
        if let Some(status) = ended {
            assert!(status.success());
            return;
        }
    }
    panic!("{verb:?} does not end");
}

/// Fills the database with what is removed again.
fn grow(spool: &SledSpool) {
    let domains =
        (0..20_000).map(|number| Domain::parse(&format!("{number:060}.{number:060}.test")).unwrap());
    for domains in domains.collect::<Vec<_>>().chunks(2_000) {
        let put =
            domains.iter().map(|domain| Op::PutDestination(domain.clone(), DestinationRecord::default()));
        spool.commit(&put.collect::<Vec<_>>()).unwrap();
    }
    let all = spool.destinations(None, usize::MAX).unwrap().into_iter();
    let made = all.filter(|(_, record)| *record == DestinationRecord::default());
    let gone: Vec<Op> = made.map(|(domain, _)| Op::DeleteDestination(domain)).collect();
    spool.commit(&gone).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(std::fs::copy(entry.path(), target))
        }
    }
}

#[test]
fn import_and_compaction_may_be_killed_at_any_time() {
    let setup = Setup::new();
    std::fs::write(setup.folder().join("export"), made_export(600)).unwrap();
    kill_again_and_again(&setup, &["spool", "import", "export"], || {}, |_| {});
    let told = setup.run(&["spool", "import", "export"]);
    assert!(told.output.ends_with("and 0 destinations; 600 were there already\n"), "{}", told.output);

    let (spool, grown) = (setup.folder().join("spool"), setup.folder().join("grown"));
    grow(&open_spool(setup.folder()));
    // Who opens it waits until it is closed.
    assert!(setup.run(&["spool", "check"]).status.success());
    copy(&spool, &grown);
    let restore = || {
        std::fs::remove_dir_all(&spool).unwrap();
        copy(&grown, &spool);
    };
    kill_again_and_again(&setup, &["spool", "compact"], restore, |told| {
        let summary = &told[told.rfind("messages  ").unwrap()..];
        assert!(summary.starts_with("messages       600 (600 recipients wait"), "{summary}");
    });
    let length = |folder: &Path| std::fs::metadata(folder.join("db")).unwrap().len();
    assert!(length(&spool) < length(&grown), "it was compacted in the end");
    let told = setup.run(&["spool", "export", "--output", "again"]);
    assert!(told.status.success(), "{}", told.output);
    let text = |name: &str| std::fs::read_to_string(setup.folder().join(name)).unwrap();
    let lines = |text: &str| -> Vec<Value> {
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (before, after) = (lines(&text("export")), lines(&text("again")));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["message"]["content"], after["message"]["content"]);
        assert_eq!(before["message"]["recipients"][0]["due_ms"], after["message"]["recipients"][0]["due_ms"]);
        assert_eq!(before["message"]["id"], after["message"]["id"]);
    }
}

#[test]
fn a_spool_in_use_or_missing_is_told_and_left_alone() {
    let sink = Sink::friendly();
    let mut relay = Setup::new().route("*", sink.address()).start();
    let export: PathBuf = relay.folder().join("export");
    std::fs::write(&export, "").unwrap();
    let verbs: [&[&str]; 5] = [
        &["migrate"],
        &["spool", "check"],
        &["spool", "export"],
        &["spool", "import", path(&export)],
        &["spool", "compact"],
    ];
    for verb in verbs {
        let told = refused(&relay, verb);
        let words = format!("in use by a running posthaste (process {}): stop that one first", relay.pid());
        assert!(told.contains(&words), "{verb:?}: {told}");
    }
    assert_eq!(relay.submit(&["ann@x.test"], b"Subject: still here\r\n\r\nhello\r\n").code, 250);
    sink.await_mail_for("ann@x.test");
    stop(&mut relay);
    let nothing = Setup::new();
    for verb in [&["spool", "check"][..], &["spool", "export"], &["spool", "compact"], &["migrate"]] {
        let told = nothing.run(verb);
        assert_eq!(told.status.code(), Some(1));
        assert!(told.output.contains("there is no spool in spool; set spool.path"), "{}", told.output);
    }
    assert!(!nothing.folder().join("spool").exists());
    std::fs::create_dir(nothing.folder().join("spool")).unwrap();
    let told = nothing.run(&["migrate"]);
    assert!(told.output.contains("there is no spool in spool"), "{}", told.output);
    assert_eq!(std::fs::read_dir(nothing.folder().join("spool")).unwrap().count(), 0);
}
