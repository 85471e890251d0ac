//! Where a delivery gets content that the Queue no longer has in memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::mail::envelope::Envelope;
use crate::spool::SpoolError;

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
