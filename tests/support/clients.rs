//! The load: clients that note for each message whether it was answered 250, and how long that took.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::message::{self, Chance};
use super::smtp::{self, Client};
use super::wait_until;

/// A message as its sender knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its name in the ledger.
    pub id: String,
    /// Its checksum.
    pub crc: u32,
    /// Its recipients.
    pub recipients: Vec<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client knows of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 250 after the final dot: the relay's.
    Answered {
        /// When the final dot was sent.
        dot: Instant,
        /// When the 250 was read.
        at: Instant,
    },
    /// The final dot was sent and the connection broke: may be the relay's.
    Unknown {
        /// When the final dot was sent.
        dot: Instant,
        /// When the connection broke.
        at: Instant,
    },
    /// Refused, or broken before the final dot: never the relay's.
    NotTaken,
}

/// The running clients.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    relay: SocketAddr,
    stopped: AtomicBool,
    held: AtomicBool,
    waiting: AtomicUsize,
    answered: AtomicUsize,
    refused: AtomicUsize,
    sent: Mutex<Vec<Sent>>,
}

impl Clients {
    /// Starts `count` clients.
    pub fn start(count: usize, relay: SocketAddr, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            relay,
            stopped: AtomicBool::new(false),
            held: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            sent: Mutex::default(),
        });
        let threads = (0..count)
            .map(|number| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.keep_sending(number, seed))
            })
            .collect();
        Self { shared, threads: Mutex::new(threads) }
    }

    /// Messages answered 250 so far.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Replies other than 250 to a transaction.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// Stops the load; returns when every client has its last answer.
    pub fn pause(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.lock().unwrap().drain(..) {
            thread.join().expect("a client panicked");
        }
    }

    /// Lets every client finish its transaction and wait; returns when each has noted its last answer.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::SeqCst);
        let count = self.threads.lock().unwrap().len();
        self.await_waiting(count);
    }

    /// Ends a [`Self::hold`].
    pub fn resume(&self) {
        self.shared.held.store(false, Ordering::SeqCst);
        self.await_waiting(0);
    }

    fn await_waiting(&self, count: usize) {
        wait_until(&format!("{count} clients to wait"), Duration::from_secs(90), || {
            self.shared.waiting.load(Ordering::SeqCst) == count
        });
    }

    /// Every message.
    pub fn sent(&self) -> Vec<Sent> {
        self.shared.sent.lock().unwrap().clone()
    }

    /// Each recipient that the relay answers for.
    pub fn wanted(&self) -> Vec<(String, String)> {
        let sent = self.sent();
        let answered = sent.into_iter().filter(|sent| matches!(sent.outcome, Outcome::Answered { .. }));
        answered
            .flat_map(|sent| sent.recipients.into_iter().map(move |path| (sent.id.clone(), path)))
            .collect()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn keep_sending(&self, number: usize, seed: u64) {
        let mut chance = Chance::new(seed.wrapping_add(1 + number as u64));
        let mut count = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            self.wait_while_held();
            let Ok(mut client) = Client::greet(self.relay) else {
                thread::sleep(Duration::from_millis(5)); // it is being restarted
                continue;
            };
            for _ in 0..1 + chance.below(50) {
                self.wait_while_held();
                count += 1;
                if self.stopped.load(Ordering::SeqCst) || !self.send(&mut client, number, count, &mut chance)
                {
                    break;
                }
            }
        }
    }

    fn wait_while_held(&self) {
        let goes_on = || !self.held.load(Ordering::SeqCst) || self.stopped.load(Ordering::SeqCst);
        if goes_on() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while !goes_on() {
            thread::sleep(Duration::from_millis(2));
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Sends one message; whether the connection can go on.
    fn send(&self, client: &mut Client, number: usize, count: usize, chance: &mut Chance) -> bool {
        let id = format!("{number}-{count}");
        let made = message::make(&id, size(chance), chance);
        let recipients = recipients(&id, chance);
        let outcome = self.transact(client, &recipients, &smtp::stuffed(&made.content));
        let going_on = matches!(outcome, Outcome::Answered { .. });
        self.sent.lock().unwrap().push(Sent { id, crc: made.crc, recipients, outcome });
        if going_on {
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        going_on
    }

    fn transact(&self, client: &mut Client, recipients: &[String], wire: &[u8]) -> Outcome {
        match client.begin("ledger@sender.test", recipients) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return Outcome::NotTaken;
            }
            Err(_) => return Outcome::NotTaken,
        }
        let (body, dot) = wire.split_at(wire.len() - 3);
        if client.send(body).is_err() {
            return Outcome::NotTaken;
        }
        let sent = Instant::now();
        // A failed write may still have carried the dot: from here on only a reply tells.
        let reply = client.send(dot).and_then(|()| client.reply());
        match reply {
            Ok(reply) if reply.code == 250 => Outcome::Answered { dot: sent, at: Instant::now() },
            Ok(_) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Outcome::NotTaken
            }
            Err(_) => Outcome::Unknown { dot: sent, at: Instant::now() },
        }
    }
}

/// 200 bytes to 200 KiB, most of them small.
fn size(chance: &mut Chance) -> usize {
    let (least, most) = match chance.below(10) {
        0..=5 => (200, 6 << 10),
        6..=8 => (6 << 10, 48 << 10),
        _ => (48 << 10, 200 << 10),
    };
    (least + chance.below(most - least)) as usize
}

/// One to five recipients over six destinations and two sinks. Paths are unique, so that the ledger can tell them apart.
fn recipients(id: &str, chance: &mut Chance) -> Vec<String> {
    let domains =
        ["a.left.test", "b.left.test", "c.left.test", "a.right.test", "b.right.test", "c.right.test"];
    let count = if chance.below(2) == 0 { 1 } else { 1 + chance.below(5) };
    (0..count).map(|number| format!("r{number}.{id}@{}", domains[chance.below(6) as usize])).collect()
}
