//! Nothing that the client sent is changed.

use std::net::SocketAddr;

use super::peer::{Peer, Spoil};
use super::world::{Net, await_mail, behind_received, ip, queue_id, with_mx};
use crate::support::message::{self, Chance};
use crate::support::smtp::stuffed;

const HEADER: &str =
    "From: <a@sender.test>\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <m@sender.test>\r\n";

#[test]
fn content_arrives_byte_for_byte_behind_the_added_received_line() {
    let with_body = |body: &str| format!("{HEADER}\r\n{body}").into_bytes();
    let long = format!("{}\r\n{}\r\n", "l".repeat(998), "m".repeat(20_000));
    let mut chance = Chance::new(2);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("dots", with_body(".\r\n..\r\n.x\r\n \r\nx.\r\n...\r\n")),
        ("dots only", with_body(".\r\n")),
        ("empty body", with_body("")),
        ("no empty line", HEADER.as_bytes().to_vec()),
        ("empty lines at the end", with_body("x\r\n\r\n\r\n\r\n")),
        ("long lines", with_body(&long)),
        ("8 bit", with_body("gr\u{fc}\u{df}e\r\n")),
        ("controls", with_body("a\x01b\x7f\x1b\r\n")),
        ("small", message::make("small", 300, &mut chance).content),
        ("just below the file threshold", message::make("below", 32_000, &mut chance).content),
        ("above the file threshold", message::make("above", 33_500, &mut chance).content),
        ("200 KiB", message::make("large", 200 << 10, &mut chance).content),
        ("2 MiB", message::make("huge", 2 << 20, &mut chance).content),
    ];
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    for (number, (name, content)) in cases.into_iter().enumerate() {
        let to = format!("r{number}@x.test");
        queue_id(&world.relay.submit(&[&to], &content));
        let received = await_mail(&host, &to);
        let got = behind_received(&received.content);
        assert!(got == content, "{name}: {} bytes became {}", content.len(), got.len());
    }
}

#[test]
fn a_message_with_a_nul_is_refused_whole_and_the_next_one_passes() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    // The second one is in a file of its own when its NUL comes.
    for body in ["a\0b\r\n".to_owned(), "l\r\n".repeat(100_000) + "\0\r\n"] {
        let reply = world.relay.submit(&["bad@x.test"], format!("{HEADER}\r\n{body}").as_bytes());
        assert_eq!(reply.code, 554, "{reply:?}");
        assert!(reply.text.starts_with("5.6.0 ") && reply.text.contains("NUL"), "{reply:?}");
    }
    queue_id(&world.relay.submit(&["good@x.test"], format!("{HEADER}\r\nhi\r\n").as_bytes()));
    await_mail(&host, "good@x.test");
    assert_eq!(host.count(), 1, "nothing of the refused ones");
}

/// What came out for content that went in, behind `Received:`.
#[track_caller]
fn check_added(content: &str, date: bool, message_id: bool) {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    let id = queue_id(&world.relay.submit(&["b@x.test"], content.as_bytes()));
    let received = await_mail(&host, "b@x.test").content;
    let head = String::from_utf8(received.to_vec()).unwrap();
    assert!(head.contains(&id), "the queue id is in Received: {head}");
    assert!(head.contains("by relay.test"), "{head}");
    let added = behind_received(&received).strip_suffix(content.as_bytes());
    let added = added.unwrap_or_else(|| panic!("{content:?} was changed: {head:?}"));
    let added = String::from_utf8(added.to_vec()).unwrap();
    assert_eq!((added.contains("Date: "), added.contains("Message-ID: <")), (date, message_id), "{added:?}");
    assert_eq!(added.matches("\r\n").count(), usize::from(date) + usize::from(message_id), "{added:?}");
}

#[test]
fn date_and_message_id_are_added_only_when_they_are_missing() {
    check_added("From: <a@b.test>\r\n\r\nhi\r\n", true, true);
    check_added("date: yesterday\r\nFrom: <a@b.test>\r\n\r\nhi\r\n", false, true);
    check_added("From: <a@b.test>\r\nMESSAGE-ID:\r\n <x@y.test>\r\n\r\nDate: in the body\r\n", true, false);
    check_added(&format!("{HEADER}\r\nhi\r\n"), false, false);
}

#[test]
fn empty_content_becomes_a_header_of_its_own() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    queue_id(&world.relay.submit(&["b@x.test"], b""));
    let received = await_mail(&host, "b@x.test").content;
    let rest = String::from_utf8(behind_received(&received).to_vec()).unwrap();
    assert!(rest.contains("Date: ") && rest.ends_with("\r\n\r\n"), "{rest:?}");
}

#[test]
fn an_8bitmime_message_goes_unchanged_to_a_host_without_it() {
    let content = format!("{HEADER}\r\ngr\u{fc}\u{df}e\r\n.\u{e4}\r\n").into_bytes();
    for offers in [&["PIPELINING"][..], &[], &["8BITMIME"]] {
        let net = Net::new();
        let address = net.dead();
        let peer = Peer::start(SocketAddr::from((address, net.port())), offers, Spoil::Refuse);
        let zone = with_mx(net.zone(), "x.test", &[address]);
        let world = net.start(zone);
        // The client says BODY=8BITMIME.
        queue_id(&world.relay.submit(&["b@x.test"], &content));
        world.await_event("delivered", "b@x.test");
        let heard = peer.heard();
        let wire = stuffed(&content);
        assert_eq!(behind_received(&heard.contents[0]), &wire[..wire.len() - 3], "{offers:?}");
        let mail = heard.commands.iter().find(|line| line.starts_with("MAIL")).unwrap();
        let expected = if offers.contains(&"8BITMIME") { " BODY=8BITMIME" } else { "" };
        assert_eq!(mail, &format!("MAIL FROM:<ledger@sender.test>{expected}"));
    }
}
