//! Where lines go: a bounded buffer and one thread that writes it. Mail never waits for the reader of a log.
//!
//! A line is appended under a short lock; the writer takes all that gathered and writes it at once. When its reader
//! stalls, the buffer fills, further lines are dropped and counted, and lines flow again when the reader does.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat};

/// How long lines gather once the writer is awake: a wake-up costs more than a line.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes that may wait, for each line that may.
const BYTES_PER_LINE: usize = 1024;

/// Takes lines and writes them from a thread of its own. Cheap to clone; when the last clone is dropped, the thread
/// writes what it has and ends.
#[derive(Clone, Debug)]
pub struct LineSink(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    wake: Condvar,
    /// Tells `flush_within` that a batch was written.
    written: Condvar,
    capacity: usize,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that wait, each with its newline.
    buffer: Vec<u8>,
    waiting: usize,
    /// Lines that the writer took and has not finished.
    writing: usize,
    asleep: bool,
    /// Flushes that wait: the writer does not gather.
    hurry: usize,
    closed: bool,
}

impl LineSink {
    /// Starts the writer thread. At most `capacity` lines (and as many KiB) wait for `out`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        name: &str,
        capacity: usize,
        out: Box<dyn Write + Send>,
        dropped: IntCounter,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            capacity: capacity.max(1),
            dropped,
        });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writer.write_all(out))?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// Adds one line (without its newline), or drops and counts it. Never waits for the reader.
    pub fn append(&self, line: &[u8]) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        let full = state.waiting + state.writing >= shared.capacity
            || state.buffer.len() + line.len() >= shared.capacity * BYTES_PER_LINE;
        if full {
            drop(state);
            shared.dropped.inc();
            return;
        }
        state.buffer.extend_from_slice(line);
        state.buffer.push(b'\n');
        state.waiting += 1;
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            shared.wake.notify_one();
        }
    }

    /// Waits until all lines so far are written, at most `limit`. False when the reader was too slow.
    pub fn flush_within(&self, limit: Duration) -> bool {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.hurry += 1;
        shared.wake.notify_one();
        let (mut state, result) = shared
            .written
            .wait_timeout_while(state, limit, |state| state.waiting + state.writing > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.hurry -= 1;
        !result.timed_out()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer thread.
    fn write_all(&self, mut out: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        while let Some(lines) = self.take(&mut batch) {
            if write_batch(&mut out, &batch).is_err() {
                // A closed pipe or a full disk: these lines are lost, the next ones may find it better.
                self.dropped.inc_by(lines as u64);
            }
            batch.clear();
            self.lock().writing = 0;
            self.written.notify_all();
        }
    }

    /// Waits for lines and takes them; `None` when no more can come.
    fn take(&self, batch: &mut Vec<u8>) -> Option<usize> {
        let mut state = self.lock();
        state.asleep = true;
        let idle = |state: &mut State| state.waiting == 0 && !state.closed;
        state = self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        state.asleep = false;
        if state.waiting == 0 {
            return None;
        }
        let patient = |state: &mut State| state.hurry == 0 && !state.closed;
        let gathered = self.wake.wait_timeout_while(state, GATHER, patient);
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.buffer, batch);
        state.writing = std::mem::take(&mut state.waiting);
        Some(state.writing)
    }
}

/// `write_all`, but patient with an output that was made non-blocking by somebody who shares it.
fn write_batch(out: &mut dyn Write, mut batch: &[u8]) -> io::Result<()> {
    while !batch.is_empty() {
        match out.write(batch) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => batch = &batch[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::park_timeout(GATHER),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

/// Sends the relay's diagnostics (not the mail log) to `out`, usually standard error, in the form of `log.format`;
/// `RUST_LOG` chooses what is shown, `info` when it is not set.
///
/// The sink that is returned flushes them at exit.
///
/// # Errors
/// The system has no thread left.
pub fn start_diagnostics(
    config: &LogConfig,
    out: Box<dyn Write + Send>,
    dropped: IntCounter,
) -> io::Result<LineSink> {
    let sink = LineSink::start("diagnostics", config.buffer, out, dropped)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(std::env::var("RUST_LOG").ok().as_deref()))
        .with_ansi(false)
        .with_writer(DiagnosticsWriter(sink.clone()));
    // Somebody who embeds the relay may have set up tracing already: theirs is used then.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(sink)
}

/// What is shown: `wanted` (`RUST_LOG`), else `info` and above. The HTTP server's own words are left out unless
/// `wanted` names its parts: it writes an error for each request that is none, so anybody could fill the log.
fn filter(wanted: Option<&str>) -> EnvFilter {
    const QUIET: &str =
        "actix_server=warn,actix_http=warn,actix_http::h1::dispatcher=off,actix_http::h1::decoder=off";
    let with = |directives: &str| EnvFilter::try_new(format!("{QUIET},{directives}"));
    wanted
        .filter(|wanted| !wanted.trim().is_empty())
        .and_then(|wanted| with(wanted).ok())
        .or_else(|| with("info").ok())
        .unwrap_or_default()
}

/// Hands each event of tracing to the sink; an event is one `write`.
#[derive(Debug)]
struct DiagnosticsWriter(LineSink);

impl<'a> MakeWriter<'a> for DiagnosticsWriter {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        EventWriter(&self.0)
    }
}

#[derive(Debug)]
struct EventWriter<'a>(&'a LineSink);

impl Write for EventWriter<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.append(event.strip_suffix(b"\n").unwrap_or(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that holds no more than 4 KiB, for tests of a reader that stands still.
#[cfg(test)]
pub(crate) fn small_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("a page is the least");
    (reader, writer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "lines").unwrap()
    }

    #[test]
    fn lines_are_dropped_and_counted_while_the_reader_stands_still_and_flow_again_after() {
        const LINES: usize = 20_000;
        let (reader, writer) = small_pipe();
        let dropped = counter();
        let sink = LineSink::start("test", 100, Box::new(writer), dropped.clone()).unwrap();
        for number in 0..LINES {
            sink.append(format!("{number:0100}").as_bytes());
        }
        assert!(!sink.flush_within(Duration::from_millis(1)), "nobody reads");
        assert!(dropped.get() >= LINES as u64 - 300, "{}", dropped.get());
        let held = sink.0.0.lock().buffer.capacity();
        assert!(held <= 2 * 100 * BYTES_PER_LINE, "the buffer grew to {held} bytes");

        let reader = thread::spawn(move || BufReader::new(reader).lines().map_while(Result::ok).collect());
        assert!(sink.flush_within(LONG));
        sink.append(b"later");
        assert!(sink.flush_within(LONG));
        drop(sink);
        let lines: Vec<String> = reader.join().unwrap();
        assert_eq!(lines.last().unwrap(), "later");
        assert_eq!(lines.len() as u64 + dropped.get(), LINES as u64 + 1, "each line is written or counted");
    }

    #[test]
    fn a_closed_pipe_only_costs_lines() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let dropped = counter();
        let sink = LineSink::start("test", 10, Box::new(writer), dropped.clone()).unwrap();
        for expected in 1..4 {
            sink.append(b"lost");
            assert!(sink.flush_within(LONG));
            assert_eq!(dropped.get(), expected);
        }
    }

    #[test]
    fn a_request_that_is_none_writes_no_line_unless_it_was_asked_for() {
        use tracing::subscriber::with_default;
        let lines = |wanted: Option<&str>| {
            let (mut reader, writer) = io::pipe().unwrap();
            let sink = LineSink::start("test", 100, Box::new(writer), counter()).unwrap();
            let subscriber = tracing_subscriber::fmt()
                .with_env_filter(filter(wanted))
                .with_writer(DiagnosticsWriter(sink.clone()))
                .finish();
            with_default(subscriber, || {
                tracing::error!(target: "actix_http::h1::dispatcher", "stream error");
                tracing::info!(target: "actix_server::builder", "starting 1 workers");
                tracing::warn!(target: "actix_server::accept", "no worker");
                tracing::info!(target: "posthaste::embed", "draining");
            });
            drop(sink);
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).unwrap();
            ["stream error", "starting", "no worker", "draining"].map(|word| text.contains(word))
        };
        assert_eq!(lines(None), [false, false, true, true]);
        assert_eq!(lines(Some("error")), [false, false, true, false]);
        assert_eq!(lines(Some("info,actix_http::h1::dispatcher=error")), [true, false, true, true]);
        assert_eq!(lines(Some("no=such=filter")), [false, false, true, true]);
    }

    #[test]
    fn what_waits_is_written_when_the_sink_is_dropped() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = LineSink::start("test", 10, Box::new(writer), counter()).unwrap();
        sink.append(b"one");
        drop(sink);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "one\n");
    }

    #[test]
    fn a_long_line_counts_by_its_bytes() {
        let dropped = counter();
        let sink = LineSink::start("test", 4, Box::new(io::sink()), dropped.clone()).unwrap();
        sink.append(&[b'x'; 5 * BYTES_PER_LINE]);
        assert_eq!(dropped.get(), 1);
    }
}
