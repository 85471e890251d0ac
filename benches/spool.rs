//! What the spool costs: `cargo bench --bench spool -- [folder] [SIZExBATCH]...`.
//!
//! One thread commits as the Queue does: each commit stores fresh messages of one recipient and removes those that
//! were stored 500 messages before, deletes included in every number. Each case runs twice: with messages that are delivered
//! at their first attempt (they never get due and deadline keys), and with messages that wait for a later one (they do). The
//! folder (default: the system's temporary one) must be on the kind of disk that is to be measured, not in memory.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use posthaste::config::SpoolConfig;
use posthaste::mail::envelope::{BodyType, Content, ContentPlace, Envelope, Origin, Recipient};
use posthaste::mail::id::QueueId;
use posthaste::smtp::address::{ForwardPath, Mailbox, ReversePath};
use posthaste::spool::sled::SledSpool;
use posthaste::spool::{Counters, DueKey, Op, Spool};

/// Messages in the spool at any time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LIVE: usize = 500;
const RUN: Duration = Duration::from_secs(4);
const NOW_MS: u64 = 1_700_000_000_000;

/// Content in bytes and messages per commit.
const CASES: [(usize, usize); 7] =
    [(4096, 1), (4096, 8), (4096, 20), (4096, 100), (512, 20), (10_240, 50), (32_768, 20)];

fn main() -> Result<(), Box<dyn Error>> {
    let mut folder = std::env::temp_dir();
    let mut cases = Vec::new();
    for argument in std::env::args().skip(1).filter(|argument| !argument.starts_with('-')) {
        match argument.split_once('x').map(|(size, batch)| (size.parse(), batch.parse())) {
            Some((Ok(size), Ok(batch))) => cases.push((size, batch)),
            _ => folder = argument.into(),
        }
    }
    if cases.is_empty() {
        cases.extend(CASES);
    }
    println!(
        "content  per commit  mail   messages/s  commits/s  syncs/commit  CPU us/message  KB written/message"
    );
    for (size, batch) in cases {
        run(&folder, size, batch, false)?;
        run(&folder, size, batch, true)?;
    }
    Ok(())
}

fn run(folder: &Path, size: usize, batch: usize, waits: bool) -> Result<(), Box<dyn Error>> {
    let home = folder.join(format!("posthaste-bench-{}", std::process::id()));
    let config = SpoolConfig { path: home.clone(), reserve: 0, ..SpoolConfig::default() };
    let spool = SledSpool::open(&config, uuid::Uuid::new_v4())?;
    let content: Bytes = (0..size).map(|at| (at % 251) as u8).collect();
    let mut load = Load { made: 0, live: VecDeque::new(), content, waits };
    load.commits(&spool, LIVE / 2, Duration::from_secs(60), LIVE)?;

    let (cpu, written, syncs, start) = (cpu_time()?, bytes_written()?, spool.syncs(), Instant::now());
    let messages = load.made;
    let commits = load.commits(&spool, batch, RUN, usize::MAX)?;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_time()? - cpu);
    let written = bytes_written()? - written;
    let (messages, syncs) = ((load.made - messages) as f64, (spool.syncs() - syncs) as f64);
    println!(
        "{size:7}  {batch:10}  {}  {:10.0}  {:9.0}  {:12.2}  {:14.1}  {:18.1}",
        if waits { "waits" } else { "fresh" },
        messages / wall,
        commits as f64 / wall,
        syncs / commits as f64,
        cpu * 1e6 / messages,
        written / 1e3 / messages,
    );
    drop(spool);
    std::fs::remove_dir_all(home)?;
    Ok(())
}

struct Load {
    made: u64,
    live: VecDeque<Arc<Envelope>>,
    content: Bytes,
    /// Whether the messages get due and deadline keys.
    waits: bool,
}

impl Load {
    /// Commits for `time` or until `most` messages were made; returns how many commits that took.
    fn commits(
        &mut self,
        spool: &SledSpool,
        batch: usize,
        time: Duration,
        most: usize,
    ) -> Result<u64, Box<dyn Error>> {
        let (start, first) = (Instant::now(), self.made);
        let mut commits = 0;
        while start.elapsed() < time && self.made - first < most as u64 {
            let mut ops = Vec::with_capacity(batch * 6 + 1);
            for _ in 0..batch {
                self.put(&mut ops)?;
                if self.live.len() > LIVE {
                    self.remove(&mut ops);
                }
            }
            ops.push(Op::Counters(Counters { messages: self.made, ..Counters::default() }));
            spool.commit(&ops)?;
            commits += 1;
        }
        Ok(commits)
    }

    fn put(&mut self, ops: &mut Vec<Op>) -> Result<(), Box<dyn Error>> {
        self.made += 1;
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let path = Mailbox::parse(&format!("recipient{}@d{}.example", self.made, self.made % 20))?;
        let envelope = Arc::new(Envelope {
            id: QueueId::from_parts(NOW_MS + self.made / 8, &random),
            reverse_path: ReversePath::parse("sender@client.example")?,
            body: BodyType::EightBitMime,
            arrived_ms: NOW_MS + self.made / 8,
            origin: Origin::Smtp {
                peer: "127.0.0.1:40000".parse()?,
                helo: "client.example".into(),
                extended: true,
            },
            size: self.content.len() as u64,
            place: ContentPlace::Database,
            recipients: vec![Recipient { destination: path.domain().clone(), path: ForwardPath::new(path) }],
        });
        ops.push(Op::PutMessage(envelope.clone(), Content::Memory(self.content.clone())));
        if self.waits {
            ops.push(Op::PutDue(due(&envelope)));
            ops.push(Op::PutDeadline(envelope.arrived_ms + 14_400_000, envelope.id));
        }
        self.live.push_back(envelope);
        Ok(())
    }

    fn remove(&mut self, ops: &mut Vec<Op>) {
        let Some(envelope) = self.live.pop_front() else { return };
        if self.waits {
            ops.push(Op::DeleteDue(due(&envelope)));
            ops.push(Op::DeleteDeadline(envelope.arrived_ms + 14_400_000, envelope.id));
        }
        ops.push(Op::RemoveMessage { envelope, states: false });
    }
}

fn due(envelope: &Envelope) -> DueKey {
    let destination = envelope.recipients[0].destination.clone();
    DueKey { destination, due_ms: envelope.arrived_ms, id: envelope.id, number: 0 }
}

/// Seconds of CPU, user and system, of all threads so far.
fn cpu_time() -> Result<f64, Box<dyn Error>> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Bytes that this process handed to `write` and its kin so far.
fn bytes_written() -> Result<f64, Box<dyn Error>> {
    let counts = std::fs::read_to_string("/proc/self/io")?;
    let line = counts.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("no count of writes")?;
    Ok(line.parse()?)
}
