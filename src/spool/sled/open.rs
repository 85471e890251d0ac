//! Opening and creating: folders, lock, left-overs, format, and the proof that a flush reaches the device.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use uuid::Uuid;

use super::super::blocks::Blocks;
use super::super::database::{Change, Tree};
use super::super::record::{self, Format, MigrationMark, Start, Unreadable};
use super::super::space::{self, Bounds};
use super::super::sync::{self, Watch};
use super::super::{SpoolError, keys, migrate};
use super::alarm::Alarm;
use super::cache::Cache;
use super::closed::{self, Closing};
use super::count::Count;
use super::{SledSpool, SledTree, before, swap, trouble};
use crate::config::SpoolConfig;
use crate::migrations;

pub(in crate::spool) const CONTENT: &str = "content";
pub(in crate::spool) const BLOBS: &str = "blobs";
pub(in crate::spool) const DATABASE: &str = "db";
pub(in crate::spool) const CONF: &str = "conf";
pub(in crate::spool) const LOCK: &str = "lock";
/// A first start that ended before it wrote the format leaves one segment of 512 KiB. In a longer file there was something:
/// sled overlooks what it has when a snapshot is missing, and a spool must not start anew over lost mail.
const EMPTY_MAX: u64 = 1 << 20;
/// How often sled's own thread looks for segments to free (and syncs, which commits never rely on).
const FLUSH_EVERY_MS: u64 = 500;

/// What a spool is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To take mail: it is made if need be, its writes are proved durable, and it has its reserve.
    Mail,
    /// To be looked at: only sled writes, to put right what a crash left.
    Look,
    /// To become a copy: nothing is in it that was not put there.
    Copy,
}

impl SledSpool {
    /// Opens the spool in `config.path`, or creates it. `instance` is a new random id of this run. Blocks.
    ///
    /// # Errors
    /// [`SpoolError::Locked`], [`SpoolError::Newer`], [`SpoolError::NotDurable`], [`SpoolError::Full`], and
    /// [`SpoolError::Io`] or [`SpoolError::Database`] for a folder that can't be used.
    pub fn open(config: &SpoolConfig, instance: Uuid) -> Result<Self, SpoolError> {
        match Self::try_open(config, instance, Purpose::Mail) {
            Err(SpoolError::Full(path)) if space::release_reserve(&config.path) => {
                tracing::warn!(path = %path.display(), "the disk is full: the reserve is used to deliver and remove mail");
                Self::try_open(config, instance, Purpose::Mail)
            }
            other => other,
        }
    }

    /// Opens a spool that is there and leaves it as it is, but for what sled does when it opens its database. Blocks.
    ///
    /// # Errors
    /// [`SpoolError::Missing`], and those of [`SledSpool::open`] but for `NotDurable`.
    pub fn open_existing(config: &SpoolConfig) -> Result<Self, SpoolError> {
        Self::must_exist(config)?;
        Self::try_open(config, Uuid::nil(), Purpose::Look)
    }

    /// Opens a database in `config.path` that has nothing of a spool yet, or what was copied into it. Blocks.
    pub(in crate::spool) fn open_copy(config: &SpoolConfig) -> Result<Self, SpoolError> {
        Self::try_open(config, Uuid::nil(), Purpose::Copy)
    }

    fn try_open(config: &SpoolConfig, instance: Uuid, purpose: Purpose) -> Result<Self, SpoolError> {
        let folder = make_folder(&config.path)?;
        let lock = lock(&folder)?;
        super::whole::check(&folder, instance)?;
        swap::settle(&folder)?;
        remove_unfinished_snapshots(&folder)?;
        for name in [CONTENT, BLOBS] {
            make_folder(&folder.join(name))?;
        }
        let database = folder.join(DATABASE);
        before::must_not_be_missing(&folder)?;
        // Before sled opens it: see `sync`.
        let own = private_file(&database).map_err(io_error(&database, "can't be opened for writing"))?;
        wait_for_the_last_one(&own, &folder)?;
        remove_unfinished_conf(&own, &folder)?;
        let length = own.metadata().map_err(io_error(&database, "can't be looked at"))?.len();
        let watch = Watch::new(own).map_err(io_error(&database, "can't be looked at"))?;
        let database = RwLock::new(Some(OpenDatabase::open(&folder, config.cache)?));
        let (instance, failed) = (instance.simple().to_string(), Arc::new(OnceLock::new()));
        let tree = SledTree {
            database,
            watch,
            _closing: Closing { folder: folder.clone(), failed: failed.clone() },
            failed,
            damaged: OnceLock::new(),
            count: Count::default(),
            cache: Cache::new(config.cache),
            folder,
            instance,
            _lock: lock,
        };
        let ready = match purpose {
            _ if length > EMPTY_MAX && tree.is_empty() => Err(SpoolError::Database {
                path: tree.folder.clone(),
                reason: format!("sled finds nothing in its {length} bytes"),
            }),
            Purpose::Mail => guarded(&tree.folder, || make_ready(&tree, &Bounds::of(config))),
            Purpose::Look if tree.is_empty() => Ok(()),
            Purpose::Look => begin(&tree, purpose).map(drop),
            Purpose::Copy => Ok(()),
        };
        match ready {
            Ok(()) => Ok(Self { tree: Blocks::new(tree) }),
            Err(error) => {
                // What could not be used is not noted as closed.
                tree.failed.get_or_init(|| error.to_string());
                // sled panics in its destructor when its last sync fails, too: what failed first is what to tell.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(tree)));
                Err(error)
            }
        }
    }
}

fn make_ready(tree: &SledTree, bounds: &Bounds) -> Result<(), SpoolError> {
    if tree.is_empty() {
        before::nothing_may_be_beside_it(&tree.folder)?;
    }
    let start = begin(tree, Purpose::Mail)?;
    protect_and_sync(&tree.folder)?;
    prove_durable(tree, start)?;
    space::set_aside(&tree.folder, bounds).map_err(io_error(&tree.folder, "space can't be set aside"))
}

/// The system's error, with what to do.
pub(in crate::spool) fn io_error(path: &Path, what: &str) -> impl FnOnce(io::Error) -> SpoolError {
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
pub(in crate::spool) fn wait_for_the_last_one(database: &File, folder: &Path) -> Result<(), SpoolError> {
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
        before::must_be_whole(folder)?;
        closed::forget(folder)?;
        let config =
            sled::Config::new().path(folder).cache_capacity(cache).flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = guarded(folder, || config.open().map_err(|error| damage_or_trouble(folder, error)))?;
        let alarm =
            Alarm::set(config, db.clone()).map_err(io_error(folder, "no thread can be started for it"))?;
        Ok(Self { _alarm: alarm, db })
    }
}

/// sled panics on some kinds of damage.
pub(super) fn guarded<T>(
    folder: &Path,
    work: impl FnOnce() -> Result<T, SpoolError>,
) -> Result<T, SpoolError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no known reason");
        // One line of it is enough: sled appends what it had in memory.
        let line = text.lines().next().unwrap_or_default();
        Err(SpoolError::Database {
            path: folder.to_owned(),
            reason: format!("it is damaged, sled gave up: {line}"),
        })
    })
}

/// A database that ends too early, or that the disk can't read, is damaged too: retrying helps neither.
fn damage_or_trouble(folder: &Path, error: sled::Error) -> SpoolError {
    match error {
        sled::Error::Io(source)
            if matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
                || source.raw_os_error() == Some(libc::EIO) =>
        {
            let reason = format!("it is damaged: {source}");
            SpoolError::Database { path: folder.to_owned(), reason }
        }
        sled::Error::Corruption { .. } => {
            let reason = "it is damaged: a checksum in it is wrong".to_owned();
            SpoolError::Database { path: folder.to_owned(), reason }
        }
        other => trouble(folder, other),
    }
}

/// Checks the format, writes it into a new spool, begins to carry over an old one, and returns the number of the start before this one.
fn begin(tree: &SledTree, purpose: Purpose) -> Result<u64, SpoolError> {
    let unreadable = |error: Unreadable| SpoolError::Database {
        path: tree.folder.clone(),
        reason: format!("its description can't be read: {error}"),
    };
    let start = tree.get(keys::META_START)?;
    if let Some(found) = tree.get(keys::META_FORMAT)? {
        let format = record::read_format(&found).map_err(unreadable)?;
        migrations::check(&tree.folder, format.version, &format.writer)?;
        if format.version < migrations::CURRENT && purpose == Purpose::Mail {
            begin_migration(tree, format.version)?;
        }
    } else if tree.is_empty() {
        let format = Format { version: migrations::CURRENT, writer: env!("CARGO_PKG_VERSION").into() };
        tree.apply(vec![change(keys::META_FORMAT, record::write_format(&format))])?;
    } else {
        return Err(unreadable(Unreadable::Field("format")));
    }
    Ok(start.map_or(0, |start| {
        let start = record::read_start(&start).map(|start| start.number);
        start.unwrap_or_else(|error| {
            // It only numbers the starts.
            tracing::error!(%error, "the record of the last start can't be read: starts are numbered from 1 again");
            0
        })
    }))
}

/// From here on no older program may use the spool. A migration that was under way begins again: the format it came from counts.
fn begin_migration(tree: &SledTree, version: u32) -> Result<(), SpoolError> {
    let from = migrate::mark(tree)?.map_or(version, |mark| mark.from.min(version));
    tracing::info!(from, to = migrations::CURRENT, "the spool's format is old: its records are carried over");
    let format = Format { version: migrations::CURRENT, writer: env!("CARGO_PKG_VERSION").into() };
    tree.apply(vec![
        change(keys::META_FORMAT, record::write_format(&format)),
        change(keys::META_MIGRATION, record::write_migration(&MigrationMark { from, next: Vec::new() })),
    ])
}

fn change(key: &[u8], value: sled::IVec) -> Change {
    (key.into(), Some(value))
}

/// sled syncs none of its names, and leaves modes to the umask. At each start: the last one may have died before this.
pub(in crate::spool) fn protect_and_sync(folder: &Path) -> Result<(), SpoolError> {
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
