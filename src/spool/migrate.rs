//! Carrying the records of an older format up to this one, a few in each commit, behind open listeners.
//!
//! Readers understand older records ([`super::record`]), so nothing waits for this. The first commit writes the new format
//! and, beside it, where to go on; each later one rewrites some records and moves that mark. A crash between two of
//! them leaves a spool that goes on where it was.

use sled::IVec;

use super::database::Tree;
use super::record::{self, MigrationMark};
use super::write::Changes;
use super::{Migration, SpoolError, keys};
use crate::migrations;

/// Records that one step looks at: some milliseconds.
const STEP: usize = 500;

/// Where a migration is; `None` when there is none under way.
pub(super) fn mark<T: Tree>(tree: &T) -> Result<Option<MigrationMark>, SpoolError> {
    let Some(found) = tree.get(keys::META_MIGRATION)? else { return Ok(None) };
    // One that can't be read: from the beginning, which changes nothing that is done already.
    Ok(Some(record::read_migration(&found).unwrap_or(MigrationMark { from: 1, next: Vec::new() })))
}

/// What the operator is told of it.
pub(super) fn state<T: Tree>(tree: &T) -> Result<Option<Migration>, SpoolError> {
    Ok(mark(tree)?.map(|mark| Migration { from: mark.from, to: migrations::CURRENT }))
}

/// The next step. Its changes must come first in their commit: what the commit itself writes holds.
pub(super) fn step<T: Tree>(tree: &T, changes: &mut Changes) -> Result<(), SpoolError> {
    let Some(MigrationMark { from, next }) = mark(tree)? else { return Ok(()) };
    let mut left = STEP;
    for prefix in migrations::changed_since(from) {
        let end = keys::end_of(prefix);
        if next >= end {
            continue;
        }
        let start = next.as_slice().max(prefix);
        let mut stopped_at = None;
        tree.scan(start, &end, &mut |key, value| {
            if left == 0 {
                stopped_at = Some(key.to_vec());
                return false;
            }
            left -= 1;
            // What can't be read stays as it is: whoever meets it sets it aside.
            if let Some(carried) = record::carried(value) {
                changes.put(key, carried);
            }
            true
        })?;
        if let Some(next) = stopped_at {
            let mark: IVec = record::write_migration(&MigrationMark { from, next });
            changes.put(keys::META_MIGRATION, mark);
            return Ok(());
        }
    }
    tracing::info!(from, to = migrations::CURRENT, "no record of an older format is left");
    changes.remove(keys::META_MIGRATION);
    Ok(())
}
