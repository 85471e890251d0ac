//! Python's `smtplib`, with what only a program can make up.

use crate::peer::{self, Said};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::Sink;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/scripts/submit.py");

fn python(relay: &Relay, case: &str) -> Said {
    let host = relay.smtp().ip().to_string();
    let port = relay.smtp().port().to_string();
    peer::run("python3", [SCRIPT, &host, &port, case])
}

/// The relay, its sink, and what the script said; it must have ended well.
#[track_caller]
fn submitted(case: &str, set_up: impl FnOnce(Setup) -> Setup) -> (Relay, Sink, Said) {
    let sink = Sink::friendly();
    let relay = set_up(Setup::new().route("*", sink.address())).start();
    let said = python(&relay, case);
    said.succeeded().with("quit 221");
    (relay, sink, said)
}

#[test]
fn smtplib_sees_the_extensions() {
    let (_relay, _sink, said) = submitted("features", |setup| setup);
    for feature in ["'8bitmime'", "'enhancedstatuscodes'", "'pipelining'", "'size', '52428800'"] {
        said.with(feature);
    }
}

#[test]
fn an_eight_bit_body_arrives_as_it_is() {
    let (_relay, sink, said) = submitted("eight-bit", |setup| setup);
    said.with("sent, refused: []");
    let line = sink.await_mail_for("you@x.test");
    assert!(line.text().ends_with("\r\n\r\nGrüße, 信, 🐎\r\n"), "{}", line.text());
}

#[test]
fn sixty_recipients_at_seven_destinations_are_served_once_each() {
    let (_relay, sink, said) = submitted("many", |setup| setup);
    said.with("sent, refused: []");
    for number in 0..60 {
        let path = format!("r{number}@d{}.test", number % 7);
        sink.await_mail_for(&path);
        assert_eq!(sink.delivered_to(&path).len(), 1, "{path}");
    }
}

#[test]
fn lines_of_dots_arrive_as_they_are() {
    let (_relay, sink, _said) = submitted("dots", |setup| setup);
    let line = sink.await_mail_for("you@x.test");
    assert!(line.text().ends_with("\r\n\r\n.\r\n..\r\n...\r\n.text\r\n\r\n.\r\n"), "{:?}", line.text());
}

#[test]
fn what_is_too_big_is_refused_and_the_next_one_taken() {
    let (_relay, sink, said) = submitted("size", |setup| setup.set("limits.message_size", "\"100KiB\""));
    said.with("SMTPSenderRefused 552").with("sent, refused: []");
    assert!(sink.await_mail_for("you@x.test").text().ends_with("small enough\r\n"));
    assert_eq!(sink.delivered_to("you@x.test").len(), 1);
}

#[test]
fn a_bare_lf_is_refused_and_the_next_message_taken() {
    let (_relay, sink, said) = submitted("bare-lf", |setup| setup);
    said.with("data 354").with("answer (5").with("sent, refused: []");
    assert!(sink.await_mail_for("you@x.test").text().ends_with("and on it goes\r\n"));
    assert_eq!(sink.delivered_to("you@x.test").len(), 1);
}

#[test]
fn twenty_five_messages_over_one_session_arrive() {
    let (_relay, sink, _said) = submitted("several", |setup| setup);
    for number in 0..25 {
        let line = sink.await_mail_for(&format!("r{number}@x.test"));
        assert!(line.text().ends_with(&format!("number {number}\r\n")));
    }
}

#[test]
fn the_minor_verbs_are_answered() {
    let (_relay, _sink, said) = submitted("verbs", |setup| setup);
    said.with("252 214 250 250");
}

#[test]
fn a_missing_date_and_message_id_are_added() {
    let (_relay, sink, _said) = submitted("dots", |setup| setup);
    let text = sink.await_mail_for("you@x.test").text();
    for header in ["\r\nDate: ", "\r\nMessage-ID: <"] {
        let head = text.split("\r\n\r\n").next().unwrap();
        assert_eq!(head.to_lowercase().matches(&header.to_lowercase()).count(), 1, "{header:?} in\n{head}");
    }
}
