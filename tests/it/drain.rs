//! SIGTERM drains, a second one ends at once, and neither loses mail.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGTERM;

use crate::support::message::{self, Chance, Made};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::smtp::{self, Client};
use crate::support::{PATIENCE, wait_until};

/// Well below the default drain time-out of 30 s: whoever is faster has not waited for it.
const AT_ONCE: Duration = Duration::from_secs(8);

fn relay_to(sink: &Sink) -> Relay {
    Setup::new().route("*", sink.address()).start()
}

fn made(id: &str) -> Made {
    message::make(id, 3000, &mut Chance::new(5))
}

fn to(path: &str) -> Vec<String> {
    vec![path.to_owned()]
}

/// Whether a new client is turned away: no connection, or a 4xx greeting.
fn is_turned_away(relay: &Relay) -> bool {
    match Client::dial(relay.smtp()) {
        Err(_) => true,
        Ok(mut client) => client.reply().map_or(true, |reply| reply.code == 421),
    }
}

#[track_caller]
fn assert_clean_end(relay: &mut Relay, within: Duration) {
    let status = relay.ended_within(within);
    let status =
        status.unwrap_or_else(|| panic!("still running after {within:?}:\n{}", relay.last_lines(30)));
    assert!(status.success(), "{status}:\n{}", relay.last_lines(30));
}

#[test]
fn an_idle_relay_ends_at_once_and_well() {
    let mut relay = Setup::new().start();
    relay.signal(SIGTERM);
    assert_clean_end(&mut relay, AT_ONCE);
}

#[test]
fn an_idle_session_is_told_421_and_does_not_delay_the_end() {
    let mut relay = Setup::new().start();
    let mut client = relay.client();
    relay.signal(SIGTERM);
    // Unasked: a MAIL that overtakes the news would begin a transaction, which may finish.
    match client.reply() {
        Ok(reply) => assert_eq!(reply.code, 421, "{reply:?}"),
        Err(error) => panic!("hung up without 421: {error}"),
    }
    assert_clean_end(&mut relay, AT_ONCE);
}

#[test]
fn a_transaction_under_way_finishes_and_its_mail_survives() {
    let sink = Sink::friendly();
    let mut relay = relay_to(&sink);
    let made = made("under-way");
    let wire = smtp::stuffed(&made.content);
    let mut client = relay.client();
    assert_eq!(client.begin("a@sender.test", &to("b@x.test")).unwrap(), None);
    client.send(&wire[..1000]).unwrap();
    relay.signal(SIGTERM);
    wait_until("new clients to be turned away", PATIENCE, || is_turned_away(&relay));
    client.send(&wire[1000..]).unwrap();
    let reply = client.reply().unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    assert_clean_end(&mut relay, AT_ONCE);
    if sink.answered() == 0 {
        relay.restart();
        relay.await_ready();
    }
    assert_eq!(sink.await_mail_for("b@x.test").seen, Some((made.id, made.crc)));
    assert_eq!(sink.delivered_to("b@x.test").len(), 1);
}

#[test]
fn an_attempt_under_way_finishes_and_is_not_repeated() {
    let sink = Sink::with(|moment| match moment {
        Moment::Dot(..) => Manner::Slow(Duration::from_secs(2)),
        _ => Manner::Accept,
    });
    let mut relay = relay_to(&sink);
    assert_eq!(relay.submit(&["b@x.test"], &made("slow").content).code, 250);
    wait_until("the attempt", PATIENCE, || sink.open() == 1);
    relay.signal(SIGTERM);
    assert_clean_end(&mut relay, AT_ONCE);
    assert_eq!(sink.answered(), 1, "the end must wait for the sink's answer");
    relay.restart();
    relay.await_ready();
    let queued = crate::support::http::metric(&relay.metrics(), "posthaste_queue_messages", &[]);
    assert_eq!(queued, Some(0.0));
    assert_eq!(sink.answered(), 1, "a clean stop and start doubles nothing (promise P3)");
}

#[test]
fn the_drain_time_bounds_the_end() {
    let sink = Sink::with(|moment| match moment {
        Moment::Dot(..) => Manner::Slow(Duration::from_secs(60)),
        _ => Manner::Accept,
    });
    let mut relay = Setup::new().route("*", sink.address()).set("server.drain_timeout", "\"1s\"").start();
    assert_eq!(relay.submit(&["b@x.test"], &made("stuck").content).code, 250);
    wait_until("the attempt", PATIENCE, || sink.open() == 1);
    let _talking = {
        let mut client = relay.client();
        client.begin("a@sender.test", &to("c@x.test")).unwrap();
        client
    };
    let asked = Instant::now();
    relay.signal(SIGTERM);
    assert!(relay.ended_within(AT_ONCE).is_some(), "still running:\n{}", relay.last_lines(30));
    assert!(asked.elapsed() > Duration::from_millis(900), "it waits for its drain time");
    assert!(
        relay.output().contains("interrupted"),
        "who may get the mail twice is logged:\n{}",
        relay.last_lines(30)
    );
}

#[test]
fn a_second_sigterm_ends_at_once_and_loses_nothing() {
    let sink = Sink::with(|moment| match moment {
        Moment::Greeting => Manner::Slow(Duration::from_secs(2)),
        _ => Manner::Accept,
    });
    let mut relay = relay_to(&sink);
    let mut client = relay.client();
    let sent: Vec<Made> = (0..20).map(|number| made(&format!("m{number}"))).collect();
    for made in &sent {
        let path = to(&format!("{}@x.test", made.id));
        assert_eq!(client.mail("a@sender.test", &path, &smtp::stuffed(&made.content)).unwrap().code, 250);
    }
    client.begin("a@sender.test", &to("never@x.test")).unwrap();
    relay.signal(SIGTERM);
    wait_until("new clients to be turned away", PATIENCE, || is_turned_away(&relay));
    relay.signal(SIGTERM);
    assert!(relay.ended_within(Duration::from_secs(3)).is_some(), "the second SIGTERM is not obeyed");
    relay.restart();
    relay.await_ready();
    for made in sent {
        let line = sink.await_mail_for(&format!("{}@x.test", made.id));
        assert_eq!(line.seen, Some((made.id, made.crc)));
    }
    assert!(sink.delivered_to("never@x.test").is_empty());
}
