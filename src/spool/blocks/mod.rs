//! Index keys, some of them in each record of the tree.
//!
//! sled keeps some 300 bytes in memory for each page, however little is cached, and a leaf has 8 or 9 keys where they come
//! in order. A message in a long queue has a due key and a deadline key, so a million of them were 220,000 pages more. So the
//! keys of these two indexes lie in blocks of [`block::FULL`] bytes, and [`Blocks`] shows them as keys again: nobody above it
//! knows of blocks.
//!
//! A block's own key is a lower bound of the keys in it; they are all below the next block's. Keys before the first block go into
//! one whose own key is the prefix byte alone.
//!
//! LAW: keys move to later blocks only, in the commit that makes these. A scan reads blocks in order, so what it has not seen yet is never moved to where it has been; what it has seen it does not show again. That is why
//! blocks that become small are not put together; one that becomes empty is removed.

mod block;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use sled::IVec;

use super::content::ContentFiles;
use super::database::{Change, Store, Tree, Visit};
use super::record::Unreadable;
use super::{Compacted, Reads, SpoolError, keys};

/// A tree whose index keys lie in blocks.
#[derive(Debug, Default)]
pub struct Blocks<S> {
    /// The blocks and all other records.
    pub(super) store: S,
    /// Whether it was said that a block can't be read.
    told: AtomicBool,
}

/// Index keys that are to be there, or not, in order.
type Wanted = BTreeMap<IVec, bool>;

/// A block as it was found.
struct Found {
    name: IVec,
    keys: Vec<IVec>,
    /// It can't be read, so nobody knows its keys.
    damaged: bool,
}

/// Whether a key is one of those that lie in blocks.
fn is_in_blocks(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(keys::DUE | keys::DEADLINE)))
}

impl<S: Store> Blocks<S> {
    pub fn new(store: S) -> Self {
        Self { store, told: AtomicBool::new(false) }
    }

    /// The block whose keys begin at or before this one, and its record.
    fn of(&self, key: &[u8]) -> Result<Option<(IVec, IVec)>, SpoolError> {
        self.store.at_or_before(&key[..1], key)
    }

    /// Calls `visit` for each key of a block until it says `false`; whether it never did. What can't be read has no keys: the patrol
    /// finds the messages that lack theirs, and makes them anew.
    fn each(&self, name: &[u8], record: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        block::each(name, record, visit).unwrap_or_else(|error| {
            self.tell(name, &error);
            true
        })
    }

    fn tell(&self, name: &[u8], error: &Unreadable) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                block = %name.escape_ascii(),
                %error,
                "keys of the queue's index can't be read; the mail they are of waits until the patrol has made them anew, an hour \
                 or more after the start; `posthaste spool check` tells of all such damage"
            );
        }
    }

    /// Calls `visit` with the name of each block that can't be read, and why.
    ///
    /// # Errors
    /// As for any read.
    pub fn unreadable(&self, visit: &mut dyn FnMut(&[u8], &Unreadable)) -> Result<(), SpoolError> {
        for prefix in [keys::DUE, keys::DEADLINE] {
            self.store.scan(&[prefix], &[prefix + 1], &mut |name, record| {
                if let Err(error) = block::each(name, record, &mut |_| true) {
                    visit(name, &error);
                }
                true
            })?;
        }
        Ok(())
    }

    /// What changes of blocks make these keys be there or not.
    fn changes(&self, wanted: Wanted, changes: &mut Vec<Change>) -> Result<(), SpoolError> {
        let mut wanted = wanted.into_iter().peekable();
        while let Some((first, _)) = wanted.peek() {
            let found = self.find(first)?;
            let keys = self.merged(&found, &mut wanted)?;
            write(&found, keys, changes);
        }
        Ok(())
    }

    /// The block that this key belongs to, there or not.
    fn find(&self, key: &[u8]) -> Result<Found, SpoolError> {
        let Some((name, record)) = self.of(key)? else {
            return Ok(Found { name: IVec::from(&key[..1]), keys: Vec::new(), damaged: false });
        };
        Ok(match block::read(&name, &record) {
            Ok(keys) => Found { name, keys, damaged: false },
            Err(error) => {
                self.tell(&name, &error);
                Found { name, keys: Vec::new(), damaged: true }
            }
        })
    }

    /// The keys of a block after all that is wanted of it, which is taken out of `wanted`.
    fn merged(
        &self,
        found: &Found,
        wanted: &mut Peekable<impl Iterator<Item = (IVec, bool)>>,
    ) -> Result<Vec<IVec>, SpoolError> {
        let mut old = found.keys.iter().peekable();
        let mut merged = Vec::with_capacity(found.keys.len() + 1);
        let mut first = true;
        while let Some((key, there)) = wanted.peek() {
            let inside = found.keys.last().is_some_and(|last| key <= last);
            if !first && !inside && !self.belongs(key, &found.name)? {
                break;
            }
            while let Some(before) = old.next_if(|old| *old < key) {
                merged.push(before.clone());
            }
            old.next_if(|old| *old == key);
            if *there {
                merged.push(key.clone());
            }
            wanted.next();
            first = false;
        }
        merged.extend(old.cloned());
        Ok(merged)
    }

    /// Whether a key behind all those of a block belongs to it.
    fn belongs(&self, key: &[u8], name: &IVec) -> Result<bool, SpoolError> {
        if key[0] != name[0] {
            return Ok(false);
        }
        let block = self.of(key)?;
        // Without one this is the block of the prefix byte alone, which is still to be written.
        Ok(block.map_or_else(|| name.len() == 1, |(found, _)| found == *name))
    }
}

/// Writes a block that shall have these keys, in as many pieces as they need.
fn write(found: &Found, keys: Vec<IVec>, changes: &mut Vec<Change>) {
    if keys == found.keys && !found.damaged {
        return;
    }
    if keys.is_empty() {
        changes.push((found.name.clone(), None));
        return;
    }
    let grows_at_end = keys.last() > found.keys.last();
    for (number, piece) in block::pieces(&found.name, &keys, grows_at_end).into_iter().enumerate() {
        let name = if number == 0 { &found.name } else { &keys[piece.start] };
        changes.push((name.clone(), Some(block::write(name, &keys[piece]))));
    }
}

impl<S: Store> Tree for Blocks<S> {
    fn files(&self) -> Option<ContentFiles> {
        self.store.files()
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        if !is_in_blocks(key) {
            return self.store.get(key);
        }
        let Some((name, record)) = self.of(key)? else { return Ok(None) };
        let mut found = false;
        self.each(&name, &record, &mut |one| {
            found = one == key;
            one < key
        });
        Ok(found.then(IVec::default))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        let first = if is_in_blocks(from) { self.of(from)? } else { None };
        let start = first.as_ref().map_or(from, |(name, _)| name);
        // The last key of earlier blocks: since these were read, a commit may have moved keys from them to the next ones.
        let mut seen: Vec<u8> = Vec::new();
        self.store.scan(start, to, &mut |name, record| {
            if !is_in_blocks(name) {
                return visit(name, record);
            }
            let mut flow = ControlFlow::Continue(());
            let mut shown: Option<Vec<u8>> = None;
            self.each(name, record, &mut |key| {
                if key < from || *key <= *seen {
                    return true;
                }
                if key >= to || !visit(key, &[]) {
                    flow = ControlFlow::Break(());
                }
                let shown = shown.get_or_insert_default();
                shown.clear();
                shown.extend_from_slice(key);
                flow.is_continue()
            });
            if let Some(shown) = shown {
                seen = shown;
            }
            flow.is_continue()
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), SpoolError> {
        let mut wanted = Wanted::new();
        let mut plain = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            if is_in_blocks(&key) {
                wanted.insert(key, value.is_some());
            } else {
                plain.push((key, value));
            }
        }
        self.changes(wanted, &mut plain)?;
        self.store.apply(plain)
    }

    fn syncs(&self) -> u64 {
        self.store.syncs()
    }

    fn reads(&self) -> Reads {
        self.store.reads()
    }

    fn damage(&self) -> Option<String> {
        self.store.damage()
    }

    fn settle(&self) {
        self.store.settle();
    }

    fn compact(&self, most: u64) -> Result<Option<Compacted>, SpoolError> {
        self.store.compact(most)
    }
}
