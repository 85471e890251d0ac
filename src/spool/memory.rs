//! The spool in memory: the same records over a `BTreeMap`, for simulated time and tests. Durable as long as it lives.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

use sled::IVec;

use super::SpoolError;
use super::content::ContentFiles;
use super::database::{Change, Database, Store, Tree, Visit};

/// A spool in memory. It knows no content files: give it [`Content::Memory`](crate::mail::envelope::Content) only.
pub type MemorySpool = Database<MemoryTree>;

impl MemorySpool {
    /// An empty spool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every key, for tests that look at what is left.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut visit = |key: &[u8], _: &[u8]| {
            all.push(key.to_vec());
            true
        };
        self.tree.scan(&[], &[u8::MAX], &mut visit).expect("readable");
        all
    }

    /// Damages the first record whose key starts so.
    #[cfg(test)]
    pub(crate) fn damage(&self, prefix: &[u8], how: super::record::Damage) {
        let mut map = self.tree.store.map.write().unwrap_or_else(PoisonError::into_inner);
        let found = map.iter_mut().find(|(key, _)| key.starts_with(prefix));
        let (_, record) = found.expect("a record to damage");
        *record = how.of(record);
    }

    /// Damages the envelope of a message.
    #[cfg(test)]
    pub(crate) fn spoil(&self, id: crate::mail::id::QueueId) {
        let key = super::keys::of_message(super::keys::ENVELOPE, id);
        self.damage(&key, super::record::Damage::Checksum);
    }
}

/// The records of a [`MemorySpool`].
#[derive(Debug, Default)]
pub struct MemoryTree {
    map: RwLock<BTreeMap<IVec, IVec>>,
}

impl Tree for MemoryTree {
    fn files(&self) -> Option<ContentFiles> {
        None
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        Ok(self.map.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        if from < to {
            let mut pairs = map.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
            pairs.all(|(key, value)| visit(key, value));
        }
        Ok(())
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), SpoolError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn syncs(&self) -> u64 {
        0
    }
}

impl Store for MemoryTree {
    fn at_or_before(&self, from: &[u8], to: &[u8]) -> Result<Option<(IVec, IVec)>, SpoolError> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let last = map.range::<[u8], _>((Bound::Included(from), Bound::Included(to))).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }
}
