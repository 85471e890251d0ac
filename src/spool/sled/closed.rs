//! What is known of a database that was closed: how long it is, and how far its log goes.
//!
//! A log that lost its end looks like one that never was longer. Where a crash may have torn it that is as it must be; what was
//! closed ends where it ended. So the last thing that a clean end writes is `closed`, and whoever opens the database next
//! compares, and removes it before sled writes anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::super::{SpoolError, sync};
use super::before::snapshot_position;
use super::open::{DATABASE, io_error, private_file, wait_for_the_last_one};
use crate::spool::rescue::proof;

const CLOSED: &str = "closed";

/// A database as it was when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) struct Closed {
    /// Bytes of `db`.
    pub length: u64,
    /// Position of its snapshot.
    pub snapshot: u64,
    /// Position behind the last message of its log.
    pub end: u64,
}

impl Closed {
    /// What the folder says; `None` when the database was not closed, or a crash tore what was written of it.
    pub fn read(folder: &Path) -> Result<Option<Self>, SpoolError> {
        let path = folder.join(CLOSED);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Ok(None)
            }
            Err(error) => Err(io_error(&path, "can't be read")(error)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (text, crc) = text.strip_suffix('\n')?.rsplit_once(" crc ")?;
        if crc.parse() != Ok(crc32fast::hash(text.as_bytes())) {
            return None;
        }
        let mut words = text.split(' ');
        let mut number = |name| (words.next()? == name).then(|| words.next()?.parse().ok()).flatten();
        let closed = Self { length: number("db")?, snapshot: number("snapshot")?, end: number("end")? };
        words.next().is_none().then_some(closed)
    }

    fn write(self, folder: &Path) -> Result<(), SpoolError> {
        let path = folder.join(CLOSED);
        let text = format!("db {} snapshot {} end {}", self.length, self.snapshot, self.end);
        let text = format!("{text} crc {}\n", crc32fast::hash(text.as_bytes()));
        let written = private_file(&path).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.and_then(|()| sync::sync_folder(folder)).map_err(io_error(&path, "can't be written"))
    }
}

/// The database is about to be opened, and what was known of it is no longer true.
pub(super) fn forget(folder: &Path) -> Result<(), SpoolError> {
    let path = folder.join(CLOSED);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.and_then(|()| sync::sync_folder(folder)).map_err(io_error(&path, "can't be removed"))
        }
    }
}

/// Dropped after the database: notes that it was closed.
pub(super) struct Closing {
    pub folder: PathBuf,
    /// Why nothing more was written: then nobody knows what is on the disk.
    pub failed: Arc<OnceLock<String>>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        if self.failed.get().is_some() || std::thread::panicking() {
            return;
        }
        if let Err(error) = note(&self.folder) {
            tracing::debug!(%error, "the next start can't compare the end of the database");
        }
    }
}

fn note(folder: &Path) -> Result<(), SpoolError> {
    let path = folder.join(DATABASE);
    let unreadable = || io_error(&path, "can't be read");
    let file = File::open(&path).map_err(unreadable())?;
    wait_for_the_last_one(&file, folder)?;
    file.sync_all().map_err(io_error(&path, "can't be synced"))?;
    let snapshot = snapshot_position(folder)?;
    let end = proof::end(&file, snapshot).map_err(unreadable())?;
    let length = file.metadata().map_err(unreadable())?.len();
    // The names that sled gave must not come later than what says so.
    sync::sync_folder(folder).map_err(io_error(folder, "can't be synced"))?;
    Closed { length, snapshot, end }.write(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_a_crash_tore_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Closed::read(folder.path()).expect("readable"), None);
        let closed = Closed { length: 12, snapshot: 7, end: 1_234 };
        closed.write(folder.path()).expect("written");
        assert_eq!(Closed::read(folder.path()).expect("readable"), Some(closed));
        let path = folder.path().join(CLOSED);
        let text = fs::read(&path).expect("readable");
        for length in 0..text.len() {
            fs::write(&path, &text[..length]).expect("written");
            assert_eq!(Closed::read(folder.path()).expect("readable"), None, "{length} bytes");
        }
        for (at, byte) in text.iter().enumerate() {
            let mut changed = text.clone();
            changed[at] = byte ^ 1;
            fs::write(&path, changed).expect("written");
            assert_eq!(Closed::read(folder.path()).expect("readable"), None, "byte {at}");
        }
        fs::write(&path, b"\xff").expect("written");
        assert_eq!(Closed::read(folder.path()).expect("readable"), None);
        forget(folder.path()).expect("removed");
        forget(folder.path()).expect("nothing to remove");
        assert!(!path.exists());
    }
}
