//! The resolver against a name server on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use posthaste::clock::{Clock, SystemClock};
use posthaste::config::DnsConfig;
use posthaste::route::mx::MxRecord;
use posthaste::route::plan::{PlanSettings, plan};
use posthaste::route::resolver::{DnsFailure, HickoryResolver, Resolve};
use posthaste::route::table::Route;
use posthaste::sink::nameserver::{Failure, Nameserver, QueryType, Zone};
use posthaste::smtp::address::Domain;
use tokio::time::Instant;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The machine's clock, some seconds ahead.
#[derive(Debug, Default)]
struct ShiftedClock(AtomicU64);

impl Clock for ShiftedClock {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms()
    }

    fn instant(&self) -> Instant {
        SystemClock.instant() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

async fn start(zone: Zone) -> (Nameserver, HickoryResolver) {
    start_with(zone, Duration::from_secs(5)).await
}

async fn start_with(zone: Zone, timeout: Duration) -> (Nameserver, HickoryResolver) {
    let server = Nameserver::bind(LOOPBACK, zone).await.unwrap();
    let config = DnsConfig { servers: vec![server.address()], timeout, ..DnsConfig::default() };
    let resolver = HickoryResolver::new(&config, Arc::new(SystemClock)).unwrap();
    (server, resolver)
}

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

fn mx(preference: u16, exchange: &str) -> MxRecord {
    MxRecord { preference, exchange: exchange.to_owned() }
}

fn is_temporary<T>(found: Result<T, DnsFailure>, word: &str) -> bool {
    matches!(found, Err(DnsFailure::Temporary(text)) if text.contains(word))
}

#[tokio::test]
async fn mx_records_come_without_final_dot_in_lower_case() {
    let zone =
        Zone::new().mx("Demo.Example", 10, "MX1.demo.example.").mx("demo.example", 20, "mx2.demo.example");
    let (_server, resolver) = start(zone).await;
    let mut found = resolver.mx(&domain("demo.example")).await.unwrap();
    found.sort_by_key(|record| record.preference);
    assert_eq!(found, [mx(10, "mx1.demo.example"), mx(20, "mx2.demo.example")]);
}

#[tokio::test]
async fn a_null_mx_is_a_dot() {
    let (_server, resolver) = start(Zone::new().null_mx("demo.example")).await;
    assert_eq!(resolver.mx(&domain("demo.example")).await, Ok(vec![mx(0, ".")]));
}

#[tokio::test]
async fn both_families_are_found() {
    let zone = Zone::new().a("a.example", [192, 0, 2, 1]).aaaa("a.example", Ipv6Addr::LOCALHOST);
    let (_server, resolver) = start(zone).await;
    let found = resolver.addresses("a.example").await.unwrap();
    assert_eq!(found, [IpAddr::from([192, 0, 2, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
}

#[tokio::test]
async fn cnames_are_followed_for_hosts_and_for_domains() {
    let zone = Zone::new()
        .cname("alias.example", "other.example")
        .cname("other.example", "real.example")
        .mx("real.example", 5, "mx.example")
        .a("real.example", [192, 0, 2, 1])
        .cname("dead.example", "nowhere.example");
    let (_server, resolver) = start(zone).await;
    assert_eq!(resolver.addresses("alias.example").await, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
    assert_eq!(resolver.mx(&domain("alias.example")).await, Ok(vec![mx(5, "mx.example")]));
    assert_eq!(resolver.addresses("dead.example").await, Err(DnsFailure::NoSuchDomain));
}

#[tokio::test]
async fn what_does_not_exist_differs_from_what_is_empty() {
    let (server, resolver) = start(Zone::new().a("www.demo.example", [192, 0, 2, 1])).await;
    for _ in 0..3 {
        assert_eq!(resolver.mx(&domain("gone.example")).await, Err(DnsFailure::NoSuchDomain));
        assert_eq!(resolver.addresses("gone.example").await, Err(DnsFailure::NoSuchDomain));
        assert_eq!(resolver.mx(&domain("www.demo.example")).await, Ok(vec![]));
        assert_eq!(resolver.mx(&domain("demo.example")).await, Ok(vec![]));
        assert_eq!(resolver.addresses("demo.example").await, Ok(vec![]));
    }
    assert_eq!(server.queries("gone.example", QueryType::Mx), 1, "negative answers are cached");
    assert_eq!(server.queries("www.demo.example", QueryType::Mx), 1);
}

#[tokio::test]
async fn names_that_are_no_names_are_not_asked_for() {
    let (_server, resolver) = start(Zone::new()).await;
    assert_eq!(resolver.addresses("a..b").await, Err(DnsFailure::NoSuchDomain));
    assert_eq!(resolver.addresses("").await, Err(DnsFailure::NoSuchDomain));
}

#[tokio::test]
async fn a_server_failure_is_temporary_and_is_not_asked_again_at_once() {
    let (server, resolver) = start(Zone::new().fail("demo.example", Failure::Servfail)).await;
    assert!(is_temporary(resolver.mx(&domain("demo.example")).await, "SERVFAIL"));
    let asked = server.queries("demo.example", QueryType::Mx);
    assert_eq!(asked, 2, "tried twice");
    server.replace(Zone::new().mx("demo.example", 10, "mx.example"));
    assert!(is_temporary(resolver.clone().mx(&domain("demo.example")).await, "SERVFAIL"));
    assert_eq!(server.queries("demo.example", QueryType::Mx), asked);
}

#[tokio::test]
async fn silence_is_temporary_and_ends_in_time() {
    let zone = Zone::new().fail("demo.example", Failure::Timeout);
    let (server, resolver) = start_with(zone, Duration::from_millis(50)).await;
    assert!(is_temporary(resolver.addresses("demo.example").await, "no answer"));
    let asked = server.queries("demo.example", QueryType::A);
    assert!(asked >= 1);
    assert!(is_temporary(resolver.addresses("demo.example").await, "no answer"));
    assert_eq!(server.queries("demo.example", QueryType::A), asked);
}

#[tokio::test]
async fn after_a_while_a_failed_name_is_asked_again() {
    let server =
        Nameserver::bind(LOOPBACK, Zone::new().fail("demo.example", Failure::Servfail)).await.unwrap();
    let config = DnsConfig { servers: vec![server.address()], ..DnsConfig::default() };
    let clock = Arc::new(ShiftedClock::default());
    let resolver = HickoryResolver::new(&config, clock.clone()).unwrap();
    assert!(is_temporary(resolver.mx(&domain("demo.example")).await, "SERVFAIL"));
    server.replace(Zone::new().mx("demo.example", 10, "mx.example"));
    clock.0.store(60, Ordering::Relaxed);
    assert_eq!(resolver.mx(&domain("demo.example")).await, Ok(vec![mx(10, "mx.example")]));
}

#[tokio::test]
async fn a_dead_name_server_is_temporary() {
    let (server, resolver) = start_with(Zone::new(), Duration::from_millis(200)).await;
    drop(server);
    assert!(is_temporary(resolver.mx(&domain("demo.example")).await, "MX demo.example: "));
}

#[tokio::test]
async fn answers_are_cached_for_all_clones() {
    let (server, resolver) = start(Zone::new().mx("demo.example", 10, "mx.example")).await;
    for _ in 0..5 {
        assert!(resolver.clone().mx(&domain("demo.example")).await.is_ok());
    }
    assert_eq!(server.queries("demo.example", QueryType::Mx), 1);
}

#[tokio::test]
async fn large_answers_come_over_tcp() {
    let zone = (0..100u8).fold(Zone::new(), |zone, n| zone.a("many.example", [192, 0, 2, n]));
    let (server, resolver) = start(zone).await;
    assert_eq!(resolver.addresses("many.example").await.unwrap().len(), 100);
    assert!(server.queries_over_tcp() >= 1);
}

#[tokio::test]
async fn wildcards_make_many_domains() {
    let (_server, resolver) = start(Zone::new().mx("*.bench.example", 10, "mx.example")).await;
    for name in ["a.bench.example", "b.bench.example", "x.y.bench.example"] {
        assert_eq!(resolver.mx(&domain(name)).await, Ok(vec![mx(10, "mx.example")]), "{name}");
    }
}

/// The resolver outlives the runtime that asked first, and other runtimes may ask it.
#[test]
fn runtimes_come_and_go() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let serving = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let zone = Zone::new().ttl(0).a("a.example", [192, 0, 2, 1]);
    let (_server, resolver) = serving.block_on(start(zone));
    for _ in 0..3 {
        let found = runtime().block_on(resolver.addresses("a.example"));
        assert_eq!(found, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
    }
    runtime().block_on(async move { drop(resolver) });
}

#[tokio::test]
async fn a_plan_is_made_from_real_answers() {
    let zone = Zone::new()
        .mx("demo.example", 20, "b.demo.example")
        .mx("demo.example", 10, "a.demo.example")
        .a("a.demo.example", Ipv4Addr::LOCALHOST)
        .a("b.demo.example", [127, 0, 0, 2]);
    let (_server, resolver) = start(zone).await;
    let settings =
        PlanSettings { port: 2526, own: vec![], hostname: "relay.example".to_owned(), addresses: 5 };
    let targets = plan(&resolver, &domain("demo.example"), &Route::Mx, &settings, 1).await.unwrap();
    let addresses: Vec<_> = targets.iter().map(|target| target.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:2526", "127.0.0.2:2526"]);
}
