//! `posthaste queue hold|release` and `posthaste destinations` against the running relay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use serde_json::Value;

use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, wait_until};

#[track_caller]
fn said(relay: &Relay, args: &[&str]) -> String {
    let output = relay.verb(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[track_caller]
fn json(relay: &Relay, args: &[&str]) -> Value {
    let text = said(relay, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// A sink that defers everybody until it is told otherwise.
fn closed_sink() -> (Sink, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let door = Arc::clone(&open);
    let sink = Sink::with(move |moment| match moment {
        Moment::Recipient(_) if !door.load(SeqCst) => Manner::Say("451 4.2.1 not yet"),
        _ => Manner::Accept,
    });
    (sink, open)
}

#[test]
fn an_operator_holds_and_releases_a_recipient_over_a_restart() {
    let (sink, open) = closed_sink();
    let mut relay = Setup::new().route("*", sink.address()).start();
    assert_eq!(relay.submit(&["ann@x.test", "bob@x.test"], b"Subject: hello\r\n\r\nhello\r\n").code, 250);
    let list = json(&relay, &["queue", "list"]);
    let id = list["messages"][0]["id"].as_str().unwrap();
    // It may be in flight: then the hold takes effect with the report.
    said(&relay, &["queue", "hold", id, "--recipient", "0"]);
    let shown =
        |relay: &Relay| json(relay, &["queue", "show", id])["recipients"][0]["waiting"]["kind"].clone();
    wait_until("the hold", PATIENCE, || shown(&relay) == "held");
    assert!(said(&relay, &["queue", "show", id]).contains("on hold until an operator releases it"));
    assert_eq!(json(&relay, &["queue", "list"])["messages"][0]["held"], 1);
    relay.kill();
    relay.restart();
    relay.await_ready();
    open.store(true, SeqCst);
    said(&relay, &["queue", "retry", id]);
    sink.await_mail_for("bob@x.test");
    assert_eq!(shown(&relay), "held");
    let retry = relay.verb(&["queue", "retry", id]);
    let complaint = String::from_utf8_lossy(&retry.stderr).into_owned();
    assert!(!retry.status.success() && complaint.contains("posthaste queue release"), "{complaint}");
    assert_eq!(said(&relay, &["queue", "release", id]), "1 recipient released\n");
    sink.await_mail_for("ann@x.test");
}

#[test]
fn an_operator_suspends_and_resumes_a_destination_over_a_restart() {
    let sink = Sink::friendly();
    let mut relay = Setup::new().route("*", sink.address()).start();
    assert_eq!(said(&relay, &["destinations", "list"]), "no mail waits, and no destination is in trouble\n");
    assert_eq!(said(&relay, &["destinations", "suspend", "Quiet.test"]), "Quiet.test is suspended\n");
    said(&relay, &["destinations", "suspend", "brief.test", "--for", "2h"]);
    assert_eq!(relay.submit(&["ann@quiet.test", "bob@x.test"], b"Subject: a\r\n\r\na\r\n").code, 250);
    sink.await_mail_for("bob@x.test");
    relay.kill();
    relay.restart();
    relay.await_ready();
    let list = || json(&relay, &["destinations", "list"])["destinations"].clone();
    wait_until("the mail to be found", PATIENCE, || {
        list().as_array().unwrap().iter().any(|at| at["name"] == "quiet.test" && at["waiting"] == 1)
    });
    let all = list();
    let of = |name: &str| all.as_array().unwrap().iter().find(|at| at["name"] == name).unwrap().clone();
    assert_eq!(
        (&of("quiet.test")["status"], &of("quiet.test")["next_attempt"]),
        (&"suspended".into(), &Value::Null)
    );
    assert!(of("brief.test")["suspended_until"].is_string());
    let first = json(&relay, &["destinations", "list", "--limit", "1"]);
    assert_eq!(
        (&first["destinations"][0]["name"], &first["next"]),
        (&"brief.test".into(), &"brief.test".into())
    );
    let text = said(&relay, &["destinations", "list", "--after", "brief.test"]);
    assert!(text.contains("quiet.test   suspended  1") && !text.contains("brief.test "), "{text}");
    let id = json(&relay, &["queue", "list"])["messages"][0]["id"].as_str().unwrap().to_owned();
    assert!(said(&relay, &["queue", "show", &id]).contains("suspended until an operator resumes it"));
    assert!(said(&relay, &["queue", "list"]).contains("suspended"));
    // A settled recipient is not meant, and nothing else says that this one is not tried.
    let retried = said(&relay, &["queue", "retry", &id]);
    assert!(
        retried.starts_with("1 recipient due now\nquiet.test is suspended, so nothing is tried there")
            && retried.ends_with("posthaste destinations resume quiet.test\n"),
        "{retried}"
    );
    assert!(said(&relay, &["destinations", "list"]).contains("suspended until 2"));
    let suspended = relay.output();
    assert!(
        suspended.contains("until it is resumed") && !suspended.contains("18446744073709551615"),
        "{suspended}"
    );
    assert_eq!(said(&relay, &["destinations", "resume", "quiet.test"]), "quiet.test is resumed\n");
    sink.await_mail_for("ann@quiet.test");
    let again = relay.verb(&["destinations", "resume", "quiet.test"]);
    let complaint = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && complaint.contains("is not suspended"), "{complaint}");
    let wrong = relay.verb(&["destinations", "suspend", "a b"]);
    let complaint = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && complaint.contains("is no domain"), "{complaint}");
}
