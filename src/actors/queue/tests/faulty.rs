//! A spool whose next reads fail.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::mail::envelope::StoredMessage;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::spool::memory::MemorySpool;
use crate::spool::{
    Counters, Deadlines, DestinationRecord, DueKey, DuePage, Op, Patrolled, Spool, SpoolError, Strays,
    Survey, Waiting,
};

/// Fails as many of the next reads of pages, wakes and deadlines as told.
pub(super) struct FaultySpool {
    pub spool: Arc<MemorySpool>,
    pub faults: AtomicU32,
    /// The faults are panics.
    pub panics: bool,
    /// Recipients that pages brought.
    pub paged: AtomicUsize,
}

impl FaultySpool {
    pub(super) fn new(spool: Arc<MemorySpool>) -> Self {
        Self { spool, faults: AtomicU32::new(0), panics: false, paged: AtomicUsize::new(0) }
    }

    fn fault(&self) -> Result<(), SpoolError> {
        let left = self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(_) if self.panics => panic!("a bad read, on purpose"),
            Ok(_) => Err(SpoolError::Closed("a fault".to_owned())),
            Err(_) => Ok(()),
        }
    }
}

impl Spool for FaultySpool {
    fn commit(&self, ops: &[Op]) -> Result<(), SpoolError> {
        self.spool.commit(ops)
    }

    fn due(
        &self,
        destination: &Domain,
        until_ms: u64,
        skip: &HashSet<(QueueId, u16)>,
        limit: usize,
        known: &dyn Fn(QueueId) -> bool,
    ) -> Result<DuePage, SpoolError> {
        self.fault()?;
        let page = self.spool.due(destination, until_ms, skip, limit, known)?;
        self.paged.fetch_add(page.items.len(), Ordering::Relaxed);
        Ok(page)
    }

    fn wakes(&self, after: Option<&(u64, Domain)>, limit: usize) -> Result<Vec<(u64, Domain)>, SpoolError> {
        self.fault()?;
        self.spool.wakes(after, limit)
    }

    fn deadlines(
        &self,
        after: Option<(u64, QueueId)>,
        limit: usize,
    ) -> Result<Vec<(u64, QueueId)>, SpoolError> {
        self.fault()?;
        self.spool.deadlines(after, limit)
    }

    fn message(&self, id: QueueId) -> Result<Option<StoredMessage>, SpoolError> {
        self.spool.message(id)
    }

    fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<StoredMessage>, SpoolError> {
        self.spool.list(after, limit)
    }

    fn survey(&self, from: QueueId, limit: usize) -> Result<Survey, SpoolError> {
        self.fault()?;
        self.spool.survey(from, limit)
    }

    fn patrol(
        &self,
        from: QueueId,
        limit: usize,
        deadlines: &Deadlines<'_>,
    ) -> Result<Patrolled, SpoolError> {
        self.spool.patrol(from, limit, deadlines)
    }

    fn strays(&self, after: Option<&DueKey>, limit: usize) -> Result<Strays, SpoolError> {
        self.spool.strays(after, limit)
    }

    fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        self.spool.content(id)
    }

    fn destination(&self, destination: &Domain) -> Result<Option<DestinationRecord>, SpoolError> {
        self.fault()?;
        self.spool.destination(destination)
    }

    fn destinations(
        &self,
        after: Option<&Domain>,
        limit: usize,
    ) -> Result<Vec<(Domain, DestinationRecord)>, SpoolError> {
        self.spool.destinations(after, limit)
    }

    fn queued(&self, after: Option<&Domain>, limit: usize) -> Result<Vec<(Domain, Waiting)>, SpoolError> {
        self.spool.queued(after, limit)
    }

    fn counters(&self) -> Result<Counters, SpoolError> {
        self.spool.counters()
    }

    fn syncs(&self) -> u64 {
        0
    }
}
