//! `posthaste serve`: start, say what runs, wait for a signal, drain.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::check::examine;
use super::{EXIT_CONFIG, complain, say, summary};
use crate::config::Config;
use crate::config::load::Source;
use crate::config::problem::Problem;
use crate::config::units::format_duration;
use crate::embed::{self, Extras, Server};
use crate::log::start_diagnostics;

/// The exit code when a second signal ends the relay: 128 and SIGINT, as shells count.
const EXIT_SIGNAL: i32 = 130;

/// How long waiting diagnostics may take at the end.
const LAST_LINES: std::time::Duration = std::time::Duration::from_millis(500);

/// Runs the relay until SIGTERM or SIGINT, or until its spool fails.
pub fn run(config: Config, source: Source) -> ExitCode {
    // Before anything is opened: without files the rest can only fail in strange ways.
    if let Err(error) = embed::enough_files(&config) {
        complain(error);
        return ExitCode::FAILURE;
    }
    let problems = examine(&config, &source);
    for problem in &problems {
        complain(problem);
    }
    if problems.iter().any(Problem::is_error) {
        return ExitCode::from(EXIT_CONFIG);
    }
    actix_rt::System::new().block_on(serve(config))
}

async fn serve(config: Config) -> ExitCode {
    // Before the start, so that a signal during recovery isn't the default one, which kills.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!("signals can't be handled: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let metrics = match embed::metrics(&config) {
        Ok(metrics) => metrics,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    let dropped = metrics.log_lines_dropped.clone();
    let diagnostics = start_diagnostics(&config.log, Box::new(std::io::stderr()), dropped);
    let extras = Extras { metrics: Some(metrics), ..Extras::default() };
    let started = tokio::select! {
        started = Server::start_with(config.clone(), extras) => started,
        () = signals.next() => return ExitCode::SUCCESS,
    };
    let server = match started {
        Ok(server) => server,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    say(format_args!("posthaste {} is running.", env!("CARGO_PKG_VERSION")));
    say(summary::summary(&config, server.smtp_addresses(), Some(server.http_address())));
    let failure = tokio::select! {
        message = server.failed() => Some(message),
        () = signals.next() => None,
    };
    if let Some(message) = failure {
        complain(message);
        return ExitCode::FAILURE;
    }
    // Through the log: a reader of ours that has stalled must not hold up the drain.
    tracing::info!(
        "draining for at most {}; a second signal ends at once, and loses no mail",
        format_duration(config.server.drain_timeout)
    );
    let code = tokio::select! {
        () = server.stop() => ExitCode::SUCCESS,
        () = signals.next() => std::process::exit(EXIT_SIGNAL),
    };
    if let Ok(diagnostics) = diagnostics {
        diagnostics.flush_within(LAST_LINES);
    }
    code
}

/// SIGTERM and SIGINT; and SIGHUP, which must not end a relay whose terminal goes away.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one that asks to stop.
    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP is ignored: restart the relay to read a changed configuration");
                }
            }
        }
    }
}
