//! Name servers that fail: mail waits and arrives once they answer again.

use posthaste::sink::nameserver::{Failure, Zone};

use super::world::{Net, await_mail, ip, with_mx};
use crate::support::wait_until;

#[track_caller]
fn check_waits_for_the_name_server(how: Failure) {
    let net = Net::new();
    let host = net.sink();
    let good: Zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world =
        net.start_with(good.clone().fail("x.test", how), |setup| setup.set("dns.timeout", "\"500ms\""));
    world.send(&["b@x.test"]);
    let line = world.await_event("deferred", "b@x.test");
    assert_eq!((&line["class"], &line["status"]), (&"dns".into(), &"4.4.3".into()), "{line}");
    assert_eq!(host.connections(), 0);
    world.names.replace(good);
    await_mail(&host, "b@x.test");
    world.await_empty_queue();
    assert_eq!(world.home.count(), 0);
}

#[test]
fn servfail_defers_and_the_mail_arrives_when_the_name_server_answers_again() {
    check_waits_for_the_name_server(Failure::Servfail);
}

#[test]
fn a_silent_name_server_defers_and_the_mail_arrives_when_it_answers_again() {
    check_waits_for_the_name_server(Failure::Timeout);
}

#[test]
fn an_unreachable_name_server_defers_and_the_mail_arrives_when_it_is_back() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let mut world = net.start_with(zone.clone(), |setup| setup.set("dns.timeout", "\"500ms\""));
    let address = world.stop_names();
    world.send(&["b@x.test"]);
    let line = world.await_event("deferred", "b@x.test");
    assert_eq!(line["class"], "dns", "{line}");
    world.start_names(address, &zone);
    await_mail(&host, "b@x.test");
}

/// A failed look-up says nothing about other domains.
#[test]
fn a_broken_zone_delays_no_other_domain() {
    let net = Net::new();
    let host = net.sink();
    let mut zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    for number in 0..50 {
        zone = zone.fail(&format!("broken{number}.test"), Failure::Timeout);
    }
    let world = net.start(zone);
    world.send_many(50, |number| format!("b@broken{number}.test"));
    wait_until("the look-ups", crate::support::PATIENCE, || {
        world.names.queries("broken0.test", posthaste::sink::nameserver::QueryType::Mx) > 0
    });
    world.send(&["b@x.test"]);
    await_mail(&host, "b@x.test");
    let deferred = world.events().iter().filter(|line| line["event"] == "deferred").count();
    assert_eq!(deferred, 0, "no look-up has timed out by then");
}
