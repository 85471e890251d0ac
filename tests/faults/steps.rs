//! Which runs there are, several at a time, and their balance.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::library::{Fault, Library};
use crate::script::{self, Report};

/// In CI: every call up to this one is broken,
pub const EACH_UP_TO: u64 = 60;
/// and then every such-th.
pub const THEN_EVERY: u64 = 9;

/// All faults, each at all its places.
pub struct Steps {
    each_up_to: u64,
    then_every: u64,
    faults: Vec<Mutex<Place>>,
}

/// How far a fault has got.
struct Place {
    fault: Fault,
    next: u64,
    /// The first place that is not known to be reached; no run beyond it begins.
    end: u64,
    /// Whether the run with the fault at `end` has passed untouched.
    passed: bool,
    balance: Balance,
}

#[derive(Default)]
struct Balance {
    tried: usize,
    broken: usize,
    ended: usize,
    panicked: usize,
    lame: usize,
    answered: usize,
    refused: usize,
    doubled: usize,
    lost: usize,
    wrong: Vec<String>,
}

impl Steps {
    /// Breaks each call up to one, then every such-th.
    pub fn new(each_up_to: u64, then_every: u64) -> Self {
        Self { each_up_to, then_every, faults: Vec::new() }
    }

    /// One more fault to go through.
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(Mutex::new(Place {
            fault,
            next: 1,
            end: 0,
            passed: false,
            balance: Balance::default(),
        }));
    }

    /// Goes through all of them, `jobs` relays at once.
    pub fn run(&self, library: &Library, jobs: usize) {
        self.count(library, jobs);
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some((place, at)) = self.take() {
                        let fault = place.lock().unwrap().fault;
                        let report = script::run(library, fault, at);
                        place.lock().unwrap().note(at, report);
                    }
                });
            }
        });
    }

    /// Runs the script untouched once for each kind, to know how many places there are.
    fn count(&self, library: &Library, jobs: usize) {
        let mut kinds: Vec<Fault> = self.faults.iter().map(|place| place.lock().unwrap().fault).collect();
        kinds.dedup_by_key(|fault| fault.kind);
        let left = Mutex::new(kinds);
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let Some(fault) = left.lock().unwrap().pop() else { return };
                        let report = script::run(library, fault, 0);
                        for place in &self.faults {
                            let mut place = place.lock().unwrap();
                            if place.fault.kind == fault.kind {
                                place.end = report.seen.calls + 1;
                                place.balance.complain(fault, 0, &report);
                            }
                        }
                    }
                });
            }
        });
    }

    /// The next run: the fault's place and number.
    fn take(&self) -> Option<(&Mutex<Place>, u64)> {
        self.faults.iter().find_map(|place| {
            let mut locked = place.lock().unwrap();
            let at = locked.next;
            if at > locked.end {
                return None;
            }
            let step = if at < self.each_up_to { 1 } else { self.then_every };
            locked.next = if at == locked.end { at + 1 } else { (at + step).min(locked.end) };
            drop(locked);
            Some((place, at))
        })
    }

    /// One line for each fault, and the sum.
    pub fn print(&self, took: Duration) {
        let mut sum = Balance::default();
        for place in &self.faults {
            let place = place.lock().unwrap();
            println!("{:28} calls {:3}, {}", place.fault.to_string(), place.end - 1, place.balance);
            sum.add(&place.balance);
        }
        println!("{:28} {sum}, {:.1} s", "all", took.as_secs_f64());
    }

    /// Fails the test for anything that a promise forbids.
    pub fn judge(&self) {
        let mut wrong = Vec::new();
        for place in &self.faults {
            let place = place.lock().unwrap();
            if !place.passed {
                wrong.push(format!("{}: no run passed untouched", place.fault));
            }
            wrong.extend(place.balance.wrong.iter().cloned());
        }
        let first = wrong.iter().take(12).cloned().collect::<Vec<_>>().join("\n\n");
        assert!(wrong.is_empty(), "{} runs went wrong, among them:\n{first}", wrong.len());
    }
}

impl Place {
    fn note(&mut self, at: u64, report: Report) {
        if at == self.end {
            match report.seen.failed {
                Some(_) => self.end += 1,
                None => self.passed = true,
            }
        }
        let balance = &mut self.balance;
        balance.tried += 1;
        balance.broken += usize::from(report.seen.failed.is_some());
        balance.ended += usize::from(report.ended);
        balance.panicked += usize::from(report.panicked);
        balance.lame += usize::from(report.lame);
        balance.answered += report.answered;
        balance.refused += report.refused;
        balance.doubled += report.doubled;
        balance.lost += report.lost.len();
        balance.complain(self.fault, at, &report);
    }
}

impl Balance {
    fn complain(&mut self, fault: Fault, at: u64, report: &Report) {
        let lost = report.lost.iter().map(|path| format!("lost: {path}"));
        let what: Vec<String> = lost.chain(report.wrong.iter().cloned()).collect();
        if !what.is_empty() {
            let place = report.seen.failed.as_deref().unwrap_or("untouched");
            self.wrong.push(format!("{} ({place}): {}", fault.at(at), what.join("; ")));
        }
    }

    fn add(&mut self, other: &Self) {
        self.tried += other.tried;
        self.broken += other.broken;
        self.ended += other.ended;
        self.panicked += other.panicked;
        self.lame += other.lame;
        self.answered += other.answered;
        self.refused += other.refused;
        self.doubled += other.doubled;
        self.lost += other.lost;
        self.wrong.extend(other.wrong.iter().cloned());
    }
}

impl std::fmt::Display for Balance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tried {}, broken at {} places, ended {} ({} after a panic), lame {}, answered {}, refused {}, doubled {}, lost {}, wrong {}",
            self.tried,
            self.broken,
            self.ended,
            self.panicked,
            self.lame,
            self.answered,
            self.refused,
            self.doubled,
            self.lost,
            self.wrong.len()
        )
    }
}
