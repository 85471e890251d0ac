//! Making writes durable: every sync to the device goes through this file and is counted.
//!
//! sled 0.34 "syncs" its log with `sync_file_range`, which neither flushes the drive's cache nor commits the file's
//! length (design section 5, trap 1: after power cuts such databases panic at open). So this crate defines that
//! symbol: sled's calls land here and become `fdatasync`. The linker takes our definition before libc's; a start-up
//! probe ([`super::sled`]) makes sure of it. **For embedders**: the whole process shares the symbol, so any other
//! code that calls `sync_file_range` gets the stronger sync too. Linux only.
//!
//! Linux reports a failed write-back once per open descriptor. sled has a thread of its own that syncs and only logs
//! errors, so an error could be used up there. Therefore each database file is also opened here, before sled opens it,
//! and synced through our descriptor, which sees every error.
//!
//! A batch is two writes in sled, a manifest of some 24 bytes and the rest, from two of its threads, and each asks for a
//! sync: two syncs that overlap. Letting the small one wait and share the sync of the other was tried and measured 10–20 %
//! slower (the wake-ups cost more than the second sync, which starts while the rest is still being written).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;

/// The database files that are open. A handful at most.
static WATCHED: RwLock<Vec<Arc<Watched>>> = RwLock::new(Vec::new());
/// Syncs of content files and folders.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// What a test wants to do at a sync point: look, wait, or fail it. Runs after the device was asked.
#[cfg(test)]
pub(crate) type Hook = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

struct Watched {
    device: u64,
    inode: u64,
    file: File,
    syncs: AtomicU64,
    #[cfg(test)]
    hook: RwLock<Option<Hook>>,
}

impl Watched {
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        if let Some(hook) = &*self.hook.read().unwrap_or_else(PoisonError::into_inner) {
            hook()?;
        }
        Ok(())
    }
}

/// A database file whose syncs go through a descriptor of our own, as long as this lives.
pub(super) struct Watch(Arc<Watched>);

impl Watch {
    /// `file` must have been opened before sled opens the same file.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let watched = Arc::new(Watched {
            device: metadata.dev(),
            inode: metadata.ino(),
            file,
            syncs: AtomicU64::new(0),
            #[cfg(test)]
            hook: RwLock::new(None),
        });
        WATCHED.write().unwrap_or_else(PoisonError::into_inner).push(watched.clone());
        Ok(Self(watched))
    }

    /// How often the file was synced.
    pub fn syncs(&self) -> u64 {
        self.0.syncs.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn hook(&self, hook: Hook) {
        *self.0.hook.write().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.write().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, &self.0));
    }
}

/// How often content files and folders were synced since the program started.
pub(super) fn other_syncs() -> u64 {
    OTHERS.load(Ordering::Relaxed)
}

/// Makes a file's content durable.
pub(super) fn sync_file(file: &File) -> io::Result<()> {
    OTHERS.fetch_add(1, Ordering::Relaxed);
    file.sync_data()
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    OTHERS.fetch_add(1, Ordering::Relaxed);
    File::open(folder)?.sync_all()
}

/// Stands in for libc's `sync_file_range`: syncs the whole file to the device.
///
/// # Safety
/// `fd` must be an open descriptor for the time of the call.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: i32, _offset: i64, _count: i64, _flags: u32) -> i32 {
    if fd < 0 {
        Errno::EBADF.set();
        return -1;
    }
    // SAFETY: the caller keeps the descriptor open.
    match sync_descriptor(unsafe { BorrowedFd::borrow_raw(fd) }) {
        Ok(()) => 0,
        Err(error) => {
            Errno::set_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
            -1
        }
    }
}

#[cfg(target_os = "linux")]
fn sync_descriptor(fd: BorrowedFd<'_>) -> io::Result<()> {
    let stat = nix::sys::stat::fstat(fd)?;
    let watched = {
        let all = WATCHED.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|one| one.device == stat.st_dev && one.inode == stat.st_ino).cloned()
    };
    match watched {
        Some(watched) => watched.sync(),
        None => Ok(nix::unistd::fdatasync(fd)?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_watched_file_is_synced_and_counted_and_its_error_reaches_the_caller() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("db");
        let mut file = File::create(&path).expect("a file");
        let watch = Watch::new(File::open(&path).expect("our own descriptor")).expect("watched");
        file.write_all(b"x").and_then(|()| file.rewind()).expect("written");

        // SAFETY: `file` is open.
        let call = || unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 1, 7) };
        assert_eq!(call(), 0, "libc's name leads here");
        assert_eq!(watch.syncs(), 1);

        watch.hook(Box::new(|| Err(io::Error::from_raw_os_error(Errno::EIO as i32))));
        assert_eq!(call(), -1);
        assert_eq!(Errno::last(), Errno::EIO);
        drop(watch);
        assert_eq!(call(), 0, "a file that nobody watches is synced through its own descriptor");
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        // SAFETY: nothing is borrowed: the number is no descriptor.
        assert_eq!(unsafe { sync_file_range(-1, 0, 0, 0) }, -1);
    }
}
