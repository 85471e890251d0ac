//! The content of the message that is coming in: in memory up to the threshold, in a file of its own beyond.

use std::io;

use bytes::{Bytes, BytesMut};

use super::SessionContext;
use crate::mail::envelope::{Content, ContentPlace, Envelope};
use crate::mail::trace;
use crate::spool::content::{ContentFiles, ContentWriter};

/// Content on its way in. Dropped before [`Incoming::finish`], its file is removed.
#[derive(Debug, Default)]
pub(super) enum Incoming {
    /// Still with the machine.
    #[default]
    Buffered,
    /// In a file, which is with the pool while a piece is written.
    File(Option<ContentWriter>),
}

impl Incoming {
    /// Moves what the machine has gathered to the file once it passes the threshold: the session never holds more
    /// than that, and what one read brought.
    pub async fn spill(
        &mut self,
        content: &mut BytesMut,
        envelope: &Envelope,
        context: &SessionContext,
    ) -> io::Result<()> {
        if content.len() <= context.content_threshold {
            return Ok(());
        }
        let piece = content.split().freeze();
        match self {
            Self::Buffered => {
                let created = context.front.file_job(create(piece, envelope, context)).await;
                *self = Self::File(Some(pool(created)?));
            }
            Self::File(writer) => append(writer, piece, context).await?,
        }
        Ok(())
    }

    /// The whole content, its size and place in the envelope. A file is on stable storage when this returns.
    pub async fn finish(
        self,
        rest: Bytes,
        envelope: &mut Envelope,
        context: &SessionContext,
    ) -> io::Result<Content> {
        let file = match self {
            Self::Buffered if rest.len() <= context.content_threshold => {
                let whole = with_prefix(&rest, envelope, context);
                envelope.size = whole.len() as u64;
                envelope.place = ContentPlace::Database;
                return Ok(Content::Memory(whole));
            }
            Self::Buffered => {
                let create = create(rest, envelope, context);
                context.front.file_job(move |files| create(files)?.finish()).await
            }
            Self::File(writer) => {
                let mut writer = writer.ok_or_else(gone)?;
                context.front.file_job(move |_| writer.write(&rest).and_then(|()| writer.finish())).await
            }
        };
        let (name, size) = pool(file)?;
        envelope.size = size;
        envelope.place = ContentPlace::File(name.clone());
        Ok(Content::File { name, size })
    }
}

fn with_prefix(content: &[u8], envelope: &Envelope, context: &SessionContext) -> Bytes {
    let prefix = trace::prefix(envelope, &context.hostname, trace::scan_headers(content));
    let mut whole = BytesMut::with_capacity(prefix.len() + content.len());
    whole.extend_from_slice(&prefix);
    whole.extend_from_slice(content);
    whole.freeze()
}

/// Starts the file with the trace header and the first piece.
fn create(
    piece: Bytes,
    envelope: &Envelope,
    context: &SessionContext,
) -> impl FnOnce(&ContentFiles) -> io::Result<ContentWriter> + Send + use<> {
    let present = trace::scan_headers(&piece).of_cut_head();
    let prefix = trace::prefix(envelope, &context.hostname, present);
    let (id, instance) = (envelope.id, context.instance.clone());
    move |files| {
        let mut writer = files.create(id, &instance)?;
        writer.write(&prefix)?;
        writer.write(&piece)?;
        Ok(writer)
    }
}

fn gone() -> io::Error {
    io::Error::other("the content file is gone")
}

async fn append(
    writer: &mut Option<ContentWriter>,
    piece: Bytes,
    context: &SessionContext,
) -> io::Result<()> {
    let mut owned = writer.take().ok_or_else(gone)?;
    let written = context.front.file_job(move |_| owned.write(&piece).map(|()| owned)).await;
    *writer = Some(pool(written)?);
    Ok(())
}

fn pool<T>(answer: Option<io::Result<T>>) -> io::Result<T> {
    answer.unwrap_or_else(|| Err(io::Error::other("the spool's threads are gone")))
}
