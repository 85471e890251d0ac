//! What the benchmarks of the real program share: the cheapest client and sink, and what `/proc` says of the relay.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;

use super::support::message::{self, Chance};
use super::support::relay::{Relay, Setup};
use super::support::{place, smtp};

/// Ticks of `/proc/PID/stat` per second: fixed in Linux's interface.
const TICKS: f64 = 100.0;
/// When a run is given up.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Sessions at once.
    pub sessions: usize,
    /// Content in bytes.
    pub size: usize,
    /// One connection for all messages of a session, or one per message.
    pub kept: bool,
    /// Whether the envelope goes in one write.
    pub pipelined: bool,
}

/// Messages per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Until the last 250.
    pub accepted: f64,
    /// Until the sink has the last one.
    pub through: f64,
}

/// Default settings with one route to a sink, but for what `BENCH_SET` says (`key=value`).
pub fn setup(sink: &Sink) -> Setup {
    let plain = Setup::plain().route("*", sink.address);
    match std::env::var("BENCH_SET") {
        Ok(set) => {
            let (key, value) = set.split_once('=').expect("BENCH_SET is key=value");
            plain.set(key, value)
        }
        Err(_) => plain,
    }
}

/// Sends all messages and waits for them at the sink.
pub fn drive(load: Load, messages: usize, server: SocketAddr, sink: &Sink) -> Rates {
    let before = sink.messages.load(Ordering::Relaxed);
    let made = message::make("bench", load.size, &mut Chance::new(1));
    let wire = Arc::new(smtp::stuffed(&made.content));
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let clients: Vec<_> = (0..load.sessions)
        .map(|_| {
            let (wire, next) = (Arc::clone(&wire), Arc::clone(&next));
            let client = move || send_until(load, server, &wire, &next, messages);
            thread::Builder::new().stack_size(128 << 10).spawn(client).expect("a thread")
        })
        .collect();
    for client in clients {
        client.join().expect("no client panics").expect("the server takes all mail");
    }
    let accepted = start.elapsed();
    while sink.messages.load(Ordering::Relaxed) < before + messages {
        assert!(start.elapsed() < PATIENCE, "the mail does not arrive");
        thread::sleep(Duration::from_millis(1));
    }
    let rate = |time: Duration| messages as f64 / time.as_secs_f64();
    Rates { accepted: rate(accepted), through: rate(start.elapsed()) }
}

/// One session's thread: takes numbers until `messages` are sent by all.
fn send_until(
    load: Load,
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
        open.send(wire, load.pipelined)?;
        if load.kept {
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
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    /// Messages it has taken.
    pub messages: Arc<AtomicUsize>,
}

impl Sink {
    /// Starts it on a port of the system's choice.
    pub fn start() -> Self {
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

/// User and system time of the relay so far.
pub fn cpu_seconds(relay: &Relay) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).expect("the relay runs");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // After the name: utime and stime are the 12th and 13th.
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Most resident memory of the relay so far, in bytes.
pub fn peak_memory(relay: &Relay) -> f64 {
    status(relay, "VmHWM:")
}

/// Resident memory of the relay now, in bytes.
pub fn memory(relay: &Relay) -> f64 {
    status(relay, "VmRSS:")
}

/// A line of `/proc/PID/status` that is in kB, in bytes.
fn status(relay: &Relay, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("the relay runs");
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    value.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}
