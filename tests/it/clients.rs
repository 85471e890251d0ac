//! Clients that stall, vanish, babble or ask too much: each gets a clear reply or none, and nobody else notices.

use std::time::Duration;

use crate::support::message::{self, Chance};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::Sink;
use crate::support::smtp::{self, Client, Reply};
use crate::support::{PATIENCE, http, wait_until};

/// A dialogue up to a point, each step with the first digit of its reply (0: none is awaited).
type Steps = &'static [(&'static str, u16)];

const DIALOGUE: Steps = &[
    ("EHLO client.test\r\n", 2),
    ("MAIL FROM:<a@sender.test>\r\n", 2),
    ("RCPT TO:<gone@x.test>\r\n", 2),
    ("DATA\r\n", 3),
    ("Subject: half\r\n\r\nhalf a li", 0),
];

fn walk(client: &mut Client, steps: Steps) {
    assert_eq!(client.reply().unwrap().code, 220);
    for (line, digit) in steps {
        client.send(line.as_bytes()).unwrap();
        if *digit > 0 {
            assert_eq!(client.reply().unwrap().code / 100, *digit, "{line:?}");
        }
    }
}

/// Another client is served as if nothing had happened.
#[track_caller]
fn assert_unhurt(relay: &Relay, sink: &Sink, id: &str) {
    let made = message::make(id, 1000, &mut Chance::new(9));
    let path = format!("{id}@x.test");
    assert_eq!(relay.submit(&[&path], &made.content).code, 250);
    assert_eq!(sink.await_mail_for(&path).seen, Some((made.id, made.crc)));
}

fn sessions_open(relay: &Relay) -> Option<f64> {
    http::metric(&relay.metrics(), "posthaste_sessions_open", &[])
}

#[test]
fn a_client_may_vanish_at_any_step() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    for steps in 0..=DIALOGUE.len() {
        let mut client = Client::dial(relay.smtp()).unwrap();
        walk(&mut client, &DIALOGUE[..steps]);
        drop(client);
    }
    // Before the greeting was read, too.
    drop(Client::dial(relay.smtp()).unwrap());
    wait_until("all sessions to end", PATIENCE, || sessions_open(&relay) == Some(0.0));
    assert_unhurt(&relay, &sink, "after-all");
    assert!(sink.delivered_to("gone@x.test").is_empty(), "half a message was delivered");
}

#[test]
fn a_client_that_vanishes_after_the_dot_is_served() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    let made = message::make("no-goodbye", 1000, &mut Chance::new(9));
    let mut client = relay.client();
    client.begin("a@sender.test", &["b@x.test".to_owned()]).unwrap();
    client.send(&smtp::stuffed(&made.content)).unwrap();
    drop(client);
    // Nobody may rely on it, but what is committed is delivered; and what is not must not be half delivered.
    assert_unhurt(&relay, &sink, "after");
    for line in sink.delivered_to("b@x.test") {
        assert_eq!(line.seen, Some((made.id.clone(), made.crc)));
    }
}

#[test]
fn a_client_that_stalls_is_told_421() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).set("limits.idle_timeout", "\"1s\"").start();
    for steps in 0..=DIALOGUE.len() {
        let mut client = Client::dial(relay.smtp()).unwrap();
        walk(&mut client, &DIALOGUE[..steps]);
        let reply = client.reply().unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        assert_eq!(reply.code, 421, "after {steps} steps: {reply:?}");
        assert!(client.is_closed(PATIENCE), "after {steps} steps the session stays open");
    }
    assert_unhurt(&relay, &sink, "after-all");
    assert!(sink.delivered_to("gone@x.test").is_empty(), "half a message was delivered");
}

#[test]
fn a_drip_of_bytes_does_not_outlive_the_data_timeout() {
    let relay = Setup::new().set("limits.data_timeout", "\"1s\"").start();
    let mut client = Client::dial(relay.smtp()).unwrap();
    walk(&mut client, &DIALOGUE[..4]);
    wait_until("the end of a slow client", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        client.send(b"a\r\n").is_err() || client.is_closed(Duration::from_millis(50))
    });
}

/// Sends one line within a session; the reply.
#[track_caller]
fn answer_to(relay: &Relay, line: &[u8]) -> (Client, Reply) {
    let mut client = relay.client();
    client.send(line).unwrap();
    let reply = client.reply().unwrap();
    (client, reply)
}

#[test]
fn nonsense_is_answered_and_the_session_goes_on() {
    let relay = Setup::new().start();
    let long = [&b"NOOP "[..], &[b'x'; 5000], b"\r\n"].concat();
    let long_path = format!("MAIL FROM:<{}@sender.test>\r\n", "a".repeat(900));
    for line in [
        &b"FROB\r\n"[..],
        b"\r\n",
        b"MAIL\r\n",
        b"MAIL FROM:a@sender.test>\r\n",
        b"MAIL FROM:<a@sender.test> SIZE=x\r\n",
        b"RCPT TO:<b@x.test>\r\n",
        b"DATA\r\n",
        b"\x00\x01\x02\xff\r\n",
        &long,
        long_path.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        let (mut client, reply) = answer_to(&relay, line);
        assert_eq!(reply.code / 100, 5, "{shown}: {reply:?}");
        let after = client.command("NOOP").unwrap_or_else(|error| panic!("after {shown}: {error}"));
        assert_eq!(after.code, 250, "after {shown}");
    }
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let relay = Setup::new().start();
    let mut client = relay.client();
    let block = vec![b'x'; 1 << 20];
    // 64 MiB without a line end: refused by closing, or swallowed.
    for _ in 0..64 {
        if client.send(&block).is_err() {
            break;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    let kib: u64 = peak.trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kib < 200 << 10, "the peak is {peak}");
    assert_eq!(relay.client().command("NOOP").unwrap().code, 250);
}

#[test]
fn too_many_errors_end_the_session() {
    let relay = Setup::new().set("limits.errors", "3").start();
    let mut client = relay.client();
    let codes: Vec<u16> = (0..10)
        .map_while(|_| client.command("FROB").ok().map(|reply| reply.code))
        .take_while(|code| *code != 421)
        .collect();
    assert!(codes.len() <= 3 && codes.iter().all(|code| *code == 500), "{codes:?}");
    assert!(client.is_closed(PATIENCE));
}

#[test]
fn too_many_sessions_are_told_421() {
    let relay = Setup::new().set("limits.sessions", "2").start();
    let mut first = relay.client();
    let _second = relay.client();
    let mut third = Client::dial(relay.smtp()).unwrap();
    assert_eq!(third.reply().unwrap().code, 421);
    assert_eq!(first.command("QUIT").unwrap().code, 221);
    wait_until("a free place", PATIENCE, || Client::greet(relay.smtp()).is_ok());
}

#[test]
fn too_many_recipients_are_told_452_and_the_rest_is_sent() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).set("limits.recipients", "100").start();
    let mut client = relay.client();
    assert_eq!(client.command("MAIL FROM:<a@sender.test>").unwrap().code, 250);
    for number in 0..100 {
        assert_eq!(client.command(&format!("RCPT TO:<r{number}@x.test>")).unwrap().code, 250);
    }
    assert_eq!(client.command("RCPT TO:<r100@x.test>").unwrap().code, 452);
    assert_eq!(client.command("DATA").unwrap().code, 354);
    client.send(b"Subject: many\r\n\r\nhello\r\n.\r\n").unwrap();
    assert_eq!(client.reply().unwrap().code, 250);
    for number in [0, 99] {
        sink.await_mail_for(&format!("r{number}@x.test"));
    }
}

#[test]
fn strangers_may_not_relay() {
    let relay = Setup::new().set("relay.networks", "[\"192.0.2.0/24\"]").start();
    let mut client = relay.client();
    client.command("MAIL FROM:<a@sender.test>").unwrap();
    let reply = client.command("RCPT TO:<b@x.test>").unwrap();
    assert_eq!(reply.code, 550, "{reply:?}");
    assert!(client.command("DATA").unwrap().code >= 500);
}

#[test]
fn a_message_that_is_too_big_is_refused_and_the_session_goes_on() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).set("limits.message_size", "\"100KiB\"").start();
    let mut client = relay.client();
    assert_eq!(client.command("MAIL FROM:<a@sender.test> SIZE=200000").unwrap().code, 552);
    let big = message::make("big", 300_000, &mut Chance::new(2));
    let reply =
        client.mail("a@sender.test", &["big@x.test".to_owned()], &smtp::stuffed(&big.content)).unwrap();
    assert_eq!(reply.code, 552);
    let small = message::make("small", 3000, &mut Chance::new(2));
    let reply = client.mail("a@sender.test", &["small@x.test".to_owned()], &smtp::stuffed(&small.content));
    assert_eq!(reply.unwrap().code, 250);
    assert_eq!(sink.await_mail_for("small@x.test").seen, Some((small.id, small.crc)));
    assert!(sink.delivered_to("big@x.test").is_empty());
}

#[test]
fn smuggled_line_ends_are_refused() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    for end in ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r\n.\r", "\r.\r\n", "\r\n\0.\r\n"] {
        let mut client = relay.client();
        client.begin("a@sender.test", &["outer@x.test".to_owned()]).unwrap();
        let inner = "MAIL FROM:<evil@sender.test>\r\nRCPT TO:<inner@x.test>\r\nDATA\r\ninner\r\n.\r\n";
        client.send(format!("Subject: outer\r\n\r\ntext{end}{inner}").as_bytes()).unwrap();
        // Whatever it says to the outer message, the inner one must not become mail.
        let first = client.reply().unwrap();
        assert!(first.code == 250 || first.code / 100 == 5, "{end:?}: {first:?}");
        if !end.contains('\0') {
            assert_eq!(first.code / 100, 5, "a bare CR or LF is refused: {end:?}");
        }
    }
    assert_unhurt(&relay, &sink, "after-all");
    assert!(sink.delivered_to("inner@x.test").is_empty(), "a message was smuggled");
}
