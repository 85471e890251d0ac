//! The formats of the spool, one file for each, and the steps between them.
//!
//! LAW: the module doc of a step is the frozen on-disk format of its version. A step owns copies of the records it reads
//! and writes, never uses those of `spool`, can be run again after a crash at any point, and is never edited once
//! released. sled is named here and in `spool/` only.
//!
//! A spool of an older version is carried up the ladder, one step after the other. A newer one is refused.

use std::path::Path;

use crate::spool::SpoolError;

pub mod v0001_initial;

/// The format that this program writes, and the newest that it reads.
pub const CURRENT: u32 = v0001_initial::VERSION;

/// Whether this program can use a spool of version `found` that `writer` wrote.
///
/// # Errors
/// [`SpoolError::Newer`], or [`SpoolError::Database`] for a version that never was.
pub fn check(spool: &Path, found: u32, writer: &str) -> Result<(), SpoolError> {
    match found {
        CURRENT => Ok(()),
        0 => Err(SpoolError::Database { path: spool.to_owned(), reason: "there is no format 0".to_owned() }),
        _ => Err(SpoolError::Newer {
            path: spool.to_owned(),
            found,
            known: CURRENT,
            writer: writer.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_current_format_is_used() {
        let check = |found| check(Path::new("spool"), found, "9.9.9");
        assert!(check(CURRENT).is_ok());
        assert!(matches!(check(0), Err(SpoolError::Database { .. })));
        let newer = check(CURRENT + 1).expect_err("refused").to_string();
        assert!(newer.contains("use posthaste 9.9.9 or newer"), "{newer}");
    }
}
