//! What the spool stands on, and how its power is cut.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use super::disk::{Disk, Flushes, Loss};
use super::mounts::{Mount, format};
use crate::support::message::Chance;

/// Size of the spool's ext4 image, MiB. Its file is sparse.
const SPOOL_MIB: u64 = 384;
/// Size of the reflink file system's image, MiB: the spool's image and what its clones don't share. Its file is sparse.
const FLOOR_MIB: u64 = 2048;

/// A spool's file system. Fields are in the order in which they are taken down.
pub struct Ground {
    spool: Mount,
    disk: Option<Disk>,
    floor: Mount,
    folder: TempDir,
}

/// What a power cut left.
#[derive(Debug)]
pub struct Cut {
    /// Its number, from 1.
    pub number: usize,
    /// The file system as it was at some instant from [`Self::at`] to [`Self::done`].
    pub image: PathBuf,
    /// Pieces of writes that no flush had followed, where that is known.
    pub pieces: usize,
    /// Those of them that survived.
    pub kept: usize,
    /// Just before.
    pub at: Instant,
    /// Just after.
    pub done: Instant,
}

impl Ground {
    /// An ext4 image on a reflink file system: a cut keeps every write that has reached the device.
    pub fn reflinked() -> Self {
        let (floor, folder) = lay_floor();
        let spool = Mount::image(&image(&floor), folder.path().join("spool"));
        Self { spool, disk: None, floor, folder }
    }

    /// An ext4 image on a disk with a volatile cache: a cut keeps what was flushed.
    pub fn cached(flushes: Flushes) -> Self {
        let (floor, folder) = lay_floor();
        let disk = Disk::mount(&image(&floor), folder.path().join("disk"), flushes);
        let spool = Mount::image(&disk.file(), folder.path().join("spool"));
        Self { spool, disk: Some(disk), floor, folder }
    }

    /// The spool's folder.
    pub fn spool(&self) -> PathBuf {
        self.spool.at().join("spool")
    }

    /// Flushes that reached the disk with the cache.
    pub fn flushed(&self) -> Option<usize> {
        self.disk.as_ref().map(Disk::flushed)
    }

    /// A folder for a cut's image to be mounted on.
    pub fn place_for(&self, cut: &Cut) -> PathBuf {
        self.folder.path().join(format!("cut-{}", cut.number))
    }

    /// Cuts the power, for an observer in another world: here the load goes on.
    pub fn cut(&self, number: usize, chance: &mut Chance) -> Cut {
        let left = self.floor.at().join(format!("cut-{number}.img"));
        if let Some(disk) = &self.disk {
            let Loss { at, done, pieces, kept } = disk.cut(&left, chance);
            return Cut { number, image: left, pieces, kept, at, done };
        }
        let source = File::open(image(&self.floor)).expect("the image opens");
        let at = Instant::now();
        reflink(&source, &left);
        Cut { number, image: left, pieces: 0, kept: 0, at, done: Instant::now() }
    }
}

fn lay_floor() -> (Mount, TempDir) {
    let folder = tempfile::Builder::new().prefix("posthaste-cuts-").tempdir().expect("a temporary folder");
    let device = folder.path().join("floor.img");
    format(&device, FLOOR_MIB, &["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let floor = Mount::image(&device, folder.path().join("floor"));
    // Tables are written now, so that nothing but the relay's load writes later.
    let settled = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    format(&image(&floor), SPOOL_MIB, &["mkfs.ext4", "-q", "-F", "-E", settled]);
    (floor, folder)
}

fn image(floor: &Mount) -> PathBuf {
    floor.at().join("spool.img")
}

/// Clones a file. The kernel holds all writes to the source back meanwhile, so the clone is of one instant.
pub fn reflink(source: &File, clone: &Path) -> File {
    let file =
        File::options().create_new(true).read(true).write(true).open(clone).expect("a file to clone to");
    rustix::fs::ioctl_ficlone(&file, source).expect("the floor's file system clones files");
    file
}
