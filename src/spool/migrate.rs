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

#[cfg(test)]
mod tests {
    use super::super::memory::MemorySpool;
    use super::super::suite::{deferred, id, sled_in};
    use super::super::{Op, Spool};
    use super::*;
    use crate::mail::envelope::RecipientState;

    const STATES: u16 = 1_200;

    /// A key and its record as format 1 had it.
    fn old(number: u16) -> (IVec, Option<IVec>) {
        let record = record::of_format_1(&record::write_state(&deferred(number.into())), 1);
        (keys::state(id(7), number)[..].into(), Some(record))
    }

    fn fill<T: Tree>(tree: &T) {
        let mark = record::write_migration(&MigrationMark { from: 1, next: Vec::new() });
        let states = (0..STATES).map(old);
        tree.apply(states.chain([(keys::META_MIGRATION.into(), Some(mark))]).collect()).expect("written");
    }

    /// How many states have which version.
    fn versions<T: Tree>(tree: &T) -> [usize; 3] {
        let mut count = [0; 3];
        tree.scan(&[keys::STATE], &[keys::STATE + 1], &mut |_, record| {
            count[usize::from(record[1])] += 1;
            true
        })
        .expect("readable");
        count
    }

    #[test]
    fn a_step_carries_some_records_and_the_last_one_removes_the_mark() {
        let spool = MemorySpool::new();
        fill(&spool.tree);
        let mut seen = Vec::new();
        while spool.migration().expect("readable") == Some(Migration { from: 1, to: migrations::CURRENT }) {
            spool.commit(&[Op::Migrate]).expect("committed");
            seen.push(versions(&spool.tree)[2]);
        }
        assert_eq!(seen, [STEP, 2 * STEP, 1_200]);
        let read = |number: u16| {
            let record = spool.tree.get(&keys::state(id(7), number)).expect("readable").expect("there");
            record::read_state(&record)
        };
        assert!((0..STATES).all(|number| read(number) == Ok(deferred(number.into()))));
        spool.commit(&[Op::Migrate]).expect("nothing is left to do");
    }

    #[test]
    fn what_its_own_commit_writes_holds() {
        let spool = MemorySpool::new();
        fill(&spool.tree);
        let held = RecipientState { held: true, ..deferred(9) };
        spool.commit(&[Op::Migrate, Op::PutRecipient(id(7), 3, held.clone())]).expect("committed");
        let record = spool.tree.get(&keys::state(id(7), 3)).expect("readable").expect("there");
        assert_eq!(record::read_state(&record), Ok(held));
    }

    #[test]
    fn damaged_records_stay_as_they_are() {
        let spool = MemorySpool::new();
        fill(&spool.tree);
        let key = keys::state(id(7), 5);
        spool.tree.apply(vec![(key[..].into(), Some(b"?"[..].into()))]).expect("written");
        while spool.migration().expect("readable").is_some() {
            spool.commit(&[Op::Migrate]).expect("committed");
        }
        assert_eq!(spool.tree.get(&key).expect("readable").as_deref(), Some(&b"?"[..]));
    }

    #[test]
    fn a_migration_that_was_killed_half_way_goes_on_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || sled_in(folder.path()).expect("opens");
        let spool = open();
        fill(&spool.tree);
        let format = record::Format { version: 1, writer: "0.1.0".into() };
        let format = (keys::META_FORMAT.into(), Some(record::write_format(&format)));
        spool.tree.apply(vec![format, (keys::META_MIGRATION.into(), None)]).expect("written");
        drop(spool);
        let spool = open();
        spool.commit(&[Op::Migrate]).expect("committed");
        assert_eq!(versions(&spool.tree), [0, 700, STEP]);
        drop(spool);
        let spool = open();
        assert_eq!(spool.migration().expect("readable").map(|migration| migration.from), Some(1));
        while spool.migration().expect("readable").is_some() {
            spool.commit(&[Op::Migrate]).expect("committed");
        }
        assert_eq!(versions(&spool.tree), [0, 0, 1_200]);
        drop(spool);
        assert_eq!(open().migration().expect("readable"), None);
    }
}
