//! `posthaste destinations`: whom mail waits for, and holding it back, asked of the running relay.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::client::{Client, ClientError};
use super::queue::{at_least_one, command_text, json, print, table, when};
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
        #[arg(long, default_value_t = 100, value_parser = at_least_one())]
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
        #[arg(long = "for", value_name = "TIME", value_parser = while_suspended)]
        time: Option<Duration>,
    },
    /// Send to it again
    Resume {
        /// The recipient domain
        domain: String,
    },
}

/// The API counts whole seconds.
fn while_suspended(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time.as_secs() == 0 {
        return Err(format!(
            "\"{text}\" would end at once; write 1s or more, or leave --for out: then it lasts until `resume`"
        ));
    }
    Ok(time)
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
            Ok(if args.json { json(&page) } else { page_text(&page, after.is_some()) })
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

/// A page; `further` when it is not the first.
fn page_text(page: &DestinationsPage, further: bool) -> String {
    if page.destinations.is_empty() {
        let none = "no mail waits, and no destination is in trouble\n";
        return if further { "no more destinations\n" } else { none }.to_owned();
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
        status(at),
        format!("{}{}", at.waiting, if at.more { "+" } else { "" }),
        at.in_flight.to_string(),
        at.failures.to_string(),
        at.next_attempt.as_ref().map_or_else(String::new, when),
        at.last_reply.as_ref().map_or_else(String::new, |last| last.text.clone()),
    ]
}

/// The end of a suspension is of interest whether mail waits or not.
fn status(at: &DestinationView) -> String {
    match &at.suspended_until {
        Some(end) => format!("{} until {end}", at.status.word()),
        None => at.status.word().to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::admin::view::destinations::DestinationStatus;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        destinations: DestinationsArgs,
    }

    fn refused(line: &str) -> String {
        Program::try_parse_from(["destinations"].into_iter().chain(line.split(' '))).unwrap_err().to_string()
    }

    #[test]
    fn a_list_of_nothing_and_a_suspension_without_time_are_refused() {
        assert!(refused("list --limit 0").contains("0 is not in 1.."));
        for time in ["0", "0s", "999ms"] {
            assert!(
                refused(&format!("suspend a.example --for {time}")).contains("write 1s or more"),
                "{time}"
            );
        }
        Program::try_parse_from(["destinations", "suspend", "a.example", "--for", "1s"]).unwrap();
    }

    #[test]
    fn the_end_of_a_suspension_is_shown_without_mail_too() {
        let suspended = DestinationView {
            name: "a.example".to_owned(),
            status: DestinationStatus::Suspended,
            waiting: 0,
            more: false,
            in_flight: 0,
            attempts: 0,
            failures: 0,
            next_attempt: None,
            suspended_until: Some("2030-01-01T00:00:00.000Z".to_owned()),
            last_reply: None,
        };
        let page = DestinationsPage { destinations: vec![suspended], next: None };
        let expected = "\
DESTINATION  STATUS                                    WAITING  IN FLIGHT  FAILURES  NEXT  LAST REPLY
a.example    suspended until 2030-01-01T00:00:00.000Z  0        0          0
";
        assert_eq!(page_text(&page, false), expected);
    }

    #[test]
    fn the_end_of_a_list_is_told_apart_from_an_empty_one() {
        let none = DestinationsPage { destinations: Vec::new(), next: None };
        assert!(page_text(&none, false).starts_with("no mail waits"));
        assert_eq!(page_text(&none, true), "no more destinations\n");
    }
}
