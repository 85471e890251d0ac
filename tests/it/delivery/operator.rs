//! `posthaste queue` against the running relay (promise P7), and the JSON log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use posthaste::sink::{Answer, Sink};
use serde_json::Value;

use super::world::{Moment, Net, World, await_mail, ip, mail_for, refuse, with_mx};
use crate::support::relay::Relay;
use crate::support::{PATIENCE, wait_for, wait_until};

#[track_caller]
fn run(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(&[&["queue"], args].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "queue {args:?}: {}\n{out}{err}", output.status);
    assert_eq!(err, "", "queue {args:?}");
    out.into_owned()
}

#[track_caller]
fn run_json(relay: &Relay, args: &[&str]) -> Value {
    let text = run(relay, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("queue {args:?}: {error}: {text}"))
}

/// `b@x.test` was refused with 450 and waits an hour; `c@dead.test` waits for a host that refuses connections.
fn waiting() -> (World, Sink, Arc<AtomicBool>, String) {
    let net = Net::new();
    let good = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&good);
    let host = net.host(move |moment| match moment {
        Moment::Recipient("b@x.test") if !switch.load(SeqCst) => refuse(450),
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let zone = with_mx(zone, "dead.test", &[net.dead()]);
    let world = net.start_with(zone, |setup| setup.set("retry.schedule", "[\"1h\"]"));
    let id = world.send(&["a@x.test", "b@x.test", "c@dead.test"]);
    for to in ["b@x.test", "c@dead.test"] {
        world.await_event("deferred", to);
    }
    // The log tells it before the disk does.
    wait_until("the fates on disk", PATIENCE, || {
        run_json(&world.relay, &["list"])["messages"][0]["waiting"] == 2
    });
    (world, host, good, id)
}

#[test]
fn an_empty_queue_is_listed_as_empty() {
    let net = Net::new();
    let zone = net.zone();
    let world = net.start(zone);
    assert_eq!(run(&world.relay, &["list"]), "the queue is empty\n");
    assert_eq!(run_json(&world.relay, &["list"])["messages"], Value::Array(Vec::new()));
}

#[test]
fn list_names_what_waits() {
    let (world, _host, _, id) = waiting();
    let text = run(&world.relay, &["list"]);
    for word in [id.as_str(), "<ledger@sender.test>", "<b@x.test> +1"] {
        assert!(text.contains(word), "{word} in:\n{text}");
    }
    assert!(!text.contains("a@x.test"), "it is delivered:\n{text}");
    let page = run_json(&world.relay, &["list"]);
    let message = &page["messages"][0];
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(1), "{page}");
    assert_eq!(
        (&message["id"], &message["recipients"], &message["waiting"]),
        (&id.into(), &3.into(), &2.into())
    );
    assert_eq!(message["attempts"], 1, "{message}");
}

#[test]
fn show_tells_why_each_recipient_waits() {
    let (world, host, _, id) = waiting();
    let message = run_json(&world.relay, &["show", &id]);
    let recipients = message["recipients"].as_array().expect("recipients");
    let [a, b, c] = recipients.as_slice() else { panic!("{message}") };
    assert_eq!((&a["status"], &a["waiting"]), (&"delivered".into(), &Value::Null), "{a}");

    assert_eq!(
        (&b["address"], &b["status"], &b["attempts"]),
        (&"b@x.test".into(), &"queued".into(), &1.into())
    );
    assert_eq!(b["waiting"]["kind"], "scheduled", "{b}");
    assert!(
        b["last_reply"]["text"].as_str().is_some_and(|text| text.contains("450 4.2.0 says the host")),
        "{b}"
    );
    let host_text = b["last_reply"]["host"].as_str().unwrap_or_default();
    assert!(host_text.contains(&host.address().ip().to_string()), "{b}");

    assert_eq!(c["waiting"]["kind"], "backing_off", "{c}");
    assert_eq!(c["last_reply"]["class"], "connect", "{c}");
    for recipient in [b, c] {
        let seconds = recipient["next_attempt"]["in_seconds"].as_i64().unwrap_or(-1);
        assert!((3500..=3600).contains(&seconds), "{recipient}");
    }

    let text = run(&world.relay, &["show", &id]);
    for word in [
        &id,
        "b@x.test",
        "c@dead.test",
        "450 4.2.0 says the host",
        "refused",
        "1 attempt",
        "next",
        "(in ",
        "delivered",
    ] {
        assert!(text.contains(word), "{word} in:\n{text}");
    }
}

#[test]
fn show_says_that_an_attempt_is_under_way() {
    let net = Net::new();
    let host = net.host(|moment| match moment {
        Moment::Connect => Answer::Hang,
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    let id = world.send(&["b@x.test"]);
    wait_until("the attempt", PATIENCE, || host.open_connections() == 1);
    let message = run_json(&world.relay, &["show", &id]);
    assert_eq!(message["recipients"][0]["waiting"]["kind"], "in_flight", "{message}");
    assert!(run(&world.relay, &["show", &id]).contains("in flight"));
}

#[test]
fn retry_makes_the_next_attempt_now() {
    let (world, host, good, id) = waiting();
    good.store(true, SeqCst);
    let answer = run(&world.relay, &["retry", &id, "--recipient", "1"]);
    assert!(answer.contains("1 recipient due now"), "{answer}");
    await_mail(&host, "b@x.test");
    assert_eq!(world.await_event("delivered", "b@x.test")["attempts"], 2);
    assert_eq!(world.events_of("deferred", "c@dead.test").len(), 1, "only the one that was asked for");
}

#[test]
fn retry_overrides_the_back_off_of_a_destination() {
    let (world, _host, _, id) = waiting();
    let answer = run_json(&world.relay, &["retry", &id]);
    assert!(answer.to_string().contains('2'), "both: {answer}");
    wait_until("another attempt at the dead host", PATIENCE, || {
        world.events_of("deferred", "c@dead.test").len() == 2
    });
    wait_until("another attempt at the other", PATIENCE, || {
        world.events_of("deferred", "b@x.test").len() == 2
    });
}

#[test]
fn remove_ends_it_without_a_report() {
    let (world, host, good, id) = waiting();
    run_json(&world.relay, &["remove", &id, "--recipient", "1"]);
    world.await_event("removed", "b@x.test");
    let shown = wait_for("the removal on disk", PATIENCE, || {
        let message = run_json(&world.relay, &["show", &id]);
        (message["recipients"][1]["status"] == "removed").then_some(message)
    });
    assert_eq!(shown["recipients"][2]["status"], "queued", "{shown}");
    assert!(run(&world.relay, &["remove", &id]).contains("1 recipient removed"));
    world.await_event("removed", "c@dead.test");
    world.await_empty_queue();
    assert_eq!(run(&world.relay, &["list"]), "the queue is empty\n");
    good.store(true, SeqCst);
    assert!(mail_for(&host, "b@x.test").is_empty());
    assert_eq!(world.home.count(), 0);
}

#[test]
fn an_unknown_message_is_an_error_with_words() {
    let net = Net::new();
    let zone = net.zone();
    let world = net.start(zone);
    for verb in ["show", "retry", "remove"] {
        let output = world.relay.verb(&["queue", verb, "0190a0b0c0d07000800000000000abcd"]);
        assert!(!output.status.success(), "queue {verb}");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("0190a0b0c0d07000800000000000abcd"), "queue {verb}: {words}");
    }
}

#[test]
fn every_line_of_the_json_log_is_an_object_with_the_same_words() {
    let (world, _host, good, id) = waiting();
    good.store(true, SeqCst);
    run(&world.relay, &["retry", &id, "--recipient", "1"]);
    world.await_event("delivered", "b@x.test");
    run(&world.relay, &["remove", &id]);
    world.await_event("removed", "c@dead.test");
    let output = world.relay.output();
    let mut events = Vec::new();
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if value["id"] == Value::String(id.clone()) {
            assert!(value["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
            events.push(value["event"].as_str().unwrap_or_default().to_owned());
        }
    }
    events.sort();
    assert_eq!(events, ["accepted", "deferred", "deferred", "delivered", "delivered", "removed"], "{output}");
}
