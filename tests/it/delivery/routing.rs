//! Which host gets the mail.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use posthaste::sink::Answer;

use super::world::{Moment, Net, SENDER, await_mail, ip, mail_for, refuse, with_mx};

#[test]
fn mail_goes_to_the_best_mx() {
    let net = Net::new();
    let (best, second) = (net.sink(), net.sink());
    let zone = net
        .zone()
        .mx("x.test", 20, "second.x.test")
        .mx("x.test", 5, "best.x.test")
        .a("second.x.test", ip(&second))
        .a("best.x.test", ip(&best));
    let world = net.start(zone);
    for number in 0..5 {
        let to = format!("r{number}@x.test");
        world.send(&[&to]);
        await_mail(&best, &to);
    }
    assert_eq!(second.connections(), 0);
}

/// The first MX host is bad, the second one is good: the mail arrives in one attempt.
#[track_caller]
fn check_next_host(first: impl FnOnce(&Net) -> Ipv4Addr) {
    let net = Net::new();
    let (first, second) = (first(&net), net.sink());
    let zone = with_mx(net.zone(), "x.test", &[first, ip(&second)]);
    let world = net.start(zone);
    world.send(&["b@x.test"]);
    await_mail(&second, "b@x.test");
    let line = world.await_event("delivered", "b@x.test");
    assert_eq!(line["attempts"], 1, "{line}");
    assert!(world.events_of("deferred", "b@x.test").is_empty());
}

#[test]
fn the_next_host_is_tried_when_one_refuses_connections() {
    check_next_host(Net::dead);
}

#[test]
fn the_next_host_is_tried_when_one_greets_badly_or_hangs_up() {
    for answer in [refuse(421), refuse(450), refuse(554), Answer::Drop] {
        let mut bad = None;
        check_next_host(|net| {
            let host = bad.insert(net.host(move |moment| match moment {
                Moment::Connect => answer.clone(),
                _ => Answer::Accept,
            }));
            ip(host)
        });
        assert!(bad.is_some_and(|host| host.connections() == 1), "the best host is tried first");
    }
}

#[test]
fn mail_waits_when_no_host_is_left_whatever_they_said() {
    for (answer, class) in
        [(refuse(421), "reply_4xx"), (refuse(554), "reply_5xx"), (Answer::Drop, "connection_lost")]
    {
        let net = Net::new();
        let refusals = std::sync::atomic::AtomicUsize::new(0);
        let first = net.dead();
        let second = net.host(move |moment| match moment {
            Moment::Connect if refusals.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
                answer.clone()
            }
            _ => Answer::Accept,
        });
        let zone = with_mx(net.zone(), "x.test", &[first, ip(&second)]);
        let world = net.start(zone);
        world.send(&["b@x.test"]);
        let line = world.await_event("deferred", "b@x.test");
        assert_eq!(line["class"], class, "{line}");
        assert!(line["status"].as_str().is_some_and(|status| status.starts_with("4.")), "{line}");
        await_mail(&second, "b@x.test");
        world.await_empty_queue();
        assert_eq!(world.home.count(), 0, "nobody is told of a delay that short");
    }
}

#[test]
fn a_domain_without_mx_is_its_own_host() {
    let net = Net::new();
    let host = net.sink();
    let zone = net.zone().a("x.test", ip(&host));
    let world = net.start(zone);
    world.send(&["b@x.test"]);
    await_mail(&host, "b@x.test");
}

#[test]
fn a_host_with_only_an_ipv6_address_gets_its_mail() {
    let loopback = Ipv6Addr::LOCALHOST;
    if let Err(error) = TcpListener::bind((loopback, 0)) {
        panic!(
            "this test needs IPv6 on the loopback interface (sysctl net.ipv6.conf.lo.disable_ipv6=0): {error}"
        );
    }
    let net = Net::new();
    let host = net.host_at(IpAddr::V6(loopback), |_| Answer::Accept);
    let zone = net.zone().mx("x.test", 10, "six.x.test").aaaa("six.x.test", loopback);
    let world = net.start(zone);
    world.send(&["b@x.test"]);
    await_mail(&host, "b@x.test");
}

#[test]
fn aliases_lead_to_the_host() {
    let net = Net::new();
    let host = net.sink();
    // RFC 5321 section 5.1 for the domain; RFC 2181 section 10.3 forbids an alias as MX host, and everybody follows it.
    let zone = with_mx(net.zone(), "real.test", &[ip(&host)])
        .cname("alias.test", "real.test")
        .mx("x.test", 10, "alias.x.test")
        .cname("alias.x.test", "mx1.real.test");
    let world = net.start(zone);
    for to in ["b@alias.test", "b@x.test"] {
        world.send(&[to]);
        await_mail(&host, to);
    }
}

#[test]
fn an_address_literal_is_dialled_as_it_is() {
    let net = Net::new();
    let host = net.sink();
    let to = format!("b@[{}]", ip(&host));
    let zone = net.zone();
    let world = net.start(zone);
    world.send(&[&to]);
    await_mail(&host, &to);
}

#[test]
fn the_relay_as_its_own_best_mx_is_a_loop_and_bounces() {
    let net = Net::new();
    let zone = with_mx(net.zone(), "x.test", &[net.relay_address()]);
    let world = net.start(zone);
    let id = world.send(&["b@x.test"]);
    let report = world.await_report(1);
    assert!(report.contains("Status: 5.4.6\r\n") && report.contains(&id), "{report}");
    let line = world.await_event("bounced", "b@x.test");
    assert_eq!(line["class"], "loop", "{line}");
    world.await_empty_queue();
}

#[test]
fn the_relay_as_a_worse_mx_is_never_dialled() {
    let net = Net::new();
    let better = net.dead();
    let zone = with_mx(net.zone(), "x.test", &[better, net.relay_address()]);
    let world = net.start(zone);
    world.send(&["b@x.test"]);
    let line = world.await_event("deferred", "b@x.test");
    assert_eq!(line["class"], "connect", "{line}");
    let accepted = world.events().iter().filter(|line| line["event"] == "accepted").count();
    assert_eq!(accepted, 1, "it did not come back");
}

/// Bounces at once, and the sender is told so.
#[track_caller]
fn check_bounces_at_once(
    status: &str,
    zone: impl FnOnce(posthaste::sink::nameserver::Zone) -> posthaste::sink::nameserver::Zone,
) {
    let net = Net::new();
    let names = zone(net.zone());
    let world = net.start(names);
    world.send(&["b@x.test"]);
    let report = world.await_report(1);
    assert!(report.contains(&format!("Status: {status}\r\n")), "{report}");
    assert!(report.contains("Final-Recipient: rfc822; b@x.test\r\n"), "{report}");
    let line = world.await_event("bounced", "b@x.test");
    assert_eq!((&line["attempts"], &line["class"]), (&1.into(), &"no_host".into()), "{line}");
    world.await_empty_queue();
    assert_eq!(mail_for(&world.home, SENDER).len(), 1, "one report");
}

#[test]
fn a_null_mx_bounces_at_once() {
    check_bounces_at_once("5.1.10", |zone| zone.null_mx("x.test"));
}

#[test]
fn a_domain_that_does_not_exist_bounces_at_once() {
    check_bounces_at_once("5.1.2", |zone| zone);
}

#[test]
fn mx_hosts_without_any_address_bounce_at_once() {
    check_bounces_at_once("5.4.4", |zone| zone.mx("x.test", 10, "nowhere.x.test"));
}
