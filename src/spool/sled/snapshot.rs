//! Snapshots of where sled's pages are, so that a start need not read what was written long ago.
//!
//! sled 0.34.7 takes one only when it opens a database, of all that was written before; every other start reads and
//! checks each segment that is newer than the last one. 1,000,000 messages that came in one run are 7 GB to read: some
//! 3 s from the page cache, after a clean stop too, and far more from a disk. So once much was written the database is
//! closed and opened again, between two commits: reads and the next commit wait meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::SledTree;
use super::open::{OpenDatabase, protect_and_sync, wait_for_the_last_one};
use crate::clock::{Clock, SystemClock};
use crate::spool::SpoolError;

/// Bytes that were written, and may have to be read, before the database is opened anew while the relay runs.
pub(super) const SNAPSHOT_WHILE_RUNNING: u64 = 1 << 30;
/// The same when the relay stops: a tenth of a second at the next start.
pub(super) const SNAPSHOT_AT_THE_END: u64 = 256 << 20;

impl SledTree {
    /// Takes a snapshot when a start would have to read so many bytes. Failing is final, as for a commit.
    pub(super) fn take_snapshot_from(&self, bytes: u64) {
        if self.failed.get().is_some() || self.unread() < bytes {
            return;
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // A compaction may have been under way.
        if self.failed.get().is_some() || database.is_none() || self.unread() < bytes {
            return;
        }
        let begun = SystemClock.instant();
        let opened = database.take().map_or(Ok(()), close).and_then(|()| self.open_again());
        match opened {
            Ok(open) => {
                *database = Some(open);
                let took_ms = u64::try_from((SystemClock.instant() - begun).as_millis()).unwrap_or(u64::MAX);
                tracing::info!(
                    took_ms,
                    "a snapshot of the database was taken; commits and reads waited for it"
                );
            }
            Err(error) => {
                tracing::error!(%error, "the database can't be opened again: no more mail is accepted");
                self.failed.get_or_init(|| error.to_string());
            }
        }
    }

    /// Bytes that a start after `kill -9` would have to read: what was written, but no segment twice.
    fn unread(&self) -> u64 {
        let written = self.watch.written();
        if written < SNAPSHOT_AT_THE_END { written } else { written.min(self.watch.length()) }
    }

    pub(super) fn open_again(&self) -> Result<OpenDatabase, SpoolError> {
        self.watch.with_file(|own| wait_for_the_last_one(own, &self.folder))?;
        let open = OpenDatabase::open(&self.folder, self.cache.capacity)?;
        // The snapshot has a name and a mode of sled's choice.
        protect_and_sync(&self.folder)?;
        self.watch.forget_written();
        Ok(open)
    }
}

/// sled panics in its destructor when its last sync fails.
pub(super) fn close(open: OpenDatabase) -> Result<(), SpoolError> {
    catch_unwind(AssertUnwindSafe(|| drop(open)))
        .map_err(|_| SpoolError::Closed("the database could not be closed".to_owned()))
}
