//! `posthaste destinations`: whom mail waits for, and holding it back, asked of the running relay.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::client::{Client, ClientError};
use super::queue::{command_text, json, print, table, when};
use crate::actors::queue::messages::CommandResult;
use crate::admin::view::destinations::{DestinationView, DestinationsPage};
use crate::config::Config;
use crate::config::units::parse_duration;
use crate::smtp::address::Domain;

/// Destinations that one request asks for.
const PAGE: usize = 1000;

/// Arguments of `posthaste destinations`.
#[derive(Clone, Debug, Args)]
pub struct DestinationsArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: DestinationsVerb,
    /// Print the API's JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs of `posthaste destinations`.
#[derive(Clone, Debug, Subcommand)]
pub enum DestinationsVerb {
    /// List the destinations with mail, in trouble, or suspended
    List {
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Begin after this one
        #[arg(long, value_name = "DOMAIN")]
        after: Option<String>,
    },
    /// Send nothing to a destination until it is resumed; its mail waits, and expires as ever
    Suspend {
        /// The recipient domain
        domain: String,
        /// Resume by itself after this time, such as 2h
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
        time: Option<Duration>,
    },
    /// Send to it again
    Resume {
        /// The recipient domain
        domain: String,
    },
}

/// Runs `posthaste destinations`: prints to standard output, complains on standard error; the code is 1 when it failed.
pub fn run(args: DestinationsArgs, config: &Config) -> ExitCode {
    print(answer(&args, config))
}

fn answer(args: &DestinationsArgs, config: &Config) -> Result<String, ClientError> {
    let client = Client::new(config.http.address).with_token(&config.spool.path)?;
    match &args.verb {
        DestinationsVerb::List { limit, after } => {
            let page = list(&client, after.clone(), *limit)?;
            Ok(if args.json { json(&page) } else { page_text(&page) })
        }
        DestinationsVerb::Suspend { domain, time } => {
            let query = time.map(|time| format!("?seconds={}", time.as_secs())).unwrap_or_default();
            let result =
                client.json("POST", &format!("/api/destinations/{}/suspend{query}", name(domain)?))?;
            let done = format!("{domain} is suspended\n");
            Ok(if args.json { json(&result) } else { done + &in_flight(&command_text(&result, "", "wait")) })
        }
        DestinationsVerb::Resume { domain } => {
            let result: CommandResult =
                client.json("POST", &format!("/api/destinations/{}/resume", name(domain)?))?;
            Ok(if args.json { json(&result) } else { format!("{domain} is resumed\n") })
        }
    }
}

/// A name that may stand in a request.
fn name(text: &str) -> Result<Domain, ClientError> {
    Domain::parse(text).map_err(|error| ClientError::Refused {
        status: 400,
        text: format!("\"{text}\" is no domain: {error}"),
    })
}

/// Of what a command says, the lines about recipients in flight.
fn in_flight(text: &str) -> String {
    text.lines().skip(1).map(|line| format!("{line}\n")).collect()
}

/// Asks for as many pages as `limit` needs.
fn list(client: &Client, after: Option<String>, limit: usize) -> Result<DestinationsPage, ClientError> {
    let mut all = DestinationsPage { destinations: Vec::new(), next: after };
    loop {
        let left = limit - all.destinations.len();
        let after = match all.next.take() {
            Some(after) => format!("&after={}", name(&after)?),
            None => String::new(),
        };
        let page: DestinationsPage =
            client.json("GET", &format!("/api/destinations?limit={}{after}", left.clamp(1, PAGE)))?;
        all.destinations.extend(page.destinations.into_iter().take(left));
        all.next = page.next;
        if all.next.is_none() || all.destinations.len() >= limit {
            return Ok(all);
        }
    }
}

fn page_text(page: &DestinationsPage) -> String {
    if page.destinations.is_empty() {
        return "no mail waits, and no destination is in trouble\n".to_owned();
    }
    let header = ["DESTINATION", "STATUS", "WAITING", "IN FLIGHT", "FAILURES", "NEXT", "LAST REPLY"]
        .map(str::to_owned);
    let rows: Vec<_> = [header].into_iter().chain(page.destinations.iter().map(row)).collect();
    let mut text = table(&rows);
    if let Some(next) = &page.next {
        let _ = writeln!(text, "there may be more: posthaste destinations list --after {next}");
    }
    text
}

fn row(at: &DestinationView) -> [String; 7] {
    [
        at.name.clone(),
        at.status.word().to_owned(),
        format!("{}{}", at.waiting, if at.more { "+" } else { "" }),
        at.in_flight.to_string(),
        at.failures.to_string(),
        at.next_attempt.as_ref().map_or_else(String::new, when),
        at.last_reply.as_ref().map_or_else(String::new, |last| last.text.clone()),
    ]
}
