//! The log's reader may stop: lines are dropped and counted, mail never waits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::message::{self, Chance};
use crate::support::relay::{self, Relay, Setup};
use crate::support::sink::Sink;
use crate::support::smtp;
use crate::support::{PATIENCE, http, wait_until};

#[test]
fn a_stopped_reader_of_the_log_delays_no_mail() {
    const MESSAGES: usize = 2000;
    let sink = Sink::friendly();
    for format in ["text", "json"] {
        let setup = Setup::new()
            .route("*", sink.address())
            .set("log.format", &format!("\"{format}\""))
            .set("log.buffer", "100");
        std::fs::write(setup.folder().join("posthaste.toml"), setup.toml()).unwrap();
        // Both pipes are held open and never read.
        let child = relay::command(setup.folder())
            .args(["serve", "--config", "posthaste.toml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut relay = Relay::adopt(setup, child);
        relay.await_ready();
        let before = sink.answered();
        let wire = smtp::stuffed(&message::make("quiet", 500, &mut Chance::new(4)).content);
        let mut client = relay.client();
        for number in 0..MESSAGES {
            let path = format!("r{number}@x.test");
            assert_eq!(client.mail("a@sender.test", &[path], &wire).unwrap().code, 250, "message {number}");
        }
        wait_until("all mail at the sink", Duration::from_secs(60), || sink.answered() - before == MESSAGES);
        let dropped = http::metric(&relay.metrics(), "posthaste_log_lines_dropped_total", &[]);
        assert!(dropped.is_some_and(|count| count > 0.0), "{format}: dropped lines are counted: {dropped:?}");
        assert_eq!(http::get(relay.http(), "/readyz").unwrap().status, 200);
    }
}

#[test]
fn each_mail_event_is_a_line_that_starts_with_the_queue_id() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    let made = message::make("logged", 500, &mut Chance::new(4));
    let reply = relay.submit(&["b@x.test"], &made.content);
    let id = reply
        .text
        .split([' ', '\n'])
        .find(|word| word.len() == 32)
        .expect("the 250 carries the queue id")
        .to_owned();
    sink.await_mail_for("b@x.test");
    for event in ["accepted", "delivered"] {
        wait_until(&format!("the line of \"{event}\""), PATIENCE, || {
            relay.output().lines().any(|line| line.contains(&id) && line.contains(event))
        });
    }
}

#[test]
fn a_request_that_is_no_http_writes_no_line() {
    let relay = Setup::new().start();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(relay.http()).unwrap();
        stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // A line that comes behind those that should not be.
    relay.signal(Signal::SIGHUP);
    wait_until("the word on SIGHUP", PATIENCE, || relay.output().contains("SIGHUP is ignored"));
    assert!(!relay.output().contains("actix"), "{}", relay.output());
}
