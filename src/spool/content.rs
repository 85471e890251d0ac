//! Content files: large content streams to a file of its own while it arrives. All calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::sync::{self, FolderSync};
use super::{Spool, SpoolError};
use crate::mail::id::QueueId;

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
        let name = format!("{id}.{instance}");
        let path = self.folder.join(&name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(ContentWriter {
            file,
            size: 0,
            unfinished: Some(Unfinished { name, path }),
            names: self.names.clone(),
        })
    }

    /// Opens a finished file for reading.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a name that is no content file's.
    pub fn open(&self, name: &str) -> io::Result<ContentFile> {
        Ok(ContentFile { file: File::open(self.path(name)?)? })
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

    /// Names come from records: one must never lead out of the folder.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        match parse_name(name) {
            Some(_) => Ok(self.folder.join(name)),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no content file"))),
        }
    }
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
}

impl ContentFile {
    /// The next bytes, at most `max`; `None` at the end.
    ///
    /// # Errors
    /// The system's.
    pub fn read_piece(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        let mut piece = BytesMut::zeroed(max);
        let mut filled = 0;
        while filled < max {
            match self.file.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(filled);
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
        let mut file = files.open(&name).expect("opens");
        for piece in [&b"hell"[..], b"o wo", b"rld"] {
            assert_eq!(file.read_piece(4).expect("read").as_deref(), Some(piece));
        }
        assert_eq!(file.read_piece(4).expect("read"), None);
        files.remove(&name).and_then(|()| files.remove(&name)).expect("twice is fine");
        assert_eq!(names(&files), 0);
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
            let error = files.open(name).map(drop).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
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
        assert!(files.open(&format!("{}.old", id(2))).is_err());
    }
}
