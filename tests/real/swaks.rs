//! `swaks`, the Swiss army knife of mail testers.

use crate::peer;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Sink, Transaction};

const TO: [&str; 3] = ["one@x.test", "two@x.test", "three@y.test"];

fn swaks(relay: &Relay, more: &[&str]) -> peer::Said {
    let server = relay.smtp().ip().to_string();
    let port = relay.smtp().port().to_string();
    let to = TO.join(",");
    let args = [
        "--server",
        &server,
        "--port",
        &port,
        "--from",
        "me@sender.test",
        "--to",
        &to,
        "--ehlo",
        "swaks.test",
    ];
    peer::run("swaks", args.iter().chain(more).copied())
}

#[track_caller]
fn check_delivery(more: &[&str], expect: impl Fn(&Transaction)) {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    swaks(&relay, more).succeeded();
    for path in TO {
        let line = sink.await_mail_for(path);
        assert_eq!(line.from, "me@sender.test");
        assert!(line.text().contains("by relay.test"), "no Received: line in\n{}", line.text());
        expect(&line);
        assert_eq!(sink.delivered_to(path).len(), 1);
    }
    assert!(
        sink.delivered_to(TO[0])[0].recipients.contains(&TO[1].to_owned()),
        "one transaction per destination"
    );
}

#[test]
fn a_message_for_three_arrives() {
    check_delivery(&["--body", "plain and simple"], |line| {
        assert!(line.text().contains("\r\nplain and simple"))
    });
}

#[test]
fn a_pipelined_message_arrives() {
    check_delivery(&["--pipeline", "--body", "all at once"], |line| {
        assert!(line.text().contains("\r\nall at once"))
    });
}

#[test]
fn a_message_after_helo_arrives() {
    check_delivery(&["--protocol", "SMTP", "--body", "as in 1982"], |line| {
        assert!(line.text().contains("with SMTP"), "{}", line.text());
    });
}

#[test]
fn an_attachment_of_300_kilobytes_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("attachment.bin");
    std::fs::write(&file, [7_u8; 300_000]).unwrap();
    check_delivery(&["--attach", &format!("@{}", file.display())], |line| {
        assert!(line.content.len() > 400_000, "only {} bytes", line.content.len());
    });
}

#[test]
fn a_stranger_is_refused_and_swaks_says_so() {
    let relay = Setup::new().set("relay.networks", "[\"192.0.2.0/24\"]").start();
    let said = swaks(&relay, &[]);
    assert_eq!(said.code, 24, "24 is swaks for: no recipient was taken\n{}", said.text);
    said.with("550 5.7.1");
}

#[test]
fn the_250_carries_the_queue_id_that_the_received_line_has() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    let said = swaks(&relay, &[]);
    let is_id = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = said
        .succeeded()
        .text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find(is_id)
        .expect("a queue id")
        .to_owned();
    let text = sink.await_mail_for(TO[0]).text();
    assert!(text.contains(&format!("id {id}")), "{text}");
}
