//! Content files: large content streams to a file of its own while it arrives. All calls block.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::sync::{self, FolderSync};
use super::{Spool, SpoolError};
use crate::mail::id::QueueId;

/// Bytes of a file in memory while it is copied.
const COPIED_AT_ONCE: usize = 256 << 10;

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
        self.create_named(&format!("{id}.{instance}"))
    }

    /// As [`ContentFiles::create`], for a file that an export brings with its name.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub(super) fn create_named(&self, name: &str) -> io::Result<ContentWriter> {
        let path = self.path(name)?;
        let name = name.to_owned();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(ContentWriter {
            file,
            size: 0,
            unfinished: Some(Unfinished { name, path }),
            names: self.names.clone(),
        })
    }

    /// Opens a finished file for reading. It must have exactly `size` bytes, those of its envelope.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] for a file that is missing or has another length, and for a name that is no content file's;
    /// [`SpoolError::Io`] when it can't be read now.
    pub fn open(&self, name: &str, size: u64) -> Result<ContentFile, SpoolError> {
        let path = self.path(name).map_err(|error| damaged(name, &error.to_string()))?;
        let found = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = found.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(name, "it is missing"),
            _ => unreadable(&path, error),
        })?;
        match wrong_length(length, size) {
            Some(why) => Err(damaged(name, &why)),
            None => Ok(ContentFile { file, path, name: name.to_owned(), size, left: size }),
        }
    }

    /// What stands in the way of delivering a message with this file; `None` when nothing does.
    ///
    /// # Errors
    /// The system's: then nobody knows.
    pub fn obstacle(&self, name: &str, size: u64) -> Result<Option<String>, SpoolError> {
        match self.open(name, size) {
            Ok(_) => Ok(None),
            Err(SpoolError::Damaged { what, reason }) => Ok(Some(format!("{what}: {reason}"))),
            Err(error) => Err(error),
        }
    }

    /// The size of a finished file in bytes; `None` when it is not there.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub(super) fn size(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(name)?) {
            Ok(file) => Ok(Some(file.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
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

    /// How long a file is.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub fn length(&self, name: &str) -> io::Result<u64> {
        fs::metadata(self.path(name)?).map(|metadata| metadata.len())
    }

    /// Copies a file of another folder, under its name, and syncs it: now a commit may name it. The inner result is its
    /// length, or why it can't be read; then nothing is left here.
    ///
    /// # Errors
    /// It can't be written here.
    pub fn copy_from(&self, other: &Self, name: &str) -> Result<Result<u64, String>, SpoolError> {
        let opened = other.length(name).map_err(|error| error.to_string());
        let opened = opened.and_then(|size| other.open(name, size).map_err(|error| error.to_string()));
        let mut source = match opened {
            Ok(source) => source,
            Err(why) => return Ok(Err(why)),
        };
        let trouble = |source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull => SpoolError::Full(self.folder.clone()),
            _ => {
                let what = format!("can't write the content file {name}; check the disk");
                SpoolError::Io { path: self.folder.clone(), what, source }
            }
        };
        let mut writer = self.create_named(name).map_err(trouble)?;
        loop {
            match source.read_piece(COPIED_AT_ONCE) {
                Ok(Some(piece)) => writer.write(&piece).map_err(trouble)?,
                Ok(None) => break,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        writer.finish().map(|(_, size)| Ok(size)).map_err(trouble)
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
        Ok(())
    }

    /// How many bytes were written.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Syncs the file, and its folder together with others that end just now, and returns the file's name and size: now a commit may name it.
    ///
    /// # Errors
    /// The system's; the file is removed then.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
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
}

impl ContentFile {
    /// The next bytes, at most `max`; `None` after the last one of the file's size.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when the file ends early; [`SpoolError::Io`] when it can't be read now.
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
        Ok((filled > 0).then(|| piece.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemorySpool;
    use super::super::suite::{arrival, envelope, id, recipient};
    use super::*;

    fn files() -> (tempfile::TempDir, ContentFiles) {
        let folder = tempfile::tempdir().expect("a folder");
        let files = ContentFiles::new(folder.path().to_owned());
        (folder, files)
    }

    fn names(files: &ContentFiles) -> usize {
        fs::read_dir(files.folder()).expect("a folder").count()
    }

    #[test]
    fn a_finished_file_reads_back_in_pieces() {
        let (_folder, files) = files();
        let before = sync::other_syncs();
        let mut writer = files.create(id(1), "run1").expect("a file");
        writer.write(b"hello ").and_then(|()| writer.write(b"world")).expect("written");
        let (name, size) = writer.finish().expect("finished");
        assert_eq!((name.as_str(), size), (format!("{}.run1", id(1)).as_str(), 11));
        assert!(sync::other_syncs() >= before + 2, "the file and its folder");
        let mut file = files.open(&name, size).expect("opens");
        for piece in [&b"hell"[..], b"o wo", b"rld"] {
            assert_eq!(file.read_piece(4).expect("read").as_deref(), Some(piece));
        }
        assert_eq!(file.read_piece(4).expect("read"), None);
        files.remove(&name).and_then(|()| files.remove(&name)).expect("twice is fine");
        assert_eq!(names(&files), 0);
    }

    fn finished(files: &ContentFiles, content: &[u8]) -> (String, u64) {
        let mut writer = files.create(id(1), "run1").expect("a file");
        writer.write(content).expect("written");
        writer.finish().expect("finished")
    }

    #[test]
    fn a_file_that_is_missing_or_of_another_length_is_damaged() {
        let (_folder, files) = files();
        let (name, size) = finished(&files, b"hello world");
        for wrong in [0, 10, 12] {
            let refused = files.open(&name, wrong).expect_err("another length").to_string();
            assert!(refused.contains(&format!("it has 11 bytes instead of {wrong}")), "{refused}");
        }
        assert_eq!(files.obstacle(&name, size).expect("readable"), None);
        files.remove(&name).expect("removed");
        assert!(matches!(files.open(&name, size), Err(SpoolError::Damaged { .. })));
        let obstacle = files.obstacle(&name, size).expect("told").expect("one");
        assert!(obstacle.contains(&name) && obstacle.contains("missing"), "{obstacle}");
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_does_not_look_whole() {
        let (_folder, files) = files();
        let (name, size) = finished(&files, b"hello world");
        let mut file = files.open(&name, size).expect("opens");
        assert_eq!(file.read_piece(5).expect("read").as_deref(), Some(&b"hello"[..]));
        let cut = OpenOptions::new().write(true).open(files.folder().join(&name)).expect("opens");
        cut.set_len(8).expect("cut");
        let refused = file.read_piece(99).expect_err("cut").to_string();
        assert!(refused.contains("it has 8 bytes instead of 11"), "{refused}");
    }

    #[test]
    fn what_a_file_got_behind_its_size_is_never_read() {
        let (_folder, files) = files();
        let (name, size) = finished(&files, b"hello");
        let mut file = files.open(&name, size).expect("opens");
        let longer = OpenOptions::new().append(true).open(files.folder().join(&name));
        longer.and_then(|mut file| file.write_all(b" world")).expect("written");
        assert_eq!(file.read_piece(99).expect("read").as_deref(), Some(&b"hello"[..]));
        assert_eq!(file.read_piece(99).expect("read"), None);
    }

    #[test]
    fn an_abandoned_file_is_removed() {
        let (_folder, files) = files();
        let writer = files.create(id(1), "run1").expect("a file");
        assert_eq!(names(&files), 1);
        drop(writer);
        assert_eq!(names(&files), 0);
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        let (_folder, files) = files();
        let id = id(1);
        for name in ["../db", "db", "", &format!("{id}."), &format!("{id}./../db"), &format!("{id}.a/b")] {
            let refused = files.open(name, 0).map(drop).expect_err(name);
            assert!(matches!(refused, SpoolError::Damaged { .. }), "{name}");
            assert!(files.remove(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_sweep_removes_only_files_of_earlier_runs_that_no_message_names() {
        let (_folder, files) = files();
        let spool = MemorySpool::new();
        spool.commit(&arrival(&envelope(1, 1, vec![recipient("x@a.example")]))).expect("committed");
        for (number, instance) in [(1, "old"), (2, "old"), (3, "now")] {
            files.create(id(number), instance).and_then(ContentWriter::finish).expect("a file");
        }
        fs::write(files.folder().join("not.ours"), b"").expect("written");
        assert_eq!(files.sweep(&spool, "now").expect("swept"), 1);
        assert_eq!(names(&files), 3);
        assert!(files.open(&format!("{}.old", id(2)), 0).is_err());
    }
}
