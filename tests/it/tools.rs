//! The testers' own tools against each other: a sink that misses damage would prove nothing.

use crate::support::message::{self, Chance};
use crate::support::sink::{Ending, Manner, Moment, Sink};
use crate::support::smtp::{self, Client};
use crate::support::{http, wait_until};

fn to(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn the_sink_gets_what_the_client_sends() {
    let sink = Sink::friendly();
    let mut client = Client::greet(sink.address()).unwrap();
    let mut chance = Chance::new(7);
    for size in [0, 200, 1000, 5000, 100_000] {
        let made = message::make(&format!("m{size}"), size, &mut chance);
        let reply =
            client.mail("a@sender.test", &to(&["b@x.test", "c@x.test"]), &smtp::stuffed(&made.content));
        assert_eq!(reply.unwrap().code, 250);
        wait_until("the ledger", crate::support::PATIENCE, || sink.open() == 0);
        let line = sink.read(|ledger| ledger.last().unwrap().clone());
        assert_eq!(line.seen, Some((made.id, made.crc)));
        assert_eq!(line.content, made.content);
        assert_eq!(line.recipients, to(&["b@x.test", "c@x.test"]));
        assert_eq!((line.from.as_str(), line.ending), ("a@sender.test", Ending::Answered));
    }
}

#[test]
fn the_checksum_sees_every_change() {
    let made = message::make("x", 3000, &mut Chance::new(1));
    let relayed = [b"Received: from a\r\n\tby b\r\n", made.content.as_slice()].concat();
    assert_eq!(message::recognise(&relayed), Some((made.id.clone(), made.crc)));
    for at in [made.content.len() - 1, made.content.len() / 2, message::MARK.len() + 1] {
        let mut damaged = made.content.clone();
        damaged[at] ^= 1;
        assert_ne!(message::recognise(&damaged), Some((made.id.clone(), made.crc)), "byte {at}");
    }
    assert_ne!(message::recognise(&made.content[..made.content.len() - 2]), Some((made.id, made.crc)));
    assert_eq!(message::recognise(b"Subject: no mark\r\n\r\nX-Ledger: in the body\r\n"), None);
}

#[test]
fn the_sink_behaves_as_it_is_told() {
    let sink = Sink::with(|moment| match moment {
        Moment::Recipient("later@x.test") => Manner::Say("450 4.2.0 later"),
        Moment::Dot("no", _) => Manner::Say("554 5.6.0 no"),
        Moment::Dot("gone", _) => Manner::HangUp,
        Moment::Content(paths) if paths[0] == "half@x.test" => Manner::HangUp,
        _ => Manner::Accept,
    });
    let send = |id: &str, path: &str| {
        let made = message::make(id, 300, &mut Chance::new(3));
        Client::greet(sink.address()).unwrap().mail("a@b.test", &to(&[path]), &smtp::stuffed(&made.content))
    };
    assert_eq!(send("a", "later@x.test").unwrap().code, 450);
    assert_eq!(send("no", "b@x.test").unwrap().code, 554);
    assert!(send("gone", "b@x.test").is_err());
    assert!(send("half", "half@x.test").is_err());
    assert_eq!(send("yes", "b@x.test").unwrap().code, 250);
    wait_until("the ledger", crate::support::PATIENCE, || sink.open() == 0);
    let endings = sink.read(|ledger| ledger.iter().map(|line| line.ending).collect::<Vec<_>>());
    assert_eq!(sink.answered(), 1);
    assert_eq!(endings.last(), Some(&Ending::Answered));
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Answered).count(), 1, "{endings:?}");
}

#[test]
fn a_client_that_vanishes_is_in_the_ledger() {
    let sink = Sink::friendly();
    let mut client = Client::greet(sink.address()).unwrap();
    client.command("MAIL FROM:<a@b.test>").unwrap();
    drop(client);
    wait_until("the ledger", crate::support::PATIENCE, || sink.read(|ledger| ledger.len() == 1));
    assert_eq!(sink.read(|ledger| ledger[0].ending), Ending::Lost);
}

#[test]
fn metrics_are_summed_over_their_labels() {
    let text = "# HELP a_total Of a kind.\na_total{kind=\"x\",of=\"1\"} 2\na_total{kind=\"y\",of=\"1\"} 3\na_totals 9\nb 4.5\n";
    assert_eq!(http::metric(text, "a_total", &[]), Some(5.0));
    assert_eq!(http::metric(text, "a_total", &["kind=\"y\""]), Some(3.0));
    assert_eq!(http::metric(text, "b", &[]), Some(4.5));
    assert_eq!(http::metric(text, "c", &[]), None);
}
