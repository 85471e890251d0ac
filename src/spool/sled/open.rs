//! Opening and creating: folders, lock, left-overs, format, and the proof that a flush reaches the device.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, RwLock};
use std::time::Duration;

use uuid::Uuid;

use super::super::database::{Change, Tree};
use super::super::record::{self, Format, Start, Unreadable};
use super::super::space::{self, Bounds};
use super::super::sync::{self, Watch};
use super::super::{SpoolError, keys};
use super::alarm::Alarm;
use super::cache::Cache;
use super::count::Count;
use super::{SledSpool, SledTree, trouble};
use crate::config::SpoolConfig;
use crate::migrations;

pub(super) const CONTENT: &str = "content";
const BLOBS: &str = "blobs";
const DATABASE: &str = "db";
const CONF: &str = "conf";
const LOCK: &str = "lock";
/// How often sled's own thread looks for segments to free (and syncs, which commits never rely on).
const FLUSH_EVERY_MS: u64 = 500;

impl SledSpool {
    /// Opens the spool in `config.path`, or creates it. `instance` is a new random id of this run. Blocks.
    ///
    /// # Errors
    /// [`SpoolError::Locked`], [`SpoolError::Newer`], [`SpoolError::NotDurable`], [`SpoolError::Full`], and
    /// [`SpoolError::Io`] or [`SpoolError::Database`] for a folder that can't be used.
    pub fn open(config: &SpoolConfig, instance: Uuid) -> Result<Self, SpoolError> {
        match Self::try_open(config, instance) {
            Err(SpoolError::Full(path)) if space::release_reserve(&config.path) => {
                tracing::warn!(path = %path.display(), "the disk is full: the reserve is used to deliver and remove mail");
                Self::try_open(config, instance)
            }
            other => other,
        }
    }

    fn try_open(config: &SpoolConfig, instance: Uuid) -> Result<Self, SpoolError> {
        let folder = make_folder(&config.path)?;
        let lock = lock(&folder)?;
        remove_unfinished_snapshots(&folder)?;
        for name in [CONTENT, BLOBS] {
            make_folder(&folder.join(name))?;
        }
        let database = folder.join(DATABASE);
        // Before sled opens it: see `sync`.
        let own = private_file(&database).map_err(io_error(&database, "can't be opened for writing"))?;
        wait_for_the_last_one(&own, &folder)?;
        remove_unfinished_conf(&own, &folder)?;
        let watch = Watch::new(own).map_err(io_error(&database, "can't be looked at"))?;
        let database = RwLock::new(Some(OpenDatabase::open(&folder, config.cache)?));
        let instance = instance.simple().to_string();
        let tree = SledTree {
            database,
            watch,
            failed: OnceLock::new(),
            count: Count::default(),
            cache: Cache::new(config.cache),
            folder,
            instance,
            _lock: lock,
        };
        match make_ready(&tree, &Bounds::of(config)) {
            Ok(()) => Ok(Self { tree }),
            Err(error) => {
                // sled panics in its destructor when its last sync fails, too: what failed first is what to tell.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(tree)));
                Err(error)
            }
        }
    }
}

fn make_ready(tree: &SledTree, bounds: &Bounds) -> Result<(), SpoolError> {
    let start = begin(tree)?;
    protect_and_sync(&tree.folder)?;
    prove_durable(tree, start)?;
    space::set_aside(&tree.folder, bounds).map_err(io_error(&tree.folder, "space can't be set aside"))
}

/// The system's error, with what to do.
fn io_error(path: &Path, what: &str) -> impl FnOnce(io::Error) -> SpoolError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull => SpoolError::Full(path.to_owned()),
        kind => {
            let remedy = match kind {
                io::ErrorKind::PermissionDenied => {
                    "give the user that posthaste runs as this folder and all in it, or set spool.path to another one"
                }
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    "it is no folder: move it away, or set spool.path to another name"
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "mount it for writing, or set spool.path to another folder"
                }
                _ => "check the disk, or set spool.path to another folder",
            };
            SpoolError::Io { path: path.to_owned(), what: format!("{what}; {remedy}"), source }
        }
    }
}

/// Makes a folder that only its owner may enter, and returns its absolute path.
fn make_folder(path: &Path) -> Result<PathBuf, SpoolError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(path, "the folder can't be made"))?;
    restrict(path, 0o700);
    path.canonicalize().map_err(io_error(path, "the folder can't be found"))
}

/// Takes other users' rights away; where the system refuses, the administrator's choice stands.
fn restrict(path: &Path, mode: u32) {
    let open = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
    if open && let Err(error) = fs::set_permissions(path, Permissions::from_mode(mode)) {
        tracing::warn!(path = %path.display(), %error, "other users may read this part of the spool");
    }
}

/// Opens or makes a file that only its owner may read.
pub(in crate::spool) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Our own lock, taken before anything in the folder is touched; sled's comes too late for that.
fn lock(folder: &Path) -> Result<File, SpoolError> {
    let path = folder.join(LOCK);
    let file = private_file(&path).map_err(io_error(&path, "can't be opened for writing"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SpoolError::Locked(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(io_error(&path, "can't be locked")(error)),
    }
}

/// sled's threads may hold a database for a moment after it was dropped in this very process.
pub(super) fn wait_for_the_last_one(database: &File, folder: &Path) -> Result<(), SpoolError> {
    for _ in 0..200 {
        if database.try_lock().is_ok() {
            return database.unlock().map_err(io_error(folder, "can't be unlocked"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(SpoolError::Locked(folder.to_owned()))
}

/// A crash while sled wrote a snapshot leaves a file that makes its next open fail.
fn remove_unfinished_snapshots(folder: &Path) -> Result<(), SpoolError> {
    let failed = |source| io_error(folder, "the folder can't be read")(source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let unfinished =
            name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating"));
        if unfinished {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(io_error(&path, "can't be removed"))?;
        }
    }
    Ok(())
}

/// A first start that ended while sled wrote its `conf` leaves one that can't be read. sled writes it before the database,
/// so beside an empty one it says nothing.
fn remove_unfinished_conf(database: &File, folder: &Path) -> Result<(), SpoolError> {
    let path = folder.join(CONF);
    let empty = database.metadata().map_err(io_error(folder, "the database can't be looked at"))?.len() == 0;
    match empty.then(|| fs::remove_file(&path)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(&path, "can't be removed")(error))
        }
        _ => Ok(()),
    }
}

/// sled's database and who watches it.
pub(super) struct OpenDatabase {
    // Dropped in this order: the alarm's thread holds the database.
    _alarm: Alarm,
    pub db: sled::Db,
}

impl OpenDatabase {
    pub fn open(folder: &Path, cache: u64) -> Result<Self, SpoolError> {
        let config =
            sled::Config::new().path(folder).cache_capacity(cache).flush_every_ms(Some(FLUSH_EVERY_MS));
        // sled panics on some kinds of damage.
        let db = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(opened) => opened.map_err(|error| trouble(folder, error))?,
            Err(_) => {
                return Err(SpoolError::Database {
                    path: folder.to_owned(),
                    reason: "it is damaged, the panic above tells where".to_owned(),
                });
            }
        };
        let alarm =
            Alarm::set(config, db.clone()).map_err(io_error(folder, "no thread can be started for it"))?;
        Ok(Self { _alarm: alarm, db })
    }
}

/// Checks the format, writes it into a new spool, and returns the number of the start before this one.
fn begin(tree: &SledTree) -> Result<u64, SpoolError> {
    let unreadable = |error: Unreadable| SpoolError::Database {
        path: tree.folder.clone(),
        reason: format!("its description can't be read: {error}"),
    };
    let start = tree.get(keys::META_START)?;
    if let Some(found) = tree.get(keys::META_FORMAT)? {
        let format = record::read_format(&found).map_err(unreadable)?;
        migrations::check(&tree.folder, format.version, &format.writer)?;
    } else if tree.with(|db| Ok(db.is_empty()))? {
        let format = Format { version: migrations::CURRENT, writer: env!("CARGO_PKG_VERSION").into() };
        tree.apply(vec![change(keys::META_FORMAT, record::write_format(&format))])?;
    } else {
        return Err(unreadable(Unreadable::Field("format")));
    }
    start.map_or(Ok(0), |start| record::read_start(&start).map(|start| start.number).map_err(unreadable))
}

fn change(key: &[u8], value: sled::IVec) -> Change {
    (key.into(), Some(value))
}

/// sled syncs none of its names, and leaves modes to the umask. At each start: the last one may have died before this.
pub(super) fn protect_and_sync(folder: &Path) -> Result<(), SpoolError> {
    let failed = |source| io_error(folder, "can't be synced")(source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if entry.file_type().map_err(failed)?.is_file() {
            restrict(&entry.path(), 0o600);
        }
        if name == CONF || name == DATABASE {
            File::open(entry.path()).and_then(|file| file.sync_all()).map_err(failed)?;
        }
    }
    for part in [BLOBS, CONTENT] {
        sync::sync_folder(&folder.join(part)).map_err(failed)?;
    }
    sync::sync_folder(folder).map_err(failed)?;
    sync::sync_folder(folder.parent().unwrap_or(folder)).map_err(failed)
}

/// Writes this start, a record that was never there before, and sees that the flush really synced the file.
pub(super) fn prove_durable(tree: &SledTree, last_start: u64) -> Result<(), SpoolError> {
    let before = tree.watch.syncs();
    let start = Start { number: last_start + 1, instance: tree.instance.as_str().into() };
    tree.apply(vec![change(keys::META_START, record::write_start(&start))])?;
    if tree.watch.syncs() > before {
        return Ok(());
    }
    let reason = "a test record was flushed, but no sync of the database file was seen; \
                  posthaste needs Linux and its own definition of sync_file_range";
    Err(SpoolError::NotDurable(tree.folder.clone(), reason.to_owned()))
}
