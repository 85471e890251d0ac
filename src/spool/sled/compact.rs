//! Compaction: gives the file system back what sled's file keeps: it is cut only where its end is free.
//!
//! A fresh database is written beside the old one and read through once more; then it takes the old one's place, with its
//! snapshot (`swap.rs`). Content files stay where they are. `posthaste spool compact` does it with a spool that is stopped,
//! and a relay by itself between two commits, when little is queued (see [`crate::spool::space`]).
//!
//! | state | on disk | a crash here leaves | who puts it right |
//! |---|---|---|---|
//! | C0 as before | `db`, its `snap.*` | nothing | – |
//! | C1 copying | and `compact/`, unfinished | the old database and an unfinished copy | the next open removes the copy |
//! | C2 copied | and `compact/`, complete, read through, synced | the old database and a copy of it | the next open removes the copy |
//! | C3 decided | and `compacted/`, which was `compact/` | two databases, of which the new one counts | the next open does the rest |
//! | C4 bare | `db` without `snap.*`, and `compacted/` | the same | the next open does the rest |
//! | C5 swapped | the new `db` without `snap.*`; `compacted/` has them | the new database without its snapshot | the next open does the rest |
//! | C6 whole | the new `db`, its `snap.*`, and what is left of `compacted/` | a folder that nobody needs | the next open removes it |
//! | C7 done | the new `db`, its `snap.*` | nothing | – |
//!
//! ```text
//! C0 ─ first write of the copy ─► C1 ─ copy equal to the old one and closed, synced ─► C2
//! C2 ─ old database closed, rename of `compact/` to `compacted/`: the instant of the decision ─► C3 ─ old snapshots removed ─► C4
//! C4 ─ rename of `compacted/db` to `db` ─► C5 ─ rename of its snapshot ─► C6 ─ `compacted/` removed ─► C7
//! ```
//!
//! "The next open" is that of any program that opens the spool, before sled does. From C2 on each step is synced before the
//! next one. `conf` is the same for both databases, or nothing is swapped. The lock is held from C0 to C7, and in a relay
//! nobody reads or writes meanwhile.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::open::{
    BLOBS, CONF, DATABASE, guarded, io_error, private_file, protect_and_sync, wait_for_the_last_one,
};
use super::swap::{self, COPY, Step};
use super::{SledSpool, SledTree, snapshot, trouble, visit_pairs};
use crate::clock::{Clock, SystemClock};
use crate::config::SpoolConfig;
use crate::spool::database::{Change, Tree};
use crate::spool::space::{self, Fit, Space};
use crate::spool::{Compacted, SpoolError};

/// Bytes of keys and values that are written to the copy at once.
const PIECE: usize = 1 << 20;
/// Keys that are written to the copy at once. sled keeps each page as it was before each change until a batch is applied: some KiB
/// of memory for each key.
const PIECE_KEYS: usize = 1_000;

/// Why nothing was compacted. The spool is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The spool can't be read, or the copy can't be written.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// There is more in it than may be copied.
    #[error("the database has more than {0} bytes of keys and values; nothing was changed")]
    TooMuch(u64),
    /// The copy would not fit.
    #[error(
        "the copy needs up to {needed} bytes beside the old database, and {free} are free on the disk of {spool}; free some, \
         or move the mail with `posthaste spool export` and `import`"
    )]
    NoRoom {
        /// The spool.
        spool: PathBuf,
        /// Bytes that the copy may take.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The databases can't be exchanged, or the copy is not a copy.
    #[error("{0}; nothing was changed; move the mail with `posthaste spool export` and `import`")]
    Unlike(&'static str),
}

/// Where a compaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) enum State {
    Copying,
    Copied,
    Swapping(Step),
    Done,
}

/// Compacts the database of the spool in `config.path`, which nobody has open.
///
/// # Errors
/// Nothing is changed then.
pub fn compact(config: &SpoolConfig) -> Result<Compacted, CompactError> {
    compact_through(config, &mut |_| {})
}

/// As [`compact`]; calls `reached` in each state.
pub(in crate::spool) fn compact_through(
    config: &SpoolConfig,
    reached: &mut dyn FnMut(State),
) -> Result<Compacted, CompactError> {
    let spool = SledSpool::open_existing(config)?;
    let lock = spool.lock().map_err(io_error(spool.folder(), "its lock can't be held"))?;
    let compacted = spool.tree.store.compact_through(u64::MAX, reached);
    drop((spool, lock));
    compacted
}

impl SledTree {
    /// As [`crate::spool::Spool::compact`].
    pub(super) fn compact_at_most(&self, most: u64) -> Result<Compacted, CompactError> {
        let begun = SystemClock.instant();
        let compacted = self.compact_through(most, &mut |_| {});
        if let Ok(Compacted { before, after }) = compacted {
            let took_ms = (SystemClock.instant() - begun).as_millis();
            tracing::info!(
                took_ms,
                before,
                after,
                "the database was compacted; commits and reads waited for it"
            );
        }
        compacted
    }

    /// Compacts, unless there are more than `most` bytes of keys and values; calls `reached` in each state. An error
    /// once the old database is closed is final, as for a commit.
    fn compact_through(&self, most: u64, reached: &mut dyn FnMut(State)) -> Result<Compacted, CompactError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let closed = || SpoolError::Closed(self.failed.get().cloned().unwrap_or_default());
        let open = database.as_ref().filter(|_| self.failed.get().is_none()).ok_or_else(closed)?;
        let copy = self.folder.join(COPY);
        let written = write_copy(&open.db, &self.folder, most, reached).and_then(|()| {
            reached(State::Copied);
            compare(&self.folder, &copy)
        });
        let compacted = match written {
            Ok(compacted) if compacted.after < compacted.before => compacted,
            // C1, C2 → C0
            other => {
                if let Err(CompactError::Spool(error @ SpoolError::Database { path, .. })) = &other
                    && *path == self.folder
                {
                    self.damaged.get_or_init(|| error.to_string());
                }
                let removed = swap::remove(&copy);
                let kept = other.map(|it| Compacted { after: it.before, ..it });
                return kept.and_then(|kept| removed.map(|()| kept).map_err(CompactError::Spool));
            }
        };
        let old = database.take();
        let exchanged = guarded(&self.folder, || {
            old.map_or(Ok(()), snapshot::close)?;
            wait_until_closed(&self.folder)?;
            swap::decide(&self.folder)?;
            swap::finish(&self.folder, &mut |step| reached(State::Swapping(step)))?;
            let path = self.folder.join(DATABASE);
            // Before sled opens it: see `sync`.
            let own = private_file(&path).map_err(io_error(&path, "can't be opened for writing"))?;
            self.watch.turn_to(own).map_err(io_error(&path, "can't be looked at"))?;
            self.open_again()
        });
        match exchanged {
            Ok(open) => *database = Some(open),
            Err(error) => {
                tracing::error!(%error, "the database can't be opened again: no more mail is accepted");
                self.failed.get_or_init(|| error.to_string());
                return Err(error.into());
            }
        }
        reached(State::Done);
        Ok(compacted)
    }
}

/// Number, bytes and checksum of all keys and values.
#[derive(Clone, Debug, Default)]
struct Sum {
    pairs: u64,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl Sum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.pairs += 1;
        self.bytes += (key.len() + value.len()) as u64;
        for part in [key, value] {
            self.crc.update(&(part.len() as u64).to_le_bytes());
            self.crc.update(part);
        }
    }
}

impl PartialEq for Sum {
    fn eq(&self, other: &Self) -> bool {
        let all = |sum: &Self| (sum.pairs, sum.bytes, sum.crc.clone().finalize());
        all(self) == all(other)
    }
}

// C0 → C2
fn write_copy(
    db: &sled::Db,
    folder: &Path,
    most: u64,
    reached: &mut dyn FnMut(State),
) -> Result<(), CompactError> {
    let bytes = sum_of(db, folder, most)?.bytes;
    if bytes > most {
        return Err(CompactError::TooMuch(most));
    }
    if has_blobs(folder)? {
        return Err(CompactError::Unlike("the database has files in blobs/"));
    }
    check_room(folder, bytes)?;
    let copy = folder.join(COPY);
    let new = SledSpool::open_copy(&copy_config(&copy))?;
    let filled = fill(db, folder, &new.tree.store, reached);
    // sled panics in its destructor when its last sync fails, too: what failed first is what to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(new)));
    let filled = filled?;
    if read_copy(&copy)? != filled {
        return Err(CompactError::Unlike(
            "the copy does not read back as it was written: check disk and memory",
        ));
    }
    wait_until_closed(&copy)?;
    protect_and_sync(&copy)?;
    Ok(())
}

fn fill(
    old: &sled::Db,
    folder: &Path,
    new: &SledTree,
    reached: &mut dyn FnMut(State),
) -> Result<Sum, SpoolError> {
    let mut sum = Sum::default();
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    let mut result = Ok(());
    visit_pairs(old, &mut |key, value| {
        sum.add(key, value);
        bytes += key.len() + value.len();
        changes.push((key.into(), Some(value.into())));
        if bytes >= PIECE || changes.len() >= PIECE_KEYS {
            bytes = 0;
            result = new.apply(std::mem::take(&mut changes));
            reached(State::Copying);
        }
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(|error| trouble(folder, error))?;
    result?;
    new.apply(changes)?;
    reached(State::Copying);
    Ok(sum)
}

/// All that a copy is read for: whether it opens as a spool does, and has all that was put into it.
fn read_copy(copy: &Path) -> Result<Sum, CompactError> {
    wait_until_closed(copy)?;
    let new = SledSpool::open_copy(&copy_config(copy))?;
    if has_blobs(copy)? {
        return Err(CompactError::Unlike("the copy would have files in blobs/"));
    }
    Ok(new.tree.store.hold(|db| sum_of(db, copy, u64::MAX))?)
}

fn copy_config(copy: &Path) -> SpoolConfig {
    SpoolConfig { path: copy.to_owned(), reserve: 0, ..SpoolConfig::default() }
}

/// Of all keys and values, or of so many that they are more than `most` bytes.
fn sum_of(db: &sled::Db, folder: &Path, most: u64) -> Result<Sum, SpoolError> {
    let mut sum = Sum::default();
    visit_pairs(db, &mut |key, value| {
        sum.add(key, value);
        if sum.bytes <= most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(|error| trouble(folder, error))?;
    Ok(sum)
}

pub(in crate::spool) fn check_room(folder: &Path, bytes: u64) -> Result<(), CompactError> {
    let needed = space::for_copy_of(bytes);
    let space = Space::look(folder).map_err(io_error(folder, "its disk can't be looked at"))?;
    match space.fit(needed) {
        Fit::Free => {}
        // It is set aside again once there is room for it.
        Fit::WithReserve => drop(space::release_reserve(folder)),
        Fit::No => return Err(CompactError::NoRoom { spool: folder.to_owned(), needed, free: space.free }),
    }
    Ok(())
}

fn has_blobs(folder: &Path) -> Result<bool, SpoolError> {
    let blobs = folder.join(BLOBS);
    let mut entries = fs::read_dir(&blobs).map_err(io_error(&blobs, "can't be read"))?;
    Ok(entries.next().is_some())
}

/// sled's threads let go of a database some time after it was closed.
fn wait_until_closed(folder: &Path) -> Result<(), SpoolError> {
    let database = folder.join(DATABASE);
    let file = File::open(&database).map_err(io_error(&database, "can't be opened"))?;
    wait_for_the_last_one(&file, folder)
}

/// Whether the copy can take the place of the database, and what that gains.
fn compare(folder: &Path, copy: &Path) -> Result<Compacted, CompactError> {
    let read =
        |folder: &Path| fs::read(folder.join(CONF)).map_err(io_error(folder, "its conf can't be read"));
    if read(folder)? != read(copy)? {
        return Err(CompactError::Unlike("the database was made with other settings than this program's"));
    }
    if swap::snapshots(copy)?.is_empty() {
        return Err(CompactError::Unlike("sled wrote no snapshot of the copy"));
    }
    let length = |folder: &Path| {
        let database = folder.join(DATABASE);
        fs::metadata(&database).map(|file| file.len()).map_err(io_error(&database, "can't be looked at"))
    };
    Ok(Compacted { before: length(folder)?, after: length(copy)? })
}
