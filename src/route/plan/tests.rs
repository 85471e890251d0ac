//! Planning over a made-up DNS: who is dialled, in which order, and what becomes of mail that has no host.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::config::TlsPolicy;

/// Names and what the name servers say about them; unknown names do not exist.
#[derive(Debug, Default)]
struct Zones {
    mx: HashMap<String, Result<Vec<MxRecord>, DnsFailure>>,
    addresses: HashMap<String, Result<Vec<IpAddr>, DnsFailure>>,
    asked: Mutex<Vec<String>>,
}

impl Zones {
    fn mx(mut self, domain: &str, list: &[(u16, &str)]) -> Self {
        let record = |(preference, host): &(u16, &str)| MxRecord {
            preference: *preference,
            exchange: (*host).to_owned(),
        };
        self.mx.insert(domain.to_owned(), Ok(list.iter().map(record).collect()));
        self
    }

    fn host(mut self, name: &str, list: &[&str]) -> Self {
        let list = list.iter().map(|ip| ip.parse().unwrap()).collect();
        self.addresses.insert(name.to_owned(), Ok(list));
        self
    }

    fn broken(mut self, name: &str) -> Self {
        let failure = DnsFailure::Temporary(format!("{name}: SERVFAIL"));
        self.mx.insert(name.to_owned(), Err(failure.clone()));
        self.addresses.insert(name.to_owned(), Err(failure));
        self
    }
}

impl Resolve for Zones {
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>> {
        let found = self.mx.get(domain.as_str()).cloned();
        Box::pin(async { found.unwrap_or(Err(DnsFailure::NoSuchDomain)) })
    }

    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>> {
        self.asked.lock().unwrap().push(host.to_owned());
        let found = self.addresses.get(host).cloned();
        Box::pin(async { found.unwrap_or(Err(DnsFailure::NoSuchDomain)) })
    }
}

fn settings() -> PlanSettings {
    PlanSettings {
        port: 25,
        own: vec!["198.51.100.1:25".parse().unwrap()],
        hostname: "relay.example".to_owned(),
        addresses: 5,
    }
}

fn planned(
    zones: &Zones,
    destination: &str,
    route: &Route,
    settings: &PlanSettings,
) -> Result<Vec<Target>, Cause> {
    let destination = Domain::parse(destination).unwrap();
    plan(zones, &destination, route, settings, 4).now_or_never().unwrap()
}

/// `host=address:port` of each target, or `class status` of the cause.
fn check_with(zones: &Zones, destination: &str, route: &Route, settings: &PlanSettings, expected: &[&str]) {
    let found = match planned(zones, destination, route, settings) {
        Ok(targets) => targets.iter().map(|target| format!("{}={}", target.name, target.address)).collect(),
        Err(cause) => vec![format!("{} {}", cause.class.word(), cause.status)],
    };
    assert_eq!(found, expected, "{destination} with {zones:?}");
}

fn check(zones: &Zones, expected: &[&str]) {
    check_with(zones, "example.org", &Route::Mx, &settings(), expected);
}

fn zones() -> Zones {
    Zones::default()
}

#[test]
fn mx_hosts_are_dialled_by_preference() {
    let zones = zones()
        .mx("example.org", &[(20, "b.example"), (10, "a.example")])
        .host("a.example", &["192.0.2.1"])
        .host("b.example", &["192.0.2.2"]);
    check(&zones, &["a.example=192.0.2.1:25", "b.example=192.0.2.2:25"]);
}

#[test]
fn the_domain_itself_is_the_host_only_without_mx() {
    let alone = zones().mx("example.org", &[]).host("example.org", &["192.0.2.1"]);
    check(&alone, &["example.org=192.0.2.1:25"]);
    let with_mx = alone.mx("example.org", &[(10, "gone.example")]);
    check(&with_mx, &["no_host 5.4.4"]);
}

#[test]
fn what_can_never_be_delivered_bounces() {
    check(&zones(), &["no_host 5.1.2"]);
    check(&zones().mx("example.org", &[]), &["no_host 5.1.2"]);
    check(&zones().mx("example.org", &[]).host("example.org", &[]), &["no_host 5.1.2"]);
    check(&zones().mx("example.org", &[]).host("example.org", &["0.0.0.0"]), &["no_host 5.1.2"]);
    check(&zones().mx("example.org", &[(10, "a")]).host("a", &[]), &["no_host 5.4.4"]);
}

#[test]
fn null_mx_bounces_at_once() {
    let zones = zones().mx("example.org", &[(0, ".")]).host("example.org", &["192.0.2.1"]);
    check(&zones, &["no_host 5.1.10"]);
    assert!(zones.asked.lock().unwrap().is_empty());
}

#[test]
fn failures_of_name_servers_defer() {
    check(&zones().broken("example.org"), &["dns 4.4.3"]);
    let mut implicit = zones().broken("example.org");
    implicit.mx.insert("example.org".to_owned(), Ok(vec![]));
    check(&implicit, &["dns 4.4.3"]);
    let one_gone = zones().mx("example.org", &[(10, "gone"), (20, "bad")]).broken("bad");
    check(&one_gone, &["dns 4.4.3"]);
}

#[test]
fn one_good_host_outweighs_broken_ones() {
    let zones = zones()
        .mx("example.org", &[(10, "bad"), (10, "gone"), (20, "good")])
        .broken("bad")
        .host("good", &["192.0.2.1"]);
    check(&zones, &["good=192.0.2.1:25"]);
}

#[test]
fn this_relay_cuts_its_preference_and_all_worse_ones() {
    let base = || {
        zones()
            .host("a", &["192.0.2.1"])
            .host("self", &["198.51.100.1"])
            .host("b", &["192.0.2.2"])
            .host("relay.example", &["203.0.113.9"])
    };
    let hosts = |list: &[(u16, &str)]| base().mx("example.org", list);
    check(&hosts(&[(10, "a"), (20, "self"), (30, "b")]), &["a=192.0.2.1:25"]);
    check(&hosts(&[(10, "a"), (20, "self"), (20, "b")]), &["a=192.0.2.1:25"]);
    check(&hosts(&[(10, "a"), (20, "relay.example"), (30, "b")]), &["a=192.0.2.1:25"]);
    check(&hosts(&[(10, "self"), (20, "b")]), &["loop 5.4.6"]);
    check(&hosts(&[(10, "relay.example"), (10, "b")]), &["loop 5.4.6"]);
    check(&hosts(&[(10, "gone"), (20, "self")]), &["no_host 4.4.4"]);
    check(&hosts(&[(10, "gone"), (20, "relay.example")]), &["no_host 4.4.4"]);
    check(&hosts(&[(10, "bad"), (20, "self")]).broken("bad"), &["dns 4.4.3"]);
    check(&base().mx("example.org", &[]).host("example.org", &["198.51.100.1"]), &["loop 5.4.6"]);
}

#[test]
fn another_server_on_this_machine_is_not_this_relay() {
    let zones = zones().mx("example.org", &[(10, "relay.example")]).host("relay.example", &["198.51.100.1"]);
    let elsewhere = PlanSettings { own: vec!["198.51.100.1:2525".parse().unwrap()], ..settings() };
    check_with(&zones, "example.org", &Route::Mx, &elsewhere, &["relay.example=198.51.100.1:25"]);
}

#[test]
fn a_wildcard_listener_is_every_local_address() {
    let zones = zones().mx("example.org", &[(10, "a")]).host("a", &["127.0.0.5"]);
    let wildcard = PlanSettings { own: vec!["0.0.0.0:25".parse().unwrap()], ..settings() };
    check_with(&zones, "example.org", &Route::Mx, &wildcard, &["loop 5.4.6"]);
    check(&zones, &["a=127.0.0.5:25"]);
}

#[test]
fn address_literals_are_dialled_directly() {
    let check = |destination, expected: &[&str]| {
        check_with(&zones(), destination, &Route::Mx, &settings(), expected);
    };
    check("[192.0.2.1]", &["192.0.2.1=192.0.2.1:25"]);
    check("[IPv6:2001:db8::1]", &["2001:db8::1=[2001:db8::1]:25"]);
    check("[198.51.100.1]", &["loop 5.4.6"]);
    check("[0.0.0.0]", &["no_host 5.1.2"]);
}

#[test]
fn a_primary_with_many_addresses_leaves_a_place_for_its_backup() {
    let many = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"];
    let with_backup = |backup: &[&str]| {
        let zones = zones()
            .mx("example.org", &[(10, "a"), (20, "b"), (30, "c")])
            .host("a", &many)
            .host("b", backup)
            .host("c", &[]);
        let targets = planned(&zones, "example.org", &Route::Mx, &settings()).unwrap();
        targets.iter().map(|target| target.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(with_backup(&["192.0.2.9"]), ["a", "a", "a", "a", "b"]);
    assert_eq!(with_backup(&[]), ["a"; 5]);
}

#[test]
fn worse_hosts_are_not_looked_up_when_better_ones_suffice() {
    let zones = zones()
        .mx("example.org", &[(10, "a"), (20, "b")])
        .host("a", &["192.0.2.1"])
        .host("b", &["192.0.2.2"]);
    let single = PlanSettings { addresses: 1, ..settings() };
    check_with(&zones, "example.org", &Route::Mx, &single, &["a=192.0.2.1:25"]);
    assert_eq!(*zones.asked.lock().unwrap(), ["a"]);
}

#[test]
fn no_address_is_dialled_twice_and_both_families_have_a_turn() {
    let six = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5", "192.0.2.1"];
    let zones = zones().mx("example.org", &[(10, "a"), (20, "b")]).host("a", &six).host("b", &["192.0.2.1"]);
    let targets = planned(&zones, "example.org", &Route::Mx, &settings()).unwrap();
    assert_eq!(targets.len(), 5);
    assert_eq!(targets.iter().filter(|target| target.address.is_ipv4()).count(), 1);
    assert!(targets[..2].iter().any(|target| target.address.is_ipv4()));
}

fn route(hosts: &[(&str, u16)]) -> Route {
    let host = |(name, port): &(&str, u16)| RouteHost {
        target: name
            .parse()
            .map_or_else(|_| RouteTarget::Name(Domain::parse(name).unwrap()), RouteTarget::Address),
        port: *port,
    };
    Route::Static(Arc::new(StaticRoute {
        index: 0,
        hosts: hosts.iter().map(host).collect(),
        tls: TlsPolicy::Off,
        credentials: None,
        connections: 1,
    }))
}

#[test]
fn static_routes_are_taken_in_order_and_mx_is_not_asked() {
    let zones = zones().mx("smart.example", &[(10, "no")]).host("smart.example", &["192.0.2.1"]);
    let check = |hosts, expected: &[&str]| {
        check_with(&zones, "example.org", &route(hosts), &settings(), expected);
    };
    check(
        &[("192.0.2.7", 587), ("smart.example", 2525)],
        &["192.0.2.7=192.0.2.7:587", "smart.example=192.0.2.1:2525"],
    );
    check(&[("gone.example", 25), ("smart.example", 25)], &["smart.example=192.0.2.1:25"]);
    check(&[("198.51.100.1", 25), ("smart.example", 25)], &["smart.example=192.0.2.1:25"]);
}

#[test]
fn a_mistake_in_a_static_route_never_bounces() {
    let zones = zones().host("empty.example", &[]).broken("bad.example");
    let check = |hosts, expected: &[&str]| {
        check_with(&zones, "example.org", &route(hosts), &settings(), expected);
    };
    check(&[("gone.example", 25)], &["no_host 4.4.4"]);
    check(&[("empty.example", 25)], &["no_host 4.4.4"]);
    check(&[("gone.example", 25), ("bad.example", 25)], &["dns 4.4.3"]);
    check(&[("198.51.100.1", 25)], &["loop 4.4.6"]);
}
