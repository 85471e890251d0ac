//! What the demo sees of the relay, as any operator can: its mail log and its metrics.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};

/// The metrics that the demo shows, when they are not zero.
const SHOWN: [&str; 11] = [
    "posthaste_sessions_total",
    "posthaste_messages_accepted_total",
    "posthaste_recipients_accepted_total",
    "posthaste_commits_total",
    "posthaste_spool_syncs_total",
    "posthaste_attempts_started_total",
    "posthaste_recipients_total",
    "posthaste_dsns_total",
    "posthaste_connections_opened_total",
    "posthaste_connections_reused_total",
    "posthaste_queue_messages",
];

/// Columns of a log line on the terminal, without what stands before it.
const LINE_WIDTH: usize = 100;
/// What stands before the second and later parts of a long log line.
const CONTINUED: &str = "\n             ";

/// Fates that the log told of so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub delivered: usize,
    pub bounced: usize,
}

impl Progress {
    /// Shows log lines as they come, until `enough` says so of one.
    pub(super) async fn follow(
        &mut self,
        out: &mut dyn Write,
        lines: &mut broadcast::Receiver<Arc<str>>,
        start: Instant,
        mut enough: impl FnMut(&str, &Self) -> bool,
    ) -> io::Result<()> {
        if enough("", self) {
            return Ok(());
        }
        loop {
            let line = match lines.recv().await {
                Ok(line) => line,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            let line = line.trim_end();
            let passed = SystemClock.instant().duration_since(start).as_secs_f64();
            writeln!(out, "{passed:8.3}s  {}", folded(line))?;
            out.flush()?;
            self.note(line);
            if enough(line, self) {
                return Ok(());
            }
        }
    }

    fn note(&mut self, line: &str) {
        match event(line) {
            Some("delivered") => self.delivered += 1,
            Some("bounced") => self.bounced += 1,
            _ => {}
        }
    }
}

/// A log line cut at blanks, so that it can be read on a terminal.
fn folded(line: &str) -> String {
    let (mut text, mut column) = (String::with_capacity(line.len() * 2), 0);
    for word in line.split(' ') {
        if column > 0 && column + 1 + word.len() > LINE_WIDTH {
            text.push_str(CONTINUED);
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text
}

/// The event of a log line: the word behind the queue id.
fn event(line: &str) -> Option<&str> {
    line.split(' ').nth(1)
}

/// Whether a log line tells what an attempt at this message led to.
pub(super) fn is_outcome_of(line: &str, id: &str) -> bool {
    line.starts_with(id) && matches!(event(line), Some("delivered" | "deferred" | "bounced"))
}

/// GET /metrics.
pub(super) async fn fetch_metrics(http: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The series to show and their values, in the order of [`SHOWN`].
pub(super) fn metrics_table(metrics: &str) -> Vec<(&str, &str)> {
    let series = |name: &'static str| {
        metrics.lines().filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let own = series.strip_prefix(name)?;
            let is_it = own.is_empty() || own.starts_with('{');
            (is_it && (value != "0" || name == "posthaste_queue_messages")).then_some((series, value))
        })
    };
    SHOWN.into_iter().flat_map(series).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_not_zero_and_an_empty_queue() {
        let metrics = "# HELP posthaste_recipients_total x\n\
                       posthaste_recipients_total{class=\"accepted\",outcome=\"delivered\"} 5\n\
                       posthaste_recipients_total{class=\"dns\",outcome=\"deferred\"} 0\n\
                       posthaste_recipients_total_other 7\n\
                       posthaste_queue_messages 0\n\
                       posthaste_messages_accepted_total 4\r\n";
        assert_eq!(
            metrics_table(metrics),
            [
                ("posthaste_messages_accepted_total", "4"),
                ("posthaste_recipients_total{class=\"accepted\",outcome=\"delivered\"}", "5"),
                ("posthaste_queue_messages", "0"),
            ]
        );
    }

    #[test]
    fn long_log_lines_are_cut_at_blanks() {
        let word = "x".repeat(60);
        assert_eq!(folded("a b  c"), "a b  c");
        assert_eq!(folded(&format!("{word} {word} b")), format!("{word}{CONTINUED}{word} b"));
    }

    #[test]
    fn fates_are_counted_from_the_log() {
        let mut progress = Progress::default();
        for line in [
            "1 accepted to=<a@b.example>",
            "1 deferred x",
            "1 delivered x",
            "2 delivered x",
            "3 bounced x",
            "",
        ] {
            progress.note(line);
        }
        assert_eq!(progress, Progress { delivered: 2, bounced: 1 });
        assert!(is_outcome_of("12ab deferred x", "12ab") && !is_outcome_of("12ab accepted x", "12ab"));
    }
}
