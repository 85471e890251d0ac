//! Saving what can be read from a spool whose database sled can't open: `posthaste spool rescue FROM TO`.
//!
//! FROM is only read: [`log`] reads the messages of sled's log ([`format`] has its bytes), [`pages`] puts its pages together,
//! [`tree`] makes them a tree of keys again. [`rebuild`] writes every message that is whole into the new spool TO, in state
//! S2 of [`super`]: the relay that starts on TO gives it its keys, by its own schedule, as after a crash. What is there in
//! part goes to quarantine, byte by byte, with the reason. Until the end TO has a mark that keeps everybody else from opening it.
//!
//! Where the newest record can't be read an older one may be taken. So mail that had left already may come back: sent
//! twice is better than lost.

mod format;
mod log;
mod pages;
pub(super) mod proof;
mod rebuild;
mod snapshot;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use self::log::Log;
use self::snapshot::Snapshot;
use self::tree::Salvaged;
use super::content::ContentFiles;
use super::database::Tree;
use super::sled::closed::Closed;
use super::sled::{SledSpool, open, whole};
use super::{SpoolError, keys, record};
use crate::config::SpoolConfig;
use crate::migrations;

/// What a rescue did, and what it left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Messages that are queued in the new spool.
    pub messages: u64,
    /// Their recipients that still wait.
    pub recipients: u64,
    /// Their content, in bytes.
    pub bytes: u64,
    /// Messages that are in quarantine in the new spool, since something of them is missing.
    pub quarantined: u64,
    /// Messages that were in quarantine already, and are so again.
    pub quarantined_before: u64,
    /// Messages that had been dealt with, but whose removal could not be read; they were left out.
    pub finished: u64,
    /// Content files that a message names and that are not there, can't be read, have another length or a wrong checksum.
    pub files_missing: u64,
    /// Messages, those in quarantine included, that the last commit counted, if that can be read.
    pub counted: Option<u64>,
    /// Content files that no readable message names; they are in the old folder still.
    pub files_left: u64,
    /// Segments of the log, of 512 KiB each, of which nothing could be read.
    pub segments_unreadable: u64,
    /// Records of the log that could not be read; where even their length was lost, all up to the next known place count as one.
    pub records_unreadable: u64,
    /// Pages of the database of which an older state was taken.
    pub pages_older: u64,
    /// Parts of the database of which nothing was found.
    pub pages_missing: u64,
    /// Whether the database holds no record at all.
    pub database_empty: bool,
}

impl Report {
    /// Whether all of the old spool could be read.
    pub fn is_whole(&self) -> bool {
        let trouble = [
            self.quarantined,
            self.files_missing,
            self.segments_unreadable,
            self.records_unreadable,
            self.pages_older,
            self.pages_missing,
        ];
        trouble.iter().all(|count| *count == 0) && !self.database_empty && !self.is_hollow()
    }

    /// Whether there are content files, but no message that could name them: then a healthy database had more in it.
    pub fn is_hollow(&self) -> bool {
        let messages = self.messages + self.quarantined + self.quarantined_before + self.finished;
        messages == 0 && self.files_left > 0
    }

    /// Whether the new spool holds nothing although the old one was damaged.
    pub fn is_in_vain(&self) -> bool {
        self.messages + self.quarantined + self.quarantined_before == 0 && !self.is_whole()
    }
}

/// Why nothing was saved. Its text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The new folder is not new.
    #[error(
        "{0} is not empty; name a folder that does not exist yet (if an earlier rescue ended half-way, remove what it left there)"
    )]
    NotEmpty(PathBuf),
    /// The new folder is a file.
    #[error("{0} is a file; name a folder that does not exist yet")]
    NoFolder(PathBuf),
    /// What can't be read for lack of rights is not damaged.
    #[error(
        "{path} can't be read: {source}; run it as the user who owns {path}, or as root: nothing was begun"
    )]
    Rights {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It would be inside the old one.
    #[error("{0} is inside the spool that is to be rescued, which stays as it is; name a folder elsewhere")]
    Inside(PathBuf),
    /// There is nothing to save from.
    #[error("{path} can't be read: {source}; name the folder of a spool, the one with a file \"db\" in it")]
    NoSpool {
        /// The folder or its database.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A spool is in use, is of a newer format, or can't be written.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The new spool could not be finished.
    #[error(
        "{}; the rescue ended half-way: remove {to}, and when there is room enough try again (the old spool is unchanged)",
        .error.to_tool()
    )]
    HalfWay {
        /// The new spool.
        to: PathBuf,
        /// What failed.
        error: SpoolError,
    },
}

/// Saves what can be read of the spool `from` into a new one at `to`. Blocks. `from` is not changed.
///
/// # Errors
/// See [`RescueError`].
pub fn rescue(from: &Path, to: &Path) -> Result<Report, RescueError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| unreadable(path, source)
    };
    let from = from.canonicalize().map_err(failed(from))?;
    let database = from.join(open::DATABASE);
    let file = File::open(&database).map_err(failed(&database))?;
    whole::check(&from, Uuid::nil())?;
    let _held = hold(&from, &file)?;
    must_be_new(&from, to)?;
    must_be_readable(&from.join(open::CONTENT))?;
    let mut log = Log::open(file, Snapshot::newest(&from)).map_err(failed(&database))?;
    if let Some(closed) = Closed::read(&from)? {
        log.was_closed(closed.length, closed.end);
    }
    let old = Salvaged::read(log);
    check_format(&from, &old)?;
    fill(&from, &old, to).map_err(|error| RescueError::HalfWay { to: to.to_owned(), error })
}

/// Makes the new spool. Until all is in it nobody may start on it.
fn fill(from: &Path, old: &Salvaged, to: &Path) -> Result<Report, SpoolError> {
    let instance = Uuid::new_v4();
    whole::begin(to, instance)?;
    let config = SpoolConfig { path: to.to_owned(), reserve: 0, ..SpoolConfig::default() };
    let new = SledSpool::open(&config, instance)?;
    let files = ContentFiles::new(from.join(open::CONTENT));
    let report = rebuild::rebuild(old, &files, &new)?;
    drop(new);
    whole::finish(to)?;
    Ok(report)
}

fn unreadable(path: PathBuf, source: io::Error) -> RescueError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => RescueError::Rights { path, source },
        _ => RescueError::NoSpool { path, source },
    }
}

/// Stops before anything is made when rights are missing: a content file that another user owns is there all the same, and
/// its message must not go to quarantine. Other trouble with a file is damage, and found when it is copied.
fn must_be_readable(content: &Path) -> Result<(), RescueError> {
    let rights = |path: &Path, error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Err(unreadable(path.to_owned(), error)),
        _ => Ok(()),
    };
    let entries = match fs::read_dir(content) {
        Ok(entries) => entries,
        Err(error) => return rights(content, error),
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        // What is no file is none of ours, and opening it might wait.
        if path.symlink_metadata().is_ok_and(|found| found.is_file())
            && let Err(error) = File::open(&path)
        {
            rights(&path, error)?;
        }
    }
    Ok(())
}

/// Makes sure that nobody has the old spool open, and keeps it so while the files live. A read-only handle is enough.
fn hold(from: &Path, database: &File) -> Result<Option<File>, RescueError> {
    let lock = from.join(open::LOCK);
    let lock = match File::open(&lock) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(unreadable(lock, source)),
    };
    match lock.as_ref().map_or(Ok(()), File::try_lock) {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(SpoolError::Locked(from.to_owned()).into()),
        Err(fs::TryLockError::Error(source)) => {
            return Err(unreadable(from.to_owned(), source));
        }
    }
    open::wait_for_the_last_one(database, from)?;
    match database.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(SpoolError::Locked(from.to_owned()).into()),
    }
}

fn must_be_new(from: &Path, to: &Path) -> Result<(), RescueError> {
    let absolute = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    // The nearest of its parents that exists, without links.
    let real = absolute.ancestors().find_map(|part| part.canonicalize().ok());
    if real.is_some_and(|real| real.starts_with(from)) {
        return Err(RescueError::Inside(to.to_owned()));
    }
    let empty = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(RescueError::NoFolder(to.to_owned()));
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !empty {
        whole::check(to, Uuid::nil())?;
    }
    if empty { Ok(()) } else { Err(RescueError::NotEmpty(to.to_owned())) }
}

/// Refuses a spool of a newer program, if that can still be read.
fn check_format(from: &Path, old: &Salvaged) -> Result<(), SpoolError> {
    let format = old.get(keys::META_FORMAT)?.and_then(|found| record::read_format(&found).ok());
    match format.map(|format| migrations::check(from, format.version, &format.writer)) {
        Some(Err(error @ SpoolError::Newer { .. })) => Err(error),
        _ => Ok(()),
    }
}
