//! The mail log: one function per event, so that each wording exists once. The same words are metric labels and
//! values in the API. A line starts with the queue id:
//!
//! ```text
//! 0190… accepted time=… from=<a@b.example> to=<c@d.example> recipients=1 size=4096 peer=127.0.0.1:4711 helo=app
//! 0190… deferred time=… to=<c@d.example> from=<a@b.example> host=mx.d.example[192.0.2.1]:25 tls=false class=reply_4xx
//!       status=4.2.0 attempts=1 delay=0.042s reply="450 4.2.0 greylisted" next=…
//! 0190… delivered time=… to=<c@d.example> … reply="250 2.0.0 ok"
//! ```

mod line;

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::broadcast;

use crate::config::{LogConfig, LogFormat};
use crate::log::LineSink;
use crate::mail::envelope::{Envelope, Origin};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, RemoteHost};
use line::Line;

pub use line::Rfc3339;

/// Recipients that an `accepted` line names; the rest is in their own lines.
const RECIPIENTS_NAMED: usize = 10;
/// Lines that a slow tap may be behind.
const TAP_LINES: usize = 1024;

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Writes the mail log. Cheap to clone; calling it never waits for the reader.
#[derive(Clone, Debug)]
pub struct MailLog {
    format: LogFormat,
    sink: Option<LineSink>,
    taps: Arc<Taps>,
}

#[derive(Debug)]
struct Taps {
    lines: broadcast::Sender<Arc<str>>,
    used: AtomicBool,
}

/// What a line about one recipient tells.
#[derive(Clone, Copy, Debug)]
pub struct RecipientLine<'a> {
    /// The message.
    pub envelope: &'a Envelope,
    /// The recipient's number.
    pub number: u16,
    /// The host that answered or was tried last.
    pub host: Option<&'a RemoteHost>,
    /// Why.
    pub cause: &'a Cause,
    /// Attempts that counted, this one included.
    pub attempts: u32,
    /// Whether the transaction ran under TLS.
    pub tls: bool,
    /// Wall time, milliseconds since the Unix epoch.
    pub now_ms: u64,
}

impl MailLog {
    /// Starts a log that writes to `out` from a thread of its own; lines that a slow reader makes it drop are
    /// counted in `dropped`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(config: &LogConfig, out: Box<dyn Write + Send>, dropped: IntCounter) -> io::Result<Self> {
        let sink = LineSink::start("mail-log", config.buffer, out, dropped)?;
        Ok(Self { sink: Some(sink), ..Self::discard(config.format) })
    }

    /// A log that nobody reads but its taps; for tests and for programs that embed the relay.
    pub fn discard(format: LogFormat) -> Self {
        let taps = Taps { lines: broadcast::Sender::new(TAP_LINES), used: AtomicBool::new(false) };
        Self { format, sink: None, taps: Arc::new(taps) }
    }

    /// Every line from now on. A receiver that falls far behind misses lines, and is told so.
    pub fn tap(&self) -> broadcast::Receiver<Arc<str>> {
        self.taps.used.store(true, Ordering::Release);
        self.taps.lines.subscribe()
    }

    /// Waits until all lines so far are written, at most `limit`. False when the reader was too slow.
    pub fn flush_within(&self, limit: Duration) -> bool {
        self.sink.as_ref().is_none_or(|sink| sink.flush_within(limit))
    }

    /// A message is on stable storage and is about to be answered 250.
    pub fn accepted(&self, envelope: &Envelope, now_ms: u64) {
        self.write(Some(envelope.id), "accepted", now_ms, |line| {
            line.path("from", envelope.reverse_path.as_str());
            line.paths("to", envelope.recipients.iter().take(RECIPIENTS_NAMED).map(|to| to.path.as_str()));
            line.number("recipients", envelope.recipients.len());
            line.number("size", envelope.size);
            match &envelope.origin {
                Origin::Smtp { peer, helo, .. } => {
                    line.word("peer", peer);
                    line.value("helo", helo);
                }
                Origin::Embedded => line.word("origin", "embedded"),
                Origin::Report => line.word("origin", "report"),
            }
        });
    }

    /// A client's command was answered 4yz or 5yz.
    pub fn refused(&self, peer: SocketAddr, command: &str, reply: &str, now_ms: u64) {
        self.write(None, "refused", now_ms, |line| {
            line.word("peer", peer);
            line.value("command", command);
            line.quoted("reply", reply.trim_end());
        });
    }

    /// A remote took responsibility for a recipient.
    pub fn delivered(&self, line: &RecipientLine<'_>) {
        self.recipient("delivered", line, None);
    }

    /// A recipient waits for its next attempt, at `next_ms`.
    pub fn deferred(&self, line: &RecipientLine<'_>, next_ms: u64) {
        self.recipient("deferred", line, Some(next_ms));
    }

    /// A recipient was refused for good.
    pub fn bounced(&self, line: &RecipientLine<'_>) {
        self.recipient("bounced", line, None);
    }

    /// A recipient was given up.
    pub fn expired(&self, line: &RecipientLine<'_>) {
        self.recipient("expired", line, None);
    }

    /// An operator removed a recipient.
    pub fn removed(&self, line: &RecipientLine<'_>) {
        self.recipient("removed", line, None);
    }

    /// A recipient went to quarantine with its message.
    pub fn quarantined(&self, line: &RecipientLine<'_>) {
        self.recipient("quarantined", line, None);
    }

    /// The relay stopped while a remote owed its answer to the final dot: this recipient may get the mail twice.
    pub fn interrupted(&self, line: &RecipientLine<'_>) {
        self.recipient("interrupted", line, None);
    }

    /// A report about message `about` was queued; `kind` is `failed`, `expired` or `delayed`.
    pub fn dsn(&self, about: QueueId, report: &Envelope, kind: &str, now_ms: u64) {
        self.write(Some(about), "dsn", now_ms, |line| {
            line.word("kind", kind);
            line.word("report", report.id);
            line.paths("to", report.recipients.iter().take(RECIPIENTS_NAMED).map(|to| to.path.as_str()));
        });
    }

    fn recipient(&self, event: &str, about: &RecipientLine<'_>, next_ms: Option<u64>) {
        let RecipientLine { envelope, number, host, cause, attempts, tls, now_ms } = *about;
        self.write(Some(envelope.id), event, now_ms, |line| {
            let to = envelope.recipients.get(usize::from(number)).map_or("", |to| to.path.as_str());
            line.path("to", to);
            line.path("from", envelope.reverse_path.as_str());
            if let Some(host) = host {
                line.value("host", host);
                line.number("tls", tls);
            }
            line.word("class", cause.class.word());
            line.word("status", cause.status);
            line.number("attempts", attempts);
            line.seconds("delay", now_ms.saturating_sub(envelope.arrived_ms));
            if let Some(reply) = &cause.reply {
                line.quoted("reply", reply);
            }
            if !cause.text.is_empty() {
                line.quoted("reason", &cause.text);
            }
            if let Some(next_ms) = next_ms {
                line.word("next", Rfc3339(next_ms));
            }
        });
    }

    /// Formats on the caller's thread, into a string that is used again.
    fn write(&self, id: Option<QueueId>, event: &str, now_ms: u64, fill: impl FnOnce(&mut Line<'_>)) {
        LINE.with_borrow_mut(|text| {
            let mut line = Line::begin(text, self.format, id, event, now_ms);
            fill(&mut line);
            line.end();
            if let Some(sink) = &self.sink {
                sink.append(text.as_bytes());
            }
            if self.taps.used.load(Ordering::Acquire) {
                // An error only says that the last tap is gone.
                let _ = self.taps.lines.send(text.as_str().into());
            }
        });
    }
}

#[cfg(test)]
mod tests;
