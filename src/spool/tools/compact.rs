//! `posthaste spool compact`: gives the file system back what sled's file never gives back.
//!
//! A fresh database is written beside the old one and read through once more; then it takes the old one's place, with its
//! snapshot ([`crate::spool::sled`] has the swap). Content files stay where they are.
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
//! C0 ─ first write of the copy ─► C1 ─ copy equal to the old one, both closed, synced ─► C2
//! C2 ─ rename of `compact/` to `compacted/`: the instant of the decision ─► C3 ─ old snapshots removed ─► C4
//! C4 ─ rename of `compacted/db` to `db` ─► C5 ─ rename of its snapshot ─► C6 ─ `compacted/` removed ─► C7
//! ```
//!
//! "The next open" is that of any program that opens the spool, before sled does. From C2 on each step is synced before the
//! next one. `conf` is the same for both databases, or nothing is swapped. The lock is held from C0 to C7.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{END, each_pair};
use crate::config::SpoolConfig;
use crate::spool::database::{Change, Tree};
use crate::spool::sled::open::{BLOBS, CONF, DATABASE, io_error, protect_and_sync, wait_for_the_last_one};
use crate::spool::sled::swap::{self, COPY, Step};
use crate::spool::sled::{SledSpool, SledTree};
use crate::spool::space::{self, Space};
use crate::spool::{SpoolError, keys};

/// Bytes of keys and values that are written to the copy at once.
const PIECE: usize = 4 << 20;
/// Keys that are written to the copy at once.
const PIECE_KEYS: usize = 10_000;
/// What the copy may take for each byte of keys and values, and whatever there is in it (measured: 1.6 for 4 KiB messages).
const COPY_PER_BYTE: f64 = 2.0;
const COPY_AT_LEAST: u64 = 8 << 20;

/// What a compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Length of the database file before, in bytes.
    pub before: u64,
    /// And after; the same when the copy would not have been smaller and was not used.
    pub after: u64,
}

/// Why nothing was compacted. The spool is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The spool can't be read, or the copy can't be written.
    #[error(transparent)]
    Spool(#[from] SpoolError),
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
pub(super) enum State {
    Copying,
    Copied,
    Swapping(Step),
    Done,
}

/// Compacts the database of the spool in `config.path`.
///
/// # Errors
/// Nothing is changed then.
pub fn compact(config: &SpoolConfig) -> Result<Compacted, CompactError> {
    compact_through(config, &mut |_| {})
}

/// As [`compact`]; calls `reached` in each state.
pub(super) fn compact_through(
    config: &SpoolConfig,
    reached: &mut dyn FnMut(State),
) -> Result<Compacted, CompactError> {
    let spool = SledSpool::open_existing(config)?;
    let folder = spool.folder().to_owned();
    let lock = spool.lock().map_err(io_error(&folder, "its lock can't be held"))?;
    let copy = folder.join(COPY);
    let result = write_copy(&spool, &copy, reached).and_then(|sum| {
        drop(spool);
        wait_until_closed(&folder)?;
        if read_copy(&copy)? != sum {
            return Err(CompactError::Unlike(
                "the copy does not read back as it was written: check disk and memory",
            ));
        }
        wait_until_closed(&copy)?;
        protect_and_sync(&copy)?;
        reached(State::Copied);
        exchange(&folder, &copy, reached)
    });
    // C1, C2 → C0
    let removed = swap::remove(&copy);
    let compacted = result?;
    removed?;
    drop(lock);
    reached(State::Done);
    Ok(compacted)
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

// C0 → C1
fn write_copy(spool: &SledSpool, copy: &Path, reached: &mut dyn FnMut(State)) -> Result<Sum, CompactError> {
    let folder = spool.folder();
    check_room(folder, sum_of(&spool.tree)?.bytes)?;
    if has_blobs(folder)? {
        return Err(CompactError::Unlike("the database has files in blobs/"));
    }
    let new = SledSpool::open_copy(&copy_config(copy))?;
    let filled = fill(&spool.tree, &new.tree, reached);
    // sled panics in its destructor when its last sync fails, too: what failed first is what to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(new)));
    Ok(filled?)
}

fn fill(old: &SledTree, new: &SledTree, reached: &mut dyn FnMut(State)) -> Result<Sum, SpoolError> {
    let mut sum = Sum::default();
    let mut from = Vec::new();
    loop {
        let mut changes: Vec<Change> = Vec::new();
        let mut bytes = 0;
        old.scan(&from, &END, &mut |key, value| {
            sum.add(key, value);
            bytes += key.len() + value.len();
            changes.push((key.into(), Some(value.into())));
            bytes < PIECE && changes.len() < PIECE_KEYS
        })?;
        let Some((last, _)) = changes.last() else { return Ok(sum) };
        from = keys::after(last.to_vec());
        new.apply(changes)?;
        reached(State::Copying);
    }
}

/// All that a copy is read for: whether it opens as a spool does, and has all that was put into it.
fn read_copy(copy: &Path) -> Result<Sum, CompactError> {
    wait_until_closed(copy)?;
    let new = SledSpool::open_copy(&copy_config(copy))?;
    if has_blobs(copy)? {
        return Err(CompactError::Unlike("the copy would have files in blobs/"));
    }
    Ok(sum_of(&new.tree)?)
}

fn copy_config(copy: &Path) -> SpoolConfig {
    SpoolConfig { path: copy.to_owned(), reserve: 0, ..SpoolConfig::default() }
}

fn sum_of(tree: &SledTree) -> Result<Sum, SpoolError> {
    let mut sum = Sum::default();
    each_pair(tree, &[], &END, |key, value| {
        sum.add(key, value);
        Ok::<(), SpoolError>(())
    })?;
    Ok(sum)
}

pub(super) fn check_room(folder: &Path, bytes: u64) -> Result<(), CompactError> {
    let needed = COPY_AT_LEAST + (bytes as f64 * COPY_PER_BYTE) as u64;
    let free = Space::look(folder).map_err(io_error(folder, "its disk can't be looked at"))?.free;
    match fit(needed, free, space::reserved(folder)) {
        Fit::Free => {}
        // The next start sets it aside again, once there is room for it.
        Fit::WithReserve => drop(space::release_reserve(folder)),
        Fit::No => return Err(CompactError::NoRoom { spool: folder.to_owned(), needed, free }),
    }
    Ok(())
}

/// Whether a copy fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Free,
    /// In place of the reserve.
    WithReserve,
    No,
}

pub(super) fn fit(needed: u64, free: u64, reserve: u64) -> Fit {
    if needed <= free {
        Fit::Free
    } else if needed <= free.saturating_add(reserve) {
        Fit::WithReserve
    } else {
        Fit::No
    }
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

// C2 → C7, or C2 when it would be of no use.
fn exchange(folder: &Path, copy: &Path, reached: &mut dyn FnMut(State)) -> Result<Compacted, CompactError> {
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
    let (before, after) = (length(folder)?, length(copy)?);
    if after >= before {
        return Ok(Compacted { before, after: before });
    }
    swap::decide(folder)?;
    swap::finish(folder, &mut |step| reached(State::Swapping(step)))?;
    Ok(Compacted { before, after })
}
