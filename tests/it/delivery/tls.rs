//! Opportunistic TLS: what is offered is used, what fails is done without.

use std::net::SocketAddr;

use super::peer::Peer;
use super::world::{Net, behind_received, made, queue_id, with_mx};
use crate::support::wait_until;

#[test]
fn a_broken_handshake_falls_back_to_clear_text_in_the_same_attempt() {
    let net = Net::new();
    let address = net.dead();
    let peer = Peer::start(SocketAddr::from((address, net.port())), &["PIPELINING", "STARTTLS"]);
    let zone = with_mx(net.zone(), "x.test", &[address]);
    let world = net.start(zone);
    let made = made("clear");
    queue_id(&world.relay.submit(&["b@x.test"], &made.content));
    let line = world.await_event("delivered", "b@x.test");
    assert_eq!((&line["attempts"], &line["tls"]), (&1.into(), &false.into()), "{line}");
    wait_until("QUIT", crate::support::PATIENCE, || peer.heard().commands.iter().any(|line| line == "QUIT"));
    let heard = peer.heard();
    let verbs: Vec<&str> = heard.commands.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs, ["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"], "{:?}", heard.commands);
    assert_eq!(heard.contents.len(), 1);
    let wire = crate::support::smtp::stuffed(&made.content);
    assert_eq!(behind_received(&heard.contents[0]), &wire[..wire.len() - 3]);
    assert_eq!(world.metric("posthaste_tls_handshakes_total", &["result=\"failed\""]), 1.0);
}

#[test]
fn required_tls_that_fails_waits_and_sends_nothing_in_clear_text() {
    let net = Net::new();
    let address = net.dead();
    let peer = Peer::start(SocketAddr::from((address, net.port())), &["STARTTLS"]);
    let zone = with_mx(net.zone(), "x.test", &[address]);
    let world = net.start_with(zone, |setup| setup.set("delivery.tls", "\"required\""));
    world.send(&["b@x.test"]);
    let line = world.await_event("deferred", "b@x.test");
    assert_eq!(line["class"], "tls", "{line}");
    assert!(
        !peer.heard().commands.iter().any(|line| line.starts_with("MAIL")),
        "{:?}",
        peer.heard().commands
    );
}
