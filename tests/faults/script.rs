//! The script: nine messages over three lives of a relay whose disk fails, and what must hold after a last life without
//! the fault.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGTERM;

use crate::library::{Fault, Library, Seen};
use crate::support::http;
use crate::support::message::{self, Chance, Made};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Ending, Manner, Moment, Sink, Transaction};
use crate::support::smtp::{self, Client};

/// Longest time for a start, an end, and the queue to empty, on a machine that runs other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a relay whose disk has failed may go on without delivering what it holds.
const LAME: Duration = Duration::from_millis(1_500);
/// Below and above `spool.content_threshold`.
const SMALL: usize = 1_000;
const LARGE: usize = 40_000;

/// The size of a message and its recipients.
type Step = (usize, &'static [&'static str]);

/// Recipients by their first letters: `later` is deferred once, `never` bounces, others are taken at once.
const SCRIPT: [(&[Step], Stop); 3] = [
    (&[(SMALL, &["a"]), (LARGE, &["b", "c"]), (SMALL, &["later", "d"]), (SMALL, &["never"])], Stop::Kill),
    (&[(LARGE, &["later"]), (SMALL, &["never", "e"])], Stop::Terminate),
    (&[(LARGE, &["never"]), (SMALL, &["f"]), (SMALL, &["later"])], Stop::WhenEmpty),
];

#[derive(Clone, Copy, PartialEq)]
enum Stop {
    Kill,
    Terminate,
    WhenEmpty,
}

/// What a client knows of its message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    Refused,
    /// The connection broke after the final dot.
    Unknown,
}

struct Sent {
    made: Made,
    to: Vec<String>,
    fate: Fate,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// What the library saw.
    pub seen: Seen,
    /// Messages answered 250 while the fault was possible.
    pub answered: usize,
    /// Messages answered 4xx.
    pub refused: usize,
    /// Whether the relay ended by itself.
    pub ended: bool,
    /// Whether another program had taken one of its ports: the run says nothing.
    pub disturbed: bool,
    /// Whether it said so after a panic.
    pub panicked: bool,
    /// Whether the relay went on, but held mail back until its next start.
    pub lame: bool,
    /// Recipients that were answered twice.
    pub doubled: usize,
    /// Recipients of answered messages that neither got them nor were reported.
    pub lost: Vec<String>,
    /// Whatever else must not be.
    pub wrong: Vec<String>,
}

struct Run {
    sink: Sink,
    relay: Relay,
    sent: Vec<Sent>,
    /// When a life ended other than well: before that, answers of the sink may not have been noted.
    deaths: Vec<Instant>,
    /// Where the output of the present life begins.
    life: usize,
    report: Report,
}

/// Goes through the script while the `at`-th call fails.
pub fn run(library: &Library, fault: Fault, at: u64) -> Report {
    // Between the choice of a port and its use another program may take it.
    let mut runs = (0..3).map(|_| run_once(library, fault, at));
    runs.find(|report| !report.disturbed).unwrap_or_default()
}

fn run_once(library: &Library, fault: Fault, at: u64) -> Report {
    let sink = Sink::with(manners());
    let setup = Setup::new()
        .route("*", sink.address())
        .set("retry.schedule", "[\"100ms\"]")
        .set("server.drain_timeout", "\"3s\"");
    let variables = library.variables(setup.folder(), fault, at);
    let relay = setup.variables(variables).launch();
    let mut run =
        Run { sink, relay, sent: Vec::new(), deaths: Vec::new(), life: 0, report: Report::default() };
    run.with_the_fault();
    run.without_it();
    run.judge();
    run.report
}

fn manners() -> impl Fn(Moment<'_>) -> Manner + Send + Sync + 'static {
    let deferred = std::sync::Mutex::new(std::collections::HashSet::new());
    move |moment| match moment {
        Moment::Recipient(path) if path.starts_with("never") => Manner::Say("550 5.1.1 no such user"),
        Moment::Recipient(path)
            if path.starts_with("later") && deferred.lock().unwrap().insert(path.to_owned()) =>
        {
            Manner::Say("450 4.2.0 not now")
        }
        _ => Manner::Accept,
    }
}

impl Run {
    fn with_the_fault(&mut self) {
        for (number, (messages, stop)) in SCRIPT.iter().enumerate() {
            if number > 0 {
                self.life = self.relay.output().len();
                self.relay.restart();
            }
            if !self.has_started()
                || !messages.iter().all(|(size, to)| self.send(*size, to))
                || !self.stop(*stop)
            {
                break;
            }
        }
        self.report.seen = Seen::read(self.relay.folder());
        let count = |fate| self.sent.iter().filter(|sent| sent.fate == fate).count();
        (self.report.answered, self.report.refused) = (count(Fate::Answered), count(Fate::Refused));
    }

    fn wrong(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.report.wrong.push(format!("{what}\n{}", self.words()));
    }

    /// What the present life said, without what every life says.
    fn words(&self) -> String {
        let said = self.relay.output();
        let unlike_others = |line: &&str| {
            let usual = ["  ", "posthaste", "Send a first", "note: run with"];
            let good = ["actix", " accepted ", " delivered "];
            !usual.iter().any(|start| line.starts_with(start)) && !good.iter().any(|word| line.contains(word))
        };
        let lines = said[self.life..].lines().filter(unlike_others).filter(|line| !line.is_empty());
        lines.take(15).map(|line| format!("    {line}\n")).collect()
    }

    /// Waits for a relay that serves, be it that it takes no mail for want of space. `false`: it has ended, as it may with a message, or hangs.
    fn has_started(&mut self) -> bool {
        let serves = |relay: &Relay| relay.is_ready() || relay.is_short_of_space();
        let started = within(PATIENCE, || self.relay.has_ended() || serves(&self.relay));
        if !started {
            self.wrong("neither served nor ended after its start");
            self.end();
            return false;
        }
        !self.has_ended()
    }

    /// Whether the relay has ended by itself; if so, checks that it did so properly.
    fn has_ended(&mut self) -> bool {
        let Some(status) = self.relay.ended_within(Duration::from_millis(1)) else { return false };
        self.deaths.push(Instant::now());
        self.report.ended = true;
        let said = self.relay.output()[self.life..].to_owned();
        if status.code().is_none_or(|code| code == 0) {
            self.wrong(format!("it ended by itself with {status}"));
        }
        // Not a panic's text: sled adds one of its own, in its destructor.
        let clear = |line: &str| {
            line.contains("spool")
                && ["Input/output error", "No space left", "Read-only", "full"]
                    .iter()
                    .any(|word| line.contains(word))
        };
        if !said.lines().any(clear) {
            self.wrong("it ended without a clear word about the disk");
        }
        self.report.disturbed |= said.contains("Address already in use");
        self.report.panicked = said.contains("panicked");
        true
    }

    /// Sends one message. `false`: the relay has ended.
    fn send(&mut self, size: usize, to: &[&str]) -> bool {
        let id = format!("m{}", self.sent.len() + 1);
        let made = message::make(&id, size, &mut Chance::new(self.sent.len() as u64));
        let to: Vec<String> = to.iter().map(|name| format!("{name}.{id}@{name}.test")).collect();
        let wire = smtp::stuffed(&made.content);
        let mut fate = Fate::Refused;
        let reply = Client::greet(self.relay.smtp()).and_then(|mut client| {
            if let Some(refusal) = client.begin("ledger@sender.test", &to)? {
                return Ok(refusal);
            }
            fate = Fate::Unknown;
            client.send(&wire)?;
            client.reply()
        });
        let going_on = match reply {
            Ok(reply) => {
                fate = if reply.code == 250 { Fate::Answered } else { Fate::Refused };
                if reply.code != 250 && reply.code / 100 != 4 {
                    self.wrong(format!("{id}: the disk's trouble became {reply:?}"));
                }
                true
            }
            // Not even a greeting, or cut off: only from a relay that ends.
            Err(error) => {
                let ended = within(Duration::from_secs(5), || self.relay.has_ended());
                if !ended {
                    self.wrong(format!("{id}: the session broke ({error}), but the relay still runs"));
                }
                false
            }
        };
        self.sent.push(Sent { made, to, fate });
        // A relay whose spool has failed answers 4xx for a moment before it ends.
        !self.has_ended() && going_on
    }

    /// Ends this life. `false`: the relay had ended by itself.
    fn stop(&mut self, stop: Stop) -> bool {
        if stop == Stop::Kill {
            thread::sleep(Duration::from_millis(20));
        }
        if stop == Stop::WhenEmpty {
            let failed = Seen::read(self.relay.folder()).failed.is_some();
            let emptied = within(if failed { LAME } else { PATIENCE }, || {
                self.relay.has_ended() || self.queued() == Some(0.0)
            });
            self.report.lame = !emptied;
            if !emptied && Seen::read(self.relay.folder()).failed.is_none() {
                self.wrong("the queue did not empty, though nothing failed");
            }
        }
        if self.has_ended() {
            return false;
        }
        match stop {
            Stop::Kill => self.end(),
            Stop::Terminate | Stop::WhenEmpty => self.terminate(),
        }
        true
    }

    fn terminate(&mut self) {
        self.relay.signal(SIGTERM);
        let status = self.relay.ended_within(PATIENCE);
        let failed = Seen::read(self.relay.folder()).failed.is_some();
        match status {
            None => {
                self.wrong("SIGTERM did not end it");
                self.end();
            }
            Some(status) if !status.success() && !failed => self.wrong(format!("SIGTERM: {status}")),
            Some(_) => {}
        }
        if failed {
            self.deaths.push(Instant::now());
        }
    }

    /// Kills it, if it still runs.
    fn end(&mut self) {
        self.relay.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = self.relay.ended_within(PATIENCE);
        self.deaths.push(Instant::now());
    }

    fn queued(&self) -> Option<f64> {
        let answer = http::get(self.relay.http(), "/metrics").ok()?;
        http::metric(&answer.body, "posthaste_queue_messages", &[])
    }

    /// The last life: it must start, take mail, and settle everything.
    fn without_it(&mut self) {
        if self.relay.ended_within(Duration::from_millis(1)).is_none() {
            self.end();
        }
        self.life = self.relay.output().len();
        self.relay.set_variables(Vec::new());
        self.relay.restart();
        if !within(PATIENCE, || self.relay.has_ended() || self.relay.is_ready()) || self.relay.has_ended() {
            self.wrong("it does not start again, though nothing fails any more");
            return;
        }
        self.send(SMALL, &["g"]);
        if self.sent.last().is_some_and(|sent| sent.fate != Fate::Answered) {
            self.wrong("it takes no mail, though nothing fails any more");
        }
        if !within(PATIENCE, || self.queued() == Some(0.0)) {
            self.wrong("the queue does not empty, though nothing fails any more");
        }
    }

    fn judge(&mut self) {
        // The queue is empty when the sink has answered; its ledger may be a moment later.
        within(Duration::from_secs(1), || self.lost().is_empty());
        self.report.lost = self.lost();
        let wrong = self.sink.read(|ledger| {
            let damaged =
                ledger.iter().filter(|line| line.ending == Ending::Answered && !line.from.is_empty());
            let mut wrong: Vec<String> = damaged.filter_map(|line| self.damage(line)).collect();
            for sent in &self.sent {
                for path in &sent.to {
                    let times: Vec<&Transaction> = ledger.iter().filter(|line| settles(line, path)).collect();
                    wrong.extend(self.doubled(path, &times).err());
                }
            }
            wrong
        });
        self.report.wrong.extend(wrong);
        let count =
            |path: &String| self.sink.read(|all| all.iter().filter(|line| settles(line, path)).count());
        self.report.doubled =
            self.sent.iter().flat_map(|sent| &sent.to).filter(|path| count(path) > 1).count();
    }

    fn lost(&self) -> Vec<String> {
        let answered = self.sent.iter().filter(|sent| sent.fate == Fate::Answered);
        let settled = |path: &String| self.sink.read(|all| all.iter().any(|line| settles(line, path)));
        answered.flat_map(|sent| &sent.to).filter(|path| !settled(path)).cloned().collect()
    }

    fn damage(&self, line: &Transaction) -> Option<String> {
        let intact = line.seen.as_ref().is_some_and(|(id, crc)| {
            let known = self.sent.iter().find(|sent| sent.made.id == *id);
            known.is_some_and(|sent| {
                sent.made.crc == *crc && line.recipients.iter().all(|path| sent.to.contains(path))
            })
        });
        (!intact).then(|| format!("damaged: {:?} for {:?}", line.seen, line.recipients))
    }

    /// Settled a second time only if a death that may have kept the first one from the disk lies between.
    fn doubled(&self, path: &str, times: &[&Transaction]) -> Result<(), String> {
        // On a busy machine the sink may read a final dot when its sender is dead already.
        let excused = |pair: &[&Transaction]| {
            self.deaths.iter().any(|death| pair[0].began <= *death && *death <= pair[1].ended)
        };
        match times.windows(2).all(excused) {
            true => Ok(()),
            false => Err(format!("{path} settled {} times without need", times.len())),
        }
    }
}

/// Whether the message for this recipient, or the report that it can't be delivered, was answered.
fn settles(line: &Transaction, path: &str) -> bool {
    let report = || line.from.is_empty() && line.text().contains(path);
    line.ending == Ending::Answered && (line.recipients.iter().any(|to| to == path) || report())
}

fn within(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(3));
    }
}
