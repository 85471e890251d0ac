//! Where a delivery gets content that the Queue no longer has in memory.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::mail::envelope::{ContentPlace, Envelope};
use crate::spool::SpoolError;
use crate::spool::content::{ContentFile, ContentFiles, wrong_length};
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
    /// The next piece, never empty; `None` at the end of the size that the envelope tells.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when there is less than that, and in place of the last piece when any of them is not what was
    /// written; others when it can't be read now.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SpoolError>>;
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
            let (id, size) = (envelope.id, envelope.size);
            match envelope.place.clone() {
                ContentPlace::Database => {
                    let read = front.read_async(move |spool| spool.content(id)).await;
                    let content = read.ok_or_else(gone)??;
                    match wrong_length(content.len() as u64, size) {
                        Some(reason) => {
                            Err(SpoolError::Damaged { what: format!("the content of message {id}"), reason })
                        }
                        None => Ok(Loaded::Whole(content)),
                    }
                }
                ContentPlace::File(name) => {
                    // Most are read with the first piece.
                    let job = move |files: &ContentFiles| {
                        let mut file = files.open(&name, size)?;
                        let piece = file.read_piece(piece_of(size))?;
                        Ok::<_, SpoolError>((file, piece))
                    };
                    let (file, first) = front.file_job(job).await.ok_or_else(gone)??;
                    Ok(Loaded::File(Box::new(FileReader { front, file: Some(file), first, left: size })))
                }
            }
        })
    }
}

/// A job was not done: it panicked, or the relay stops. That says nothing about the content.
fn gone() -> SpoolError {
    SpoolError::Failed("the content was not read".to_owned())
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
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, SpoolError>> {
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
    async fn read(&mut self) -> Result<Option<Bytes>, SpoolError> {
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
