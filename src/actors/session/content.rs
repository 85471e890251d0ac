//! The content of the message that is coming in: in memory up to the threshold, in a file of its own beyond.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::SessionContext;
use crate::mail::envelope::{Content, ContentPlace, Envelope};
use crate::mail::trace;
use crate::spool::content::{ContentFiles, ContentWriter};

/// Most of a message that is gathered in memory before it goes to a file, where there is memory to spare: in one go, by
/// one thread of the pool, and the first attempt needs no read.
const GATHERED_MAX: usize = 128 << 10;

/// Content on its way in. Dropped before [`Incoming::finish`], its file is removed.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Beyond the threshold, bytes that may be gathered: there is a credit for them.
    extra: usize,
    place: Place,
}

#[derive(Debug, Default)]
enum Place {
    /// Still with the machine.
    #[default]
    Buffered,
    /// In a file, which is with the pool while a piece is written.
    File(Option<ContentWriter>),
}

impl Incoming {
    /// Whether so much of it, gathered by the machine, is too much.
    pub fn is_full(&self, gathered: usize, context: &SessionContext) -> bool {
        gathered > context.content_threshold + self.extra
    }

    /// Takes a credit for more, once, if one is free.
    pub fn widen(&mut self, context: &SessionContext) -> Option<OwnedSemaphorePermit> {
        let extra = GATHERED_MAX.saturating_sub(context.content_threshold);
        if self.extra > 0 || extra == 0 {
            return None;
        }
        let kib = u32::try_from(extra.div_ceil(1024)).ok()?;
        let credit = context.credits.memory.clone().try_acquire_many_owned(kib).ok()?;
        self.extra = extra;
        Some(credit)
    }

    /// Moves what the machine has gathered to the file: the session never holds more than it has credits for, and what
    /// one read brought.
    pub async fn spill(
        &mut self,
        piece: Bytes,
        envelope: &Envelope,
        context: &SessionContext,
    ) -> io::Result<()> {
        match &mut self.place {
            Place::Buffered => {
                let created = context.front.file_job(create(piece, envelope, context)).await;
                self.place = Place::File(Some(pool(created)?));
            }
            Place::File(writer) => append(writer, piece, context).await?,
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
        let (file, whole) = match self.place {
            Place::Buffered => {
                let whole = with_prefix(&rest, envelope, context);
                if rest.len() <= context.content_threshold {
                    envelope.size = whole.len() as u64;
                    envelope.place = ContentPlace::Database;
                    return Ok(Content::Memory(whole));
                }
                let (id, instance, bytes) = (envelope.id, context.instance.clone(), whole.clone());
                let job = move |files: &ContentFiles| files.create(id, &instance)?.finish_with(&bytes);
                (context.front.file_job(job).await, Some(whole))
            }
            Place::File(writer) => {
                let writer = writer.ok_or_else(gone)?;
                (context.front.file_job(move |_| writer.finish_with(&rest)).await, None)
            }
        };
        let (name, size) = pool(file)?;
        envelope.size = size;
        envelope.place = ContentPlace::File(name.clone());
        Ok(Content::File { name, size, whole })
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
