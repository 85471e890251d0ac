//! Where a delivery gets content that the Queue no longer has in memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::mail::envelope::{ContentPlace, Envelope};
use crate::spool::SpoolError;
use crate::spool::content::{ContentFile, ContentFiles};
use crate::spool::front::Front;

/// Bytes of a file that are read at once.
const PIECE: usize = 256 << 10;

/// Reads stored content; the spool's readers implement it.
pub trait ContentSource: Send + Sync + 'static {
    /// The content of a message, as it is stored.
    ///
    /// # Errors
    /// Those of the spool.
    fn load(&self, envelope: Arc<Envelope>) -> BoxFuture<'static, Result<Loaded, SpoolError>>;
}

/// Stored content.
pub enum Loaded {
    /// All of it.
    Whole(Bytes),
    /// Piece by piece.
    File(Box<dyn PieceReader>),
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::File(_) => f.write_str("File"),
        }
    }
}

/// Reads content in pieces of at most 256 KiB, off the arbiter's thread.
pub trait PieceReader: Send {
    /// The next piece, never empty; `None` at the end.
    ///
    /// # Errors
    /// Those of the file.
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>>;
}

/// Content as the spool holds it, read by the spool's threads.
#[derive(Clone, Debug)]
pub struct SpoolContent {
    front: Front,
}

impl SpoolContent {
    /// Content of this spool.
    pub fn new(front: Front) -> Self {
        Self { front }
    }
}

impl ContentSource for SpoolContent {
    fn load(&self, envelope: Arc<Envelope>) -> BoxFuture<'static, Result<Loaded, SpoolError>> {
        let front = self.front.clone();
        Box::pin(async move {
            match envelope.place.clone() {
                ContentPlace::Database => {
                    let id = envelope.id;
                    let read = front.read_async(move |spool| spool.content(id)).await;
                    read.unwrap_or_else(|| Err(unreadable(&envelope, "the spool's threads are gone")))
                        .map(Loaded::Whole)
                }
                ContentPlace::File(name) => {
                    let size = envelope.size;
                    // Most are read with the first piece.
                    let job = move |files: &ContentFiles| {
                        let mut file = files.open(&name)?;
                        let piece = file.read_piece(piece_of(size))?;
                        Ok((file, piece))
                    };
                    let (file, first) = match front.file_job(job).await {
                        Some(Ok(opened)) => opened,
                        Some(Err(error)) => {
                            let error: io::Error = error;
                            return Err(unreadable(&envelope, &error.to_string()));
                        }
                        None => return Err(unreadable(&envelope, "the spool's threads are gone")),
                    };
                    Ok(Loaded::File(Box::new(FileReader { front, file: Some(file), first, left: size })))
                }
            }
        })
    }
}

fn unreadable(envelope: &Envelope, reason: &str) -> SpoolError {
    SpoolError::Damaged { what: format!("the content of {}", envelope.id), reason: reason.to_owned() }
}

/// How much is read at once when so many bytes are left.
fn piece_of(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

struct FileReader {
    front: Front,
    /// With the pool while a piece is read.
    file: Option<ContentFile>,
    /// Read already.
    first: Option<Bytes>,
    /// What the envelope says is still to come.
    left: u64,
}

impl PieceReader for FileReader {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async move {
            let piece = match self.first.take() {
                Some(piece) => Some(piece),
                None if self.left == 0 => None,
                None => self.read().await?,
            };
            self.left = self.left.saturating_sub(piece.as_ref().map_or(0, |piece| piece.len() as u64));
            Ok(piece)
        })
    }
}

impl FileReader {
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let gone = || io::Error::other("the spool's threads are gone");
        let mut file = self.file.take().ok_or_else(gone)?;
        let most = piece_of(self.left);
        let job = move |_: &_| {
            let piece = file.read_piece(most);
            (file, piece)
        };
        let (file, piece) = self.front.file_job(job).await.ok_or_else(gone)?;
        self.file = Some(file);
        piece
    }
}
