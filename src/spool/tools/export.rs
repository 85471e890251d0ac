//! `posthaste spool export`: all mail as JSON lines, content included.
//!
//! Nothing is left out: a message that can't be read is written as one in quarantine, record by record, with the reason.
//! The content files of those in quarantine are written byte for byte: what is damaged does not get a new checksum on its way.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::line::{
    DestinationLine, EndLine, FileLine, Header, KIND, Line, MessageLine, QuarantineLine, RecordLine, VERSION,
};
use super::{each_id, each_pair};
use crate::mail::envelope::{ContentPlace, StoredMessage};
use crate::mail::id::QueueId;
use crate::spool::blocks::Blocks;
use crate::spool::content::{ContentFile, ContentFiles};
use crate::spool::database::Tree;
use crate::spool::sled::{SledSpool, SledTree};
use crate::spool::{Spool, SpoolError, keys, read, record};

/// Bytes of content that are encoded at once: a multiple of 3, so that base64 needs no padding in between.
const PIECE: usize = 48 << 10;
/// The reason of what is in quarantine without one.
const REASON_LOST: &str = "it was in quarantine, but the reason is lost";

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Back-off records.
    pub destinations: u64,
    /// Queued messages that can be read.
    pub messages: u64,
    /// Messages in quarantine, with those that can't be read.
    pub quarantined: u64,
    /// Queued messages that can't be read.
    pub damaged: u64,
    /// Destinations whose back-off can't be read and is left out.
    pub forgotten: u64,
}

/// Why an export ended early. What was written before is no whole export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The spool can't be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The output can't be written.
    #[error("the export can't be written: {0}")]
    Output(io::Error),
    /// A content file can't be read.
    #[error("the content of message {0} can't be read: {1}; check the disk, and export again")]
    Content(QueueId, io::Error),
}

/// Writes everything in the spool to `out`; `tell` hears of each message that can't be read, and why.
///
/// # Errors
/// The spool's, and those of `out`; then `out` has no last line, and an import says so.
pub fn export(
    spool: &SledSpool,
    out: &mut dyn Write,
    tell: &mut dyn FnMut(&str),
) -> Result<Exported, ExportError> {
    let mut export =
        Export { tree: &spool.tree, files: spool.files(), spool, out, tell, done: Exported::default() };
    let header =
        Header { kind: KIND.to_owned(), version: VERSION, writer: env!("CARGO_PKG_VERSION").to_owned() };
    export.write(&json(&header)?)?;
    export.end_line()?;
    export.destinations()?;
    each_id(export.tree, &[keys::ENVELOPE], |id| export.message(id))?;
    for kind in [keys::STATE, keys::CONTENT] {
        each_id(export.tree, &[kind], |id| export.without_envelope(kind, id))?;
    }
    each_id(export.tree, &[keys::REASON], |id| export.quarantined(id))?;
    for kind in KINDS {
        each_id(export.tree, &[keys::QUARANTINED, kind], |id| export.without_reason(kind, id))?;
    }
    let Exported { destinations, messages, quarantined, .. } = export.done;
    export.line(&Line::End(EndLine { destinations, messages, quarantined }))?;
    export.out.flush().map_err(ExportError::Output)?;
    Ok(export.done)
}

/// The kinds of records that a message consists of, each before those that may be there without it.
const KINDS: [u8; 3] = [keys::ENVELOPE, keys::STATE, keys::CONTENT];

struct Export<'a> {
    spool: &'a SledSpool,
    tree: &'a Blocks<SledTree>,
    files: ContentFiles,
    out: &'a mut dyn Write,
    tell: &'a mut dyn FnMut(&str),
    done: Exported,
}

/// Content, or why there is none.
type Content = Result<Source, String>;

enum Source {
    Bytes(bytes::Bytes),
    File(ContentFile),
}

impl Export<'_> {
    fn destinations(&mut self) -> Result<(), ExportError> {
        each_pair(self.tree, &[keys::DESTINATION], &[keys::DESTINATION + 1], |key, value| {
            match (keys::read_destination(key), record::read_destination(value)) {
                (Some(destination), Ok(record)) => {
                    self.done.destinations += 1;
                    self.line(&Line::Destination(DestinationLine::of(&destination, &record)))
                }
                (destination, record) => {
                    self.done.forgotten += 1;
                    let name =
                        destination.map_or_else(|| format!("{key:?}"), |name| name.as_str().to_owned());
                    let why =
                        record.map_or_else(|error| error.to_string(), |_| "its key is not valid".to_owned());
                    (self.tell)(&format!(
                        "the back-off of destination {name} can't be read and is left out: {why}"
                    ));
                    Ok(())
                }
            }
        })
    }

    fn message(&mut self, id: QueueId) -> Result<(), ExportError> {
        let stored = match read::message(self.tree, id) {
            Ok(Some(stored)) => stored,
            Ok(None) => return self.damaged(id, "the beginning of its envelope is missing"),
            Err(SpoolError::Damaged { what, reason }) => {
                return self.damaged(id, &format!("damaged record of {what}: {reason}"));
            }
            Err(error) => return Err(error.into()),
        };
        match self.content(&stored)? {
            Ok(source) => self.readable(&stored, source),
            Err(why) => self.damaged(id, &why),
        }
    }

    fn content(&self, stored: &StoredMessage) -> Result<Content, ExportError> {
        let (id, size) = (stored.envelope.id, stored.envelope.size);
        let wrong = |is: u64| format!("its content has {is} bytes instead of {size}");
        match &stored.envelope.place {
            ContentPlace::Database => match self.spool.content(id) {
                Ok(content) if content.len() as u64 == size => Ok(Ok(Source::Bytes(content))),
                Ok(content) => Ok(Err(wrong(content.len() as u64))),
                Err(error @ SpoolError::Damaged { .. }) => Ok(Err(error.to_string())),
                Err(error) => Err(error.into()),
            },
            // It is read twice: what is damaged must be known before the line begins.
            ContentPlace::File(name) => match self.files.verify(name, size) {
                Ok(()) => Ok(Ok(Source::File(self.files.open(name, size)?))),
                Err(SpoolError::Damaged { what, reason }) => Ok(Err(format!("its {what}: {reason}"))),
                Err(SpoolError::Io { source, .. }) => Err(ExportError::Content(id, source)),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn readable(&mut self, stored: &StoredMessage, source: Source) -> Result<(), ExportError> {
        self.open(&Line::Message(MessageLine::of(stored)), "\"}}")?;
        match source {
            Source::Bytes(content) => self.write(STANDARD.encode(content).as_bytes())?,
            Source::File(file) => self.pieces(stored.envelope.id, file)?,
        }
        self.write(b"\"}}")?;
        self.done.messages += 1;
        self.end_line()
    }

    /// A queued message that can't be read.
    fn damaged(&mut self, id: QueueId, why: &str) -> Result<(), ExportError> {
        (self.tell)(&format!("message {id} can't be read and is written as one in quarantine: {why}"));
        self.done.damaged += 1;
        self.set_aside(id, why, &[])
    }

    /// Records of a message whose envelope is gone.
    fn without_envelope(&mut self, kind: u8, id: QueueId) -> Result<(), ExportError> {
        if self.comes_earlier(&[], kind, id)? { Ok(()) } else { self.damaged(id, "its envelope is missing") }
    }

    fn quarantined(&mut self, id: QueueId) -> Result<(), ExportError> {
        let reason = self.tree.get(&keys::of_message(keys::REASON, id))?.unwrap_or_default();
        let reason = record::read_reason(&reason).unwrap_or_else(|_| REASON_LOST.to_owned());
        self.set_aside(id, &reason, &[keys::QUARANTINED])
    }

    fn without_reason(&mut self, kind: u8, id: QueueId) -> Result<(), ExportError> {
        let told = self.tree.get(&keys::of_message(keys::REASON, id))?.is_some();
        if told || self.comes_earlier(&[keys::QUARANTINED], kind, id)? {
            return Ok(());
        }
        self.set_aside(id, REASON_LOST, &[keys::QUARANTINED])
    }

    /// Whether the message has records of a kind that was gone through before this one.
    fn comes_earlier(&self, place: &[u8], kind: u8, id: QueueId) -> Result<bool, SpoolError> {
        for earlier in KINDS.into_iter().take_while(|earlier| *earlier != kind) {
            let prefix = [place, &keys::of_message(earlier, id)].concat();
            let mut found = false;
            self.tree.scan(&prefix, &keys::end_of(&prefix), &mut |_, _| {
                found = true;
                false
            })?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes all records of a message as they are; `place` is what stands before their keys.
    fn set_aside(&mut self, id: QueueId, reason: &str, place: &[u8]) -> Result<(), ExportError> {
        let mut records = Vec::new();
        for kind in KINDS {
            let prefix = [place, &keys::of_message(kind, id)].concat();
            self.tree.scan(&prefix, &keys::end_of(&prefix), &mut |key, value| {
                records.push(RecordLine::of(&key[place.len()..], value));
                true
            })?;
        }
        let (name, reason) = (id.to_string(), reason.to_owned());
        self.open(&Line::Quarantine(QuarantineLine { id: name, reason, records, files: Vec::new() }), "]}}")?;
        for (number, name) in self.files_of(id)?.into_iter().enumerate() {
            if number > 0 {
                self.write(b",")?;
            }
            let file = self.files.open_as_it_is(&name)?;
            self.write(opened(&FileLine { name, content: "".into() }, "\"}")?.as_slice())?;
            self.pieces(id, file)?;
            self.write(b"\"}")?;
        }
        self.write(b"]}}")?;
        self.done.quarantined += 1;
        self.end_line()
    }

    /// The content files that are called after a message: which is the right one may not be known any more.
    fn files_of(&self, id: QueueId) -> Result<Vec<String>, ExportError> {
        let mut names = Vec::new();
        self.files
            .each(|name, of| {
                if of == Some(id) {
                    names.push(name.to_owned());
                }
                Ok::<(), io::Error>(())
            })
            .map_err(|error| ExportError::Content(id, error))?;
        Ok(names)
    }

    fn pieces(&mut self, id: QueueId, mut file: ContentFile) -> Result<(), ExportError> {
        let mut left = file.size();
        while let Some(piece) = file.read_piece(PIECE)? {
            left = left.saturating_sub(piece.len() as u64);
            self.write(STANDARD.encode(piece).as_bytes())?;
        }
        if left == 0 { Ok(()) } else { Err(ExportError::Content(id, io::ErrorKind::UnexpectedEof.into())) }
    }

    fn line(&mut self, line: &Line<'_>) -> Result<(), ExportError> {
        self.write(&json(line)?)?;
        self.end_line()
    }

    /// Writes a line up to its `end`.
    fn open(&mut self, line: &Line<'_>, end: &str) -> Result<(), ExportError> {
        self.write(&opened(line, end)?)
    }

    fn end_line(&mut self) -> Result<(), ExportError> {
        self.write(b"\n")
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(bytes).map_err(ExportError::Output)
    }
}

fn json(line: &impl serde::Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(line).map_err(|error| ExportError::Output(error.into()))
}

/// The JSON of a line without its `end`, which it must have.
fn opened(line: &impl serde::Serialize, end: &str) -> Result<Vec<u8>, ExportError> {
    let mut text = json(line)?;
    debug_assert!(text.ends_with(end.as_bytes()), "what is written piece by piece is the last field");
    text.truncate(text.len() - end.len());
    Ok(text)
}
