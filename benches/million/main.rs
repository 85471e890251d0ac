//! What a long queue costs: `cargo bench --bench million -- [COUNT]... [PART]...`.
//!
//! ```text
//! cargo bench --bench million                    # 10,000, 100,000 and 1,000,000 messages
//! cargo bench --bench million -- 100000          # one length
//! cargo bench --bench million -- 1000000 short   # without the drain
//! cargo bench --bench million -- 1000000 tried   # each message was tried once, not only one per destination
//! ```
//!
//! A real spool is filled with messages of 4 KiB to 1,000 destinations that all back off, by a process that is then
//! killed. The real program (release build, default settings, one route for all to a sink of this process, all over
//! loopback) is started on it, left alone, loaded, stopped, started again, stopped; then all back-off is lifted, and it
//! is started once more.
//!
//! | column | meaning |
//! |---|---|
//! | start, killed | from exec to the 220, after `kill -9` of the process that filled the spool |
//! | first out | from that 220 until the sink has the first message of one that was due |
//! | MiB at rest, most | resident memory 20 s after that start, and the most until then |
//! | KiB each | size of the database file per message |
//! | accepted/s | messages of 4 KiB per second over 20 kept connections, for the sink; rounds alternate with those of a relay whose queue is empty, medians |
//! | empty | the same of the relay whose queue is empty |
//! | start, stopped | from exec to the 220, after SIGTERM |
//! | out/s, drain s | with all mail due: from exec until the sink has the last message |
//! | MiB | most resident memory by then |
//!
//! The database is in the system's page cache when the relay starts, since it was written just before. 1,000,000
//! messages take some 7 GB in the folder for temporary files (`TMPDIR`), which must be on a disk, and some minutes.
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

#[path = "../../tests/filled/mod.rs"]
mod filled;
#[path = "../load/mod.rs"]
mod load;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use filled::{Mail, Waits};
use load::{Load, Sink, drive, memory, peak_memory, setup};
use support::relay::{Relay, Setup};

const COUNTS: [u64; 3] = [10_000, 100_000, 1_000_000];
const DESTINATIONS: u64 = 1_000;
const SIZE: usize = 4_096;
/// How long the relay is left alone before its memory is read: longer than jemalloc keeps what was freed.
const REST: Duration = Duration::from_secs(20);
/// Messages that are due when the relay starts.
const DUE: u64 = 10;
const ROUNDS: usize = 3;
const LOAD: Load = Load { sessions: 20, size: SIZE, kept: true, pipelined: false };
/// Messages of one round of that load.
const LOAD_MESSAGES: usize = 15_000;
/// When something is given up.
const PATIENCE: Duration = Duration::from_secs(900);
const MIB: f64 = 1024.0 * 1024.0;
/// The first argument of a child that fills a spool.
const FILL: &str = "fill-and-wait";
/// The argument for mail that was tried.
const TRIED: &str = "tried";

/// What one length of queue measured.
#[derive(Debug)]
struct Row {
    killed: Duration,
    first_out: Duration,
    rest: f64,
    most: f64,
    each: f64,
    accepted: f64,
    empty: f64,
    stopped: Duration,
    drain: Option<Drain>,
}

#[derive(Debug)]
struct Drain {
    took: Duration,
    most: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let waits = if args.iter().any(|arg| arg == TRIED) { Waits::BackOffTried } else { Waits::BackOff };
    if let [first, folder, count, ..] = &args[..]
        && first == FILL
    {
        return fill_and_wait(Path::new(folder), &mail(count.parse().expect("a count"), waits));
    }
    let counts: Vec<u64> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let short = args.iter().any(|arg| arg == "short");
    println!(
        "| queued | start, killed | first out | MiB at rest | most | KiB each | accepted/s | empty | start, stopped | out/s | drain s | MiB |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for count in if counts.is_empty() { COUNTS.to_vec() } else { counts } {
        print_row(count, &measure(&mail(count, waits), short));
    }
}

fn print_row(count: u64, row: &Row) {
    let seconds = |time: Duration| cell(Some(time.as_secs_f64()), 2);
    let drain = row.drain.as_ref();
    let cells = [
        count.to_string(),
        seconds(row.killed),
        seconds(row.first_out),
        cell(Some(row.rest / MIB), 0),
        cell(Some(row.most / MIB), 0),
        cell(Some(row.each / 1024.0), 1),
        cell(Some(row.accepted), 0),
        cell(Some(row.empty), 0),
        seconds(row.stopped),
        cell(drain.map(|drain| count as f64 / drain.took.as_secs_f64()), 0),
        cell(drain.map(|drain| drain.took.as_secs_f64()), 1),
        cell(drain.map(|drain| drain.most / MIB), 0),
    ];
    println!("| {} |", cells.join(" | "));
    io::stdout().flush().expect("the table is read");
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

fn measure(mail: &Mail, short: bool) -> Row {
    let sink = Sink::start();
    let setup = setup(&sink);
    fill_and_kill(&setup, mail);
    let database = std::fs::metadata(setup.folder().join("spool/db")).expect("a database").len();
    let begun = Instant::now();
    let mut relay = setup.launch();
    let killed = greeted(&relay, begun);
    let served = Instant::now();
    await_messages(&sink, 1);
    let first_out = served.elapsed();
    thread::sleep(REST);
    let (rest, most) = (memory(&relay), peak_memory(&relay));
    assert_eq!(sink.messages.load(Ordering::Relaxed) as u64, DUE, "the others wait");
    let (accepted, empty) = accept(&relay, &sink);
    stop(&mut relay);
    let begun = Instant::now();
    relay.restart();
    let stopped = greeted(&relay, begun);
    let drain = (!short).then(|| drain(&mut relay, &sink, mail));
    Row {
        killed,
        first_out,
        rest,
        most,
        each: database as f64 / mail.messages as f64,
        accepted,
        empty,
        stopped,
        drain,
    }
}

fn stop(relay: &mut Relay) {
    relay.signal(Signal::SIGTERM);
    assert!(relay.ended_within(PATIENCE).is_some_and(|status| status.success()), "it ends");
}

fn drain(relay: &mut Relay, sink: &Sink, mail: &Mail) -> Drain {
    stop(relay);
    filled::lift(&filled::open(&relay.folder().join("spool")), mail);
    let before = sink.messages.load(Ordering::Relaxed);
    let begun = Instant::now();
    relay.restart();
    await_messages(sink, before + mail.messages as usize);
    Drain { took: begun.elapsed(), most: peak_memory(relay) }
}

/// Rounds of load on this relay and, in turn, on one with an empty queue; medians of accepted messages per second.
fn accept(full: &Relay, full_sink: &Sink) -> (f64, f64) {
    let sink = Sink::start();
    let empty = setup(&sink).start();
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (rates, relay, sink) in
            rates.iter_mut().zip([(full, full_sink), (&empty, &sink)]).map(|(a, (b, c))| (a, b, c))
        {
            let rate = drive(LOAD, LOAD_MESSAGES, relay.smtp(), sink).accepted;
            // The first round warms up.
            rates.extend((round > 0).then_some(rate));
        }
    }
    let [full, empty] = rates.map(median);
    (full, empty)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn await_messages(sink: &Sink, count: usize) {
    let start = Instant::now();
    while sink.messages.load(Ordering::Relaxed) < count {
        assert!(start.elapsed() < PATIENCE, "the mail does not arrive");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The time from exec until the relay has greeted a client.
fn greeted(relay: &Relay, begun: Instant) -> Duration {
    let mut greeting = [0; 4];
    let mut stream = connect(relay.smtp());
    stream.read_exact(&mut greeting).expect("a greeting");
    let took = begun.elapsed();
    assert_eq!(&greeting, b"220 ");
    took
}

/// The relay listens before it opens its spool: then the client waits for the greeting.
fn connect(address: SocketAddr) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "the relay does not listen: {error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn mail(count: u64, waits: Waits) -> Mail {
    Mail { name: "d", messages: count, destinations: DESTINATIONS, size: SIZE, waits }
}

/// Has another process fill the spool, and kills it.
fn fill_and_kill(setup: &Setup, mail: &Mail) {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .arg(FILL)
        .arg(setup.folder().join("spool"))
        .arg(mail.messages.to_string())
        .args((mail.waits == Waits::BackOffTried).then_some(TRIED))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts");
    let mut line = String::new();
    let output = child.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut line).expect("it says when it is done");
    assert_eq!(line, "full\n");
    child.kill().expect("killed");
    child.wait().expect("it ends");
}

/// What that process does: it fills, says so, and waits for the end of its input.
fn fill_and_wait(folder: &Path, mail: &Mail) {
    let spool = filled::open(folder);
    filled::fill(&spool, mail);
    let due = Mail { name: "due", messages: DUE, destinations: 1, size: SIZE, waits: Waits::Overdue };
    filled::fill(&spool, &due);
    println!("full");
    io::stdout().flush().expect("somebody waits for it");
    let _ = io::stdin().read(&mut [0]);
}
