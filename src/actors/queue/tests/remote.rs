//! Remote hosts that follow a script, and Deliveries that ask them instead of the network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use tokio::sync::oneshot;

use super::START_MS;
use crate::actors::delivery::messages::{Abort, Attempt, Drain, GiveWay};
use crate::actors::delivery::{Deliveries, DeliveryHandle};
use crate::clock::SharedClock;
use crate::mail::id::QueueId;
use crate::mail::outcome::{AttemptResult, Cause, CauseClass, DestinationEffect, Fate};
use crate::route::table::Route;
use crate::smtp::address::Domain;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::Spool;
use crate::spool::memory::MemorySpool;

/// What a remote does with one recipient. Answers that concern the whole attempt hold for all its recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Deliver,
    /// 450.
    Later,
    /// 550.
    Refuse,
    Again,
    Busy,
    /// No host could be used.
    NoHost,
    /// Silent for these seconds, then the attempt times out.
    Hang(u64),
    /// Takes it after these seconds.
    Slow(u64),
    /// The delivery code panics.
    Crash,
    /// Takes it, and the connection is lost after the dot.
    TakeAndLose,
    /// Waits for Abort, then reports that the dot went unanswered.
    Interrupted,
    /// A faulty Delivery: its report leaves the recipient out.
    Forget,
}

/// One recipient of one attempt, as the script sees it.
#[derive(Debug)]
pub(super) struct Try<'a> {
    pub destination: &'a str,
    pub to: &'a str,
    /// 1 is the first attempt of this recipient of this message.
    pub number: u32,
    /// Seconds since the start of the simulation.
    pub at_s: u64,
}

/// An attempt that was made.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub at_s: u64,
    pub to: Vec<String>,
    pub from_memory: bool,
}

type Script = Box<dyn FnMut(&Try<'_>) -> Answer + Send>;

/// All remote hosts together, and what they saw.
pub(super) struct Remote {
    script: Script,
    numbers: HashMap<(QueueId, String), u32>,
    pub tried: Vec<Tried>,
    /// What was taken: to whom, which message, when (seconds), and the content.
    pub taken: Vec<(String, QueueId, u64, String)>,
    /// Attempts under way, and the most there ever were, by destination.
    pub open: HashMap<String, (usize, usize)>,
    /// A Queue of an older life is dead: what its attempts find reaches nobody.
    pub life: u32,
}

pub(super) type SharedRemote = Arc<Mutex<Remote>>;

impl Remote {
    pub(super) fn new(script: impl FnMut(&Try<'_>) -> Answer + Send + 'static) -> SharedRemote {
        Arc::new(Mutex::new(Self {
            script: Box::new(script),
            numbers: HashMap::new(),
            tried: Vec::new(),
            taken: Vec::new(),
            open: HashMap::new(),
            life: 0,
        }))
    }

    pub(super) fn follow(&mut self, script: impl FnMut(&Try<'_>) -> Answer + Send + 'static) {
        self.script = Box::new(script);
    }

    fn answers(&mut self, attempt: &Attempt, at_s: u64) -> Vec<(u16, Answer)> {
        let destination = attempt.destination.to_string();
        let names: Vec<(u16, String)> = attempt
            .recipients
            .iter()
            .map(|number| {
                (*number, attempt.envelope.recipients[usize::from(*number)].path.as_str().to_owned())
            })
            .collect();
        self.tried.push(Tried {
            at_s,
            to: names.iter().map(|(_, to)| to.clone()).collect(),
            from_memory: attempt.content.is_some(),
        });
        let open = self.open.entry(destination.clone()).or_default();
        open.0 += 1;
        open.1 = open.1.max(open.0);
        names
            .into_iter()
            .map(|(number, to)| {
                let tries = self.numbers.entry((attempt.envelope.id, to.clone())).or_default();
                *tries += 1;
                let one = Try { destination: &destination, to: &to, number: *tries, at_s };
                (number, (self.script)(&one))
            })
            .collect()
    }
}

/// Deliveries that ask a [`Remote`].
pub(super) struct ScriptedDeliveries {
    pub remote: SharedRemote,
    pub spool: Arc<MemorySpool>,
    pub clock: SharedClock,
}

impl Deliveries for ScriptedDeliveries {
    fn start(&self, _: &Domain, _: &Route) -> DeliveryHandle {
        let life = lock(&self.remote).life;
        let (remote, spool, clock) = (self.remote.clone(), self.spool.clone(), self.clock.clone());
        let (interrupted, hanging) = (Vec::new(), HashMap::new());
        let addr: Addr<Scripted> = Scripted { remote, spool, clock, life, interrupted, hanging }.start();
        DeliveryHandle {
            attempt: addr.clone().recipient(),
            drain: addr.clone().recipient(),
            abort: addr.clone().recipient(),
            give_way: addr.recipient(),
        }
    }
}

pub(super) fn lock(remote: &SharedRemote) -> std::sync::MutexGuard<'_, Remote> {
    remote.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Scripted {
    remote: SharedRemote,
    spool: Arc<MemorySpool>,
    clock: SharedClock,
    life: u32,
    interrupted: Vec<Attempt>,
    /// Attempts that hang before a transaction has begun.
    hanging: HashMap<u64, oneshot::Sender<()>>,
}

impl Actor for Scripted {
    type Context = Context<Self>;
}

impl Handler<Attempt> for Scripted {
    type Result = ();

    fn handle(&mut self, attempt: Attempt, _: &mut Context<Self>) {
        let at_s = self.clock.now_ms().saturating_sub(START_MS) / 1000;
        let answers = lock(&self.remote).answers(&attempt, at_s);
        if answers.iter().any(|(_, answer)| *answer == Answer::Interrupted) {
            return self.interrupted.push(attempt);
        }
        let wait = answers
            .iter()
            .map(|(_, answer)| match answer {
                Answer::Hang(seconds) | Answer::Slow(seconds) => *seconds,
                _ => 0,
            })
            .max();
        let hangs = answers.iter().any(|(_, answer)| matches!(answer, Answer::Hang(_)));
        let given_way = hangs.then(|| {
            let (hang, given_way) = oneshot::channel();
            self.hanging.insert(attempt.ticket, hang);
            given_way
        });
        let (remote, spool, clock, life) =
            (self.remote.clone(), self.spool.clone(), self.clock.clone(), self.life);
        let fails = |answer: &Answer| matches!(answer, Answer::Crash | Answer::NoHost | Answer::Hang(_));
        let sends = !answers.iter().any(|(_, answer)| fails(answer));
        let read = || attempt.content.clone().map_or_else(|| spool.content(attempt.envelope.id), Ok);
        let content = sends.then(read);
        let answer = move || {
            let mut remote = lock(&remote);
            if let Some(open) = remote.open.get_mut(attempt.destination.as_str()) {
                open.0 = open.0.saturating_sub(1);
            }
            if remote.life == life {
                let at_s = clock.now_ms().saturating_sub(START_MS) / 1000;
                match content {
                    Some(Err(error)) => report_damaged(attempt, &error.to_string()),
                    content => {
                        if let Some(Ok(content)) = content {
                            note_taken(&mut remote, &content, &attempt, &answers, at_s);
                        }
                        drop(remote);
                        report(attempt, &answers);
                    }
                }
            }
        };
        match wait {
            None | Some(0) => answer(),
            Some(seconds) => drop(actix_rt::spawn(async move {
                let time_out = tokio::time::sleep(Duration::from_secs(seconds));
                match given_way {
                    None => time_out.await,
                    Some(given_way) => tokio::select! {
                        () = time_out => {}
                        _ = given_way => {}
                    },
                }
                answer();
            })),
        }
    }
}

fn note_taken(remote: &mut Remote, content: &[u8], attempt: &Attempt, answers: &[(u16, Answer)], at_s: u64) {
    for (number, answer) in answers {
        if matches!(answer, Answer::Deliver | Answer::Slow(_) | Answer::TakeAndLose) {
            let to = attempt.envelope.recipients[usize::from(*number)].path.as_str().to_owned();
            let content = String::from_utf8_lossy(content).into_owned();
            remote.taken.push((to, attempt.envelope.id, at_s, content));
        }
    }
}

fn report(attempt: Attempt, answers: &[(u16, Answer)]) {
    let whole = |wanted: fn(&Answer) -> bool| answers.iter().any(|(_, answer)| wanted(answer));
    if whole(|answer| *answer == Answer::Crash) {
        return drop(attempt.report);
    }
    let effect = if whole(|answer| *answer == Answer::NoHost) {
        DestinationEffect::Failed(cause(
            CauseClass::Connect,
            EnhancedStatus::new(4, 4, 1),
            "connection refused",
        ))
    } else if whole(|answer| matches!(answer, Answer::Hang(_))) {
        DestinationEffect::Failed(cause(CauseClass::Timeout, EnhancedStatus::new(4, 4, 2), "silent too long"))
    } else if whole(|answer| matches!(answer, Answer::TakeAndLose | Answer::Busy)) {
        DestinationEffect::Untouched
    } else {
        DestinationEffect::Healthy
    };
    let fates = answers
        .iter()
        .filter(|(_, answer)| *answer != Answer::Forget)
        .map(|(number, answer)| match &effect {
            DestinationEffect::Failed(cause) => (*number, Fate::Deferred(cause.clone())),
            _ => (*number, fate(*answer)),
        })
        .collect();
    attempt.report.send(AttemptResult { fates, effect, host: None, tls: false }, Duration::ZERO);
}

fn report_damaged(attempt: Attempt, why: &str) {
    let fate = Fate::Damaged(cause(CauseClass::Local, EnhancedStatus::new(4, 3, 0), why));
    let fates = attempt.recipients.iter().map(|number| (*number, fate.clone())).collect();
    let effect = DestinationEffect::Untouched;
    attempt.report.send(AttemptResult { fates, effect, host: None, tls: false }, Duration::ZERO);
}

fn fate(answer: Answer) -> Fate {
    let (connection, status) = (CauseClass::ConnectionLost, EnhancedStatus::new(4, 4, 2));
    match answer {
        Answer::Later => {
            Fate::Deferred(cause(CauseClass::Reply4xx, EnhancedStatus::new(4, 2, 0), "greylisted"))
        }
        Answer::Refuse => {
            Fate::Bounced(cause(CauseClass::Reply5xx, EnhancedStatus::new(5, 1, 1), "no such user"))
        }
        Answer::Again => Fate::Again,
        Answer::Busy => Fate::Busy,
        Answer::TakeAndLose => Fate::Deferred(cause(connection, status, "connection lost")),
        _ => Fate::Delivered(cause(CauseClass::Accepted, EnhancedStatus::new(2, 0, 0), "taken")),
    }
}

fn cause(class: CauseClass, status: EnhancedStatus, text: &str) -> Cause {
    Cause { class, status, reply: None, text: text.to_owned() }
}

impl Handler<GiveWay> for Scripted {
    type Result = ();

    fn handle(&mut self, asked: GiveWay, _: &mut Context<Self>) {
        self.hanging.remove(&asked.ticket);
    }
}

impl Handler<Drain> for Scripted {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Context<Self>) {}
}

impl Handler<Abort> for Scripted {
    type Result = ();

    fn handle(&mut self, _: Abort, _: &mut Context<Self>) {
        for attempt in self.interrupted.drain(..) {
            let fates = attempt.recipients.iter().map(|number| (*number, Fate::Interrupted)).collect();
            let effect = DestinationEffect::Untouched;
            attempt.report.send(AttemptResult { fates, effect, host: None, tls: false }, Duration::ZERO);
        }
    }
}
