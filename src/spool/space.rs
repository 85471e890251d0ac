//! How much room the spool has, whether that is enough to take new mail, and the space set aside for when it is not.
//!
//! sled's file is cut only where its end is free: what removed mail leaves inside it is used again, so it counts as room too.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;

use super::{Counters, sync};
use crate::config::SpoolConfig;
use crate::config::units::format_size;

const RESERVE: &str = "reserve";
const DATABASE: &str = "db";
/// What sled's file takes for each live byte: 1.55 to 1.8 were measured, for messages of 1 to 30 KB. Room that is believed to be
/// inside and is not would let mail fill the disk, so rather too much.
const FILE_PER_LIVE: f64 = 2.0;
/// What a message takes in the tree beside its content, and each of its recipients.
const BYTES_PER_MESSAGE: u64 = 768;
const BYTES_PER_RECIPIENT: u64 = 256;
/// What a compacted database has beside twice what is in it.
const COPY_AT_LEAST: u64 = 8 << 20;
/// A database is compacted while the relay runs when its file is so long,
const GROWN: u64 = 1 << 30;
/// or, when it is in the way of new mail, so many times as long as the copy would be;
const GROWN_TIMES: u64 = 4;
/// and when so much is in it: commits wait for about a third of a second (100,000 messages of 4 KiB took 8.4 s, 20 ms per MiB),
const COPIED_MOST: u64 = 16 << 20;
/// and for 1.3 s when no mail is taken anyway.
const COPIED_MOST_WHILE_SHORT: u64 = 64 << 20;
/// Once short, that much more than the bound must be there before mail is taken again.
const COME_BACK: f64 = 1.1;
/// For so many looks (10 s) no mail is taken after content met a full disk; then it is tried again.
const FULL_LOOKS: u32 = 100;

/// What is left of the spool's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that the relay may still use.
    pub free: u64,
    /// Files that may still be made; `u64::MAX` when the file system does not count them.
    pub inodes: u64,
    /// Length of the database file.
    pub database: u64,
    /// Bytes that are set aside; 0: there is no reserve.
    pub reserve: u64,
}

impl Space {
    /// Looks at the spool in `folder`. Blocks.
    ///
    /// # Errors
    /// The system's.
    pub fn look(folder: &Path) -> io::Result<Self> {
        // Space that only root may use does not count: the relay does not run as root.
        let disk = nix::sys::statvfs::statvfs(folder)?;
        let length = |name| fs::metadata(folder.join(name)).map(|file| file.len());
        Ok(Self {
            free: disk.blocks_available().saturating_mul(disk.fragment_size()),
            inodes: if disk.files() == 0 { u64::MAX } else { disk.files_available() },
            database: length(DATABASE).unwrap_or(0),
            reserve: length(RESERVE).unwrap_or(0),
        })
    }

    /// Bytes that new mail may use: what is free on the disk and inside the database file.
    pub fn usable(&self, held: &Counters) -> u64 {
        let inside = self.database.saturating_sub((live(held) as f64 * FILE_PER_LIVE) as u64);
        self.free.saturating_add(inside)
    }

    /// Whether the database is to be compacted while the relay runs, and how many bytes of keys and values at most: when
    /// little is in a long file, and there is room for the copy. `short` says whether new mail waits for room.
    pub fn worth_compacting(&self, held: &Counters, short: bool) -> Option<u64> {
        let copy = for_copy_of(live(held));
        let (long, most) = match short {
            true => (copy.saturating_mul(GROWN_TIMES), COPIED_MOST_WHILE_SHORT),
            false => (GROWN, COPIED_MOST),
        };
        (self.database >= long && live(held) <= most && self.fit(copy) != Fit::No).then_some(most)
    }

    /// Whether a copy of so many bytes fits.
    pub(super) fn fit(&self, needed: u64) -> Fit {
        if needed <= self.free {
            Fit::Free
        } else if needed <= self.free.saturating_add(self.reserve) {
            Fit::WithReserve
        } else {
            Fit::No
        }
    }
}

/// Whether a copy fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Free,
    /// In place of the reserve.
    WithReserve,
    No,
}

/// Bytes of keys and values that are in use, nearly.
fn live(held: &Counters) -> u64 {
    let messages = held.messages.saturating_mul(BYTES_PER_MESSAGE);
    let recipients = held.recipients.saturating_mul(BYTES_PER_RECIPIENT);
    held.tree_bytes.saturating_add(messages).saturating_add(recipients)
}

/// Room that a compacted copy of so many bytes of keys and values takes at most (1.6 for each was measured for messages of 4 KiB).
pub(super) fn for_copy_of(bytes: u64) -> u64 {
    COPY_AT_LEAST.saturating_add((bytes as f64 * FILE_PER_LIVE) as u64)
}

/// The bounds below which no new mail is taken.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Usable bytes.
    pub free: u64,
    /// Files that can be made.
    pub inodes: u64,
    /// Bytes set aside; 0: nothing is.
    pub reserve: u64,
}

impl Bounds {
    /// Those of a configuration.
    pub fn of(config: &SpoolConfig) -> Self {
        Self { free: config.min_free, inodes: config.min_free_inodes, reserve: config.reserve }
    }

    /// What is missing, if anything. `short` says whether something was missing at the last look.
    pub fn shortage(&self, space: &Space, held: &Counters, short: bool) -> Option<Shortage> {
        let bound = |bound: u64| if short { (bound as f64 * COME_BACK) as u64 } else { bound };
        let usable = space.usable(held);
        // Files, and what sled writes before it uses old room again, need some of it on the disk itself.
        if usable < bound(self.free) || space.free < bound(self.free / 8) {
            return Some(Shortage::Bytes { free: usable.min(space.free), bound: self.free });
        }
        if space.inodes < bound(self.inodes) {
            return Some(Shortage::Inodes { free: space.inodes, bound: self.inodes });
        }
        (self.reserve > 0 && space.reserve == 0).then_some(Shortage::Reserve)
    }
}

/// Why no new mail is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Too few bytes.
    Bytes {
        /// What is left.
        free: u64,
        /// `spool.min_free`.
        bound: u64,
    },
    /// Too few files can be made.
    Inodes {
        /// How many can.
        free: u64,
        /// `spool.min_free_inodes`.
        bound: u64,
    },
    /// The reserve was used and can't be set aside again yet.
    Reserve,
    /// The content of a message met a full disk, or the end of a quota, a moment ago.
    Full,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { free, bound } => write!(
                f,
                "the spool's disk has {} left, less than spool.min_free ({}): free some, or stop posthaste and run \
                 `posthaste spool compact`, or move the spool",
                format_size(*free),
                format_size(*bound)
            ),
            Self::Inodes { free, bound } => write!(
                f,
                "the spool's disk can take {free} more files, fewer than spool.min_free_inodes ({bound}): remove some"
            ),
            Self::Reserve => f.write_str(
                "the spool's reserve was used up on a full disk: it is set aside again once there is room for it",
            ),
            Self::Full => f.write_str(
                "the spool's disk was full when a message came in: free some of it, or raise its quota",
            ),
        }
    }
}

/// Whether the spool has room for new mail: set by whoever watches, asked before mail is taken.
#[derive(Debug, Default)]
pub struct Room {
    short: AtomicBool,
    /// For how many more looks a full disk that was met counts.
    full: AtomicU32,
}

impl Room {
    /// Whether new mail must wait.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Content met a full disk. What the system tells of free space may look good all the same: a quota is not in it.
    pub fn note_full(&self) {
        self.full.store(FULL_LOOKS, Ordering::Relaxed);
    }

    /// At each look: whether a full disk was met not long ago.
    pub fn met_full(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Says so.
    pub fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }
}

/// Whether an error says that there is no room for what was to be written.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Gives the reserve back to a full disk, so that mail can be delivered and removed. Whether there was one.
pub fn release_reserve(folder: &Path) -> bool {
    fs::remove_file(folder.join(RESERVE)).is_ok()
}

/// Sets space aside that a full disk can't take, unless that would itself fill the disk. Blocks.
///
/// # Errors
/// The system's, but for a full disk.
pub fn set_aside(folder: &Path, bounds: &Bounds) -> io::Result<()> {
    let path = folder.join(RESERVE);
    if bounds.reserve == 0 {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let there = fs::metadata(&path).map_or(0, |file| file.len());
    if there == bounds.reserve {
        return Ok(());
    }
    let wanted = bounds.reserve.saturating_add(bounds.free.max(bounds.reserve / 4));
    if there == 0 && Space::look(folder)?.free < wanted {
        return Ok(());
    }
    let file = super::sled::open::private_file(&path)?;
    let made =
        file.set_len(0).and_then(|()| allocate(&file, bounds.reserve)).and_then(|()| sync::sync_file(&file));
    made.or_else(|error| {
        // A partial one would look whole at the next start.
        let _ = fs::remove_file(&path);
        if error.kind() == io::ErrorKind::StorageFull { Ok(()) } else { Err(error) }
    })
}

fn allocate(mut file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    match nix::fcntl::posix_fallocate(file, 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
            let zeros = [0; 64 << 10];
            let mut left = bytes;
            while left > 0 {
                let piece = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.write_all(&zeros[..piece])?;
                left -= piece as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BOUNDS: Bounds = Bounds { free: 100 * MIB, inodes: 1_000, reserve: 64 * MIB };
    const EMPTY: Space = Space { free: 500 * MIB, inodes: 50_000, database: 0, reserve: 64 * MIB };

    fn held(messages: u64, tree_bytes: u64) -> Counters {
        Counters { messages, tree_bytes, ..Counters::default() }
    }

    #[test]
    fn mail_is_taken_while_there_is_room() {
        assert_eq!(BOUNDS.shortage(&EMPTY, &held(0, 0), false), None);
        let few_bytes = Space { free: 99 * MIB, ..EMPTY };
        let missing = BOUNDS.shortage(&few_bytes, &held(0, 0), false);
        assert_eq!(missing, Some(Shortage::Bytes { free: 99 * MIB, bound: 100 * MIB }));
        let few_files = Space { inodes: 999, ..EMPTY };
        let missing = BOUNDS.shortage(&few_files, &held(0, 0), false);
        assert_eq!(missing, Some(Shortage::Inodes { free: 999, bound: 1_000 }));
        let used = Space { reserve: 0, ..EMPTY };
        assert_eq!(BOUNDS.shortage(&used, &held(0, 0), false), Some(Shortage::Reserve));
        let none = Bounds { reserve: 0, ..BOUNDS };
        assert_eq!(none.shortage(&used, &held(0, 0), false), None);
    }

    #[test]
    fn room_inside_the_database_counts() {
        let grown = Space { free: 40 * MIB, database: 800 * MIB, ..EMPTY };
        assert_eq!(BOUNDS.shortage(&grown, &held(0, 0), false), None, "all of it can be used again");
        let full = held(100_000, 400 * MIB);
        assert!(BOUNDS.shortage(&grown, &full, false).is_some(), "nearly all of it is live");
        let no_disk = Space { free: 10 * MIB, ..grown };
        assert!(BOUNDS.shortage(&no_disk, &held(0, 0), false).is_some(), "some must be on the disk itself");
    }

    #[test]
    fn mail_comes_back_only_with_some_room_to_spare() {
        let just = Space { free: 105 * MIB, ..EMPTY };
        assert_eq!(BOUNDS.shortage(&just, &held(0, 0), false), None);
        assert!(BOUNDS.shortage(&just, &held(0, 0), true).is_some());
    }

    #[test]
    fn a_long_file_with_little_in_it_is_worth_compacting() {
        let of = |database, messages, short| {
            let held = Counters { recipients: messages, ..held(messages, messages * 4_096) };
            Space { database, ..EMPTY }.worth_compacting(&held, short)
        };
        assert_eq!(of(1 << 30, 1_000, false), Some(16 * MIB));
        assert_eq!(of((1 << 30) - 1, 1_000, false), None, "not long");
        assert_eq!(of(1 << 40, 4_000, false), None, "the pause would be felt");
        assert_eq!(of(40 * MIB, 0, true), Some(64 * MIB));
        assert_eq!(of(31 * MIB, 0, true), None, "the copy may be as long as 8 MiB");
        assert_eq!(of(300 * MIB, 4_000, true), Some(64 * MIB));
        assert_eq!(of(1 << 40, 40_000, true), None, "{} bytes", 40_000 * 5 * 1_024);
        let no_room = Space { free: 3 * MIB, reserve: 16 * MIB, database: 200 * MIB, ..EMPTY };
        let waiting = |messages| no_room.worth_compacting(&held(messages, messages * 4_096), true);
        assert_eq!(waiting(2_000), None, "the copy has no room yet");
        assert_eq!(waiting(100), Some(64 * MIB), "in place of the reserve");
    }

    #[test]
    fn a_copy_takes_the_place_of_the_reserve_only_when_that_is_enough() {
        let fit = |needed, reserve| Space { free: 10, reserve, ..EMPTY }.fit(needed);
        assert_eq!(fit(10, 5), Fit::Free);
        assert_eq!(fit(15, 5), Fit::WithReserve);
        assert_eq!(fit(16, 5), Fit::No);
        assert_eq!(fit(11, 0), Fit::No);
    }

    #[test]
    fn a_shortage_says_what_to_do() {
        let text = Shortage::Bytes { free: MIB, bound: 2 * MIB }.to_string();
        assert!(text.contains("spool.min_free (2MiB)"), "{text}");
    }

    #[test]
    fn the_reserve_is_not_set_aside_on_a_disk_that_it_would_fill() {
        let folder = tempfile::tempdir().expect("a folder");
        let free = Space::look(folder.path()).expect("looked").free;
        let too_much = Bounds { free, reserve: MIB, inodes: 0 };
        set_aside(folder.path(), &too_much).expect("not an error");
        assert_eq!(Space::look(folder.path()).expect("looked").reserve, 0);
        set_aside(folder.path(), &Bounds { free: MIB, ..too_much }).expect("set aside");
        assert_eq!(Space::look(folder.path()).expect("looked").reserve, MIB);
        assert!(release_reserve(folder.path()));
    }
}
