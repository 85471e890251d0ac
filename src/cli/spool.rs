//! `posthaste spool`: what is done with the spool of a relay that is stopped.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::rescue::{self, RescueArgs};
use super::words::{count, spool_trouble};
use super::{complain, say};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, SpoolConfig};
use crate::mail::envelope::{Envelope, RecipientState};
use crate::schedule::retry::{self, RetryRules};
use crate::smtp::address::ReversePath;
use crate::spool::sled::SledSpool;
use crate::spool::sled::compact::{CompactError, compact};
use crate::spool::tools::check::{Checked, Finding, check};
use crate::spool::tools::export::{ExportError, export};
use crate::spool::tools::import::{Ended, Imported, import};

/// Bytes read or written at once.
const BUFFER: usize = 256 << 10;

/// Arguments of `posthaste spool`.
#[derive(Clone, Debug, Args)]
pub struct SpoolArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: SpoolVerb,
}

/// The verbs of `posthaste spool`. The relay must be stopped for each of them.
#[derive(Clone, Debug, Subcommand)]
pub enum SpoolVerb {
    /// Go through every record and content file: what is there, what is damaged. No mail is changed. Fails when there is damage
    Check {
        /// Print each finding, and the summary, as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Write all mail as JSON lines, content included
    Export {
        /// Write to this file, which must not exist, instead of standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Take in what `spool export` wrote; what is there already is skipped
    Import {
        /// The export; `-` is standard input
        file: PathBuf,
        /// Take an export from which lines were taken out (or to which some were added): what its last line counts need not
        /// be there. That line itself must be, else the file was cut short
        #[arg(long)]
        partial: bool,
    },
    /// Write the database anew, so that the room that removed mail left in its file is free again
    Compact,
    /// Save what can be read from a spool whose database can't be opened, into a new spool. Ends with 0 when all was saved,
    /// with 3 when something is in quarantine or lost, and with 1 when nothing was saved
    Rescue(RescueArgs),
}

/// Runs `posthaste spool`. The code is 1 when it failed, or when `check` found damage.
pub fn run(args: &SpoolArgs, config: &Config) -> ExitCode {
    let done = match &args.verb {
        SpoolVerb::Check { json } => run_check(&config.spool, *json),
        SpoolVerb::Export { output } => run_export(&config.spool, output.as_deref()),
        SpoolVerb::Import { file, partial } => run_import(config, file, *partial),
        SpoolVerb::Compact => run_compact(&config.spool),
        SpoolVerb::Rescue(args) => Ok(rescue::run(args)),
    };
    match done {
        Ok(code) => code,
        Err(trouble) => {
            complain(format_args!("posthaste: {trouble}"));
            ExitCode::FAILURE
        }
    }
}

/// What to say of a verb that failed.
type Trouble = String;

fn told(error: impl Display) -> Trouble {
    error.to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckLine<'a> {
    Finding(&'a Finding),
    Summary(&'a Checked),
}

fn run_check(config: &SpoolConfig, json: bool) -> Result<ExitCode, Trouble> {
    let spool = SledSpool::open_existing(config).map_err(|error| spool_trouble(&error))?;
    let line = |line: CheckLine<'_>| say(serde_json::to_string(&line).unwrap_or_default());
    let checked = check(&spool, &mut |finding| {
        if json { line(CheckLine::Finding(finding)) } else { say(finding) }
    });
    let checked = checked.map_err(|error| spool_trouble(&error))?;
    if json {
        line(CheckLine::Summary(&checked))
    } else {
        say(summary(&checked))
    }
    Ok(if checked.damage == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(checked: &Checked) -> String {
    let Checked { messages, recipients, bytes, unreadable, unindexed, quarantined, .. } = *checked;
    let Checked { destinations, due_keys, deadline_keys, wake_keys, content_files, damage, harmless, .. } =
        *checked;
    let verdict = match (damage, harmless) {
        (0, 0) => "everything fits together".to_owned(),
        (0, harmless) => format!("no damage; {}", count(harmless, "harmless finding", "harmless findings")),
        (damage, 0) => format!("DAMAGED: {}", count(damage, "finding", "findings")),
        (damage, harmless) => format!(
            "DAMAGED: {}; and {}",
            count(damage, "finding", "findings"),
            count(harmless, "harmless one", "harmless ones")
        ),
    };
    format!(
        "messages       {messages} ({}, {} of content)\n\
         not readable   {unreadable}\n\
         without keys   {unindexed} (left by a crash; the next start puts them in line)\n\
         in quarantine  {quarantined}\n\
         keys           {due_keys} due, {deadline_keys} deadlines, {wake_keys} wakes\n\
         destinations   {destinations} backing off or remembered\n\
         content files  {content_files}\n\
         {verdict}",
        count(recipients, "recipient waits", "recipients wait"),
        count(bytes, "byte", "bytes"),
    )
}

fn run_export(config: &SpoolConfig, output: Option<&Path>) -> Result<ExitCode, Trouble> {
    let spool = SledSpool::open_existing(config).map_err(|error| spool_trouble(&error))?;
    let exported = match output {
        Some(path) => export_to(&spool, path)?,
        None => write_export(&spool, io::stdout().lock())?,
    };
    complain(exported);
    Ok(ExitCode::SUCCESS)
}

/// Writes the export beside its name and gives it that when it is whole and durable: a kill leaves no part of one that looks
/// like all of it.
fn export_to(spool: &SledSpool, path: &Path) -> Result<String, Trouble> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    must_be_free(path)?;
    // What an export that was killed left.
    let _ = fs::remove_file(&part);
    let file = new_file(&part)?;
    let written = write_export(spool, &file).and_then(|done| {
        must_be_free(path)?;
        put(&file, &part, path).map_err(|error| format!("{} can't be synced: {error}", path.display()))?;
        Ok(done)
    });
    if written.is_err() {
        // A part of an export is of no use.
        let _ = fs::remove_file(&part);
    }
    written
}

fn must_be_free(path: &Path) -> Result<(), Trouble> {
    match path.symlink_metadata() {
        Ok(_) => Err(format!("{} exists already: give another name, or remove it", path.display())),
        Err(_) => Ok(()),
    }
}

/// Makes a file and its name durable: the spool may be removed once it is exported.
fn put(file: &File, part: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(part, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Mail is in it: only its owner may read it.
fn new_file(path: &Path) -> Result<File, Trouble> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists => "give another name, or remove it",
            _ => "give the name of a file that can be made",
        };
        format!("{} can't be made ({error}): {remedy}", path.display())
    })
}

fn write_export(spool: &SledSpool, out: impl Write) -> Result<String, Trouble> {
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let done = export(spool, &mut out, &mut |text| complain(text)).map_err(|error| match error {
        ExportError::Spool(error) => spool_trouble(&error),
        other => other.to_string(),
    })?;
    let mut text = format!(
        "exported {}, {} in quarantine and {}",
        count(done.messages, "message", "messages"),
        done.quarantined,
        count(done.destinations, "destination", "destinations")
    );
    if done.damaged > 0 {
        let damaged = count(done.damaged, "of those in quarantine was", "of those in quarantine were");
        text += &format!("; {damaged} queued, but can't be read");
    }
    Ok(text)
}

fn run_import(config: &Config, file: &Path, partial: bool) -> Result<ExitCode, Trouble> {
    let mut input: Box<dyn io::BufRead> = if file == Path::new("-") {
        Box::new(BufReader::with_capacity(BUFFER, io::stdin()))
    } else {
        let open = File::open(file).map_err(|error| format!("{} can't be read: {error}", file.display()))?;
        Box::new(BufReader::with_capacity(BUFFER, open))
    };
    let spool = SledSpool::open(&config.spool, Uuid::new_v4()).map_err(|error| spool_trouble(&error))?;
    let rules = RetryRules::new(&config.retry);
    let now_ms = SystemClock.now_ms();
    let deadline =
        |envelope: &Envelope, states: &[RecipientState]| deadline(&rules, now_ms, envelope, states);
    match import(&spool, &mut *input, config.spool.content_threshold, partial, &deadline) {
        Ok(done) => {
            complain(imported(&done));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let (done, remedy) = (imported(&error.done), remedy(&error.why));
            Err(format!("{}\n{done}{remedy}", spool_words(&error.why)))
        }
    }
}

fn spool_words(why: &Ended) -> String {
    match why {
        Ended::Spool(error) => spool_trouble(error),
        other => other.to_string(),
    }
}

fn remedy(why: &Ended) -> &'static str {
    match why {
        Ended::Line(..) => {
            "; put the line right and import again, or take it out and import again with --partial: what is there is skipped"
        }
        // Its text says what to do.
        Ended::Counts(..) => "",
        _ => "; import again when that is put right: what is there is skipped",
    }
}

fn imported(done: &Imported) -> String {
    let mut text = format!(
        "imported {}, {} in quarantine and {}",
        count(done.messages, "message", "messages"),
        done.quarantined,
        count(done.destinations, "destination", "destinations")
    );
    if done.already > 0 {
        text += &format!("; {} there already", count(done.already, "was", "were"));
    }
    if done.finished > 0 {
        text += &format!("; {} needed nothing more", done.finished);
    }
    text
}

/// When a message next needs a delay notice or expires.
fn deadline(rules: &RetryRules, now_ms: u64, envelope: &Envelope, states: &[RecipientState]) -> u64 {
    let null = envelope.reverse_path == ReversePath::Null;
    let waiting = envelope.recipients.iter().zip(states).filter(|(_, state)| !state.status.is_settled());
    let times = waiting.map(|(recipient, state)| {
        let policy = rules.policy_for(&recipient.destination);
        retry::next_deadline(policy, envelope.arrived_ms, now_ms, null || state.delay_notified).at_ms()
    });
    times.min().unwrap_or(u64::MAX)
}

fn run_compact(config: &SpoolConfig) -> Result<ExitCode, Trouble> {
    let done = compact(config).map_err(|error| match error {
        CompactError::Spool(error) => spool_trouble(&error),
        other => told(other),
    })?;
    say(format_args!("the database had {} bytes and has {}", done.before, done.after));
    if done.before == done.after {
        say("a copy would not have been smaller: nothing was changed");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::envelope::{BodyType, ContentPlace, Origin, Recipient, Status};
    use crate::mail::id::QueueId;
    use crate::smtp::address::{ForwardPath, Mailbox};

    const HOUR: u64 = 3_600_000;

    fn envelope(reverse_path: &str) -> Envelope {
        let path = ForwardPath::new(Mailbox::parse("x@a.example").expect("good"));
        let recipient = Recipient { destination: path.domain().clone(), path };
        Envelope {
            id: QueueId::from_bytes([1; 16]),
            reverse_path: ReversePath::parse(reverse_path).expect("good"),
            body: BodyType::SevenBit,
            arrived_ms: 1_000,
            origin: Origin::Embedded,
            size: 0,
            place: ContentPlace::Database,
            recipients: vec![recipient.clone(), recipient],
        }
    }

    #[test]
    fn the_deadline_of_an_imported_message_is_the_next_notice_or_expiry_of_those_who_wait() {
        let rules = RetryRules::new(&Config::default().retry);
        let waits = RecipientState::fresh(1_000);
        let told = RecipientState { delay_notified: true, ..waits.clone() };
        let settled = RecipientState { status: Status::Delivered, ..waits.clone() };
        let (notice, expiry) = (1_000 + 4 * HOUR, 1_000 + 120 * HOUR);
        for (from, states, expected) in [
            ("a@b.example", [&waits, &told], notice),
            ("a@b.example", [&told, &told], expiry),
            ("a@b.example", [&settled, &told], expiry),
            ("", [&waits, &waits], expiry),
        ] {
            let states = states.map(RecipientState::clone);
            assert_eq!(deadline(&rules, 2_000, &envelope(from), &states), expected, "{from} {states:?}");
        }
    }

    #[test]
    fn the_verdict_says_damage_when_there_is_some() {
        let clean = Checked::default();
        assert!(summary(&clean).ends_with("everything fits together"));
        let left = Checked { harmless: 2, ..clean };
        assert!(summary(&left).ends_with("no damage; 2 harmless findings"));
        let one = Checked { harmless: 1, recipients: 1, ..clean };
        assert!(summary(&one).ends_with("no damage; 1 harmless finding"));
        assert!(summary(&one).contains("(1 recipient waits, 0 bytes of content)"));
        let bad = Checked { damage: 1, ..left };
        assert!(summary(&bad).ends_with("DAMAGED: 1 finding; and 2 harmless ones"));
        assert!(summary(&Checked { damage: 2, harmless: 0, ..left }).ends_with("DAMAGED: 2 findings"));
    }
}
