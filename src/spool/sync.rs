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
//! A batch is two writes in sled: a manifest of some 24 bytes, and a moment later, from another thread, the rest. Each
//! asks for a sync. A small write therefore waits a little for the next sync to begin and shares it: one sync for a
//! commit. Whoever shares is answered by a sync that began after its write, never by an older one.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

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
    /// The sync that begins next.
    next: Mutex<Arc<Run>>,
    syncs: AtomicU64,
    /// Bytes that sled wrote.
    written: AtomicU64,
    #[cfg(test)]
    hook: RwLock<Option<Hook>>,
}

/// Writes up to this many bytes wait for the next sync,
const SMALL: i64 = 64;
/// but not for longer than this.
const PATIENCE: Duration = Duration::from_millis(1);

/// One sync, and those who wait for it.
#[derive(Default)]
struct Run {
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    /// Not begun, and nobody waits.
    #[default]
    Idle,
    /// Not begun: somebody waits for another one to begin it.
    Awaited,
    Running,
    /// Over, with the system's error number if it failed.
    Done(Option<i32>),
}

impl Run {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.phase() = phase;
        self.changed.notify_all();
    }

    /// Waits for somebody else to sync; `None` when nobody does.
    fn share(&self) -> Option<io::Result<()>> {
        let mut phase = self.phase();
        if *phase == Phase::Awaited {
            // This write is the one that the other waits for.
            return None;
        }
        if *phase == Phase::Idle {
            *phase = Phase::Awaited;
        }
        let not_begun = |phase: &mut Phase| *phase == Phase::Awaited;
        let mut phase = self
            .changed
            .wait_timeout_while(phase, PATIENCE, not_begun)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(phase, _)| phase);
        if *phase == Phase::Awaited {
            *phase = Phase::Idle;
            return None;
        }
        let running = |phase: &mut Phase| *phase == Phase::Running;
        let phase = self.changed.wait_while(phase, running).unwrap_or_else(PoisonError::into_inner);
        match *phase {
            Phase::Done(None) => Some(Ok(())),
            Phase::Done(Some(number)) => Some(Err(io::Error::from_raw_os_error(number))),
            Phase::Idle | Phase::Awaited | Phase::Running => None,
        }
    }
}

impl Watched {
    /// From now on its syncs come here; `syncs` are counted already.
    fn begin(file: File, syncs: u64) -> io::Result<Arc<Self>> {
        let metadata = file.metadata()?;
        let watched = Arc::new(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            file,
            next: Mutex::default(),
            syncs: AtomicU64::new(syncs),
            written: AtomicU64::new(0),
            #[cfg(test)]
            hook: RwLock::new(None),
        });
        WATCHED.write().unwrap_or_else(PoisonError::into_inner).push(watched.clone());
        Ok(watched)
    }

    fn end(self: &Arc<Self>) {
        WATCHED.write().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, self));
    }

    /// Syncs after a write of `count` bytes.
    fn sync_after(&self, count: i64) -> io::Result<()> {
        self.written.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        let next = || self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if count <= SMALL {
            let run = next().clone();
            if let Some(result) = run.share() {
                return result;
            }
        }
        // From here on a write may come too late for this sync: those who come now wait for another one.
        let run = std::mem::take(&mut *next());
        run.enter(Phase::Running);
        let result = self.sync();
        run.enter(Phase::Done(result.as_ref().err().map(error_number)));
        result
    }

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

fn error_number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::EIO as i32)
}

/// A database file whose syncs go through a descriptor of our own, as long as this lives.
pub(super) struct Watch(RwLock<Arc<Watched>>);

impl Watch {
    /// `file` must have been opened before sled opens the same file.
    pub fn new(file: File) -> io::Result<Self> {
        Ok(Self(RwLock::new(Watched::begin(file, 0)?)))
    }

    /// From now on watches the file that has taken the place of the last one, which must be closed; as for [`Watch::new`].
    pub fn turn_to(&self, file: File) -> io::Result<()> {
        let new = Watched::begin(file, self.syncs())?;
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        current.end();
        #[cfg(test)]
        std::mem::swap(
            &mut *new.hook.write().unwrap_or_else(PoisonError::into_inner),
            &mut *current.hook.write().unwrap_or_else(PoisonError::into_inner),
        );
        *current = new;
        Ok(())
    }

    fn current(&self) -> Arc<Watched> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often the file was synced, and those before it.
    pub fn syncs(&self) -> u64 {
        self.current().syncs.load(Ordering::Relaxed)
    }

    /// Uses our own descriptor of the file.
    pub fn with_file<T>(&self, work: impl FnOnce(&File) -> T) -> T {
        work(&self.current().file)
    }

    /// Length of the file; 0 when the system does not tell.
    pub fn length(&self) -> u64 {
        self.with_file(|file| file.metadata().map_or(0, |file| file.len()))
    }

    /// Bytes that were written to the file, since the last [`Watch::forget_written`].
    pub fn written(&self) -> u64 {
        self.current().written.load(Ordering::Relaxed)
    }

    /// Counts from zero again.
    pub fn forget_written(&self) {
        self.current().written.store(0, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn hook(&self, hook: Hook) {
        *self.current().hook.write().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.current().end();
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

/// Makes the names in a folder durable, for several threads at once: those who come while a sync runs share the next one.
#[derive(Debug, Default)]
pub(super) struct FolderSync {
    folder: PathBuf,
    /// Those whom the next sync serves.
    next: Mutex<Arc<OnceLock<Option<i32>>>>,
    turn: Mutex<()>,
}

impl FolderSync {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, ..Self::default() }
    }

    /// Returns when a sync that began after this call is over.
    pub fn sync(&self) -> io::Result<()> {
        let mine = self.next.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let error = *mine.get_or_init(|| {
            // From here on a name may come too late for this sync: those who come now get another one.
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
            sync_folder(&self.folder).err().as_ref().map(error_number)
        });
        error.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }
}

/// Stands in for libc's `sync_file_range`: syncs the whole file to the device.
///
/// # Safety
/// `fd` must be an open descriptor for the time of the call.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sync_file_range(fd: i32, _offset: i64, count: i64, _flags: u32) -> i32 {
    if fd < 0 {
        Errno::EBADF.set();
        return -1;
    }
    // SAFETY: the caller keeps the descriptor open.
    match sync_descriptor(unsafe { BorrowedFd::borrow_raw(fd) }, count) {
        Ok(()) => 0,
        Err(error) => {
            Errno::set_raw(error_number(&error));
            -1
        }
    }
}

#[cfg(target_os = "linux")]
fn sync_descriptor(fd: BorrowedFd<'_>, count: i64) -> io::Result<()> {
    let stat = nix::sys::stat::fstat(fd)?;
    let watched = {
        let all = WATCHED.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|one| one.device == stat.st_dev && one.inode == stat.st_ino).cloned()
    };
    match watched {
        Some(watched) => watched.sync_after(count),
        None => Ok(nix::unistd::fdatasync(fd)?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    struct Setting {
        file: File,
        watch: Watch,
        _folder: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("db");
            let mut file = File::create(&path).expect("a file");
            file.write_all(b"x").and_then(|()| file.rewind()).expect("written");
            let watch = Watch::new(File::open(&path).expect("our own descriptor")).expect("watched");
            Self { file, watch, _folder: folder }
        }

        fn call(&self, count: i64) -> i32 {
            // SAFETY: the file is open.
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, count, 7) }
        }
    }

    #[test]
    fn a_watched_file_is_synced_and_counted_and_its_error_reaches_the_caller() {
        let setting = Setting::new();
        assert_eq!(setting.call(4_096), 0, "libc's name leads here");
        assert_eq!(setting.watch.syncs(), 1);

        setting.watch.hook(Box::new(|| Err(io::Error::from_raw_os_error(Errno::ENOSPC as i32))));
        assert_eq!(setting.call(4_096), -1);
        assert_eq!(Errno::last(), Errno::ENOSPC);
    }

    #[test]
    fn a_file_that_nobody_watches_is_synced_through_its_own_descriptor() {
        let Setting { file, watch, .. } = Setting::new();
        drop(watch);
        // SAFETY: the file is open.
        assert_eq!(unsafe { sync_file_range(file.as_raw_fd(), 0, 1, 7) }, 0);
    }

    #[test]
    fn a_small_write_alone_is_synced() {
        let setting = Setting::new();
        assert_eq!(setting.call(24), 0);
        assert_eq!(setting.watch.syncs(), 1);
    }

    #[test]
    fn whoever_shares_a_sync_gets_its_result() {
        for error in [None, Some(Errno::EIO as i32)] {
            let run = Run::default();
            let shared = std::thread::scope(|scope| {
                let sharer = scope.spawn(|| {
                    loop {
                        // Patience may end before the other thread gets to run.
                        if let Some(result) = run.share() {
                            return result;
                        }
                    }
                });
                run.enter(Phase::Running);
                run.enter(Phase::Done(error));
                sharer.join().expect("no panic")
            });
            assert_eq!(shared.err().and_then(|error| error.raw_os_error()), error);
        }
    }

    #[test]
    fn who_comes_after_the_start_of_a_sync_needs_another_one() {
        let setting = Setting::new();
        let watched = setting.watch.current();
        let before = Arc::clone(&watched.next.lock().expect("no panic"));
        setting.watch.hook(Box::new({
            let (watched, before) = (watched.clone(), before.clone());
            move || {
                assert!(!Arc::ptr_eq(&before, &watched.next.lock().expect("no panic")));
                Ok(())
            }
        }));
        assert_eq!(setting.call(4_096), 0);
        assert!(*before.phase() == Phase::Done(None));
        // The hook holds the watched file, which holds the hook.
        setting.watch.hook(Box::new(|| Ok(())));
    }

    #[test]
    fn those_who_come_while_a_folder_is_synced_share_the_next_sync() {
        let home = tempfile::tempdir().expect("a folder");
        let names = FolderSync::new(home.path().to_owned());
        // As while a sync runs.
        let turn = names.turn.lock().expect("no panic");
        let batch = Arc::clone(&names.next.lock().expect("no panic"));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| names.sync())).collect();
            // Each of them holds the batch while it waits.
            while Arc::strong_count(&batch) < 2 + threads.len() {
                std::thread::yield_now();
            }
            drop(turn);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic").expect("synced"));
        });
        assert_eq!(batch.get(), Some(&None), "it served them");
        assert!(!Arc::ptr_eq(&batch, &names.next.lock().expect("no panic")));
        let unused = Arc::clone(&names.next.lock().expect("no panic"));
        assert_eq!(unused.get(), None, "one sync was enough for all");
    }

    #[test]
    fn all_who_share_a_sync_of_a_folder_get_its_error() {
        let names = FolderSync::new("/nowhere/at/all".into());
        assert_eq!(names.sync().expect_err("no such folder").kind(), io::ErrorKind::NotFound);
        let batch = Arc::clone(&names.next.lock().expect("no panic"));
        batch.set(Some(Errno::EIO as i32)).expect("nobody did");
        assert_eq!(names.sync().expect_err("the one of the others").raw_os_error(), Some(Errno::EIO as i32));
    }

    #[test]
    fn of_two_small_writes_the_second_one_leads() {
        let run = Run::default();
        *run.phase() = Phase::Awaited;
        assert!(run.share().is_none());
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        // SAFETY: nothing is borrowed: the number is no descriptor.
        assert_eq!(unsafe { sync_file_range(-1, 0, 0, 0) }, -1);
    }
}
