//! What is looked at before sled opens a database, since sled changes what it opens: a database that lost some of its
//! log is cut off where that begins, and one that is not there is made. Both would be the end of mail that can be saved.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::closed::Closed;
use super::open::{CONTENT, DATABASE, io_error};
use super::swap;
use crate::spool::SpoolError;
use crate::spool::content::ContentFiles;
use crate::spool::rescue::proof;

/// Refuses a database of which something is damaged that was safe once and that sled would have to read.
pub(super) fn must_be_whole(folder: &Path) -> Result<(), SpoolError> {
    let path = folder.join(DATABASE);
    let unreadable = || io_error(&path, "can't be read");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(unreadable())?,
    };
    let (snapshot, closed) = (snapshot_position(folder)?, Closed::read(folder)?);
    if let Some(closed) = closed {
        compare(folder, &file, snapshot, closed)?;
    }
    let end = closed.map_or(0, |closed| closed.end);
    match proof::first_damage(&file, snapshot, end).map_err(unreadable())? {
        Some(offset) => {
            damaged(folder, format!("it is damaged: what is at byte {offset} of \"db\" can't be read"))
        }
        None => Ok(()),
    }
}

/// Refuses a database that is not the one that was closed here.
fn compare(folder: &Path, file: &File, snapshot: u64, closed: Closed) -> Result<(), SpoolError> {
    let length = file.metadata().map_err(io_error(folder, "its database can't be looked at"))?.len();
    if length < closed.length {
        let known = closed.length;
        let reason = format!(
            "it was cut short: \"db\" has {length} bytes and had {known} when it was closed; if you put an older one back, \
             remove \"closed\" beside it"
        );
        return damaged(folder, reason);
    }
    // Positions only grow.
    if snapshot < closed.snapshot {
        let reason = format!(
            "it was closed with the snapshot \"snap.{:016X}\", which is missing; put it back, or remove \"closed\" if the \
             database is an older one",
            closed.snapshot
        );
        return damaged(folder, reason);
    }
    Ok(())
}

fn damaged(folder: &Path, reason: String) -> Result<(), SpoolError> {
    Err(SpoolError::Database { path: folder.to_owned(), reason })
}

/// The position of the newest snapshot, which is in its name; 0 without one.
pub(super) fn snapshot_position(folder: &Path) -> Result<u64, SpoolError> {
    Ok(swap::newest_snapshot(folder)?.map_or(0, |(position, _)| position))
}

/// Refuses to make a database where one has been.
pub(super) fn must_not_be_missing(folder: &Path) -> Result<(), SpoolError> {
    let path = folder.join(DATABASE);
    match fs::metadata(&path) {
        Ok(file) if file.len() > 0 => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(&path, "can't be looked at")(error))
        }
        _ if !swap::snapshots(folder)?.is_empty() => refuse(folder, "its snapshot is there"),
        _ if Closed::read(folder)?.is_some() => refuse(folder, "\"closed\" says that it was there"),
        _ => nothing_may_be_beside_it(folder),
    }
}

/// Refuses a database with nothing in it beside files with content of mail: the sweep would remove them.
pub(super) fn nothing_may_be_beside_it(folder: &Path) -> Result<(), SpoolError> {
    let content = folder.join(CONTENT);
    let count = match ContentFiles::new(content.clone()).names() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        names => names.map_err(io_error(&content, "can't be read"))?.values().map(Vec::len).sum(),
    };
    if count == 0 {
        Ok(())
    } else {
        refuse(folder, &format!("there is content of mail: {count} files in content/"))
    }
}

fn refuse(folder: &Path, what: &str) -> Result<(), SpoolError> {
    Err(SpoolError::Lost(folder.to_owned(), what.to_owned()))
}
