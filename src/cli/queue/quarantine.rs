//! `posthaste queue quarantine`: what was set aside, and what to do about it.

use std::fmt::Write as _;

use clap::Subcommand;

use super::{PAGE, json, message_text, printable, table};
use crate::actors::queue::messages::CommandResult;
use crate::admin::view::{QuarantinePage, QuarantineView};
use crate::cli::client::{Client, ClientError};
use crate::mail::id::QueueId;

/// The verbs of `posthaste queue quarantine`.
#[derive(Clone, Debug, Subcommand)]
pub enum QuarantineVerb {
    /// List what was set aside, and why
    List,
    /// Show what is known of one message
    Show {
        /// The queue id
        id: QueueId,
    },
    /// Queue a message again, if its records can be read
    Release {
        /// The queue id
        id: QueueId,
    },
    /// Remove a message for good without telling the sender
    Discard {
        /// The queue id
        id: QueueId,
    },
}

/// What is printed.
pub(super) fn answer(client: &Client, verb: &QuarantineVerb, as_json: bool) -> Result<String, ClientError> {
    match verb {
        QuarantineVerb::List => {
            let page = list(client)?;
            Ok(if as_json { json(&page) } else { page_text(&page) })
        }
        QuarantineVerb::Show { id } => {
            let found: QuarantineView = client.json("GET", &format!("/api/quarantine/{id}"))?;
            Ok(if as_json { json(&found) } else { view_text(&found) })
        }
        QuarantineVerb::Release { id } => {
            let result: CommandResult = client.json("POST", &format!("/api/quarantine/{id}/release"))?;
            Ok(if as_json { json(&result) } else { format!("message {id} is queued again\n") })
        }
        QuarantineVerb::Discard { id } => {
            let result: CommandResult = client.json("DELETE", &format!("/api/quarantine/{id}"))?;
            Ok(if as_json { json(&result) } else { format!("message {id} is gone\n") })
        }
    }
}

fn list(client: &Client) -> Result<QuarantinePage, ClientError> {
    let mut all = QuarantinePage { messages: Vec::new(), next: None };
    loop {
        let after = all.next.take().map(|id| format!("&after={id}")).unwrap_or_default();
        let page: QuarantinePage = client.json("GET", &format!("/api/quarantine?limit={PAGE}{after}"))?;
        all.messages.extend(page.messages);
        all.next = page.next;
        if all.next.is_none() {
            return Ok(all);
        }
    }
}

fn page_text(page: &QuarantinePage) -> String {
    if page.messages.is_empty() {
        return "nothing is in quarantine\n".to_owned();
    }
    let rows = page.messages.iter().map(|entry| [entry.id.clone(), entry.reason.clone()]);
    table(&[["ID", "WHY"].map(str::to_owned)].into_iter().chain(rows).collect::<Vec<_>>())
}

fn view_text(found: &QuarantineView) -> String {
    let mut text = format!(
        "why       {}\nrecords   {}, {} bytes\n",
        printable(&found.reason, usize::MAX),
        found.records,
        found.bytes
    );
    if let Some(why) = &found.unreadable {
        let _ = writeln!(text, "readable  no: {}", printable(why, usize::MAX));
    }
    match &found.message {
        Some(message) => text.push_str(&message_text(message)),
        None => {
            let _ = writeln!(text, "message   {}", found.id);
        }
    }
    text
}
