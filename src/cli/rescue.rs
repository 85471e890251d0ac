//! `posthaste spool rescue FROM TO`: saves what can be read from a spool whose database can't be opened.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::words::{count, spool_trouble};
use super::{complain, say};
use crate::spool::rescue::{self, Report, RescueError};

/// The exit code when not all of the old spool could be saved.
const EXIT_PART: u8 = 3;

/// What `posthaste spool rescue` is given.
#[derive(Clone, Debug, Args)]
pub struct RescueArgs {
    /// The damaged spool; it is only read
    from: PathBuf,
    /// The folder of the new spool; it must not exist yet, or be empty
    to: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Rescues, and prints what was saved and what was left. The code is 1 when nothing could be saved, and
/// [`EXIT_PART`] when something is in quarantine or lost.
pub fn run(args: &RescueArgs) -> ExitCode {
    let report = match rescue::rescue(&args.from, &args.to) {
        Ok(report) => report,
        Err(error) => {
            complain(format_args!("posthaste: {}", trouble(&error)));
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        say(serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        say(text(&report, &args.from, &args.to).trim_end());
    }
    code(&report)
}

fn code(report: &Report) -> ExitCode {
    match (report.is_in_vain(), report.is_whole()) {
        (true, _) => ExitCode::FAILURE,
        (false, false) => ExitCode::from(EXIT_PART),
        (false, true) => ExitCode::SUCCESS,
    }
}

fn trouble(error: &RescueError) -> String {
    match error {
        RescueError::Spool(error) => spool_trouble(error),
        other => other.to_string(),
    }
}

fn text(report: &Report, from: &Path, to: &Path) -> String {
    let (from, to) = (from.display(), to.display());
    let mut text = format!(
        "saved: {}, {} that wait, {} of content\n",
        count(report.messages, "message", "messages"),
        count(report.recipients, "recipient", "recipients"),
        count(report.bytes, "byte", "bytes"),
    );
    let mut line = |number: u64, one: &str, many: &str| {
        if number > 0 {
            let _ = writeln!(text, "{}", count(number, one, many));
        }
    };
    line(
        report.quarantined,
        "message that is there in part is in quarantine, with the reason",
        "messages that are there in part are in quarantine, each with its reason",
    );
    line(
        report.quarantined_before,
        "message that was in quarantine before is so again",
        "messages that were in quarantine before are so again",
    );
    line(
        report.finished,
        "message had been dealt with and was left out",
        "messages had been dealt with and were left out",
    );
    line(
        report.files_missing,
        "content file is missing, damaged or can't be read",
        "content files are missing, damaged or can't be read",
    );
    line(
        report.files_left,
        "content file that no readable message names was left behind",
        "content files that no readable message names were left behind",
    );
    line(
        report.segments_unreadable,
        "segment of 512 KiB could not be read at all",
        "segments of 512 KiB could not be read at all",
    );
    line(report.records_unreadable, "record could not be read", "records could not be read");
    line(
        report.pages_missing,
        "part of the database is lost: nothing of its keys was found",
        "parts of the database are lost: nothing of their keys was found",
    );
    line(report.pages_older, "page was taken in an older state", "pages were taken in an older state");
    text.push_str(&verdict(report));
    let _ = writeln!(text, "{from} is unchanged: keep it until you miss nothing.");
    if !report.is_in_vain() {
        let _ = writeln!(text, "To deliver what was saved, set spool.path to {to} and start posthaste.");
    }
    text
}

fn verdict(report: &Report) -> String {
    if report.is_in_vain() {
        let why = match (report.database_empty, report.is_hollow()) {
            (true, true) => {
                " The database holds nothing, but content files lie beside it: mail was lost with it."
            }
            (true, false) => " The database holds nothing.",
            (false, true) => {
                " The database names no message, but content files lie beside it: if mail was queued, it was lost."
            }
            (false, false) => "",
        };
        return format!("Nothing could be saved.{why}\n");
    }
    if report.is_whole() {
        return "Everything in the old spool could be read.\n".to_owned();
    }
    let mut verdict = "Not everything could be read.\n".to_owned();
    let found = report.messages + report.quarantined + report.quarantined_before;
    if let Some(counted) = report.counted {
        let _ = writeln!(
            verdict,
            "The last count that could be read is of {}; {found} were saved or are in quarantine.",
            count(counted, "message", "messages")
        );
    }
    if report.segments_unreadable + report.records_unreadable + report.pages_missing > 0 {
        verdict.push_str("Mail whose records could not be read is not among what was saved.\n");
    }
    if report.segments_unreadable + report.records_unreadable + report.pages_older > 0 {
        verdict.push_str(
            "Where the newest record could not be read an older one counts: mail that had left may be delivered twice.\n",
        );
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(report: &Report) -> String {
        text(report, Path::new("old"), Path::new("new"))
    }

    #[test]
    fn a_whole_spool_is_said_to_be_whole() {
        let report = Report { messages: 2, recipients: 3, bytes: 1, ..Report::default() };
        assert_eq!(
            told(&report),
            "saved: 2 messages, 3 recipients that wait, 1 byte of content\n\
             Everything in the old spool could be read.\n\
             old is unchanged: keep it until you miss nothing.\n\
             To deliver what was saved, set spool.path to new and start posthaste.\n"
        );
    }

    #[test]
    fn what_was_left_behind_is_said() {
        let report =
            Report { messages: 1, quarantined: 1, records_unreadable: 2, files_left: 1, ..Report::default() };
        let told = told(&report);
        for part in
            ["1 message that is there in part", "2 records could not", "1 content file that no", "twice"]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn nothing_saved_from_a_damaged_spool_is_a_failure() {
        let report = Report { segments_unreadable: 3, ..Report::default() };
        assert!(report.is_in_vain());
        assert!(told(&report).contains("Nothing could be saved."));
        assert!(!Report::default().is_in_vain(), "an empty spool is not a failure");
    }

    #[test]
    fn content_files_without_any_message_are_no_whole_spool() {
        let hollow = Report { files_left: 2, ..Report::default() };
        let nothing = Report { database_empty: true, ..Report::default() };
        for (report, words) in [
            (hollow.clone(), "The database names no message, but content files lie beside it"),
            (Report { database_empty: true, ..hollow.clone() }, "holds nothing, but content files"),
            (nothing, "The database holds nothing."),
        ] {
            let told = told(&report);
            assert!(told.contains(words) && !told.contains("Everything"), "{told}");
            assert_eq!(code(&report), ExitCode::FAILURE);
        }
        let beside = Report { messages: 1, ..hollow };
        assert!(told(&beside).contains("Everything in the old spool could be read."), "left by a crash");
    }

    #[test]
    fn the_exit_code_says_whether_all_was_saved() {
        let whole = Report { messages: 2, ..Report::default() };
        assert_eq!(code(&whole), ExitCode::SUCCESS);
        let part = Report { quarantined: 1, counted: Some(5), ..whole };
        assert!(told(&part).contains("is of 5 messages; 3 were saved or are in quarantine"));
        assert_eq!(code(&part), ExitCode::from(EXIT_PART));
        assert!(told(&part).contains("Not everything could be read."));
        assert_eq!(code(&Report { records_unreadable: 1, ..Report::default() }), ExitCode::FAILURE);
    }
}
