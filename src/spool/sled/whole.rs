//! Whether a folder has a spool, and whether that is a whole one: looked at before anything is opened or made.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use uuid::Uuid;

use super::super::{SpoolError, sync};
use super::open::{DATABASE, io_error, private_file};
use super::{SledSpool, before};
use crate::config::SpoolConfig;

/// Stands in the new spool of a rescue until that is complete. In it is the instance id of the rescue.
const UNFINISHED: &str = "rescue.unfinished";

impl SledSpool {
    /// Makes sure that `config.path` has a spool, for what must not make one.
    ///
    /// # Errors
    /// [`SpoolError::Missing`], [`SpoolError::Database`] when only its database is, and [`SpoolError::Io`] when nobody can tell.
    pub fn must_exist(config: &SpoolConfig) -> Result<(), SpoolError> {
        let database = config.path.join(DATABASE);
        match fs::metadata(&database) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                if config.path.is_dir() {
                    before::must_not_be_missing(&config.path)?;
                }
                Err(SpoolError::Missing(config.path.clone()))
            }
            Err(error) => Err(io_error(&database, "can't be looked at")(error)),
        }
    }
}

/// Refuses what a rescue left that ended half-way: mail is missing in it. The rescue itself, `instance`, may open it.
pub(in crate::spool) fn check(folder: &Path, instance: Uuid) -> Result<(), SpoolError> {
    let marker = folder.join(UNFINISHED);
    match fs::read(&marker) {
        Ok(id) if id == mark(instance) => Ok(()),
        Ok(_) => Err(SpoolError::Unfinished(folder.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(error) => Err(io_error(&marker, "can't be read")(error)),
    }
}

/// Makes the folder of a new spool, unfinished from its first instant on.
pub(in crate::spool) fn begin(folder: &Path, instance: Uuid) -> Result<(), SpoolError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(io_error(folder, "the folder can't be made"))?;
    let marker = folder.join(UNFINISHED);
    let written = private_file(&marker).and_then(|mut file| {
        file.write_all(&mark(instance))?;
        file.sync_all()
    });
    written.and_then(|()| sync::sync_folder(folder)).map_err(io_error(&marker, "can't be written"))
}

/// Everything is in it, synced: from now on it is a spool as any other.
pub(in crate::spool) fn finish(folder: &Path) -> Result<(), SpoolError> {
    let marker = folder.join(UNFINISHED);
    fs::remove_file(&marker)
        .and_then(|()| sync::sync_folder(folder))
        .map_err(io_error(&marker, "can't be removed"))
}

fn mark(instance: Uuid) -> Vec<u8> {
    format!("{}\n", instance.simple()).into_bytes()
}
