//! The end-to-end benchmark: how fast mail goes through the real program, and what it costs.
//!
//! ```text
//! cargo bench --bench relay                    # every case, three rounds each
//! cargo bench --bench relay -- kept            # cases whose name contains "kept"
//! BENCH_ROUNDS=1 BENCH_MESSAGES=5000 cargo bench --bench relay
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

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;

use support::message::{self, Chance};
use support::relay::{Relay, Setup};
use support::{http, place, smtp};

/// Ticks of `/proc/PID/stat` per second: fixed in Linux's interface.
const TICKS: f64 = 100.0;
/// When a run is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// One kind of load.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    sessions: usize,
    size: usize,
    /// Part of `BENCH_MESSAGES`, in percent.
    share: usize,
    /// One connection for all messages of a session, or one per message.
    kept: bool,
    pipelined: bool,
}

const CASES: [Case; 5] = [
    Case { name: "4 KiB, 20 kept", sessions: 20, size: 4096, share: 100, kept: true, pipelined: false },
    Case {
        name: "4 KiB, 20 kept, pipelined",
        sessions: 20,
        size: 4096,
        share: 100,
        kept: true,
        pipelined: true,
    },
    Case { name: "4 KiB, 20, one each", sessions: 20, size: 4096, share: 50, kept: false, pipelined: false },
    Case { name: "4 KiB, 200 kept", sessions: 200, size: 4096, share: 100, kept: true, pipelined: false },
    Case { name: "100 KiB, 20 kept", sessions: 20, size: 100 << 10, share: 15, kept: true, pipelined: false },
];

/// What one run measured.
#[derive(Clone, Debug, Default)]
struct Measured {
    accepted: f64,
    through: f64,
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
    for case in CASES.into_iter().filter(|case| case.name.contains(&filter)) {
        let messages = (messages * case.share / 100).max(case.sessions);
        let ceiling = median(rounds, || run_ceiling(case, messages));
        print_row(case, "ceiling", &ceiling);
        let relay = median(rounds, || run_relay(case, messages));
        print_row(case, "relay", &relay);
    }
}

fn median(rounds: usize, mut run: impl FnMut() -> Measured) -> Measured {
    let mut all: Vec<Measured> = (0..rounds).map(|_| run()).collect();
    all.sort_by(|a, b| a.through.total_cmp(&b.through));
    all.swap_remove(all.len() / 2)
}

fn print_row(case: Case, what: &str, measured: &Measured) {
    print!("| {} | {what} | {:.0} | {:.0} |", case.name, measured.accepted, measured.through);
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
    drive(case, messages, sink.address, &sink)
}

fn run_relay(case: Case, messages: usize) -> Measured {
    let sink = Sink::start();
    let relay = Setup::plain().route("*", sink.address).start();
    let before = (cpu_seconds(&relay), settled_metrics(&relay));
    let mut measured = drive(case, messages, relay.smtp(), &sink);
    let after = (cpu_seconds(&relay), settled_metrics(&relay));
    let grown = |name: &str| {
        let of = |text: &str| http::metric(text, name, &[]).unwrap_or(0.0);
        of(&after.1) - of(&before.1)
    };
    let commits = grown("posthaste_commits_total");
    let with_mail = grown("posthaste_commit_messages_count").max(1.0);
    measured.relay = Some(Cost {
        cpu_ms: (after.0 - before.0) * 1000.0 / messages as f64,
        peak_mb: peak_memory(&relay) / 1e6,
        commits,
        syncs: grown("posthaste_spool_syncs_total"),
        per_commit: grown("posthaste_commit_messages_sum") / with_mail,
    });
    measured
}

/// Sends all messages and waits for them at the sink.
fn drive(case: Case, messages: usize, server: SocketAddr, sink: &Sink) -> Measured {
    let made = message::make("bench", case.size, &mut Chance::new(1));
    let wire = Arc::new(smtp::stuffed(&made.content));
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let clients: Vec<_> = (0..case.sessions)
        .map(|_| {
            let (wire, next) = (Arc::clone(&wire), Arc::clone(&next));
            let client = move || send_until(case, server, &wire, &next, messages);
            thread::Builder::new().stack_size(128 << 10).spawn(client).expect("a thread")
        })
        .collect();
    for client in clients {
        client.join().expect("no client panics").expect("the server takes all mail");
    }
    let accepted = start.elapsed();
    while sink.messages.load(Ordering::Relaxed) < messages {
        assert!(start.elapsed() < PATIENCE, "the mail does not arrive");
        thread::sleep(Duration::from_millis(1));
    }
    let rate = |time: Duration| messages as f64 / time.as_secs_f64();
    Measured { accepted: rate(accepted), through: rate(start.elapsed()), relay: None }
}

/// One session's thread: takes numbers until `messages` are sent by all.
fn send_until(
    case: Case,
    server: SocketAddr,
    wire: &[u8],
    next: &AtomicUsize,
    messages: usize,
) -> io::Result<()> {
    let mut session = None;
    while next.fetch_add(1, Ordering::Relaxed) < messages {
        let mut open = match session.take() {
            Some(open) => open,
            None => Session::open(server)?,
        };
        open.send(wire, case.pipelined)?;
        if case.kept {
            session = Some(open);
        } else {
            open.ask(b"QUIT\r\n", 1)?;
        }
    }
    match session {
        Some(mut open) => open.ask(b"QUIT\r\n", 1),
        None => Ok(()),
    }
}

/// The cheapest client: it counts reply lines and looks at nothing but refusals.
struct Session {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Session {
    fn open(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut session = Self { stream, buffer: vec![0; 4096] };
        session.ask(b"", 1)?;
        session.ask(b"EHLO bench.test\r\n", 1)?;
        Ok(session)
    }

    fn send(&mut self, wire: &[u8], pipelined: bool) -> io::Result<()> {
        let commands: [&[u8]; 3] =
            [b"MAIL FROM:<sender@sender.test>\r\n", b"RCPT TO:<rcpt@dest.test>\r\n", b"DATA\r\n"];
        if pipelined {
            self.ask(&commands.concat(), 3)?;
        } else {
            for command in commands {
                self.ask(command, 1)?;
            }
        }
        self.ask(wire, 1)
    }

    /// Sends, and reads this many replies.
    fn ask(&mut self, bytes: &[u8], replies: usize) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        let mut read = 0;
        let mut seen = 0;
        while seen < replies {
            if read == self.buffer.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match self.stream.read(&mut self.buffer[read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
            let text = &self.buffer[..read];
            if text.last() != Some(&b'\n') {
                continue;
            }
            let last_lines = text.split(|byte| *byte == b'\n').filter(|line| line.get(3) == Some(&b' '));
            seen = 0;
            for line in last_lines {
                seen += 1;
                if line[0] > b'3' {
                    return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
                }
            }
        }
        Ok(())
    }
}

/// The cheapest sink: it answers what it must and counts final dots.
struct Sink {
    address: SocketAddr,
    messages: Arc<AtomicUsize>,
}

impl Sink {
    fn start() -> Self {
        let listener = TcpListener::bind((place::own_address(), 0)).expect("a port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let messages = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&messages);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                let serve = move || {
                    // A client that goes away is the end of its connection, nothing else.
                    let _ = serve(stream, &counter);
                };
                thread::Builder::new().stack_size(256 << 10).spawn(serve).expect("a thread");
            }
        });
        Self { address, messages }
    }
}

fn serve(mut stream: TcpStream, messages: &AtomicUsize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink.test\r\n")?;
    let end_of_data = memmem::Finder::new(b"\r\n.\r\n");
    let mut buffer = vec![0; 64 << 10];
    let (mut filled, mut in_data) = (0, false);
    loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Ok(()),
            count => filled += count,
        }
        let mut replies = Vec::new();
        let mut at = 0;
        loop {
            let rest = &buffer[at..filled];
            if in_data {
                let Some(end) = end_of_data.find(rest) else {
                    at = at.max(filled.saturating_sub(4)); // the end may be cut in two
                    break;
                };
                at += end + 5;
                in_data = false;
                messages.fetch_add(1, Ordering::Relaxed);
                replies.extend_from_slice(b"250 2.0.0 kept\r\n");
            } else {
                let Some(end) = memchr::memchr(b'\n', rest) else { break };
                match rest.first() {
                    Some(b'E') => {
                        replies.extend_from_slice(b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                    }
                    Some(b'D') => {
                        in_data = true;
                        replies.extend_from_slice(b"354 go on\r\n");
                    }
                    Some(b'Q') => return stream.write_all(&[&replies, &b"221 bye\r\n"[..]].concat()),
                    _ => replies.extend_from_slice(b"250 ok\r\n"),
                }
                at += end + 1;
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        stream.write_all(&replies)?;
    }
}

/// The metrics as they are now: what is asked of the spool is shown one look later.
fn settled_metrics(relay: &Relay) -> String {
    relay.metrics();
    thread::sleep(Duration::from_millis(200));
    relay.metrics()
}

/// User and system time of the relay so far.
fn cpu_seconds(relay: &Relay) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).expect("the relay runs");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // After the name: utime and stime are the 12th and 13th.
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Most resident memory of the relay so far, in bytes.
fn peak_memory(relay: &Relay) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("the relay runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    peak.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}
