//! `posthaste queue`: what waits, why, and what to do about it, asked of the running relay.

mod quarantine;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use self::quarantine::QuarantineVerb;
use super::client::{Client, ClientError};
use crate::actors::queue::messages::CommandResult;
use crate::admin::view::{
    LastReplyView, MessageSummary, MessageView, Moment, QueuePage, RecipientView, WaitingKind, human_seconds,
};
use crate::config::Config;
use crate::config::units::format_size;
use crate::mail::envelope::Status;
use crate::mail::id::QueueId;

/// Messages that one request asks for.
const PAGE: usize = 1000;
/// Suspended destinations that `retry` names.
const NAMED: usize = 3;
/// Widest column for text that has no limit of its own, in characters.
const COLUMN_MAX: usize = 60;

/// Arguments of `posthaste queue`.
#[derive(Clone, Debug, Args)]
pub struct QueueArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: QueueVerb,
    /// Print the API's JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs of `posthaste queue`.
#[derive(Clone, Debug, Subcommand)]
pub enum QueueVerb {
    /// List queued messages, oldest first
    List {
        /// How many messages at most
        #[arg(long, default_value_t = 100, value_parser = at_least_one())]
        limit: usize,
        /// Begin after this queue id
        #[arg(long, value_name = "ID")]
        after: Option<QueueId>,
    },
    /// Show one message: for each recipient why it waits, the last reply and the next attempt
    Show {
        /// The queue id, as `queue list` and the mail log show it
        id: QueueId,
    },
    /// Make the next attempt due now, whatever the schedule says
    Retry(OneMessage),
    /// Make no attempt until it is released; it expires as ever
    Hold(OneMessage),
    /// End a hold: the schedule goes on where it was
    Release(OneMessage),
    /// Remove from the queue without telling the sender
    Remove(OneMessage),
    /// What was set aside because it can't be read or crashes the delivery
    #[command(subcommand)]
    Quarantine(QuarantineVerb),
}

/// A message, or one of its recipients.
#[derive(Clone, Debug, Args)]
pub struct OneMessage {
    /// The queue id, as `queue list` and the mail log show it
    pub id: QueueId,
    /// Only this recipient, by the number that `queue show` gives
    #[arg(long, value_name = "NUMBER")]
    pub recipient: Option<u16>,
}

/// How many entries a list may have.
pub(super) fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Runs `posthaste queue`: prints to standard output, complains on standard error; the code is 1 when it failed.
pub fn run(args: QueueArgs, config: &Config) -> ExitCode {
    print(answer(&args, config))
}

/// Prints what a verb has to say, or why it failed.
pub(super) fn print(answer: Result<String, ClientError>) -> ExitCode {
    match answer {
        Ok(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        Err(error) => {
            let _ = writeln!(io::stderr(), "posthaste: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is printed.
fn answer(args: &QueueArgs, config: &Config) -> Result<String, ClientError> {
    let client = Client::new(config.http.address).with_token(&config.spool.path)?;
    match &args.verb {
        QueueVerb::List { limit, after } => {
            let page = list(&client, *after, *limit)?;
            Ok(if args.json { json(&page) } else { page_text(&page, after.is_some()) })
        }
        QueueVerb::Show { id } => {
            let message: MessageView = client.json("GET", &format!("/api/queue/{id}"))?;
            Ok(if args.json { json(&message) } else { message_text(&message) })
        }
        QueueVerb::Retry(which) => {
            let result = client.json("POST", &path(which, "/retry"))?;
            if args.json {
                return Ok(json(&result));
            }
            Ok(command_text(&result, "due now", "be due at once") + &suspended(&client, which))
        }
        QueueVerb::Hold(which) => {
            let result = client.json("POST", &path(which, "/hold"))?;
            Ok(if args.json { json(&result) } else { command_text(&result, "on hold", "be on hold") })
        }
        QueueVerb::Release(which) => {
            let result = client.json("POST", &path(which, "/release"))?;
            Ok(if args.json { json(&result) } else { command_text(&result, "released", "be released") })
        }
        QueueVerb::Remove(which) => {
            let result = client.json("DELETE", &path(which, ""))?;
            Ok(if args.json { json(&result) } else { command_text(&result, "removed", "be removed") })
        }
        QueueVerb::Quarantine(verb) => quarantine::answer(&client, verb, args.json),
    }
}

/// That what is due is not tried all the same.
fn suspended(client: &Client, which: &OneMessage) -> String {
    // It may be gone by now; then nothing holds it back.
    let Ok(message) = client.json::<MessageView>("GET", &format!("/api/queue/{}", which.id)) else {
        return String::new();
    };
    let is_meant = |number| which.recipient.is_none_or(|only| only == number);
    let is_suspended = |recipient: &&RecipientView| {
        is_meant(recipient.number)
            && recipient.waiting.as_ref().is_some_and(|waiting| waiting.kind == WaitingKind::Suspended)
    };
    let found = message.recipients.iter().filter(is_suspended).map(|recipient| &recipient.destination);
    let names: BTreeSet<&String> = found.collect();
    let mut text = String::new();
    for name in names.iter().take(NAMED) {
        let _ = writeln!(
            text,
            "{name} is suspended, so nothing is tried there; to end that: posthaste destinations resume {name}"
        );
    }
    if names.len() > NAMED {
        let _ = writeln!(text, "so are {} more: posthaste queue show {}", names.len() - NAMED, which.id);
    }
    text
}

fn path(which: &OneMessage, verb: &str) -> String {
    let query = which.recipient.map(|number| format!("?recipient={number}")).unwrap_or_default();
    format!("/api/queue/{}{verb}{query}", which.id)
}

/// Asks for as many pages as `limit` needs.
fn list(client: &Client, after: Option<QueueId>, limit: usize) -> Result<QueuePage, ClientError> {
    let mut all = QueuePage { messages: Vec::new(), next: after.map(|id| id.to_string()) };
    loop {
        let left = limit - all.messages.len();
        let after = all.next.take().map(|id| format!("&after={id}")).unwrap_or_default();
        let page: QueuePage =
            client.json("GET", &format!("/api/queue?limit={}{after}", left.clamp(1, PAGE)))?;
        all.messages.extend(page.messages.into_iter().take(left));
        all.next = page.next;
        if all.next.is_none() || all.messages.len() >= limit {
            return Ok(all);
        }
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    // Views are structs of strings and numbers: they always have a JSON form.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// A page; `further` when it is not the first.
fn page_text(page: &QueuePage, further: bool) -> String {
    if page.messages.is_empty() {
        return if further { "no more messages\n" } else { "the queue is empty\n" }.to_owned();
    }
    let header = ["ID", "AGE", "SIZE", "TRIES", "NEXT", "FROM", "TO", "LAST REPLY"].map(str::to_owned);
    let rows: Vec<_> = [header].into_iter().chain(page.messages.iter().map(row)).collect();
    let mut text = table(&rows);
    if let Some(next) = &page.next {
        let _ = writeln!(text, "there may be more: posthaste queue list --after {next}");
    }
    text
}

fn row(message: &MessageSummary) -> [String; 8] {
    let more = message.waiting.saturating_sub(1);
    let first = message.to.first().map_or("", String::as_str);
    [
        message.id.clone(),
        human_seconds(message.age_seconds),
        format_size_short(message.size),
        message.attempts.to_string(),
        message.next_attempt.as_ref().map_or_else(|| waits(message), due),
        format!("<{}>", message.from),
        if more == 0 { format!("<{first}>") } else { format!("<{first}> +{more}") },
        message.last_reply.as_ref().map_or_else(String::new, |last| last.text.clone()),
    ]
}

/// Why nothing is tried.
fn waits(message: &MessageSummary) -> String {
    match message.waiting {
        0 => String::new(),
        waiting if waiting == message.held => "on hold".to_owned(),
        _ => "suspended".to_owned(),
    }
}

fn due(moment: &Moment) -> String {
    if moment.due { "now".to_owned() } else { human_seconds(moment.in_seconds) }
}

/// A size to one KiB or MiB.
fn format_size_short(bytes: u64) -> String {
    let unit = [1 << 30, 1 << 20, 1 << 10].into_iter().find(|unit| bytes >= *unit).unwrap_or(1);
    format_size(bytes / unit * unit)
}

/// Columns two blanks apart, each as wide as its widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> =
        rows.iter().map(|row| row.each_ref().map(|cell| printable(cell, COLUMN_MAX))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// What a remote said may not steer the terminal.
fn printable(text: &str, max: usize) -> String {
    let clean = text.chars().map(|char| if char.is_control() { '?' } else { char });
    if text.chars().count() <= max {
        return clean.collect();
    }
    clean.take(max - 1).chain(['…']).collect()
}

fn message_text(message: &MessageView) -> String {
    let all = |text: &str| printable(text, usize::MAX);
    let mut text = format!(
        "message   {}\nfrom      <{}>\narrived   {}\nsize      {} bytes\norigin    {}\n",
        message.id,
        all(&message.from),
        ago(&message.arrived, message.age_seconds),
        message.size,
        all(&message.origin),
    );
    for recipient in &message.recipients {
        text.push('\n');
        recipient_text(&mut text, recipient);
    }
    text
}

fn recipient_text(text: &mut String, recipient: &RecipientView) {
    let attempts = match recipient.attempts {
        1 => "1 attempt".to_owned(),
        count => format!("{count} attempts"),
    };
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key:<14}{}", printable(&value, usize::MAX));
    };
    line(&format!("recipient {}", recipient.number), format!("<{}>", recipient.address));
    line("  destination", recipient.destination.clone());
    line("  status", format!("{}, {attempts}", recipient.status));
    if let Some(waiting) = &recipient.waiting {
        line("  waits", waiting.text.clone());
    }
    if let Some(next) = &recipient.next_attempt {
        line("  next", when(next));
    }
    if let Some(last) = &recipient.last_reply {
        // What was said before it got through explains nothing any more.
        let is_past = recipient.status == Status::Delivered.word();
        line(if is_past { "  before" } else { "  last reply" }, last_text(last));
    }
}

fn last_text(last: &LastReplyView) -> String {
    let host = last.host.as_ref().map(|host| format!(", {host}")).unwrap_or_default();
    format!("{} ({}{host})", last.text, ago(&last.at, last.age_seconds))
}

fn ago(at: &str, age_seconds: u64) -> String {
    format!("{at} ({} ago)", human_seconds(age_seconds))
}

pub(super) fn when(moment: &Moment) -> String {
    if moment.due {
        format!("{} (now)", moment.at)
    } else {
        format!("{} (in {})", moment.at, human_seconds(moment.in_seconds))
    }
}

pub(super) fn command_text(result: &CommandResult, done: &str, follows: &str) -> String {
    let CommandResult::Done { recipients, in_flight } = *result else {
        return "nothing was done\n".to_owned();
    };
    let count =
        |number: u32| if number == 1 { "1 recipient".to_owned() } else { format!("{number} recipients") };
    let mut text = format!("{} {done}\n", count(recipients));
    if in_flight > 0 {
        let _ = writeln!(
            text,
            "{} in flight: will {follows} when the attempt reports, unless it is delivered",
            count(in_flight)
        );
    }
    text
}

#[cfg(test)]
mod tests;
