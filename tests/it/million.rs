//! Long queues: what a start reads and how much memory they take, by count and bytes, never by the clock.

use std::time::Duration;

use posthaste::sink::nameserver::{Failure, Nameserver, Zone};

use crate::filled::{self, Mail, Waits};
use crate::support::relay::{Relay, Setup};
use crate::support::{http, place, wait_for, wait_until};

/// Filling takes a while without optimisation.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most resident memory of a relay with 100,000 messages to 100,000 destinations, of which 10,000 are in memory at once. Up to
/// 181 MiB were seen.
const MEMORY_MAX_MIB: u64 = 224;
const MANY: u64 = 100_000;

fn launch(setup: Setup, mail: &Mail) -> Relay {
    filled::fill(&filled::open(&setup.folder().join("spool")), mail);
    setup.start()
}

/// The number after `name=` in what the relay said when it was ready.
fn told(relay: &Relay, name: &str) -> u64 {
    let line = wait_for("the relay to say that it is ready", PATIENCE, || {
        let output = relay.output();
        output.lines().find(|line| line.contains("ready: mail is accepted")).map(str::to_owned)
    });
    let mut words = line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    words.next().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name} in: {line}"))
}

fn metric(relay: &Relay, name: &str) -> u64 {
    http::metric(&relay.metrics(), name, &[]).unwrap_or_else(|| panic!("no metric {name}")) as u64
}

fn peak_mib(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("the relay runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
}

#[track_caller]
fn check_memory(relay: &Relay) {
    let peak = peak_mib(relay);
    assert!(peak <= MEMORY_MAX_MIB, "{peak} MiB; {}", relay.metrics());
}

#[test]
fn a_start_reads_the_same_few_records_and_no_message_whatever_is_queued() {
    for waits in [Waits::DueLater, Waits::BackOff] {
        let read = [2_000, 20_000].map(|messages| {
            let mail = Mail { name: "d", messages, destinations: messages, size: 100, waits };
            let relay = launch(Setup::new(), &mail);
            assert_eq!(told(&relay, "queued"), messages);
            assert_eq!(told(&relay, "of_messages"), 0);
            told(&relay, "records_read")
        });
        assert_eq!(read[0], read[1], "{waits:?}");
        assert!(read[0] < 10, "{read:?}");
    }
}

#[test]
fn memory_is_bounded_with_as_many_destinations_as_messages_that_refuse() {
    let nobody = place::free_place();
    let mail = Mail { name: "d", messages: MANY, destinations: MANY, size: 100, waits: Waits::Overdue };
    let setup = Setup::new().route("*", nobody).set("retry.schedule", "[\"10h\"]");
    let relay = launch(setup, &mail);
    // New connections go up from 50 a second.
    wait_until("many destinations to be tried", PATIENCE, || {
        metric(&relay, "posthaste_attempts_started_total") >= MANY / 50
    });
    check_memory(&relay);
    assert_eq!(metric(&relay, "posthaste_queue_messages"), MANY);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_when_no_name_can_be_looked_up() {
    let zone = Zone::new().mx("*.dest.test", 10, "mx.broken.test").fail("mx.broken.test", Failure::Servfail);
    let names =
        Nameserver::bind("127.0.0.1:0".parse().expect("an address"), zone).await.expect("a name server");
    let servers = format!("[\"{}\"]", names.address());
    let checked = tokio::task::spawn_blocking(move || {
        let mail = Mail { name: "d", messages: MANY, destinations: MANY, size: 100, waits: Waits::Overdue };
        let setup = Setup::new().set("dns.servers", &servers).set("retry.schedule", "[\"10h\"]");
        let relay = launch(setup, &mail);
        wait_until("many destinations to be looked up", PATIENCE, || {
            metric(&relay, "posthaste_attempts_started_total") >= MANY / 4
        });
        check_memory(&relay);
    });
    checked.await.expect("no panic");
}

#[test]
fn memory_is_bounded_when_nothing_is_due() {
    let mail = Mail { name: "d", messages: MANY, destinations: MANY, size: 100, waits: Waits::DueLater };
    let relay = launch(Setup::new(), &mail);
    for _ in 0..20 {
        assert_eq!(metric(&relay, "posthaste_queue_messages"), MANY);
    }
    check_memory(&relay);
}
