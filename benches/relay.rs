//! The end-to-end benchmark: how fast mail goes through the real program, and what it costs.
//!
//! ```text
//! cargo bench --bench relay                    # every case, three rounds each
//! cargo bench --bench relay -- kept            # cases whose name contains "kept"
//! cargo bench --bench relay -- 65536x20        # messages of 65,536 bytes over 20 kept connections
//! BENCH_ROUNDS=1 BENCH_MESSAGES=5000 cargo bench --bench relay
//! BENCH_SET='spool.content_threshold="64KiB"' cargo bench --bench relay -- 65536x20
//! ```
//!
//! For each case, clients in this process send messages through the relay (release build, default settings, metrics and
//! mail log on, one route) to a sink in this process, all over loopback on the same machine. The clients wait for each
//! reply before the next command, as Postfix's `smtp-source` does; `pipelined` sends the envelope in one write. The clients
//! and the sink do as little as they can: `ceiling` is the same load straight into the sink, without a relay.
//!
//! | column | meaning |
//! |---|---|
//! | accepted/s | messages per second until the last 250, each durable |
//! | through/s | messages per second until the sink has the last one |
//! | CPU ms | user and system time of the relay per message, from `/proc` (10 ms ticks) |
//! | peak MB | most resident memory of the relay |
//! | commits, syncs | group commits, and syncs of the device, during the run |
//! | per commit | new messages per group commit that held any |
//!
//! The round with the median through/s is shown. The spool is in the folder for temporary files (`TMPDIR`): it must be on
//! the disk that is to be measured, not in memory. Run it before and after a change, on an idle machine, in one sitting.
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

#[path = "load/mod.rs"]
mod load;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use load::{Load, Rates, Sink, cpu_seconds, drive, peak_memory, setup};
use support::http;
use support::relay::Relay;

/// One kind of load, and how much of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    load: Load,
    /// Part of `BENCH_MESSAGES`, in percent.
    share: usize,
}

const fn case(name: &'static str, sessions: usize, size: usize, share: usize, kept: bool) -> Case {
    Case { name, load: Load { sessions, size, kept, pipelined: false }, share }
}

const CASES: [Case; 5] = [
    case("4 KiB, 20 kept", 20, 4096, 100, true),
    Case {
        name: "4 KiB, 20 kept, pipelined",
        load: Load { sessions: 20, size: 4096, kept: true, pipelined: true },
        share: 100,
    },
    case("4 KiB, 20, one each", 20, 4096, 50, false),
    case("4 KiB, 200 kept", 200, 4096, 100, true),
    case("100 KiB, 20 kept", 20, 100 << 10, 15, true),
];

/// What one run measured.
#[derive(Clone, Debug)]
struct Measured {
    rates: Rates,
    relay: Option<Cost>,
}

/// What a run cost the relay.
#[derive(Clone, Debug)]
struct Cost {
    cpu_ms: f64,
    peak_mb: f64,
    commits: f64,
    syncs: f64,
    per_commit: f64,
}

fn main() {
    let setting = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a whole number is needed"))
    };
    let messages = setting("BENCH_MESSAGES", 20_000);
    let rounds = setting("BENCH_ROUNDS", 3).max(1);
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    println!("| case | through | accepted/s | through/s | CPU ms | peak MB | commits | syncs | per commit |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let wanted = CASES.into_iter().filter(|case| case.name.contains(&filter));
    for case in own_case(&filter).map_or_else(|| wanted.collect(), |case| vec![case]) {
        let messages = (messages * case.share / 100).max(case.load.sessions);
        let ceiling = median(rounds, || run_ceiling(case, messages));
        print_row(case, "ceiling", &ceiling);
        let relay = median(rounds, || run_relay(case, messages));
        print_row(case, "relay", &relay);
    }
}

/// `SIZExSESSIONS`; its number of messages is 400 MB divided by the size, at most all.
fn own_case(text: &str) -> Option<Case> {
    let (size, sessions) = text.split_once('x')?;
    let (size, sessions) = (size.parse().ok()?, sessions.parse().ok()?);
    Some(case("own", sessions, size, (2_000_000 / size).clamp(1, 100), true))
}

fn median(rounds: usize, mut run: impl FnMut() -> Measured) -> Measured {
    let mut all: Vec<Measured> = (0..rounds).map(|_| run()).collect();
    all.sort_by(|a, b| a.rates.through.total_cmp(&b.rates.through));
    all.swap_remove(all.len() / 2)
}

fn print_row(case: Case, what: &str, measured: &Measured) {
    print!("| {} | {what} | {:.0} | {:.0} |", case.name, measured.rates.accepted, measured.rates.through);
    match &measured.relay {
        None => println!(" – | – | – | – | – |"),
        Some(cost) => println!(
            " {:.3} | {:.0} | {:.0} | {:.0} | {:.1} |",
            cost.cpu_ms, cost.peak_mb, cost.commits, cost.syncs, cost.per_commit
        ),
    }
    io::stdout().flush().expect("the table is read");
}

fn run_ceiling(case: Case, messages: usize) -> Measured {
    let sink = Sink::start();
    Measured { rates: drive(case.load, messages, sink.address, &sink), relay: None }
}

fn run_relay(case: Case, messages: usize) -> Measured {
    let sink = Sink::start();
    let relay = setup(&sink).start();
    let before = (cpu_seconds(&relay), settled_metrics(&relay));
    let rates = drive(case.load, messages, relay.smtp(), &sink);
    let after = (cpu_seconds(&relay), settled_metrics(&relay));
    let grown = |name: &str| {
        let of = |text: &str| http::metric(text, name, &[]).unwrap_or(0.0);
        of(&after.1) - of(&before.1)
    };
    let commits = grown("posthaste_commits_total");
    let with_mail = grown("posthaste_commit_messages_count").max(1.0);
    let cost = Cost {
        cpu_ms: (after.0 - before.0) * 1000.0 / messages as f64,
        peak_mb: peak_memory(&relay) / 1e6,
        commits,
        syncs: grown("posthaste_spool_syncs_total"),
        per_commit: grown("posthaste_commit_messages_sum") / with_mail,
    };
    Measured { rates, relay: Some(cost) }
}

/// The metrics as they are now: what is asked of the spool is shown one look later.
fn settled_metrics(relay: &Relay) -> String {
    relay.metrics();
    thread::sleep(Duration::from_millis(200));
    relay.metrics()
}
