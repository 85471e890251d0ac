//! Keeps sled's page cache near its capacity.
//!
//! sled 0.34.7 (`lru.rs`) notes each use of a page in one of 256 queues, by page, and looks at a queue, and lets pages
//! go, only at its 64th note. Where each use is of another page, as when mail of long ago is read back and removed, 64
//! pages of content for each queue pile up: hundreds of MiB. So such a page is used some more times, which costs a
//! microsecond each.

use std::sync::atomic::{AtomicU64, Ordering};

use sled::IVec;

use super::super::keys;

/// How often: no more than a queue's 64 notes divided by this many pages wait in it.
const USES: usize = 12;
/// Content keys that share a page, at least, when many are read one after the other.
const PER_PAGE: usize = 8;
/// Content that is older than the newest by this is not in the cache, or its page is used by nobody else (milliseconds).
const COLD_AFTER_MS: u64 = 10_000;

#[derive(Debug)]
pub(super) struct Cache {
    /// As `spool.cache`.
    pub capacity: u64,
    /// The time in the newest id that was written in this run.
    newest_ms: AtomicU64,
}

impl Cache {
    pub fn new(capacity: u64) -> Self {
        Self { capacity, newest_ms: AtomicU64::new(0) }
    }

    /// This key is written.
    pub fn note_put(&self, key: &[u8]) {
        if let Some(ms) = content_ms(key) {
            self.newest_ms.fetch_max(ms, Ordering::Relaxed);
        }
    }

    /// Whether this is content of long ago. Ids tell it well enough: nothing but memory depends on it.
    pub fn is_cold(&self, key: &[u8]) -> bool {
        let newest_ms = self.newest_ms.load(Ordering::Relaxed);
        content_ms(key).is_some_and(|ms| newest_ms < ms || newest_ms - ms > COLD_AFTER_MS)
    }

    /// Content that was cold has been removed.
    pub fn settle_removed(&self, db: &sled::Db, removed: &[IVec]) {
        removed.iter().for_each(|key| settle(db, key));
    }
}

/// A key was used: when it is of content, its page is used until sled sees it.
pub(super) fn settle(db: &sled::Db, key: &[u8]) {
    if key.first() == Some(&keys::CONTENT) {
        // An error comes back at the next use that matters.
        (0..USES).for_each(|_| drop(db.get(key)));
    }
}

/// Settles what a scan reads.
#[derive(Debug, Default)]
pub(super) struct Settle {
    contents: usize,
}

impl Settle {
    /// The scan has come to this key.
    pub fn read(&mut self, db: &sled::Db, key: &[u8]) {
        if key.first() == Some(&keys::CONTENT) {
            if self.contents.is_multiple_of(PER_PAGE) {
                settle(db, key);
            }
            self.contents += 1;
        }
    }
}

/// The time in the id of a content key.
fn content_ms(key: &[u8]) -> Option<u64> {
    let ms = key.strip_prefix(&[keys::CONTENT])?.first_chunk::<6>()?;
    Some(ms.iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::id::QueueId;

    fn key(ms: u64) -> [u8; 21] {
        keys::chunk(keys::CONTENT, QueueId::from_parts(ms, &[7; 10]), 0)
    }

    #[test]
    fn content_of_long_ago_is_cold_and_other_records_are_not() {
        let cache = Cache::new(1);
        assert!(cache.is_cold(&key(5)), "nothing was written in this run");
        cache.note_put(&key(1_700_000_000_000));
        assert!(!cache.is_cold(&key(1_700_000_000_000 - COLD_AFTER_MS)));
        assert!(cache.is_cold(&key(1_700_000_000_000 - COLD_AFTER_MS - 1)));
        assert!(cache.is_cold(&key(1_700_000_000_001)), "of another run, with another clock");
        assert!(!cache.is_cold(keys::META_COUNTERS));
    }
}
