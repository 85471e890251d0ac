//! One cut's balance: what had been answered before it, against what its sinks and those of its clone got.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ground::{Cut, Ground};
use super::mounts::{Mount, fault_of};
use crate::support::clients::{Clients, Outcome, Sent};
use crate::support::message::Chance;
use crate::support::place;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Ending, Manner, Sink, Transaction};
use crate::support::{http, wait_for, wait_until};

/// What a busy machine of two cores may take to wake a thread.
const SCHEDULING: Duration = Duration::from_millis(20);
/// How long a relay on a clone may need to deliver everything.
const EMPTYING: Duration = Duration::from_secs(30);
/// How long an empty queue may contradict the ledger before that is a loss.
const LATE: Duration = Duration::from_secs(3);

/// Both ledgers, when the load was held.
pub struct History {
    sent: Vec<Sent>,
    live: Vec<Transaction>,
}

/// What a cut came to.
#[derive(Debug, Default)]
pub struct Finding {
    /// The cut's number.
    pub number: usize,
    /// Messages answered 250 before it.
    pub answered: usize,
    /// Their recipients that no sink had answered before it.
    pub owed: usize,
    /// Clients that waited for the answer to their final dot.
    pub commits: usize,
    /// Transactions that a sink had open.
    pub deliveries: usize,
    /// Writes that no flush had followed, in pieces, and how many of these survived.
    pub unflushed: (usize, usize),
    /// How old a report may be that was not on disk.
    pub window: Duration,
    /// From the start of a relay on what was left to its readiness.
    pub ready: Duration,
    /// Recipients answered by a sink before the cut and by the clone's sink again.
    pub twice: usize,
    /// Those of them that no open report excuses.
    pub unexcused: Vec<String>,
    /// Recipients of answered messages that got nothing.
    pub lost: Vec<String>,
    /// Deliveries with another content, of unknown messages or to others.
    pub damaged: Vec<String>,
    /// Why no relay got done with what was left.
    pub trouble: Option<String>,
}

impl Finding {
    /// All that a promise forbids, at most ten of a kind.
    pub fn faults(&self) -> Vec<String> {
        let kinds = [
            ("no relay gets done", self.trouble.as_slice()),
            ("lost", &self.lost),
            ("damaged", &self.damaged),
            ("doubled without need", &self.unexcused),
        ];
        let lines = kinds.iter().flat_map(|(what, list)| list.iter().take(10).map(move |line| (what, line)));
        lines.map(|(what, line)| format!("cut {}: {what}: {line}", self.number)).collect()
    }
}

impl History {
    /// Copies both ledgers; the clients are held.
    pub fn of(clients: &Clients, sinks: &[Sink; 2]) -> Self {
        Self { sent: clients.sent(), live: sinks.iter().flat_map(|sink| sink.read(<[_]>::to_vec)).collect() }
    }

    /// Each recipient whose message was answered before the cut.
    fn wanted(&self, cut: &Cut) -> impl Iterator<Item = (&Sent, &String)> {
        let before = |sent: &&Sent| matches!(sent.outcome, Outcome::Answered { at, .. } if at <= cut.at);
        self.sent.iter().filter(before).flat_map(|sent| sent.recipients.iter().map(move |path| (sent, path)))
    }

    /// Each recipient that a sink had answered before the cut, and when the last time.
    fn delivered(&self, cut: &Cut) -> HashMap<&str, Instant> {
        let mut delivered = HashMap::new();
        for line in answered(&self.live) {
            let Some(replied) = line.replied.filter(|replied| *replied <= cut.done) else { continue };
            for path in &line.recipients {
                let last = delivered.entry(path.as_str()).or_insert(replied);
                *last = replied.max(*last);
            }
        }
        delivered
    }

    /// How long before the cut a sink's answer may have come whose report was not on disk yet: a report waits for the
    /// commit that a client's 250 waits for, so it is the longest that a client waited in the last second.
    fn window(&self, cut: &Cut) -> Duration {
        let waits = self.sent.iter().filter_map(|sent| match sent.outcome {
            Outcome::Answered { dot, at } | Outcome::Unknown { dot, at } => {
                let recent =
                    dot <= cut.done && cut.at.saturating_duration_since(at) <= Duration::from_secs(1);
                recent.then(|| at.min(cut.done).saturating_duration_since(dot))
            }
            Outcome::NotTaken => None,
        });
        waits.max().unwrap_or_default() + SCHEDULING + (cut.done - cut.at)
    }
}

/// Starts a relay on what the cut left, lets it deliver everything and compares.
pub fn check(ground: &Ground, cut: &Cut, history: &History) -> Finding {
    let mut finding = before(cut, history);
    let sink = Sink::start(SocketAddr::new(place::own_address(), 0), false, |_| Manner::Accept);
    let mount = Mount::image(&cut.image, ground.place_for(cut));
    let started = Instant::now();
    let mut relay = Setup::new()
        .route("*", sink.address())
        .set("spool.path", &format!("\"{}\"", mount.at().join("spool").display()))
        .start();
    finding.ready = started.elapsed();
    let left = await_empty_queue(&mut relay);
    finding.trouble =
        (left > 0.0).then(|| format!("{left} messages stay in the queue:\n{}", relay.last_lines(3)));
    let delivered = history.delivered(cut);
    let missing = || {
        let again = sink.read(paths);
        let got = |path: &str| delivered.contains_key(path) || again.contains(path);
        history.wanted(cut).filter(|(_, path)| !got(path)).map(|(_, path)| path.clone()).collect::<Vec<_>>()
    };
    let patience = Instant::now();
    wait_until("the last deliveries", 2 * LATE, || missing().is_empty() || patience.elapsed() > LATE);
    finding.lost = missing();
    if http::metric(&relay.metrics(), "posthaste_quarantined_messages", &[]) != Some(0.0) {
        finding.damaged.push("a message is in quarantine".to_owned());
    }
    drop(relay);
    drop(mount);
    compare(&mut finding, cut, history, &sink.read(<[_]>::to_vec));
    finding.damaged.extend(fault_of(&cut.image).map(|said| format!("the file system is damaged: {said}")));
    finding
}

fn before(cut: &Cut, history: &History) -> Finding {
    let delivered = history.delivered(cut);
    let around = |start: Instant, end: Instant| start <= cut.at && end >= cut.done;
    let waiting = |sent: &&Sent| match sent.outcome {
        Outcome::Answered { dot, at } | Outcome::Unknown { dot, at } => around(dot, at),
        Outcome::NotTaken => false,
    };
    let answered: HashSet<&str> = history.wanted(cut).map(|(sent, _)| sent.id.as_str()).collect();
    Finding {
        number: cut.number,
        answered: answered.len(),
        owed: history.wanted(cut).filter(|(_, path)| !delivered.contains_key(path.as_str())).count(),
        commits: history.sent.iter().filter(waiting).count(),
        deliveries: history.live.iter().filter(|line| around(line.began, line.ended)).count(),
        window: history.window(cut),
        unflushed: (cut.pieces, cut.kept),
        ..Finding::default()
    }
}

/// Messages that the queue does not get rid of.
fn await_empty_queue(relay: &mut Relay) -> f64 {
    let patience = Instant::now();
    wait_for("the queue's length", 2 * EMPTYING, || {
        assert!(!relay.has_ended(), "the relay ended by itself");
        let left = http::metric(&relay.metrics(), "posthaste_queue_messages", &[])?;
        (left == 0.0 || patience.elapsed() > EMPTYING).then_some(left)
    })
}

/// Looks at everything that the clone's sink got.
fn compare(finding: &mut Finding, cut: &Cut, history: &History, ledger: &[Transaction]) {
    let by_id: HashMap<&str, &Sent> = history.sent.iter().map(|sent| (sent.id.as_str(), sent)).collect();
    for line in ledger.iter().filter(|line| line.dot.is_some()) {
        let known = line.seen.as_ref().and_then(|(id, crc)| Some((by_id.get(id.as_str())?, *crc)));
        match known {
            None => finding.damaged.push(format!("to {:?}: a message nobody sent", line.recipients)),
            Some((sent, crc)) if sent.crc != crc => {
                finding.damaged.push(format!("{}: other content", sent.id))
            }
            Some((sent, _)) if sent.outcome == Outcome::NotTaken => {
                finding.damaged.push(format!("{}: delivered, though it was refused", sent.id));
            }
            Some((sent, _)) if line.recipients.iter().any(|path| !sent.recipients.contains(path)) => {
                finding.damaged.push(format!("{}: delivered to {:?}", sent.id, line.recipients));
            }
            Some(_) => {}
        }
    }
    let delivered = history.delivered(cut);
    let window = finding.window;
    let mut again = HashSet::new();
    for path in answered(ledger).flat_map(|line| &line.recipients) {
        if !again.insert(path.as_str()) {
            finding.unexcused.push(format!("{path}: twice after the cut"));
        }
        let Some(replied) = delivered.get(path.as_str()) else { continue };
        finding.twice += 1;
        let age = cut.at.saturating_duration_since(*replied);
        if age > window {
            finding
                .unexcused
                .push(format!("{path}: answered {age:?} before the cut, the window was {window:?}"));
        }
    }
}

fn answered(ledger: &[Transaction]) -> impl Iterator<Item = &Transaction> {
    ledger.iter().filter(|line| line.ending == Ending::Answered)
}

fn paths(ledger: &[Transaction]) -> HashSet<String> {
    answered(ledger).flat_map(|line| line.recipients.iter().cloned()).collect()
}

/// A moment under load that is worth a cut.
pub fn pause(chance: &mut Chance) -> Duration {
    Duration::from_micros(20_000 + chance.below(230_000))
}
