//! Name servers that fail: mail waits and arrives once they answer again.

use posthaste::sink::nameserver::{Failure, QueryType};

use super::world::{Net, World, await_mail, ip, with_mx};
use crate::support::wait_until;

/// One test for three kinds: a failed look-up is remembered for 20 s, which all of them wait out together.
#[test]
fn dns_failures_defer_and_the_mail_arrives_once_the_name_server_answers_again() {
    let net = Net::new();
    let host = net.sink();
    let domains = ["servfail.test", "silent.test", "unreachable.test"];
    let good = domains.iter().fold(net.zone(), |zone, domain| with_mx(zone, domain, &[ip(&host)]));
    let bad = good.clone().fail("servfail.test", Failure::Servfail).fail("silent.test", Failure::Timeout);
    let mut world = net.start_with(bad, |setup| setup.set("dns.timeout", "\"500ms\""));
    let check_waits = |world: &World, domain: &str| {
        let to = format!("b@{domain}");
        world.send(&[&to]);
        let line = world.await_event("deferred", &to);
        assert_eq!((&line["class"], &line["status"]), (&"dns".into(), &"4.4.3".into()), "{line}");
    };
    check_waits(&world, "servfail.test");
    check_waits(&world, "silent.test");
    let address = world.stop_names();
    check_waits(&world, "unreachable.test");
    assert_eq!(host.connections(), 0);
    world.start_names(address, &good);
    for domain in domains {
        await_mail(&host, &format!("b@{domain}"));
    }
    world.await_empty_queue();
    assert_eq!(world.home.count(), 0, "no report of any kind");
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
        world.names.queries("broken0.test", QueryType::Mx) > 0
    });
    world.send(&["b@x.test"]);
    await_mail(&host, "b@x.test");
    let deferred = world.events().iter().filter(|line| line["event"] == "deferred").count();
    assert_eq!(deferred, 0, "no look-up has timed out by then");
}
