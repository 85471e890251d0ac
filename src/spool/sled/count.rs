//! Counts what is read, so that tests and operators see that a start reads no mail.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{Reads, keys};

#[derive(Debug, Default)]
pub(super) struct Count {
    records: AtomicU64,
    of_messages: AtomicU64,
    keys: AtomicU64,
}

impl Count {
    /// One key of the database, with its value, was read.
    pub fn read(&self, key: &[u8]) {
        match key.first() {
            Some(&(keys::DUE | keys::WAKE | keys::DEADLINE)) => &self.keys,
            Some(&(keys::ENVELOPE | keys::STATE | keys::CONTENT)) => &self.of_messages,
            _ => &self.records,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    pub fn reads(&self) -> Reads {
        let of_messages = self.of_messages.load(Ordering::Relaxed);
        let records = self.records.load(Ordering::Relaxed) + of_messages;
        Reads { records, of_messages, keys: self.keys.load(Ordering::Relaxed) }
    }
}
