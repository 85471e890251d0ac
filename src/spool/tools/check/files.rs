//! The content folder: files that no message names.

use std::io;

use super::Check;
use crate::mail::envelope::ContentPlace;
use crate::mail::id::QueueId;
use crate::spool::{Spool, SpoolError, quarantine, read};

/// Why the look through the folder ended.
enum Ended {
    Folder(io::Error),
    Spool(SpoolError),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Folder(error)
    }
}

impl Check<'_> {
    pub(super) fn content_folder(&mut self) -> Result<(), SpoolError> {
        let files = self.files.clone();
        let looked = files.each(|name, id| {
            self.checked.content_files += 1;
            let Some(id) = id else {
                self.harmless(format!("content/{} is no file of posthaste", name.escape_debug()));
                return Ok(());
            };
            if !self.spool.holds(id).map_err(Ended::Spool)? {
                self.harmless(format!(
                    "no message names content/{name}: the next start of the relay removes it"
                ));
            } else if !self.is_named(id, name).map_err(Ended::Spool)? {
                self.harmless(format!(
                    "message {id} does not name content/{name}: it stays until that message is gone"
                ));
            }
            Ok(())
        });
        match looked {
            Ok(()) => Ok(()),
            Err(Ended::Spool(error)) => Err(error),
            Err(Ended::Folder(source)) => Err(SpoolError::Io {
                path: files.folder().to_owned(),
                what: "can't look through the content files; check its permissions".to_owned(),
                source,
            }),
        }
    }

    /// Whether a message names this file, or can't be asked.
    fn is_named(&self, id: QueueId, name: &str) -> Result<bool, SpoolError> {
        let stored = match read::message(self.tree, id) {
            Ok(Some(stored)) => Some(stored),
            Ok(None) => quarantine::stored(self.tree, id)?.ok(),
            Err(SpoolError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(stored.is_none_or(|stored| match &stored.envelope.place {
            ContentPlace::File(named) => named == name,
            ContentPlace::Database => false,
        }))
    }
}
