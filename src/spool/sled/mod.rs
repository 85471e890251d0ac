//! The spool on disk: one sled tree, every commit one batch and one flush.
//!
//! LAW: one thread writes ([`super::front`]), with `apply_batch` and a blocking `flush`; never `flush_async`, watchers or
//! transactions. A failed write or sync is final: from then on every commit is refused.
//!
//! What the two calls hold (sled 0.34.7, `concurrency_control.rs`): `apply_batch` takes a process-wide write lock, `flush`
//! and every single read its read side. So reads wait while a batch is applied (memory only), not while it is synced;
//! but once every `flush_every_ms` sled's own thread may sync with the read side held: then a batch waits for it, and
//! reads wait behind the batch, for one sync at most.
//!
//! The folder (0700): `db`, `conf`, `blobs/` (always empty) and `snap.*` are sled's; `lock`, `reserve` and `content/` ours,
//! `closed` when nobody has it open, `compact/` or `compacted/` during a compaction, and `rescue.unfinished` during the rescue
//! that fills it. Never remove a `snap.*`, nor put one beside another `db`: see `swap.rs`.

mod alarm;
mod before;
mod cache;
pub(super) mod closed;
pub mod compact;
mod count;
pub(super) mod open;
mod snapshot;
pub(super) mod swap;
#[cfg(test)]
mod tests;
pub(super) mod whole;

use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use sled::{Batch, IVec};

use self::cache::Cache;
use self::closed::Closing;
use self::compact::CompactError;
use self::count::Count;
use self::open::OpenDatabase;
use self::snapshot::{SNAPSHOT_AT_THE_END, SNAPSHOT_WHILE_RUNNING};
use super::content::ContentFiles;
use super::database::{Change, Database, Store, Tree, Visit};
use super::space;
use super::sync::{self, Watch};
use super::{Compacted, Reads, SpoolError};

/// The spool on disk. Dropping it closes the database and gives the folder free.
pub type SledSpool = Database<SledTree>;

/// The records of a [`SledSpool`].
pub struct SledTree {
    // Dropped in this order: sled writes its last bytes under our watch and our lock, and then it is noted that they were the last.
    /// `None` when it could not be opened again.
    database: RwLock<Option<OpenDatabase>>,
    _closing: Closing,
    pub(super) watch: Watch,
    /// Why nothing more is written.
    failed: Arc<OnceLock<String>>,
    /// What could not be read.
    damaged: OnceLock<String>,
    count: Count,
    cache: Cache,
    folder: PathBuf,
    instance: String,
    _lock: File,
}

impl SledSpool {
    /// The folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.tree.store.folder
    }

    /// The instance id of this run.
    pub fn instance(&self) -> &str {
        &self.tree.store.instance
    }

    /// The content files beside the database.
    pub fn files(&self) -> ContentFiles {
        ContentFiles::new(self.tree.store.folder.join(open::CONTENT))
    }

    /// The folder's lock: as long as it lives nobody else opens the spool, even when this one is closed.
    pub(super) fn lock(&self) -> std::io::Result<File> {
        self.tree.store._lock.try_clone()
    }
}

impl Tree for SledTree {
    fn files(&self) -> Option<ContentFiles> {
        Some(ContentFiles::new(self.folder.join(open::CONTENT)))
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        let found = self.with(|db| db.get(key).inspect(|_| cache::settle(db, key)))?;
        if found.is_some() {
            self.count.read(key);
        }
        Ok(found)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        if from >= to {
            return Ok(());
        }
        self.with(|db| {
            visit_range(db, db.range(from..to), &mut |key, value| {
                self.count.read(key);
                if visit(key, value) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), SpoolError> {
        if let Some(why) = self.failed.get() {
            return Err(SpoolError::Closed(why.clone()));
        }
        // A batch is a map, so of several changes of one key the last counts.
        let mut batch = Batch::default();
        let mut removed = Vec::new();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    self.cache.note_put(&key);
                    batch.insert(key, value);
                }
                None => {
                    removed.extend(self.cache.is_cold(&key).then(|| key.clone()));
                    batch.remove(key);
                }
            }
        }
        let written = self.with(|db| {
            db.apply_batch(batch)?;
            self.cache.settle_removed(db, &removed);
            db.flush()
        });
        if let Err(error) = &written {
            self.failed.get_or_init(|| error.to_string());
            if matches!(error, SpoolError::Full(_)) {
                // The next start needs room to deliver and remove.
                space::release_reserve(&self.folder);
            }
        }
        written?;
        // What was written is durable: should the database not open again, the next commit says so.
        self.take_snapshot_from(SNAPSHOT_WHILE_RUNNING);
        Ok(())
    }

    fn settle(&self) {
        self.take_snapshot_from(SNAPSHOT_AT_THE_END);
    }

    fn compact(&self, most: u64) -> Result<Option<Compacted>, SpoolError> {
        match self.compact_at_most(most) {
            Ok(compacted) => Ok(Some(compacted)),
            Err(CompactError::Spool(error)) => Err(error),
            Err(why) => {
                tracing::debug!(%why, "the database stays as it is");
                Ok(None)
            }
        }
    }

    fn damage(&self) -> Option<String> {
        self.damaged.get().cloned()
    }

    fn syncs(&self) -> u64 {
        self.watch.syncs() + sync::other_syncs()
    }

    fn reads(&self) -> Reads {
        self.count.reads()
    }
}

impl Store for SledTree {
    fn at_or_before(&self, from: &[u8], to: &[u8]) -> Result<Option<(IVec, IVec)>, SpoolError> {
        // sled's backward step (`iter.rs`, `possible_predecessor`) looks for the leaf before one that begins with some bytes at these
        // bytes less one and four times ff. It would never end where another leaf begins with just that and more: of our keys that
        // takes a time that is a multiple of 2^32 ms, and a leaf of keys of the ms before it.
        let range = (Bound::Included(from), Bound::Included(to));
        let found = self.with(|db| db.range::<&[u8], _>(range).next_back().transpose())?;
        found.iter().for_each(|(key, _)| self.count.read(key));
        Ok(found)
    }
}

impl SledTree {
    /// Whether nothing is in it.
    fn is_empty(&self) -> bool {
        self.with(|db| Ok(db.is_empty())).unwrap_or(false)
    }

    /// Uses the database.
    fn with<T>(&self, ask: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, SpoolError> {
        self.hold(|db| {
            ask(db).map_err(|error| {
                let damaged = matches!(error, sled::Error::Corruption { .. });
                let error = trouble(&self.folder, error);
                if damaged {
                    self.damaged.get_or_init(|| error.to_string());
                }
                error
            })
        })
    }

    /// Keeps the database open meanwhile.
    fn hold<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, SpoolError>) -> Result<T, SpoolError> {
        match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(open) => work(&open.db),
            None => Err(SpoolError::Closed(self.failed.get().cloned().unwrap_or_default())),
        }
    }
}

/// What is called for each pair.
type VisitPair<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Visits all pairs in order of key.
fn visit_pairs(db: &sled::Db, visit: VisitPair<'_>) -> sled::Result<()> {
    visit_range(db, db.iter(), visit)
}

/// Visits the pairs and lets the cache go of them.
fn visit_range(db: &sled::Db, pairs: sled::Iter, visit: VisitPair<'_>) -> sled::Result<()> {
    let mut settle = cache::Settle::default();
    for pair in pairs {
        let (key, value) = pair?;
        settle.read(db, &key);
        if visit(&key, &value).is_break() {
            break;
        }
    }
    Ok(())
}

/// sled's error in our words.
fn trouble(folder: &Path, error: sled::Error) -> SpoolError {
    let path = folder.to_owned();
    match error {
        sled::Error::Io(source) if source.kind() == std::io::ErrorKind::StorageFull => SpoolError::Full(path),
        sled::Error::Io(source) => {
            let what =
                "can't read or write the database; check the disk, then start posthaste again".to_owned();
            SpoolError::Io { path, what, source }
        }
        other => SpoolError::Database { path, reason: other.to_string() },
    }
}
