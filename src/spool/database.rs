//! A [`Spool`] over any ordered tree of bytes: what sled and the memory body share.

use std::collections::HashSet;

use bytes::Bytes;
use sled::IVec;

use super::blocks::Blocks;
use super::content::ContentFiles;
use super::{
    Compacted, Counters, Deadlines, DestinationRecord, DueKey, DuePage, Migration, Op, Patrolled,
    Quarantined, Reads, Spool, SpoolError, Strays, Survey, Waiting, migrate, patrol, quarantine, read, write,
};
use crate::mail::envelope::StoredMessage;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

/// A key and its new value, or `None` to remove it.
pub type Change = (IVec, Option<IVec>);

/// What [`Tree::scan`] calls for each pair; `false` ends the scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// An ordered map of bytes. Reads may run on any thread while one thread applies changes; each single read sees
/// all of a batch or nothing of it, several reads in a row may not.
pub trait Tree: Send + Sync {
    /// The content files beside the tree, if it has any.
    fn files(&self) -> Option<ContentFiles>;

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError>;

    /// Visits the pairs with `from` ≤ key < `to` in order of key. `visit` must not use the tree.
    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError>;

    /// Makes all changes durable at once; of several for one key the last counts.
    fn apply(&self, changes: Vec<Change>) -> Result<(), SpoolError>;

    /// As [`Spool::syncs`].
    fn syncs(&self) -> u64;

    /// As [`Spool::reads`].
    fn reads(&self) -> Reads {
        Reads::default()
    }

    /// As [`Spool::damage`].
    fn damage(&self) -> Option<String> {
        None
    }

    /// As [`Spool::settle`].
    fn settle(&self) {}

    /// As [`Spool::compact`].
    fn compact(&self, _most: u64) -> Result<Option<Compacted>, SpoolError> {
        Ok(None)
    }
}

/// What [`Blocks`] need of a tree.
pub trait Store: Tree {
    /// The last pair with `from` ≤ key ≤ `to`.
    fn at_or_before(&self, from: &[u8], to: &[u8]) -> Result<Option<(IVec, IVec)>, SpoolError>;
}

/// A spool over a tree.
#[derive(Debug, Default)]
pub struct Database<S> {
    pub(super) tree: Blocks<S>,
}

impl<S: Store + 'static> Spool for Database<S> {
    fn commit(&self, ops: &[Op]) -> Result<(), SpoolError> {
        self.tree.apply(write::changes(&self.tree, ops)?)
    }

    fn due(
        &self,
        destination: &Domain,
        until_ms: u64,
        skip: &HashSet<(QueueId, u16)>,
        limit: usize,
        known: &dyn Fn(QueueId) -> bool,
    ) -> Result<DuePage, SpoolError> {
        read::due(&self.tree, destination, until_ms, skip, limit, known)
    }

    fn wakes(&self, after: Option<&(u64, Domain)>, limit: usize) -> Result<Vec<(u64, Domain)>, SpoolError> {
        read::wakes(&self.tree, after, limit)
    }

    fn deadlines(
        &self,
        after: Option<(u64, QueueId)>,
        limit: usize,
    ) -> Result<Vec<(u64, QueueId)>, SpoolError> {
        read::deadlines(&self.tree, after, limit)
    }

    fn message(&self, id: QueueId) -> Result<Option<StoredMessage>, SpoolError> {
        read::message(&self.tree, id)
    }

    fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<StoredMessage>, SpoolError> {
        read::list(&self.tree, after, limit)
    }

    fn survey(&self, from: QueueId, limit: usize) -> Result<Survey, SpoolError> {
        read::survey(&self.tree, from, limit)
    }

    fn patrol(
        &self,
        from: QueueId,
        limit: usize,
        deadlines: &Deadlines<'_>,
    ) -> Result<Patrolled, SpoolError> {
        patrol::messages(&self.tree, from, limit, deadlines)
    }

    fn strays(&self, after: Option<&DueKey>, limit: usize) -> Result<Strays, SpoolError> {
        patrol::strays(&self.tree, after, limit)
    }

    fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        read::content(&self.tree, id)
    }

    fn destination(&self, destination: &Domain) -> Result<Option<DestinationRecord>, SpoolError> {
        read::destination(&self.tree, destination)
    }

    fn destinations(
        &self,
        after: Option<&Domain>,
        limit: usize,
    ) -> Result<Vec<(Domain, DestinationRecord)>, SpoolError> {
        read::destinations(&self.tree, after, limit)
    }

    fn queued(&self, after: Option<&Domain>, limit: usize) -> Result<Vec<(Domain, Waiting)>, SpoolError> {
        read::queued(&self.tree, after, limit)
    }

    fn quarantined(
        &self,
        after: Option<QueueId>,
        limit: usize,
    ) -> Result<Vec<(QueueId, String)>, SpoolError> {
        read::quarantined(&self.tree, after, limit)
    }

    fn in_quarantine(&self, id: QueueId) -> Result<Option<Quarantined>, SpoolError> {
        quarantine::message(&self.tree, id)
    }

    fn holds(&self, id: QueueId) -> Result<bool, SpoolError> {
        read::holds(&self.tree, id)
    }

    fn migration(&self) -> Result<Option<Migration>, SpoolError> {
        migrate::state(&self.tree)
    }

    fn counters(&self) -> Result<Counters, SpoolError> {
        read::counters(&self.tree)
    }

    fn damage(&self) -> Option<String> {
        self.tree.damage()
    }

    fn syncs(&self) -> u64 {
        self.tree.syncs()
    }

    fn reads(&self) -> Reads {
        self.tree.reads()
    }

    fn compact(&self, most: u64) -> Result<Option<Compacted>, SpoolError> {
        self.tree.compact(most)
    }

    fn settle(&self) {
        self.tree.settle();
    }
}
