//! Putting a compacted copy into the place of the database: `db` and its snapshot, two names, as if they were one.
//!
//! sled must find both or neither: a database without its snapshot may open as an empty one (segments that were free when
//! the snapshot was written look like the end of the log), and one of another log is worse. So the swap is decided by one
//! rename, that of the folder with the copy, and whoever opens the spool next finishes what was decided.

use std::fs;
use std::path::Path;

use super::super::{SpoolError, sync};
use super::closed;
use super::open::{DATABASE, io_error};

/// Where a copy is written. Not decided: it may be removed.
pub(in crate::spool) const COPY: &str = "compact";
/// The name of that folder once the copy is to be used.
const DECIDED: &str = "compacted";

/// A step of a swap that is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) enum Step {
    /// The copy is to be used.
    Decided,
    /// The snapshots of the old database are gone.
    Bare,
    /// The new database is in its place.
    Swapped,
    /// And its snapshot.
    Whole,
}

/// What a crash left of a compaction: a copy that was not decided on is removed, a swap that was decided is finished.
/// The lock must be held and the database closed.
pub(in crate::spool) fn settle(folder: &Path) -> Result<(), SpoolError> {
    remove(&folder.join(COPY))?;
    finish(folder, &mut |_| {})
}

/// Decides on a copy that is complete and synced.
pub(in crate::spool) fn decide(folder: &Path) -> Result<(), SpoolError> {
    let copy = folder.join(COPY);
    fs::rename(&copy, folder.join(DECIDED)).map_err(io_error(&copy, "can't be renamed"))?;
    sync_folder(folder)
}

/// Does what was decided, from wherever it was interrupted; `reached` hears of each step.
pub(in crate::spool) fn finish(folder: &Path, reached: &mut dyn FnMut(Step)) -> Result<(), SpoolError> {
    let decided = folder.join(DECIDED);
    if !decided.exists() {
        return Ok(());
    }
    let new = decided.join(DATABASE);
    if new.exists() {
        reached(Step::Decided);
        // It is about the old database.
        closed::forget(folder)?;
        for name in snapshots(folder)? {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(io_error(&path, "can't be removed"))?;
        }
        // Each of these must not overtake the one before it.
        sync_folder(folder)?;
        reached(Step::Bare);
        let old = folder.join(DATABASE);
        fs::rename(&new, &old).map_err(io_error(&old, "can't be exchanged"))?;
        sync_folder(folder)?;
        sync_folder(&decided)?;
        reached(Step::Swapped);
    }
    for name in snapshots(&decided)? {
        let path = decided.join(&name);
        fs::rename(&path, folder.join(name)).map_err(io_error(&path, "can't be moved"))?;
    }
    sync_folder(folder)?;
    reached(Step::Whole);
    remove(&decided)
}

/// The names of sled's snapshots in a folder, half written ones included.
pub(in crate::spool) fn snapshots(folder: &Path) -> Result<Vec<String>, SpoolError> {
    let failed = |source| io_error(folder, "the folder can't be read")(source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(
            entry.map_err(failed)?.file_name().into_string().ok().filter(|name| name.starts_with("snap.")),
        );
    }
    Ok(names)
}

/// Position and name of the newest snapshot that is whole.
pub(in crate::spool) fn newest_snapshot(folder: &Path) -> Result<Option<(u64, String)>, SpoolError> {
    let position = |name: &str| u64::from_str_radix(name.strip_prefix("snap.")?, 16).ok();
    Ok(snapshots(folder)?.into_iter().filter_map(|name| Some((position(&name)?, name))).max())
}

/// Removes a folder with all in it; one that is not there is fine.
pub(in crate::spool) fn remove(folder: &Path) -> Result<(), SpoolError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error(folder, "can't be removed")(error))
        }
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> Result<(), SpoolError> {
    sync::sync_folder(folder).map_err(io_error(folder, "can't be synced"))
}
