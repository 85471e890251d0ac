//! The formats of the spool, one file for each, and the steps between them.
//!
//! LAW: the module doc of a step is the frozen on-disk format of its version. A step knows bytes only: it owns what it
//! needs of the layouts before and after it, never uses the types of `spool`, can be run again after a crash at any point,
//! and is never edited once released. sled is named here and in `spool/` only.
//!
//! A spool of an older version is carried up the ladder record by record while the relay works: whoever reads a record
//! carries it up in memory, and [`crate::spool`]'s `migrate` rewrites what is left, a few hundred records in each commit.
//! From the first of these commits on the spool has the new version, so that no older program uses it any more. A newer
//! spool is refused.

use std::path::Path;

use crate::spool::SpoolError;

pub mod v0001_initial;
pub mod v0002_hold;
pub mod v0003_blocks;

/// The format that this program writes, and the newest that it reads.
pub const CURRENT: u32 = v0003_blocks::VERSION;

/// One rung of the ladder: what the records of a format become in the next one.
struct Step {
    /// The format they have afterwards.
    to: u32,
    /// What the keys begin with whose records it changes, in order.
    changed: &'static [&'static [u8]],
    /// The new payload of a record of this kind; `None` when its layout stays as it is.
    carry: fn(kind: u8, payload: &[u8]) -> Option<Vec<u8>>,
}

/// All of them, in order.
const STEPS: &[Step] = &[v0002_hold::STEP, v0003_blocks::STEP];

/// Whether this program can use a spool of version `found` that `writer` wrote.
///
/// # Errors
/// [`SpoolError::Newer`], or [`SpoolError::Database`] for a version that never was.
pub fn check(spool: &Path, found: u32, writer: &str) -> Result<(), SpoolError> {
    match found {
        0 => Err(SpoolError::Database { path: spool.to_owned(), reason: "there is no format 0".to_owned() }),
        1..=CURRENT => Ok(()),
        _ => Err(SpoolError::Newer {
            path: spool.to_owned(),
            found,
            known: CURRENT,
            writer: writer.to_owned(),
        }),
    }
}

/// A record of this kind, with the layout of format `version`, as this program has it: version and payload. `None` when
/// nothing changed since then.
pub fn carried(kind: u8, version: u8, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut carried: Option<(u8, Vec<u8>)> = None;
    for step in STEPS.iter().filter(|step| step.to > u32::from(version)) {
        let payload = carried.as_ref().map_or(payload, |(_, payload)| payload);
        if let Some(next) = (step.carry)(kind, payload) {
            carried = Some((u8::try_from(step.to).unwrap_or(u8::MAX), next));
        }
    }
    carried
}

/// What the keys begin with whose records a spool of format `from` may have in an older layout, in order.
pub fn changed_since(from: u32) -> Vec<&'static [u8]> {
    let steps = STEPS.iter().filter(|step| step.to > from);
    let mut prefixes: Vec<_> = steps.flat_map(|step| step.changed).copied().collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_formats_are_used_and_newer_ones_refused_by_name() {
        let check = |found| check(Path::new("spool"), found, "9.9.9");
        assert!((1..=CURRENT).all(|found| check(found).is_ok()));
        assert!(matches!(check(0), Err(SpoolError::Database { .. })));
        let newer = check(CURRENT + 1).expect_err("refused").to_string();
        assert!(newer.contains("use posthaste 9.9.9 or newer"), "{newer}");
    }

    #[test]
    fn each_format_up_to_the_current_one_has_its_step() {
        let formats: Vec<u32> = STEPS.iter().map(|step| step.to).collect();
        assert_eq!(formats, (2..=CURRENT).collect::<Vec<_>>());
        assert!(STEPS.iter().all(|step| step.changed.is_sorted()));
    }

    #[test]
    fn a_record_is_carried_from_its_own_version_on() {
        assert_eq!(carried(2, 1, b"x"), Some((2, b"x\0".to_vec())));
        assert_eq!(carried(2, 2, b"x"), None);
        assert_eq!(carried(1, 1, b"x"), None, "envelopes have not changed");
        assert!(changed_since(1).contains(&&b"s"[..]) && changed_since(CURRENT).is_empty());
    }
}
