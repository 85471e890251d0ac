//! Promise P5: a slow, dead or tarpitting destination never delays another one.

use std::net::Ipv4Addr;

use posthaste::sink::nameserver::Zone;
use posthaste::sink::{Answer, Sink};

use super::world::{LONG, Moment, Net, World, await_mail, ip, with_mx};
use crate::support::wait_until;

fn tarpits(net: &Net, count: usize) -> Vec<Sink> {
    let hang = |moment: Moment<'_>| match moment {
        Moment::Connect => Answer::Hang,
        _ => Answer::Accept,
    };
    (0..count).map(|_| net.host(hang)).collect()
}

fn zone_of(zone: Zone, name: &str, hosts: impl Iterator<Item = Ipv4Addr>) -> Zone {
    hosts
        .enumerate()
        .fold(zone, |zone, (number, host)| with_mx(zone, &format!("{name}{number}.test"), &[host]))
}

fn open(tarpits: &[Sink]) -> usize {
    tarpits.iter().map(Sink::open_connections).sum()
}

/// No attempt at a tarpit has reported.
#[track_caller]
fn assert_all_are_stuck(world: &World, tarpits: &[Sink]) {
    assert_eq!(open(tarpits), tarpits.len(), "each tarpit holds its connection");
    let reported: Vec<_> = world
        .events()
        .into_iter()
        .filter(|line| {
            line["event"] != "accepted" && line["to"].as_str().is_some_and(|to| to.contains("@tarpit"))
        })
        .collect();
    assert!(reported.is_empty(), "{reported:?}");
}

#[test]
fn two_hundred_tarpits_and_two_hundred_dead_destinations_delay_no_neighbour() {
    const EACH: usize = 200;
    let net = Net::new();
    let (tarpits, healthy) = (tarpits(&net, EACH), net.sink());
    let zone = zone_of(net.zone(), "tarpit", tarpits.iter().map(ip));
    // Nothing listens there, on any of the addresses that the hosts have not taken.
    let zone = zone_of(zone, "dead", (0..EACH).map(|number| Ipv4Addr::new(127, 1, 0, 1 + number as u8)));
    let zone = with_mx(zone, "healthy.test", &[ip(&healthy)]);
    let world = net.start(zone);
    world.send_many(EACH * 2, |number| match number % 2 {
        0 => format!("b@tarpit{}.test", number / 2),
        _ => format!("b@dead{}.test", number / 2),
    });
    world.send(&["b@healthy.test"]);
    await_mail(&healthy, "b@healthy.test");
    // State, not time: whenever this is looked at, no time-out of a tarpit may have passed.
    wait_until("all tarpits to be held", LONG, || open(&tarpits) == EACH);
    assert_all_are_stuck(&world, &tarpits);
    // And again with all of them known to be bad.
    wait_until("all dead ones to be known", LONG, || {
        world.metric("posthaste_recipients_total", &["outcome=\"deferred\"", "class=\"connect\""])
            >= EACH as f64
    });
    world.send(&["c@healthy.test"]);
    await_mail(&healthy, "c@healthy.test");
    assert_all_are_stuck(&world, &tarpits);
}

/// With fewer connections than tarpits: who has answered before keeps its part of them.
#[test]
fn tarpits_never_take_the_last_connection_from_a_destination_that_answers() {
    let net = Net::new();
    let (tarpits, healthy) = (tarpits(&net, 60), net.sink());
    let zone = zone_of(net.zone(), "tarpit", tarpits.iter().map(ip));
    let zone = with_mx(zone, "healthy.test", &[ip(&healthy)]);
    let world = net.start_with(zone, |setup| setup.set("delivery.connections", "40"));
    world.send(&["a@healthy.test"]);
    await_mail(&healthy, "a@healthy.test");
    world.send_many(60, |number| format!("b@tarpit{number}.test"));
    wait_until("strangers to hold three quarters", LONG, || open(&tarpits) == 30);
    for number in 0..20 {
        let to = format!("r{number}@healthy.test");
        world.send(&[&to]);
        await_mail(&healthy, &to);
    }
    assert!(open(&tarpits) <= 30);
}

/// Nor from one that was never heard of: those that hang for the first time give way after ten seconds.
#[test]
fn tarpits_never_take_the_last_connection_from_a_stranger() {
    let net = Net::new();
    let (tarpits, healthy) = (tarpits(&net, 36), net.sink());
    let zone = zone_of(net.zone(), "tarpit", tarpits.iter().map(ip));
    let zone = with_mx(zone, "healthy.test", &[ip(&healthy)]);
    let world = net.start_with(zone, |setup| setup.set("delivery.connections", "40"));
    world.send_many(36, |number| format!("b@tarpit{number}.test"));
    wait_until("strangers to hold three quarters", LONG, || open(&tarpits) == 30);
    world.send(&["b@healthy.test"]);
    await_mail(&healthy, "b@healthy.test");
}

/// One destination with a lot of mail does not hold up one with little.
#[test]
fn a_thousand_messages_for_a_slow_neighbour_delay_nobody() {
    let net = Net::new();
    let slow = net.host(|moment| match moment {
        Moment::Message => Answer::Hang,
        _ => Answer::Accept,
    });
    let healthy = net.sink();
    let zone = with_mx(with_mx(net.zone(), "slow.test", &[ip(&slow)]), "healthy.test", &[ip(&healthy)]);
    let world = net.start(zone);
    world.send_many(1000, |number| format!("r{number}@slow.test"));
    wait_until("the slow one to be busy", LONG, || slow.open_connections() > 0);
    world.send(&["b@healthy.test"]);
    await_mail(&healthy, "b@healthy.test");
    assert_eq!(slow.count(), 0);
}
