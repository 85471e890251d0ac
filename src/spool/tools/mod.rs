//! What an operator does with the spool of a relay that is stopped: [`check`] it, [`export`](mod@export) and
//! [`import`](mod@import) its mail; [`crate::spool::sled::compact`] compacts its database.
//!
//! Each of them holds the spool's lock, so no relay runs meanwhile. None holds more in memory than one message and a
//! bounded number of keys, however long the queue is.

pub mod check;
pub mod export;
pub mod import;
mod line;
#[cfg(test)]
mod tests;

use super::SpoolError;
use super::database::Tree;
use super::keys;
use crate::mail::id::QueueId;

/// Behind every key: none is longer than this and begins so.
pub(in crate::spool) const END: [u8; 512] = [u8::MAX; 512];
/// Ids read at once.
const IDS: usize = 250;

/// Calls `each` for every id that stands in a key right after `prefix`, in order. `each` may use the tree.
fn each_id<T: Tree, E: From<SpoolError>>(
    tree: &T,
    prefix: &[u8],
    mut each: impl FnMut(QueueId) -> Result<(), E>,
) -> Result<(), E> {
    let end = keys::end_of(prefix);
    let mut from = prefix.to_vec();
    loop {
        let mut ids: Vec<QueueId> = Vec::new();
        tree.scan(&from, &end, &mut |key, _| {
            if let Some(id) = key.get(prefix.len()..prefix.len() + 16).and_then(|id| id.try_into().ok())
                && ids.last() != Some(&QueueId::from_bytes(id))
            {
                ids.push(QueueId::from_bytes(id));
            }
            ids.len() < IDS
        })?;
        let Some(last) = ids.last() else { return Ok(()) };
        from = keys::end_of(&[prefix, last.as_bytes()].concat());
        ids.into_iter().try_for_each(&mut each)?;
    }
}

/// Calls `each` for every key and value with `from` ≤ key < `to`, in order. `each` may use the tree.
fn each_pair<T: Tree, E: From<SpoolError>>(
    tree: &T,
    from: &[u8],
    to: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = from.to_vec();
    loop {
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        tree.scan(&from, to, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            pairs.len() < IDS
        })?;
        let Some((last, _)) = pairs.last() else { return Ok(()) };
        from = keys::after(last.clone());
        pairs.into_iter().try_for_each(|(key, value)| each(&key, &value))?;
    }
}
