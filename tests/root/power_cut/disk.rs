//! A disk with a volatile cache: a FUSE file system of one file, for a loop device to stand on.
//!
//! Writes stay in memory until the loop device flushes them: the block layer's flush requests, which ext4 sends for
//! fsync and for its journal, arrive here as FSYNC. A power cut takes what was flushed and, of the rest, whatever chance
//! leaves in whatever order.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

use super::ground::reflink;
use crate::support::message::Chance;

const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
/// The kernel may keep attributes for ever: they never change.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    /// It makes every earlier write stable.
    Kept,
    /// It is answered and does nothing; writes become stable in their order when they are this old.
    Ignored(Duration),
}

/// What a power cut did.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Just before.
    pub at: Instant,
    /// Just after.
    pub done: Instant,
    /// Pieces of writes that no flush had followed: whole writes, or the sectors of them.
    pub pieces: usize,
    /// Pieces that survived.
    pub kept: usize,
}

/// The disk at an instant.
struct Moment {
    at: Instant,
    done: Instant,
    left: File,
    unflushed: Vec<(u64, Vec<u8>)>,
}

/// The mounted disk. Dropping it unmounts it.
pub struct Disk {
    cache: Arc<Mutex<Cache>>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

struct Cache {
    stable: File,
    size: u64,
    flushes: Flushes,
    flushed: usize,
    asked: Option<(PathBuf, mpsc::Sender<Moment>)>,
    unflushed: VecDeque<Write>,
}

struct Write {
    at: Instant,
    offset: u64,
    data: Vec<u8>,
}

impl Disk {
    /// A disk over the stable bytes of `image`, mounted on the folder `at`, which is made.
    pub fn mount(image: &Path, at: PathBuf, flushes: Flushes) -> Self {
        std::fs::create_dir_all(&at).expect("a folder to mount on");
        let stable = OpenOptions::new().read(true).write(true).open(image).expect("the image opens");
        let size = stable.metadata().expect("the image's size").len();
        let cache = Cache { stable, size, flushes, flushed: 0, asked: None, unflushed: VecDeque::new() };
        let cache = Arc::new(Mutex::new(cache));
        let session = fuser::spawn_mount(Kernel(Arc::clone(&cache)), &at, &fuser::Config::default())
            .expect("FUSE mounts: this test needs root and /dev/fuse");
        Self { cache, at, session: Some(session) }
    }

    /// The file to stand on.
    pub fn file(&self) -> PathBuf {
        self.at.join(NAME)
    }

    /// Flushes that came through so far.
    pub fn flushed(&self) -> usize {
        lock(&self.cache).flushed
    }

    /// Cuts the power, at once or when the next flush has been asked for and not begun: then the most can be lost. `image`
    /// becomes what is left; the disk itself goes on.
    pub fn cut(&self, image: &Path, chance: &mut Chance) -> Loss {
        let moment =
            if chance.below(4) == 0 { lock(&self.cache).copy(image) } else { self.at_a_flush(image) };
        let (pieces, kept) = scatter(&moment, chance);
        Loss { at: moment.at, done: moment.done, pieces, kept }
    }

    fn at_a_flush(&self, image: &Path) -> Moment {
        let (sender, receiver) = mpsc::channel();
        lock(&self.cache).asked = Some((image.to_owned(), sender));
        receiver.recv_timeout(Duration::from_secs(2)).unwrap_or_else(|_| {
            let mut cache = lock(&self.cache);
            cache.asked = None;
            // It may have come at the last instant.
            receiver.try_recv().unwrap_or_else(|_| cache.copy(image))
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("the disk can't be unmounted: {error}");
        }
    }
}

/// Writes a random part of what was not flushed, in random order: how many pieces there were and how many survived. A
/// sector is the least that a disk writes as a whole.
fn scatter(moment: &Moment, chance: &mut Chance) -> (usize, usize) {
    let piece = [512, 4096, usize::MAX][chance.below(3) as usize];
    let quarters = chance.below(5);
    let mut pieces: Vec<(u64, &[u8])> = Vec::new();
    for (offset, data) in &moment.unflushed {
        let mut at = *offset;
        for part in data.chunks(piece) {
            pieces.push((at, part));
            at += part.len() as u64;
        }
    }
    for last in (1..pieces.len()).rev() {
        pieces.swap(last, chance.below(last as u64 + 1) as usize);
    }
    let all = pieces.len();
    pieces.retain(|_| chance.below(4) < quarters);
    for (offset, part) in &pieces {
        moment.left.write_all_at(part, *offset).expect("the cut image takes writes");
    }
    (all, pieces.len())
}

impl Cache {
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.unflushed.push_back(Write { at: Instant::now(), offset, data: data.to_vec() });
        if let Flushes::Ignored(age) = self.flushes {
            self.settle(age);
        }
    }

    fn flush(&mut self) {
        if !self.unflushed.is_empty()
            && let Some((image, sender)) = self.asked.take()
        {
            let _ = sender.send(self.copy(&image));
        }
        self.flushed += 1;
        if self.flushes == Flushes::Kept {
            self.settle(Duration::ZERO);
        }
    }

    /// Copies what is stable to `image`. A disk that ignores flushes loses what it has not written, and nothing else.
    fn copy(&self, image: &Path) -> Moment {
        let at = Instant::now();
        let left = reflink(&self.stable, image);
        let kept = self.flushes == Flushes::Kept;
        let unflushed = self.unflushed.iter().filter(|_| kept);
        let unflushed = unflushed.map(|write| (write.offset, write.data.clone())).collect();
        Moment { at, done: Instant::now(), left, unflushed }
    }

    /// Makes the writes stable that are this old.
    fn settle(&mut self, age: Duration) {
        let now = Instant::now();
        while let Some(write) = self.unflushed.front().filter(|write| now - write.at >= age) {
            self.stable.write_all_at(&write.data, write.offset).expect("the stable file takes writes");
            self.unflushed.pop_front();
        }
    }

    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.size.min(offset + size as u64);
        let mut data = vec![0; end.saturating_sub(offset) as usize];
        self.stable.read_exact_at(&mut data, offset).expect("the stable file is read");
        for write in &self.unflushed {
            let from = write.offset.max(offset);
            let to = (write.offset + write.data.len() as u64).min(end);
            if from < to {
                let part = &write.data[(from - write.offset) as usize..(to - write.offset) as usize];
                data[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        data
    }

    fn attributes(&self, node: INodeNo) -> FileAttr {
        let folder = node == INodeNo::ROOT;
        FileAttr {
            ino: node,
            size: if folder { 0 } else { self.size },
            blocks: if folder { 0 } else { self.size / 512 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// What the kernel talks to.
struct Kernel(Arc<Mutex<Cache>>);

impl Filesystem for Kernel {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&FOR_EVER, &lock(&self.0).attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &lock(&self.0).attributes(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without the page cache in between, writes and flushes arrive as the loop device sends them.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&lock(&self.0).read(offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        lock(&self.0).write(offset, data);
        reply.written(u32::try_from(data.len()).expect("a FUSE write is small"));
    }

    // A descriptor was closed: says nothing about stable storage.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.0).flush();
        reply.ok();
    }
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
