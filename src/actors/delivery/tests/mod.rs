//! A Delivery on one arbiter, against peers that play scripts on loopback.
#![allow(clippy::unwrap_used)]

mod content;
mod support;

use std::time::Duration;

use bytes::Bytes;

use super::messages::{Abort, Drain, GiveWay};
use crate::config::{DeliveryConfig, TlsPolicy};
use support::{BYE, Bench, HELLO, Peer, Pieces, Plan, TAKE, certificate, nobody};

const DELIVERED: &str = "delivered 2.6.0 → healthy";

fn script(parts: &[&str]) -> String {
    parts.concat()
}

fn settings(change: impl FnOnce(&mut DeliveryConfig)) -> Plan {
    let mut plan = Plan::default();
    change(&mut plan.settings);
    plan
}

#[actix_rt::test]
async fn messages_go_over_one_connection_one_after_the_other() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, TAKE, TAKE, BYE])]).await;
    let mut bench = Bench::new(&[peer.address]);
    for _ in 0..3 {
        assert_eq!(bench.deliver().await, DELIVERED);
    }
    assert_eq!(bench.counts(), (1, 2));
    bench.delivery.do_send(Drain);
    peer.finish().await;
    while bench.context.metrics.connections_open.get() > 0 {
        tokio::task::yield_now().await;
    }
}

#[actix_rt::test]
async fn a_connection_serves_only_so_many_messages() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, TAKE, BYE]), &script(&[HELLO, TAKE, "eof"])]).await;
    let mut bench = Bench::with(&[peer.address], settings(|settings| settings.messages_per_connection = 2));
    for _ in 0..3 {
        assert_eq!(bench.deliver().await, DELIVERED);
    }
    assert_eq!(bench.counts(), (2, 1));
}

#[actix_rt::test]
async fn an_idle_connection_ends_with_quit_after_its_time() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, BYE])]).await;
    let idle = settings(|settings| settings.idle_timeout = Duration::from_millis(20));
    let mut bench = Bench::with(&[peer.address], idle);
    assert_eq!(bench.deliver().await, DELIVERED);
    peer.finish().await;
}

#[actix_rt::test]
async fn a_used_connection_that_died_is_replaced_at_once_and_nothing_counts() {
    let farewell = script(&[HELLO, TAKE, "C: MAIL\nS: 421 4.4.2 idle too long\nclose"]);
    let closed = script(&[HELLO, TAKE, "C: MAIL\nclose"]);
    let peer = Peer::new(&[&farewell, &closed, &script(&[HELLO, TAKE, "eof"])]).await;
    let mut bench = Bench::new(&[peer.address]);
    for _ in 0..3 {
        assert_eq!(bench.deliver().await, DELIVERED);
    }
    assert_eq!(bench.counts(), (3, 0));
}

#[actix_rt::test]
async fn each_recipient_gets_its_own_answer_and_rset_cleans_up() {
    let refused = "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|550 5.1.1 who?|554 nobody\nC: RSET\nS: 250 ok\n";
    let mixed = "C: MAIL\nC: RCPT\nC: RCPT\nC: RCPT\nC: DATA\n\
        S: 250 ok|250 ok|550 5.1.1 who?|452 4.5.3 many|354 go\nC: .\nS: 250 2.6.0 ok\n";
    let peer = Peer::new(&[&script(&[HELLO, refused, mixed, BYE])]).await;
    let mut bench = Bench::new(&[peer.address]);
    assert_eq!(bench.deliver().await, "bounced reply_5xx 5.1.1 → healthy");
    bench.send(3);
    assert_eq!(bench.report().await, "delivered 2.6.0, bounced reply_5xx 5.1.1, again → healthy");
    bench.delivery.do_send(Drain);
    peer.finish().await;
}

#[actix_rt::test]
async fn content_is_stuffed_and_ended_whatever_its_form() {
    for (content, wire) in [
        (&b""[..], &b""[..]),
        (b"a\r\n", b"a\r\n"),
        (b".a\r\n.\r\nb\r\n", b"..a\r\n..\r\nb\r\n"),
        (b"no end", b"no end\r\n"),
    ] {
        let mut peer = Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await;
        let mut bench = Bench::new(&[peer.address]);
        bench.content = Some(Bytes::from_static(content));
        assert_eq!(bench.deliver().await, DELIVERED);
        assert_eq!(peer.contents.recv().await.unwrap(), wire);
    }
}

#[actix_rt::test]
async fn the_next_host_is_tried_when_one_can_not_be_used() {
    for bad in [
        "close",
        "S: 421 busy\nclose",
        "S: 554 go away\neof",
        "S: 220 hi\nC: EHLO\nS: 450 later\neof",
        "S: 220 hi\nC: EHLO\nS: 250 mx\nC: MAIL\nS: 421 bye\nclose",
        "S: 220 hi\nC: EHLO\nS: 250 mx\nC: MAIL\nS: 250 ok\nC: RCPT\nclose",
    ] {
        let (first, second) = (Peer::new(&[bad]).await, Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await);
        let mut bench = Bench::new(&[nobody().await, first.address, second.address]);
        assert_eq!(bench.deliver().await, DELIVERED, "{bad}");
        first.finish().await;
        assert_eq!(bench.context.metrics.connect_failures.get(), 1);
    }
}

#[actix_rt::test]
async fn without_a_usable_host_the_destination_waits() {
    for (bad, expected) in [
        ("S: 421 4.3.2 busy\nclose", "deferred reply_4xx 4.3.2 → failed"),
        ("S: 554 5.7.1 go away\neof", "deferred reply_5xx 4.7.1 → failed"),
        ("S: 220 hi\nC: EHLO\nclose", "deferred connection_lost 4.4.2 → failed"),
        ("S: hello?\neof", "deferred protocol 4.5.0 → failed"),
    ] {
        let peer = Peer::new(&[bad]).await;
        assert_eq!(Bench::new(&[peer.address]).deliver().await, expected, "{bad}");
    }
    assert_eq!(Bench::new(&[nobody().await]).deliver().await, "deferred connect 4.4.1 → failed");
}

#[actix_rt::test]
async fn a_connection_lost_before_the_final_dot_leads_to_the_next_host() {
    let lost = script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nclose"]);
    let (first, second) = (Peer::new(&[&lost]).await, Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await);
    let mut bench = Bench::new(&[first.address, second.address]);
    // Larger than what the system takes before it knows that nobody reads.
    bench.content = Some(vec![b'x'; 16 << 20].into());
    assert_eq!(bench.deliver().await, DELIVERED);
}

#[actix_rt::test]
async fn a_connection_lost_after_the_final_dot_only_waits() {
    let lost = script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nC: .\nclose"]);
    let (first, second) = (Peer::new(&[&lost]).await, nobody().await);
    let mut bench = Bench::new(&[first.address, second]);
    assert_eq!(bench.deliver().await, "deferred connection_lost 4.4.2 → untouched");
    assert_eq!(bench.context.metrics.connect_failures.get(), 0, "the next host is not asked");
}

#[actix_rt::test]
async fn a_silent_host_is_left_after_the_time_of_its_step() {
    for (script, seconds, expected) in [
        ("silent", 300, "deferred timeout 4.4.2 → failed"),
        ("S: 220 hi\nC: EHLO\nsilent", 300, "deferred timeout 4.4.2 → failed"),
        (
            "S: 220 hi\nC: EHLO\nS: 250 mx\nC: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: DATA\nsilent",
            120,
            "deferred timeout 4.4.2 → untouched",
        ),
        (
            "S: 220 hi\nC: EHLO\nS: 250-mx|250 PIPELINING\nC: MAIL\nC: RCPT\nC: DATA\n\
             S: 250 ok|250 ok|354 go\nC: .\nsilent",
            600,
            "deferred timeout 4.4.2 → untouched",
        ),
    ] {
        let peer = Peer::new(&[script]).await;
        let mut bench = Bench::new(&[peer.address]);
        bench.send(1);
        peer.silent.notified().await;
        tokio::time::pause();
        let from = bench.context.clock.instant();
        assert_eq!(bench.report().await, expected, "{script}");
        let took = bench.context.clock.instant().duration_since(from).as_secs();
        assert!((seconds - 2..=seconds).contains(&took), "{took} s for {script}");
        tokio::time::resume();
    }
}

const STARTTLS: &str = "S: 220 hi\nC: EHLO\nS: 250-mx|250 STARTTLS\nC: STARTTLS\nS: 220 go\n";
const UNDER_TLS: &str = "tls\nC: EHLO\nS: 250-mx|250-PIPELINING|250 AUTH PLAIN LOGIN\n";

#[actix_rt::test]
async fn opportunistic_tls_takes_any_certificate() {
    let (acceptor, _) = certificate();
    let good = script(&[STARTTLS, UNDER_TLS, TAKE, TAKE, BYE]);
    let peer = Peer::with_tls(&[&good], Some(acceptor)).await;
    let mut bench = Bench::new(&[peer.address]);
    for _ in 0..2 {
        assert_eq!(bench.deliver().await, "delivered 2.6.0 (tls) → healthy");
    }
    assert_eq!((bench.counts(), bench.context.metrics.tls_handshakes_ok.get()), ((1, 1), 1));
    bench.delivery.do_send(Drain);
    peer.finish().await;
}

#[actix_rt::test]
async fn a_broken_handshake_is_followed_by_clear_text_to_the_same_address() {
    let broken = script(&[STARTTLS, "garble\nclose"]);
    let closed = "S: 220 hi\nC: EHLO\nS: 250-mx|250 STARTTLS\nC: STARTTLS\nclose";
    for bad in [broken.as_str(), closed] {
        let peer = Peer::new(&[bad, &script(&[HELLO, TAKE, "eof"])]).await;
        let mut bench = Bench::new(&[peer.address]);
        assert_eq!(bench.deliver().await, DELIVERED);
        assert_eq!(bench.counts(), (2, 0));
    }
}

#[actix_rt::test]
async fn required_tls_sends_nothing_to_whom_it_does_not_trust() {
    let (acceptor, certificate) = certificate();
    let required = |trusted| Plan { tls: TlsPolicy::Required, trusted, mx: true, ..Plan::default() };

    let unwilling = Peer::new(&[&script(&[HELLO, "eof"])]).await;
    let mut bench = Bench::with(&[unwilling.address], required(None));
    assert_eq!(bench.deliver().await, "deferred tls 4.7.4 → failed");

    let unknown = Peer::with_tls(&[&script(&[STARTTLS, "tls\neof"])], Some(acceptor.clone())).await;
    let mut bench = Bench::with(&[unknown.address], required(None));
    assert_eq!(bench.deliver().await, "deferred tls 4.7.5 → failed");
    assert_eq!(bench.context.metrics.tls_handshakes_failed.get(), 1);

    let trusted = Peer::with_tls(&[&script(&[STARTTLS, UNDER_TLS, TAKE, "eof"])], Some(acceptor)).await;
    let mut bench = Bench::with(&[trusted.address], required(Some(certificate)));
    assert_eq!(bench.deliver().await, "delivered 2.6.0 (tls) → healthy");
}

#[actix_rt::test]
async fn a_login_is_sent_under_tls_and_a_wrong_one_bounces_nothing() {
    let (acceptor, _) = certificate();
    let auth = "C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==\n";
    let right = script(&[STARTTLS, UNDER_TLS, auth, "S: 235 ok\n", TAKE, "eof"]);
    let wrong = script(&[STARTTLS, UNDER_TLS, auth, "S: 535 5.7.8 no\neof"]);
    for (dialogue, expected) in [
        (right.as_str(), "delivered 2.6.0 (tls) → healthy"),
        (&wrong, "deferred auth 4.7.8 → failed"),
        ("S: 220 hi\nC: EHLO\nS: 250-mx|250 AUTH PLAIN\neof", "deferred auth 4.7.0 → failed"),
    ] {
        let peer = Peer::with_tls(&[dialogue], Some(acceptor.clone())).await;
        let mut bench = Bench::with(&[peer.address], Plan { login: true, ..Plan::default() });
        assert_eq!(bench.deliver().await, expected);
        bench.delivery.do_send(Drain);
        drop(bench);
    }
}

#[actix_rt::test]
async fn at_the_limit_of_an_address_the_attempt_is_only_busy() {
    let peer = Peer::new(&[&script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nsilent"])]).await;
    let mut bench = Bench::with(&[peer.address], settings(|settings| settings.connections_per_address = 1));
    bench.send(1);
    peer.silent.notified().await;
    bench.send(2);
    assert_eq!(bench.report().await, "busy, busy → untouched");
    bench.delivery.do_send(Abort);
    assert_eq!(bench.report().await, "again → untouched");
    assert_eq!(bench.counts(), (1, 0));
}

#[actix_rt::test]
async fn an_abort_interrupts_only_what_waits_for_the_answer_to_the_final_dot() {
    let silent = "silent";
    let commands = script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nsilent"]);
    let dot = script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nC: .\nsilent"]);
    for (dialogue, expected) in [
        (silent, "again → untouched"),
        (commands.as_str(), "again → untouched"),
        (&dot, "interrupted → untouched"),
    ] {
        let peer = Peer::new(&[dialogue]).await;
        let mut bench = Bench::new(&[peer.address]);
        bench.send(1);
        peer.silent.notified().await;
        bench.delivery.do_send(Abort);
        assert_eq!(bench.report().await, expected);
        peer.finish().await;
        assert_eq!(bench.deliver().await, "again → untouched", "nothing begins after an abort");
    }
}

#[actix_rt::test]
async fn an_attempt_gives_way_only_before_its_transaction_begins() {
    let peer = Peer::new(&["silent"]).await;
    let mut bench = Bench::new(&[peer.address]);
    bench.send(2);
    peer.silent.notified().await;
    bench.delivery.do_send(GiveWay { ticket: 7 });
    bench.delivery.do_send(GiveWay { ticket: 1 });
    let timeout = "deferred timeout 4.4.2";
    assert_eq!(bench.report().await, format!("{timeout}, {timeout} → failed"));

    let peer = Peer::new(&[&script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nsilent"])]).await;
    let mut bench = Bench::new(&[peer.address]);
    bench.send(1);
    peer.silent.notified().await;
    bench.delivery.do_send(GiveWay { ticket: 1 });
    bench.delivery.do_send(Abort);
    assert_eq!(bench.report().await, "again → untouched");
}

#[actix_rt::test]
async fn a_panic_loses_its_attempt_only_and_is_reported() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await;
    let mut bench =
        Bench::with(&[peer.address], Plan { mx: true, destination: "panic.test", ..Plan::default() });
    bench.send(2);
    assert_eq!(bench.report().await, "crashed, crashed → untouched");
    assert!(bench.delivery.connected(), "the actor lives on");
    let mut neighbour = bench.neighbour("fine.test");
    assert_eq!(neighbour.deliver().await, DELIVERED);
}

#[actix_rt::test]
async fn domains_with_the_same_mx_host_share_its_connections() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, TAKE, "eof"])]).await;
    let mut bench = Bench::with(&[peer.address], Plan { mx: true, ..Plan::default() });
    let mut neighbour = bench.neighbour("c.test");
    assert_eq!(bench.deliver().await, DELIVERED);
    assert_eq!(neighbour.deliver().await, DELIVERED);
    assert_eq!(bench.counts(), (1, 1));
}

#[actix_rt::test]
async fn a_domain_that_does_not_exist_bounces_without_a_connection() {
    let mut bench =
        Bench::with(&[nobody().await], Plan { mx: true, destination: "none.test", ..Plan::default() });
    assert_eq!(bench.deliver().await, "bounced no_host 5.1.2 → untouched");
    assert_eq!(bench.context.metrics.dns_failures.get(), 0, "the name server did its work");
}

#[actix_rt::test]
async fn a_name_server_that_fails_is_counted() {
    let mut bench =
        Bench::with(&[nobody().await], Plan { mx: true, destination: "mute.test", ..Plan::default() });
    assert_eq!(bench.deliver().await, "deferred dns 4.4.3 → failed");
    assert_eq!(bench.context.metrics.dns_failures.get(), 1);
}

#[actix_rt::test]
async fn damaged_content_is_told_and_the_connection_is_kept() {
    let peer = Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await;
    let mut bench = Bench::new(&[peer.address]);
    let content = bench.content.take();
    assert_eq!(bench.deliver().await, "damaged local 4.3.0 → untouched");
    bench.content = content;
    assert_eq!(bench.deliver().await, DELIVERED);
    assert_eq!(bench.counts(), (1, 1));
}

#[actix_rt::test]
async fn content_of_a_file_is_sent_in_pieces_and_read_anew_for_the_next_host() {
    let lost = script(&[HELLO, "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nclose"]);
    let (first, mut second) = (Peer::new(&[&lost]).await, Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await);
    let (head, tail) = (vec![b'x'; 8 << 20], "a\r\n|.b\r|\n.|c\r\n");
    let pieces = Pieces::new(&head, tail);
    let plan = Plan { content: Some(pieces), ..Plan::default() };
    let mut bench = Bench::with(&[first.address, second.address], plan);
    bench.content = None;
    assert_eq!(bench.deliver().await, DELIVERED);
    let sent = second.contents.recv().await.unwrap();
    assert!(sent.starts_with(&head));
    assert_eq!(String::from_utf8_lossy(&sent[head.len()..]), "a\r\n..b\r\n..c\r\n");
}

#[actix_rt::test]
async fn content_that_breaks_off_never_gets_a_final_dot() {
    let data = "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nC: half\neof";
    for (end, expected) in
        [("!", "deferred local 4.3.0 → untouched"), ("?", "damaged local 4.3.0 → untouched")]
    {
        let peer = Peer::new(&[&script(&[HELLO, data])]).await;
        let plan = Plan { content: Some(Pieces::new(b"half\r\n", end)), ..Plan::default() };
        let mut bench = Bench::with(&[peer.address], plan);
        bench.content = None;
        assert_eq!(bench.deliver().await, expected);
        peer.finish().await;
    }
}

#[actix_rt::test]
async fn a_delivery_ends_with_its_last_address() {
    let bench = Bench::new(&[nobody().await]);
    let weak = bench.delivery.downgrade();
    drop(bench);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(weak.upgrade().is_none());
}
