//! The command line: verbs, what they print, and their exit codes.
//!
//! LAW: the only place that prints. Everything else logs, or returns what there is to say.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the verb failed: a problem was found, the relay couldn't start, or its spool failed |
//! | 2 | the command line is wrong (clap's) |
//! | 3 | `spool rescue` saved a part: something is in quarantine or lost |
//! | 78 | the configuration is wrong (`EX_CONFIG`); set systemd's `RestartPreventExitStatus=78` |
//! | 130 | a second signal ended the relay while it was draining |

pub mod check;
pub mod client;
pub mod config;
pub mod demo;
pub mod destinations;
pub mod machine;
pub mod migrate;
pub mod queue;
pub mod rescue;
pub mod serve;
pub mod spool;
pub mod summary;
mod words;

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::config::load::{self, Source};
use crate::config::problem::ConfigErrors;

/// `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 rescued in part, 78 wrong configuration, 130 ended by a second signal.
Every key of the configuration is also an environment variable, such as POSTHASTE_SPOOL__PATH.";

/// An outbound SMTP relay: accepts mail once it is on disk, and delivers it for days if need be.
#[derive(Debug, Parser)]
#[command(name = "posthaste", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file [default: posthaste.toml in the working directory, when there is one]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the relay (what happens without a verb)
    Serve,
    /// Show a relay at work: it starts one with a receiving host and a name server, on this machine only
    Demo,
    /// Look into the queue of the running relay, and change it
    Queue(queue::QueueArgs),
    /// See whom mail waits for, and suspend or resume a destination
    Destinations(destinations::DestinationsArgs),
    /// Look into the spool of a relay that is stopped, carry its mail elsewhere, make its file small
    Spool(spool::SpoolArgs),
    /// Say every problem of the configuration, or what would run
    Check,
    /// Print a configuration file with every key, its meaning and its default
    Config,
    /// Carry the spool of a stopped relay over from an older format; a relay does it by itself while it works
    Migrate,
}

impl Cli {
    /// Does what the command line asks for.
    pub fn run(self) -> ExitCode {
        let read = || load::load(self.config.as_deref(), load::environment());
        match self.verb {
            None | Some(Verb::Serve) => with_config(read(), serve::run),
            Some(Verb::Queue(args)) => with_config(read(), |config, _| queue::run(args, &config)),
            Some(Verb::Destinations(args)) => {
                with_config(read(), |config, _| destinations::run(args, &config))
            }
            Some(Verb::Spool(args)) => with_config(read(), |config, _| spool::run(&args, &config)),
            Some(Verb::Demo) => demo::run(),
            Some(Verb::Config) => config::run(),
            Some(Verb::Migrate) => with_config(read(), |config, _| migrate::run(&config)),
            Some(Verb::Check) => check::run(read()),
        }
    }
}

/// Runs a verb that needs a configuration; says what is wrong with it otherwise.
pub fn with_config(
    read: Result<(Config, Source), ConfigErrors>,
    verb: impl FnOnce(Config, Source) -> ExitCode,
) -> ExitCode {
    match read {
        Ok((config, source)) => verb(config, source),
        Err(errors) => {
            complain(errors);
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Prints a line. Unlike `println!`, it doesn't panic when the reader is gone (`posthaste config | head`).
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line on standard error.
pub fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_file_may_stand_on_either_side_of_the_verb() {
        for arguments in
            [["posthaste", "--config", "a.toml", "check"], ["posthaste", "check", "--config", "a.toml"]]
        {
            let cli = Cli::try_parse_from(arguments).expect("good");
            assert_eq!(cli.config, Some(PathBuf::from("a.toml")));
            assert!(matches!(cli.verb, Some(Verb::Check)));
        }
    }
}
