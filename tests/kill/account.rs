//! What was sent against what arrived: lost, damaged, doubled, and what each kill excuses.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::support::clients::{Clients, Outcome, Sent};
use crate::support::sink::{Ending, Sink, Transaction};

/// One `kill -9`.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Just before the signal.
    pub at: Instant,
    /// When the process was gone.
    pub dead: Instant,
    /// Messages answered since the one before.
    pub answered: usize,
    /// What the machine may take to wake a thread.
    pub scheduling: Duration,
    /// From the death to a ready relay.
    pub restart: Duration,
}

/// One line of the table.
#[derive(Clone, Debug)]
struct Line {
    kill: Kill,
    commits: usize,
    deliveries: usize,
    window: Duration,
    bound: usize,
    doubled: usize,
    oldest: Duration,
}

/// The whole balance.
#[derive(Debug)]
pub struct Account {
    lines: Vec<Line>,
    answered: usize,
    refused: usize,
    unknown: usize,
    deliveries: usize,
    lost: Vec<(String, String)>,
    damaged: Vec<String>,
    strange: Vec<String>,
    unexcused: Vec<String>,
}

/// The answered recipients that no sink has answered for.
pub fn missing(wanted: &[(String, String)], sinks: &[Sink; 2]) -> Vec<(String, String)> {
    let mut arrived = HashSet::new();
    for sink in sinks {
        sink.read(|ledger| {
            for line in ledger.iter().filter(|line| line.ending == Ending::Answered) {
                arrived.extend(line.recipients.iter().cloned());
            }
        });
    }
    // Each path names its message, so the path alone tells.
    wanted.iter().filter(|(_, path)| !arrived.contains(path)).cloned().collect()
}

impl Account {
    /// Compares both sides; the load has stopped and the sinks are silent.
    pub fn draw(clients: &Clients, sinks: &[Sink; 2], kills: &[Kill]) -> Self {
        let sent = clients.sent();
        let wanted = clients.wanted();
        let mut ledger: Vec<Transaction> = sinks.iter().flat_map(|sink| sink.read(<[_]>::to_vec)).collect();
        ledger.sort_by_key(|line| line.ended);
        let count = |is: fn(&Outcome) -> bool| sent.iter().filter(|sent| is(&sent.outcome)).count();
        let mut account = Self {
            lines: kills.iter().map(|kill| line(kill, &sent, &ledger)).collect(),
            answered: count(|outcome| matches!(outcome, Outcome::Answered { .. })),
            refused: clients.refused(),
            unknown: count(|outcome| matches!(outcome, Outcome::Unknown { .. })),
            deliveries: ledger.iter().filter(|line| line.ending == Ending::Answered).count(),
            lost: missing(&wanted, sinks),
            damaged: Vec::new(),
            strange: Vec::new(),
            unexcused: Vec::new(),
        };
        account.compare_content(&sent, &ledger);
        account.find_doubles(&ledger);
        account
    }

    /// Checks name, checksum and recipients of everything that arrived whole, answered or not.
    fn compare_content(&mut self, sent: &[Sent], ledger: &[Transaction]) {
        let by_id: HashMap<&str, &Sent> = sent.iter().map(|sent| (sent.id.as_str(), sent)).collect();
        for line in ledger.iter().filter(|line| line.dot.is_some()) {
            let known = line.seen.as_ref().and_then(|(id, crc)| Some((by_id.get(id.as_str())?, *crc)));
            let Some((sent, crc)) = known else {
                self.strange
                    .push(format!("from <{}> to {:?}: a message nobody sent", line.from, line.recipients));
                continue;
            };
            if sent.crc != crc {
                self.damaged.push(format!("{}: checksum {:08x} became {crc:08x}", sent.id, sent.crc));
            }
            if sent.outcome == Outcome::NotTaken {
                self.strange.push(format!("{}: delivered, though it was not taken", sent.id));
            }
            for path in line.recipients.iter().filter(|path| !sent.recipients.contains(path)) {
                self.strange.push(format!("{}: delivered to {path}, who is no recipient", sent.id));
            }
        }
    }

    /// Finds the transactions that were answered and had a recipient answered again, and their excuse.
    fn find_doubles(&mut self, ledger: &[Transaction]) {
        let mut last: HashMap<&str, &Transaction> = HashMap::new();
        let mut doubled: HashSet<*const Transaction> = HashSet::new();
        for line in ledger.iter().filter(|line| line.ending == Ending::Answered) {
            for path in &line.recipients {
                if let Some(first) = last.insert(path, line)
                    && doubled.insert(std::ptr::from_ref(first))
                {
                    self.excuse(first, line);
                }
            }
        }
    }

    fn excuse(&mut self, first: &Transaction, again: &Transaction) {
        let about = format!("{:?} to {:?}", first.seen.as_ref().map(|(id, _)| id), first.recipients);
        // The kill that the first answer ran into: the first one that its connection did not outlive.
        let kill = self.lines.iter_mut().find(|line| {
            first.connected <= line.kill.dead && first.ended <= line.kill.dead
                || excuses(&line.kill, line.window, first)
        });
        match kill {
            Some(line) if line.kill.at <= again.ended && excuses(&line.kill, line.window, first) => {
                line.doubled += 1;
                line.oldest = line.oldest.max(line.kill.dead.saturating_duration_since(first.ended));
            }
            Some(line) if line.kill.at <= again.ended => self.unexcused.push(format!(
                "{about}: answered {:?} before the kill and again; the window was {:?}",
                line.kill.at.saturating_duration_since(first.ended),
                line.window
            )),
            _ => self.unexcused.push(format!("{about}: answered twice with no kill in between")),
        }
    }

    /// The table and the summary.
    pub fn print(&self, last_words: &str) {
        println!("kill  answered  commits  deliveries  window ms  bound  doubled  oldest ms  restart ms");
        for (number, line) in self.lines.iter().enumerate() {
            println!(
                "{:4}  {:8}  {:7}  {:10}  {:9}  {:5}  {:7}  {:9}  {:10}",
                number + 1,
                line.kill.answered,
                line.commits,
                line.deliveries,
                line.window.as_millis(),
                line.bound,
                line.doubled,
                line.oldest.as_millis(),
                line.kill.restart.as_millis(),
            );
        }
        let sum = |of: fn(&Line) -> usize| self.lines.iter().map(of).sum::<usize>();
        println!(
            "kills {}, answered {}, cut off {}, refused {}, deliveries {}, lost {}, damaged {}, strange {}, doubled {} \
             of at most {}, unexcused {}",
            self.lines.len(),
            self.answered,
            self.unknown,
            self.refused,
            self.deliveries,
            self.lost.len(),
            self.damaged.len(),
            self.strange.len(),
            sum(|line| line.doubled),
            sum(|line| line.bound),
            self.unexcused.len(),
        );
        println!("the relay's last lines:\n{last_words}");
    }

    /// Fails the test for anything that a promise forbids.
    pub fn judge(&self) {
        let first = |list: &[String]| list[..list.len().min(10)].join("\n");
        assert!(self.lost.is_empty(), "answered 250 and lost: {:?}", &self.lost[..self.lost.len().min(10)]);
        assert!(self.damaged.is_empty(), "damaged:\n{}", first(&self.damaged));
        assert!(self.strange.is_empty(), "strange:\n{}", first(&self.strange));
        assert!(self.unexcused.is_empty(), "doubled without need:\n{}", first(&self.unexcused));
        for line in &self.lines {
            assert!(line.doubled <= line.bound, "more doubled than the kill excuses: {line:?}");
        }
        let busy = self.lines.iter().filter(|line| line.commits > 0 && line.deliveries > 0).count();
        assert!(
            2 * busy >= self.lines.len(),
            "only {busy} of {} kills met a commit and a delivery in flight: too little load to prove anything",
            self.lines.len()
        );
    }
}

/// Whether a kill excuses that a transaction, answered by the sink, is tried again.
fn excuses(kill: &Kill, window: Duration, first: &Transaction) -> bool {
    let past_its_dot = first.connected <= kill.dead && first.ended >= kill.at;
    let open_report = first.ended <= kill.dead && kill.at.saturating_duration_since(first.ended) <= window;
    past_its_dot || open_report
}

fn line(kill: &Kill, sent: &[Sent], ledger: &[Transaction]) -> Line {
    let around = |start: Instant, end: Instant| start <= kill.dead && end >= kill.at;
    let mut window = Duration::ZERO;
    let mut commits = 0;
    for sent in sent {
        match sent.outcome {
            Outcome::Unknown { dot, at } if around(dot, at) => {
                commits += 1;
                window = window.max(kill.dead.saturating_duration_since(dot));
            }
            Outcome::Answered { dot, at }
                if at <= kill.dead && kill.at.saturating_duration_since(at) <= Duration::from_secs(1) =>
            {
                window = window.max(at - dot);
            }
            _ => {}
        }
    }
    let window = window + kill.scheduling;
    let excused = |line: &&Transaction| line.ending == Ending::Answered && excuses(kill, window, line);
    Line {
        kill: kill.clone(),
        commits,
        deliveries: ledger.iter().filter(|line| around(line.began, line.ended)).count(),
        window,
        bound: ledger.iter().filter(excused).count(),
        doubled: 0,
        oldest: Duration::ZERO,
    }
}
