//! What can go wrong, in words that say what to do.

use std::path::PathBuf;

/// What can go wrong with the spool. Its text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder or a file can't be used.
    #[error("spool {path}: {what}: {source}")]
    Io {
        /// Folder or file.
        path: PathBuf,
        /// What was tried, and what to do about it.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "the spool {0} is in use by another posthaste; stop that one, or set spool.path to another folder"
    )]
    Locked(PathBuf),
    /// It is not there.
    #[error("there is no spool in {0}; set spool.path, or name the configuration of its relay with --config")]
    Missing(PathBuf),
    /// Its database is not there, or has nothing in it.
    #[error(
        "spool {0}: \"db\" is missing or has nothing in it, but {1}; put it back, or, if the mail in it is lost, move the folder \
         away or set spool.path to another one"
    )]
    Lost(PathBuf, String),
    /// A rescue that ended before its end left it.
    #[error(
        "the spool {0} is an unfinished rescue: mail is missing in it; remove it and run posthaste spool rescue FROM TO again"
    )]
    Unfinished(PathBuf),
    /// A newer program wrote it.
    #[error(
        "the spool {path} has format {found}, this program reads up to format {known}; \
         use posthaste {writer} or newer for it, or set spool.path to another folder"
    )]
    Newer {
        /// The spool.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest format version known here.
        known: u32,
        /// The program version that wrote it.
        writer: String,
    },
    /// The disk is full.
    #[error(
        "spool {0}: the disk is full; nothing that was accepted is lost: free some space and start posthaste again, or carry \
         the mail to another disk with: posthaste spool rescue {0} TO (where TO is a new folder; then set spool.path to it)"
    )]
    Full(PathBuf),
    /// sled can't open or use its database.
    #[error(
        "spool {path}: the database can't be used ({reason}); keep the folder, the mail in it can be saved with: \
         posthaste spool rescue {path} TO (where TO is a new folder; then set spool.path to it)"
    )]
    Database {
        /// The spool.
        path: PathBuf,
        /// sled's words.
        reason: String,
    },
    /// A record can't be read.
    #[error("damaged record of {what}: {reason}")]
    Damaged {
        /// Which one.
        what: String,
        /// Checksum, kind, version, missing chunk….
        reason: String,
    },
    /// A commit failed before, or the spool was closed: nothing more is written.
    #[error("the spool takes no more changes: {0}; start posthaste again, nothing that was accepted is lost")]
    Closed(String),
    /// A job of the spool's threads was not done: it panicked, or the relay stops.
    #[error("the spool's threads did not do their work: {0}")]
    Failed(String),
    /// Writes are not made durable here.
    #[error(
        "spool {0}: this system does not sync writes to the device, so no mail can be accepted safely: {1}"
    )]
    NotDurable(PathBuf, String),
}

impl SpoolError {
    /// What to tell who runs a tool, not the relay.
    pub fn to_tool(&self) -> String {
        match self {
            Self::Full(path) => {
                format!("the disk of {} is full; free some space, then run this again", path.display())
            }
            other => other.to_string(),
        }
    }
}
