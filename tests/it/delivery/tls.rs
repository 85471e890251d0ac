//! Opportunistic TLS: what is offered is used, what fails is done without.

use std::net::SocketAddr;

use super::peer::{Peer, Spoil};
use super::world::{Net, World, behind_received, made, queue_id, with_mx};
use crate::support::relay::Setup;
use crate::support::smtp::stuffed;
use crate::support::{PATIENCE, wait_until};

fn start(tls: &str, spoil: Spoil) -> (World, Peer) {
    let net = Net::new();
    let address = net.dead();
    let peer = Peer::start(SocketAddr::from((address, net.port())), &["PIPELINING", "STARTTLS"], spoil);
    let zone = with_mx(net.zone(), "x.test", &[address]);
    let tls = format!("\"{tls}\"");
    let change = |setup: Setup| setup.set("delivery.tls", &tls).set("delivery.idle_timeout", "\"100ms\"");
    (net.start_with(zone, change), peer)
}

#[track_caller]
fn check_falls_back(spoil: Spoil, again: bool) {
    let (world, peer) = start("opportunistic", spoil);
    let made = made("clear");
    queue_id(&world.relay.submit(&["b@x.test"], &made.content));
    let line = world.await_event("delivered", "b@x.test");
    assert_eq!((&line["attempts"], &line["tls"]), (&1.into(), &false.into()), "{spoil:?}: {line}");
    wait_until("QUIT", PATIENCE, || peer.heard().commands.iter().any(|line| line == "QUIT"));
    let heard = peer.heard();
    // What comes between STARTTLS and the second EHLO is the handshake, which this host reads as a line.
    let verbs = heard.commands.iter().filter_map(|line| line.split(' ').next());
    let verbs: Vec<&str> = verbs.filter(|verb| verb.bytes().all(|byte| byte.is_ascii_uppercase())).collect();
    let second = if again { &["EHLO"][..] } else { &[] };
    let expected = [&["EHLO", "STARTTLS"], second, &["MAIL", "RCPT", "DATA", "QUIT"]].concat();
    assert_eq!(verbs, expected, "{spoil:?}");
    assert_eq!(heard.contents.len(), 1);
    let wire = stuffed(&made.content);
    assert_eq!(behind_received(&heard.contents[0]), &wire[..wire.len() - 3]);
}

#[test]
fn a_broken_handshake_falls_back_to_clear_text_in_the_same_attempt() {
    for spoil in [Spoil::HangUp, Spoil::Garbage, Spoil::TalkOn] {
        check_falls_back(spoil, true);
    }
}

#[test]
fn a_refused_starttls_goes_on_in_clear_text() {
    check_falls_back(Spoil::Refuse, false);
}

#[test]
fn required_tls_that_fails_waits_and_sends_nothing_in_clear_text() {
    for (spoil, class) in
        [(Spoil::HangUp, "tls"), (Spoil::Garbage, "tls"), (Spoil::TalkOn, "protocol"), (Spoil::Refuse, "tls")]
    {
        let (world, peer) = start("required", spoil);
        world.send(&["b@x.test"]);
        let line = world.await_event("deferred", "b@x.test");
        assert_eq!(line["class"], class, "{spoil:?}: {line}");
        let heard = peer.heard().commands;
        assert!(!heard.iter().any(|line| line.starts_with("MAIL")), "{spoil:?}: {heard:?}");
    }
}
