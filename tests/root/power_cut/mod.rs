//! The power cut test: promise P1 (durable 250) where `kill -9` proves nothing, because the kernel lives on.
//!
//! A spool lives on an ext4 image behind a loop device. Clients hand in mail of all sizes, rude sinks take, defer and
//! drop it. At random instants the image is copied as a power cut would have left it, while the load goes on; then the
//! load is held, and each copy is mounted (ext4 replays its journal), a relay of its own is started on it and delivers
//! everything to a sink of its own. Two rigs make the copies:
//!
//! - **Clones.** The image's file lies on XFS and is cloned by reflink. A clone has every write that has reached the
//!   device, in its order; what the relay or ext4 still had in memory is gone.
//! - **A cache.** The image's file is a disk with a volatile cache ([`disk`]): a write that no flush has followed is
//!   forgotten, torn or overtaken by another one. A disk of this kind that ignores flushes has to be found out: that is
//!   the proof that this rig can see a loss.
//!
//! For each cut:
//!
//! - **Nothing lost.** Each recipient of each message that was answered 250 before the cut is answered 250 by a sink:
//!   before the cut by the first relay's, or by its own.
//! - **Nothing damaged.** The checksum of everything delivered is the sender's, nothing is in quarantine, `e2fsck` is
//!   content with the file system.
//! - **Nothing doubled without need.** A recipient may get a message before the cut and again after it when the report
//!   of the first delivery may not have been on disk; see [`account`] for how long that may be.
//!
//! `POWER_CUTS` is the number of cuts of the first rig (default 60); the second makes a third of them. `SEED` repeats the
//! choices, though not the timing. `KEEP_CUTS` names a folder for the images of cuts that broke a promise.

mod account;
mod disk;
mod ground;
mod mounts;

use std::fs::{self, File};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use account::{Finding, History};
use disk::Flushes;
use ground::{Cut, Ground, reflink};

use crate::support::clients::Clients;
use crate::support::message::Chance;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::Sink;
use crate::support::{rude, wait_until};

/// Clients that send at once.
const CLIENTS: usize = 6;
/// Messages answered between two cuts, at least.
const ANSWERED_BETWEEN_CUTS: usize = 20;
/// Cuts made under load, before the load is held and they are looked at.
const CUTS_AT_A_TIME: usize = 10;
/// Cuts looked at at once: most of the time is spent waiting for a retry.
const LOOKED_AT_AT_ONCE: usize = 3;

/// The rigs measure how long things take, so they don't share the machine with each other.
static ALONE: Mutex<()> = Mutex::new(());

/// A relay under load.
struct World {
    relay: Relay,
    clients: Clients,
    sinks: [Sink; 2],
    ground: Ground,
    chance: Chance,
}

impl World {
    fn start(ground: Ground) -> Self {
        let seed = std::env::var("SEED")
            .map_or_else(|_| u64::from(std::process::id()), |text| text.parse().expect("SEED is a number"));
        println!("seed {seed}");
        let sinks = [rude::sink(1), rude::sink(2)];
        let relay = Setup::new()
            .route("*.left.test", sinks[0].address())
            .route("*.right.test", sinks[1].address())
            .set("delivery.messages_per_connection", "20")
            .set("spool.path", &format!("\"{}\"", ground.spool().display()))
            .start();
        let clients = Clients::start(CLIENTS, relay.smtp(), seed);
        Self { relay, clients, sinks, ground, chance: Chance::new(seed) }
    }

    /// Cuts so many times, or until a batch has broken a promise: more of the same would only take long.
    fn cut(&mut self, count: usize) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        while findings.len() < count && findings.iter().all(|finding| finding.faults().is_empty()) {
            let made = findings.len();
            let batch = CUTS_AT_A_TIME.min(count - made);
            self.clients.resume();
            let cuts: Vec<Cut> = (1..=batch).map(|number| self.cut_under_load(made + number)).collect();
            self.clients.hold();
            findings.extend(self.look_at(cuts));
        }
        findings
    }

    /// Lets the load run until enough is answered, and cuts at a random instant.
    fn cut_under_load(&mut self, number: usize) -> Cut {
        let before = self.clients.answered();
        wait_until("enough answered messages", Duration::from_secs(60), || {
            assert!(!self.relay.has_ended(), "the relay ended by itself:\n{}", self.relay.last_lines(40));
            self.clients.answered() - before >= ANSWERED_BETWEEN_CUTS
        });
        thread::sleep(account::pause(&mut self.chance));
        self.ground.cut(number, &mut self.chance)
    }

    fn look_at(&self, cuts: Vec<Cut>) -> Vec<Finding> {
        let history = History::of(&self.clients, &self.sinks);
        let left = Mutex::new(cuts.into_iter());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut findings = Vec::new();
            while let Some(cut) = next() {
                findings.push(look_at(&self.ground, &cut, &history));
            }
            findings
        };
        let mut findings = thread::scope(|scope| {
            let workers: Vec<_> = (0..LOOKED_AT_AT_ONCE).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("a worker catches panics"))
                .collect::<Vec<_>>()
        });
        findings.sort_by_key(|finding| finding.number);
        findings
    }
}

/// Looks at a cut; a relay that can't start on it, or that never gets done, is a finding too.
fn look_at(ground: &Ground, cut: &Cut, history: &History) -> Finding {
    let check = || account::check(ground, cut, history);
    let untouched = cut.image.with_extension("untouched");
    File::open(&cut.image).map(|image| reflink(&image, &untouched)).expect("the image opens");
    let finding = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Finding { number: cut.number, trouble: Some(said.to_owned()), ..Finding::default() }
    });
    if let Some(folder) = std::env::var_os("KEEP_CUTS").filter(|_| !finding.faults().is_empty()) {
        let _ = Command::new("cp").arg("--sparse=always").arg(&untouched).arg(folder).status();
    }
    for image in [&cut.image, &untouched] {
        let _ = fs::remove_file(image);
    }
    finding
}

/// The table, its sum, and all that a promise forbids.
fn print(rig: &str, world: &World, findings: &[Finding], began: Instant) -> Vec<String> {
    println!(
        "cut  answered  owed  commits  deliveries  unflushed  kept  ready ms  lost  damaged  window ms  twice  unexcused"
    );
    for cut in findings {
        println!(
            "{:3}  {:8}  {:4}  {:7}  {:10}  {:9}  {:4}  {:8}  {:4}  {:7}  {:9}  {:5}  {:9}",
            cut.number,
            cut.answered,
            cut.owed,
            cut.commits,
            cut.deliveries,
            cut.unflushed.0,
            cut.unflushed.1,
            cut.ready.as_millis(),
            cut.lost.len(),
            cut.damaged.len(),
            cut.window.as_millis(),
            cut.twice,
            cut.unexcused.len(),
        );
    }
    let sum = |of: fn(&Finding) -> usize| findings.iter().map(of).sum::<usize>();
    println!(
        "{rig}: cuts {}, messages answered {}, refused {}, recipients owed at the cuts {}, lost {}, damaged {}, \
         delivered twice {} (unexcused {}), not done {}, {:?}",
        findings.len(),
        world.clients.answered(),
        world.clients.refused(),
        sum(|cut| cut.owed),
        sum(|cut| cut.lost.len()),
        sum(|cut| cut.damaged.len()),
        sum(|cut| cut.twice),
        sum(|cut| cut.unexcused.len()),
        findings.iter().filter(|cut| cut.trouble.is_some()).count(),
        began.elapsed(),
    );
    findings.iter().flat_map(Finding::faults).collect()
}

/// Fails the test for anything that a promise forbids, and for a load that proves nothing.
fn judge(faults: &[String], findings: &[Finding]) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let busy = findings.iter().filter(|cut| cut.owed > 0 && cut.commits > 0).count();
    assert!(
        2 * busy >= findings.len(),
        "only {busy} of {} cuts met a queue and a commit in flight: too little load to prove anything",
        findings.len()
    );
}

fn cuts_wanted() -> usize {
    std::env::var("POWER_CUTS").map_or(60, |text| text.parse().expect("POWER_CUTS is a number"))
}

#[test]
fn nothing_answered_is_lost_when_every_write_counts_that_reached_the_device() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    mounts::withdraw();
    let mut world = World::start(Ground::reflinked());
    let findings = world.cut(cuts_wanted());
    judge(&print("clones", &world, &findings, began), &findings);
}

#[test]
fn nothing_answered_is_lost_when_the_disk_forgets_and_reorders_what_was_not_flushed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    mounts::withdraw();
    let mut world = World::start(Ground::cached(Flushes::Kept));
    let findings = world.cut(cuts_wanted().div_ceil(3));
    let faults = print("cache", &world, &findings, began);
    println!("flushes {:?}", world.ground.flushed());
    judge(&faults, &findings);
    let forgetful = findings.iter().filter(|cut| cut.unflushed.0 > cut.unflushed.1).count();
    assert!(forgetful > 0, "no cut met a write that was not flushed");
}

#[test]
fn a_disk_that_ignores_flushes_is_found_out() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    mounts::withdraw();
    let mut world = World::start(Ground::cached(Flushes::Ignored(Duration::from_millis(500))));
    let findings = world.cut(4);
    let faults = print("cache that ignores flushes", &world, &findings, began);
    assert!(!faults.is_empty(), "half a second of writes is gone at each cut, and nobody noticed");
    assert!(findings.iter().any(|cut| !cut.lost.is_empty()), "no loss among these:\n{}", faults.join("\n"));
}
