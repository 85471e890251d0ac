//! `posthaste serve`: start, say what runs, wait for a signal, drain.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::check::examine;
use super::{EXIT_CONFIG, complain, say, summary};
use crate::config::Config;
use crate::config::load::Source;
use crate::config::problem::Problem;
use crate::config::units::format_duration;
use crate::embed::Server;

/// The exit code when a second signal ends the relay: 128 and SIGINT, as shells count.
const EXIT_SIGNAL: i32 = 130;

/// Runs the relay until SIGTERM or SIGINT, or until its spool fails.
pub fn run(config: Config, source: Source) -> ExitCode {
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
    let started = tokio::select! {
        started = Server::start(config.clone()) => started,
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
    say(format_args!(
        "Draining for at most {}; a second signal ends at once, and loses no mail.",
        format_duration(config.server.drain_timeout)
    ));
    tokio::select! {
        () = server.stop() => ExitCode::SUCCESS,
        () = signals.next() => std::process::exit(EXIT_SIGNAL),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next of either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
