//! The kill test: promises P1 (durable 250) and P3 (duplicates only where SMTP makes them unavoidable).
//!
//! Clients keep handing in mail of all sizes to several recipients of several destinations; two sinks take it, defer some
//! of it, answer some of it late and hang up on some of it. In the midst the relay is killed with `kill -9` and started
//! again, `KILLS` times (default 100), with at least 200 messages answered between two kills. At the end:
//!
//! - **Nothing lost.** Each recipient of each message that was answered 250 is answered 250 by a sink, nobody else is.
//! - **Nothing damaged.** The checksum of everything a sink received up to its final dot is the sender's.
//! - **Nothing doubled without need.** A sink answers a recipient twice only for a transaction that the kill between the
//!   two answers excuses. A kill at the instant `t` excuses
//!   - transactions *past their dot*: on a connection from before `t`, answered by the sink after `t`. The relay never
//!     learnt of that answer.
//!   - *open reports*: answered by the sink in the last `w` before `t`. The relay may have learnt of it, but the commit that
//!     holds the report may not have been on disk. A report waits exactly for what a client's 250 waits for, the commit
//!     on its way and the next one, so `w` is measured, not chosen: the longest that a client waited for its 250 in the
//!     last second before `t`, those that `t` cut off included; and for the way of the 250 to the queue
//!     [`SCHEDULING`], or twice what a thread of this test had to wait for the machine in that second, if that is more.
//!
//!   Each double has to be excused by itself, and so their number per kill is within the bound that the table shows.
//!
//! - **Nothing forgotten.** Messages that were only in memory's line when the kill came are found by the next run, which
//!   happens in most restarts (counted).
//!
//! A commit is in flight when a client has sent its final dot and waits; a delivery is, when a sink has read MAIL and not
//! answered the final dot. Both are counted by what the kill did to them: the client or the sink saw the connection break.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod account;
mod scheduling;
#[path = "../support/mod.rs"]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use account::{Account, Kill};
use scheduling::Scheduling;
use support::clients::Clients;
use support::message::Chance;
use support::relay::{Relay, Setup};
use support::sink::Sink;
use support::{PATIENCE, http, rude, wait_until};

/// What a busy machine of two cores may take to wake the relay's thread that reads a 250.
const SCHEDULING: Duration = Duration::from_millis(20);
/// What a thread had to wait for counts up to this.
const SCHEDULING_MAX: Duration = Duration::from_millis(200);
/// Messages answered between two kills, at least.
const ANSWERED_BETWEEN_KILLS: usize = 200;
/// Clients that send at once.
const CLIENTS: usize = 8;
/// How long the queue may need to empty after the last kill.
const EMPTYING: Duration = Duration::from_secs(120);

#[test]
fn nothing_answered_is_lost_or_damaged_and_nothing_is_doubled_without_need() {
    let kills = std::env::var("KILLS").map_or(100, |text| text.parse::<usize>().expect("KILLS is a number"));
    let seed =
        std::env::var("SEED").map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("{kills} kills, seed {seed}");
    let sinks = [rude::sink(1), rude::sink(2)];
    let mut relay = Setup::new()
        .route("*.left.test", sinks[0].address())
        .route("*.right.test", sinks[1].address())
        .set("delivery.messages_per_connection", "20")
        .start();
    let clients = Clients::start(CLIENTS, relay.smtp(), seed);
    let mut chance = Chance::new(seed);
    let scheduling = Scheduling::measure();
    let kills: Vec<Kill> =
        (0..kills).map(|_| kill_under_load(&mut relay, &clients, &scheduling, &mut chance)).collect();
    clients.pause();
    let answered = clients.wanted();
    let patience = Instant::now();
    wait_until("every answered recipient at a sink", EMPTYING, || {
        assert!(!relay.has_ended(), "the relay ended by itself:\n{}", relay.last_lines(40));
        thread::sleep(Duration::from_millis(200));
        account::missing(&answered, &sinks).is_empty()
            || patience.elapsed() + Duration::from_secs(2) > EMPTYING
    });
    settle(&sinks);
    let account = Account::draw(&clients, &sinks, &kills);
    account.print(&relay.last_lines(5));
    account.judge();
    check_recoveries(&relay, kills.len());
    for left_behind in ["posthaste_queue_messages", "posthaste_quarantined_messages"] {
        wait_until(&format!("{left_behind} to be 0"), PATIENCE, || {
            http::metric(&relay.metrics(), left_behind, &[]) == Some(0.0)
        });
    }
}

/// Lets the load run until enough is answered, kills at a random instant, starts again.
fn kill_under_load(relay: &mut Relay, clients: &Clients, machine: &Scheduling, chance: &mut Chance) -> Kill {
    let before = clients.answered();
    wait_until("enough answered messages", Duration::from_secs(60), || {
        assert!(!relay.has_ended(), "the relay ended by itself:\n{}", relay.last_lines(40));
        clients.answered() - before >= ANSWERED_BETWEEN_KILLS
    });
    thread::sleep(Duration::from_micros(chance.below(100_000)));
    let at = Instant::now();
    relay.kill();
    let answered = clients.answered() - before;
    let dead = Instant::now();
    let scheduling = (2 * machine.longest()).clamp(SCHEDULING, SCHEDULING_MAX);
    relay.restart();
    relay.await_ready();
    Kill { at, dead, answered, scheduling, restart: dead.elapsed() }
}

/// A fresh message has no index keys until it leaves memory: after a kill the next run must look for it. Each run says
/// how many it found; most kills must have left some, else nothing is proved about them.
fn check_recoveries(relay: &Relay, kills: usize) {
    let found: Vec<usize> = relay
        .output()
        .lines()
        .filter_map(|line| line.split_once("are in line again messages=")?.1.trim().parse().ok())
        .collect();
    let some = found.iter().filter(|messages| **messages > 0).count();
    println!(
        "{some} of {kills} restarts found messages without keys, {} in all",
        found.iter().sum::<usize>()
    );
    assert!(4 * some >= 3 * kills, "only {some} of {kills} kills left messages without keys");
}

/// Waits until nothing more arrives, so that late doubles are seen too.
fn settle(sinks: &[Sink; 2]) {
    let arrived = || sinks.iter().map(|sink| sink.read(<[_]>::len)).sum::<usize>();
    let (mut count, mut since) = (arrived(), Instant::now());
    wait_until("the sinks to fall silent", EMPTYING, || {
        let now = arrived();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(5)
    });
}
