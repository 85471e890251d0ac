//! Content files: large content streams to a file of its own while it arrives. All calls block.
//!
//! A file is its content and a trailer with the checksum of it (`content/trailer.rs`). A message's `size` is that of the
//! content. A file that ends with its content is of an older program and is taken as it is. Anything else behind the content
//! is damage: a file is synced before a commit names it, so no crash leaves a message with half a trailer.

mod trailer;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::sync::{self, FolderSync};
use super::{Spool, SpoolError};
use crate::mail::id::QueueId;

/// Bytes of a file in memory while it is copied or checked.
const AT_ONCE: usize = 256 << 10;

/// The folder of the content files. A file is called `<queue id>.<instance id of the run that wrote it>`.
#[derive(Clone, Debug)]
pub struct ContentFiles {
    folder: PathBuf,
    names: Arc<FolderSync>,
}

impl ContentFiles {
    /// The files in `folder`, which must exist.
    pub fn new(folder: PathBuf) -> Self {
        let names = Arc::new(FolderSync::new(folder.clone()));
        Self { folder, names }
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins the file of a message (mode 0600). S0 → S1: nothing names it before the commit.
    ///
    /// # Errors
    /// The system's; a file of that name must not exist.
    pub fn create(&self, id: QueueId, instance: &str) -> io::Result<ContentWriter> {
        self.begin(&format!("{id}.{instance}"), Some(crc32fast::Hasher::new()))
    }

    /// Begins a file that is written byte for byte as it was elsewhere, its trailer included if it has one: damage
    /// must not get a checksum that makes it look whole.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub(super) fn create_as_it_was(&self, name: &str) -> io::Result<ContentWriter> {
        self.begin(name, None)
    }

    fn begin(&self, name: &str, crc: Option<crc32fast::Hasher>) -> io::Result<ContentWriter> {
        let path = self.path(name)?;
        let name = name.to_owned();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(ContentWriter {
            file,
            size: 0,
            crc,
            unfinished: Some(Unfinished { name, path }),
            names: self.names.clone(),
        })
    }

    /// Opens a finished file for reading. It must have the content of its envelope, `size` bytes, with its trailer or, from an
    /// older program, without.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] for a file that is missing, has another length or something else behind its content, and for a
    /// name that is no content file's; [`SpoolError::Io`] when it can't be read now.
    pub fn open(&self, name: &str, size: u64) -> Result<ContentFile, SpoolError> {
        let (path, file, length) = self.found(name)?;
        let expected = if length == size {
            None
        } else if Some(length) == size.checked_add(trailer::LEN) {
            let mut bytes = trailer::Bytes::default();
            file.read_exact_at(&mut bytes, size).map_err(|error| unreadable(&path, error))?;
            Some(trailer::read(&bytes).map_err(|why| damaged(name, &why))?)
        } else {
            let sealed = size.saturating_add(trailer::LEN);
            let why = format!("it has {length} bytes instead of {size}, or {sealed} with its checksum");
            return Err(damaged(name, &why));
        };
        let crc = crc32fast::Hasher::new();
        Ok(ContentFile { file, path, name: name.to_owned(), size, left: size, crc, expected })
    }

    /// Opens a file for reading byte for byte, its trailer included if it has one, whatever its envelope says.
    ///
    /// # Errors
    /// As for [`ContentFiles::open`]; damage other than a missing file goes unseen.
    pub(super) fn open_as_it_is(&self, name: &str) -> Result<ContentFile, SpoolError> {
        let (path, file, size) = self.found(name)?;
        let crc = crc32fast::Hasher::new();
        Ok(ContentFile { file, path, name: name.to_owned(), size, left: size, crc, expected: None })
    }

    /// A file and how long it is.
    fn found(&self, name: &str) -> Result<(PathBuf, File, u64), SpoolError> {
        let path = self.path(name).map_err(|error| damaged(name, &error.to_string()))?;
        match File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((length, file)) => Ok((path, file, length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged(name, "it is missing")),
            Err(error) => Err(unreadable(&path, error)),
        }
    }

    /// Reads all of a finished file and compares its checksum.
    ///
    /// # Errors
    /// As for [`ContentFiles::open`] and [`ContentFile::read_piece`].
    pub(super) fn verify(&self, name: &str, size: u64) -> Result<(), SpoolError> {
        self.open(name, size)?.read_all()
    }

    /// What stands in the way of delivering a message with this file; `None` when nothing does. Reads all of it.
    ///
    /// # Errors
    /// The system's when it can't be opened: then nobody knows.
    pub fn obstacle(&self, name: &str, size: u64) -> Result<Option<String>, SpoolError> {
        let read = match self.open(name, size) {
            // What can't be read at all is in the way, too; the message must be shown and can be discarded.
            Ok(file) => file.read_all(),
            Err(error @ SpoolError::Damaged { .. }) => Err(error),
            Err(error) => return Err(error),
        };
        match read {
            Ok(()) => Ok(None),
            Err(SpoolError::Damaged { what, reason }) => Ok(Some(format!("{what}: {reason}"))),
            Err(error) => Ok(Some(error.to_string())),
        }
    }

    /// Calls `each` with the name of every file in the folder, and the message it says it is of; `None` for a file that
    /// is none of ours.
    ///
    /// # Errors
    /// The system's, and those of `each`.
    pub(super) fn each<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(&str, Option<QueueId>) -> Result<(), E>,
    ) -> Result<(), E> {
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            each(&name, parse_name(&name).map(|(id, _)| id))?;
        }
        Ok(())
    }

    /// Removes a file; one that is gone already is fine.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes what crashes left behind (S1, S4): files of earlier runs whose message is not in the spool.
    /// Returns how many there were.
    ///
    /// # Errors
    /// The folder can't be read, or the spool's; the rest is left for the next start.
    pub fn sweep(&self, spool: &dyn Spool, instance: &str) -> Result<usize, SpoolError> {
        let trouble = |source| SpoolError::Io {
            path: self.folder.clone(),
            what: "can't look for left-over content files; check its permissions".to_owned(),
            source,
        };
        let mut removed = 0;
        for entry in fs::read_dir(&self.folder).map_err(trouble)? {
            let name = entry.map_err(trouble)?.file_name();
            let Some((id, written_by)) = name.to_str().and_then(parse_name) else { continue };
            if written_by != instance && !spool.holds(id)? {
                match fs::remove_file(self.folder.join(&name)) {
                    Ok(()) => removed += 1,
                    // Its message was finished meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(trouble(error)),
                }
            }
        }
        Ok(removed)
    }

    /// Copies a file of another folder, under its name, byte for byte, and syncs it: now a commit may name it. The inner result
    /// says why it can't be read, if it can't; then nothing is left here. Damage is copied as it is.
    ///
    /// # Errors
    /// It can't be written here.
    pub fn copy_from(&self, other: &Self, name: &str) -> Result<Result<(), String>, SpoolError> {
        let mut source = match other.open_as_it_is(name) {
            Ok(source) => source,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let trouble = |source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull => SpoolError::Full(self.folder.clone()),
            _ => {
                let what = format!("can't write the content file {name}; check the disk");
                SpoolError::Io { path: self.folder.clone(), what, source }
            }
        };
        let mut writer = self.create_as_it_was(name).map_err(trouble)?;
        loop {
            match source.read_piece(AT_ONCE) {
                Ok(Some(piece)) => writer.write(&piece).map_err(trouble)?,
                Ok(None) => break,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        writer.finish().map(|_| Ok(())).map_err(trouble)
    }

    /// The names of all files, by message.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn names(&self) -> io::Result<HashMap<QueueId, Vec<String>>> {
        let mut names: HashMap<QueueId, Vec<String>> = HashMap::new();
        for entry in fs::read_dir(&self.folder)? {
            if let Ok(name) = entry?.file_name().into_string()
                && let Some((id, _)) = parse_name(&name)
            {
                names.entry(id).or_default().push(name);
            }
        }
        Ok(names)
    }

    /// Names come from records: one must never lead out of the folder.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        match parse_name(name) {
            Some(_) => Ok(self.folder.join(name)),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no content file"))),
        }
    }
}

fn damaged(name: &str, reason: &str) -> SpoolError {
    SpoolError::Damaged { what: format!("content file {name}"), reason: reason.to_owned() }
}

fn unreadable(path: &Path, source: io::Error) -> SpoolError {
    let what = "can't read the content of a message; check the disk and the file's permissions".to_owned();
    SpoolError::Io { path: path.to_owned(), what, source }
}

/// What is wrong with content of this length.
pub(crate) fn wrong_length(found: u64, size: u64) -> Option<String> {
    (found != size).then(|| format!("it has {found} bytes instead of {size}"))
}

fn parse_name(name: &str) -> Option<(QueueId, &str)> {
    let (id, instance) = name.split_once('.')?;
    let plain =
        !instance.is_empty() && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain { Some((id.parse().ok()?, instance)) } else { None }
}

/// A content file that is being written. Dropped before [`ContentWriter::finish`], it removes the file.
#[derive(Debug)]
pub struct ContentWriter {
    file: File,
    size: u64,
    /// Of what was written; `None` for a file that brings its trailer, if it has one.
    crc: Option<crc32fast::Hasher>,
    unfinished: Option<Unfinished>,
    names: Arc<FolderSync>,
}

#[derive(Debug)]
struct Unfinished {
    name: String,
    path: PathBuf,
}

impl ContentWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// The system's; the writer is of no more use then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        if let Some(crc) = &mut self.crc {
            crc.update(bytes);
        }
        Ok(())
    }

    /// How many bytes were written, not counting the trailer.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the trailer, syncs the file, and its folder together with others that end just now, and returns the file's name and
    /// the size of what was written before: now a commit may name it.
    ///
    /// # Errors
    /// The system's; the file is removed then.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        if let Some(crc) = self.crc.take() {
            self.file.write_all(&trailer::write(crc.finalize()))?;
        }
        sync::sync_file(&self.file)?;
        self.names.sync()?;
        let name = self.unfinished.take().map(|file| file.name).unwrap_or_default();
        Ok((name, self.size))
    }

    /// Adds the last bytes and finishes.
    ///
    /// # Errors
    /// As [`Self::write`] and [`Self::finish`].
    pub fn finish_with(mut self, bytes: &[u8]) -> io::Result<(String, u64)> {
        self.write(bytes)?;
        self.finish()
    }
}

impl Drop for ContentWriter {
    fn drop(&mut self) {
        if let Some(unfinished) = self.unfinished.take()
            && let Err(error) = fs::remove_file(&unfinished.path)
        {
            tracing::warn!(path = %unfinished.path.display(), %error, "can't remove an unfinished content file");
        }
    }
}

/// A content file that is being read.
#[derive(Debug)]
pub struct ContentFile {
    file: File,
    path: PathBuf,
    name: String,
    size: u64,
    left: u64,
    /// Of what was read.
    crc: crc32fast::Hasher,
    /// What it must be at the end, if the file tells.
    expected: Option<u32>,
}

impl ContentFile {
    /// The next bytes, at most `max`; `None` after the last one of the file's size.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when the file ends early, and in place of the last bytes and from then on when the checksum of
    /// all of them is wrong: whoever gets to the end has read what was written. [`SpoolError::Io`] when it can't be read now.
    pub fn read_piece(&mut self, max: usize) -> Result<Option<Bytes>, SpoolError> {
        let wanted = max.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut piece = BytesMut::zeroed(wanted);
        let mut filled = 0;
        while filled < wanted {
            match self.file.read(&mut piece[filled..]) {
                Ok(0) => {
                    let found = self.size - self.left + filled as u64;
                    let why = wrong_length(found, self.size).unwrap_or_default();
                    return Err(damaged(&self.name, &why));
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&self.path, error)),
            }
        }
        self.left -= filled as u64;
        if let Some(expected) = self.expected {
            self.crc.update(&piece);
            if self.left == 0 && self.crc.clone().finalize() != expected {
                return Err(damaged(&self.name, "its checksum is wrong"));
            }
        }
        Ok((filled > 0).then(|| piece.freeze()))
    }

    fn read_all(mut self) -> Result<(), SpoolError> {
        while self.read_piece(AT_ONCE)?.is_some() {}
        Ok(())
    }

    /// How long it is: without the trailer, unless that is read, too.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests;
