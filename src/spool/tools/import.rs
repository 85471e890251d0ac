//! `posthaste spool import`: takes in what an export wrote.
//!
//! Messages become durable in groups, each of them one commit. What is in the spool already is left as it is, so an import
//! that ended early is run again from the start. Large content is in its file, synced, before the commit that names it;
//! what an import that was killed leaves there is swept by the next one, or by the next start of the relay.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::line::{self, EndLine, Header, KIND, Line, MessageLine, QuarantineLine, VERSION, Wrong};
use crate::mail::envelope::{Content, ContentPlace, Envelope, RecipientState};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::smtp::strict::{self, Stray, StrictContent};
use crate::spool::content::ContentWriter;
use crate::spool::database::{Change, Tree};
use crate::spool::sled::SledSpool;
use crate::spool::{
    Counters, DueKey, Op, Spool, SpoolError, Tally, UNTIL_RESUMED, due_time, keys, record, write,
};

/// A commit has no more messages, bytes in the database and changes than these, but for a single message.
const GROUP_MESSAGES: usize = 1_000;
const GROUP_BYTES: u64 = 4 << 20;
const GROUP_OPS: usize = 10_000;
/// The longest header.
const HEADER_MAX: u64 = 4_096;
/// Text of base64 that is decoded at once: a multiple of 4.
const PIECE: usize = 64 << 10;
/// A line longer than this gives its memory back.
const LINE_KEPT: usize = 1 << 20;
/// Destinations of which the wake keys that were written are remembered.
const DESTINATIONS: usize = 10_000;

/// The time (ms) of the deadline key of a message whose recipients stand like this.
pub type DeadlineOf<'a> = &'a dyn Fn(&Envelope, &[RecipientState]) -> u64;

/// What was taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Queued messages.
    pub messages: u64,
    /// Messages for quarantine.
    pub quarantined: u64,
    /// Back-off records of destinations.
    pub destinations: u64,
    /// Messages and destinations that the spool had already.
    pub already: u64,
    /// Messages that need nothing more: each recipient has met its fate.
    pub finished: u64,
}

/// Why an import ended early. All that came before is in the spool, or was there already.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct ImportError {
    /// What is in the spool.
    pub done: Imported,
    /// What is wrong, with what to do.
    pub why: Ended,
}

/// What ended an import.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A line can't be used.
    #[error("line {0}: {1}")]
    Line(u64, Wrong),
    /// The last line is missing.
    #[error(
        "the export ends after line {0} without its last line: it was cut short; get the whole of it and import that"
    )]
    CutShort(u64),
    /// It can't be read.
    #[error("line {0} can't be read: {1}")]
    Input(u64, io::Error),
    /// The last line counts other lines than there are.
    #[error("line {0}: {1}")]
    Counts(u64, Wrong),
    /// A content file can't be written.
    #[error("line {0}: its content can't be written: {1}")]
    Content(u64, io::Error),
    /// The spool can't take it.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Reads an export from `input` into the spool. Content above `threshold` bytes goes to files. When it is `partial`, its last
/// line must be there, but may count other lines than there are.
///
/// # Errors
/// At the first line that can't be used, and when the spool can't take more: with what is in it by then.
pub fn import(
    spool: &SledSpool,
    input: &mut dyn BufRead,
    threshold: u64,
    partial: bool,
    deadline_of: DeadlineOf<'_>,
) -> Result<Imported, ImportError> {
    let swept = spool.files().sweep(spool, spool.instance());
    let import = swept.and_then(|_| spool.counters()).map(|counters| Import {
        spool,
        threshold,
        partial,
        deadline_of,
        counters,
        group: Group::default(),
        wakes: HashMap::new(),
        line: 0,
        seen: EndLine::default(),
        done: Imported::default(),
    });
    let mut import = import.map_err(|error| ImportError { done: Imported::default(), why: error.into() })?;
    let read = import.read(input);
    // The lines before a bad one are good.
    let committed = match &read {
        Err(Ended::Spool(_)) => Ok(()),
        _ => import.commit(),
    };
    let result = read.and_then(|()| committed.map_err(Ended::from));
    result.map(|()| import.done).map_err(|why| ImportError { done: import.done, why })
}

struct Import<'a> {
    spool: &'a SledSpool,
    threshold: u64,
    partial: bool,
    deadline_of: DeadlineOf<'a>,
    /// As of the last commit.
    counters: Counters,
    group: Group,
    /// Of destinations: no attempt before this time, and the earliest wake key that was written.
    wakes: HashMap<Domain, (u64, u64)>,
    line: u64,
    seen: EndLine,
    done: Imported,
}

/// What becomes durable with the next commit.
#[derive(Default)]
struct Group {
    ops: Vec<Op>,
    /// Records for quarantine.
    raw: Vec<Change>,
    ids: HashSet<QueueId>,
    /// Content and records that go into the database.
    bytes: u64,
    counted: Counters,
    done: Imported,
}

impl Import<'_> {
    fn read(&mut self, input: &mut dyn BufRead) -> Result<(), Ended> {
        let mut text = Vec::new();
        self.next_line(&mut Read::take(&mut *input, HEADER_MAX), &mut text)?;
        self.header(&text)?;
        let mut ended = false;
        loop {
            if text.capacity() > LINE_KEPT {
                text = Vec::new();
            }
            if !self.next_line(input, &mut text)? {
                return if ended { Ok(()) } else { Err(Ended::CutShort(self.line - 1)) };
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let parsed: Line<'_> = serde_json::from_slice(&text).map_err(|error| {
                let text = error.to_string();
                // serde counts lines too, and knows of one only.
                let text = text.replace(" at line 1 column ", ", at character ");
                self.wrong(format!("it can't be read: {text}"))
            })?;
            if ended {
                return Err(self.wrong("it comes after the end of the export".to_owned()));
            }
            ended = matches!(parsed, Line::End(_));
            self.take(parsed)?;
        }
    }

    /// Reads one line; `false` when there is none.
    fn next_line(&mut self, input: &mut dyn BufRead, text: &mut Vec<u8>) -> Result<bool, Ended> {
        text.clear();
        self.line += 1;
        let read = input.read_until(b'\n', text).map_err(|error| Ended::Input(self.line, error))?;
        if read == 0 {
            return Ok(false);
        }
        if text.last() != Some(&b'\n') && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_err() {
            // The end of the file in the midst of a line.
            return if self.line == 1 { Ok(true) } else { Err(Ended::CutShort(self.line - 1)) };
        }
        Ok(true)
    }

    fn header(&self, text: &[u8]) -> Result<(), Ended> {
        let header: Header = serde_json::from_slice(text)
            .ok()
            .filter(|header: &Header| header.kind == KIND)
            .ok_or_else(|| {
                self.wrong("this is no export of a spool; make one with `posthaste spool export`".to_owned())
            })?;
        if header.version == 0 || header.version > VERSION {
            return Err(self.wrong(format!(
                "the export has version {}, this program reads up to version {VERSION}; use posthaste {} or newer for it",
                header.version, header.writer
            )));
        }
        Ok(())
    }

    fn wrong(&self, why: Wrong) -> Ended {
        Ended::Line(self.line, why)
    }

    fn take(&mut self, line: Line<'_>) -> Result<(), Ended> {
        match line {
            Line::Destination(line) => {
                self.seen.destinations += 1;
                let (destination, record) = line.parse().map_err(|why| self.wrong(why))?;
                if self.spool.destination(&destination)?.is_some() {
                    self.group.done.already += 1;
                } else {
                    self.group.done.destinations += 1;
                    self.group.ops.push(Op::PutDestination(destination, record));
                }
            }
            Line::Message(line) => {
                self.seen.messages += 1;
                let id = line.id().map_err(|why| self.wrong(why))?;
                if self.is_new(id)? {
                    self.message(line)?;
                }
            }
            Line::Quarantine(line) => {
                self.seen.quarantined += 1;
                let id = line::id(&line.id).map_err(|why| self.wrong(why))?;
                if self.is_new(id)? {
                    self.quarantine(id, &line)?;
                }
            }
            Line::End(end) if end != self.seen && !self.partial => {
                return Err(Ended::Counts(self.line, self.seen.unlike(&end)));
            }
            Line::End(_) => {}
        }
        if self.group.is_full() { Ok(self.commit()?) } else { Ok(()) }
    }

    fn is_new(&mut self, id: QueueId) -> Result<bool, SpoolError> {
        let is_new = !self.group.ids.contains(&id) && !self.spool.holds(id)?;
        if !is_new {
            self.group.done.already += 1;
        }
        Ok(is_new)
    }

    fn message(&mut self, mut line: MessageLine<'_>) -> Result<(), Ended> {
        let text = std::mem::take(&mut line.content);
        let (mut envelope, states) = line.parse().map_err(|why| self.wrong(why))?;
        let waiting = states.iter().filter(|state| !state.status.is_settled()).count();
        if waiting == 0 {
            self.group.done.finished += 1;
            return Ok(());
        }
        let content = if envelope.size > self.threshold {
            let writer = self.spool.files().create(envelope.id, self.spool.instance());
            let (name, size) = self.file(writer, envelope.size, &text, true)?;
            envelope.place = ContentPlace::File(name.clone());
            Content::File { name, size, whole: None }
        } else {
            let bytes = line::bytes(&text).map_err(|why| self.wrong(why))?;
            self.check_size(bytes.len() as u64, envelope.size)?;
            strict::check(&bytes).map_err(|stray| self.stray(stray))?;
            self.group.bytes += envelope.size;
            Content::Memory(bytes.into())
        };
        self.group.counted.add(Tally::of(&envelope, &states));
        self.group.done.messages += 1;
        self.group.ids.insert(envelope.id);
        self.put(Arc::new(envelope), content, states)
    }

    /// The message with all its records and keys.
    fn put(
        &mut self,
        envelope: Arc<Envelope>,
        content: Content,
        states: Vec<RecipientState>,
    ) -> Result<(), Ended> {
        let id = envelope.id;
        self.group.ops.push(Op::PutMessage(envelope.clone(), content));
        self.group.ops.push(Op::PutDeadline((self.deadline_of)(&envelope, &states), id));
        let fresh = RecipientState::fresh(envelope.arrived_ms);
        for (number, (recipient, state)) in (0..).zip(envelope.recipients.iter().zip(states)) {
            if let Some(due_ms) = due_time(&state) {
                let destination = recipient.destination.clone();
                self.wake(&destination, due_ms)?;
                self.group.ops.push(Op::PutDue(DueKey { destination, due_ms, id, number }));
            }
            if state != fresh {
                self.group.ops.push(Op::PutRecipient(id, number, state));
            }
        }
        Ok(())
    }

    /// Makes sure that the destination wakes when the mail is due and its back-off is over.
    fn wake(&mut self, destination: &Domain, due_ms: u64) -> Result<(), Ended> {
        if !self.wakes.contains_key(destination) {
            if self.group.done.destinations > 0 {
                // Its record may be among those that are not on disk yet.
                self.commit_destinations()?;
            }
            if self.wakes.len() >= DESTINATIONS {
                self.wakes.clear();
            }
            let record = self.spool.destination(destination)?.unwrap_or_default();
            self.wakes.insert(destination.clone(), (record.not_before_ms(), UNTIL_RESUMED));
        }
        let Some((not_before, earliest)) = self.wakes.get_mut(destination) else { return Ok(()) };
        let at = due_ms.max(*not_before);
        if at < *earliest {
            *earliest = at;
            self.group.ops.push(Op::PutWake(at, destination.clone()));
        }
        Ok(())
    }

    /// The records of destinations in this group, ahead of the rest.
    fn commit_destinations(&mut self) -> Result<(), SpoolError> {
        let is_record = |op: &mut Op| matches!(op, Op::PutDestination(..));
        let records: Vec<Op> = self.group.ops.extract_if(.., is_record).collect();
        self.spool.commit(&records)?;
        self.done.destinations += std::mem::take(&mut self.group.done.destinations);
        Ok(())
    }

    fn quarantine(&mut self, id: QueueId, line: &QuarantineLine<'_>) -> Result<(), Ended> {
        let mut records = Vec::with_capacity(line.records.len());
        for record in &line.records {
            let (key, value) = record.parse().map_err(|why| self.wrong(why))?;
            let kinds = [keys::ENVELOPE, keys::STATE, keys::CONTENT];
            let is_ours = kinds.iter().any(|kind| key.starts_with(&keys::of_message(*kind, id)));
            if !is_ours || key.len() > KEY_MAX || value.len() > record::VALUE_MAX {
                return Err(self.wrong("it has a record that is none of this message".to_owned()));
            }
            records.push((keys::quarantined(&key).into(), Some(value.into())));
        }
        for file in &line.files {
            if !file.name.starts_with(&format!("{id}.")) {
                return Err(self.wrong(format!("{:?} is no content file of this message", file.name)));
            }
            let writer = self.spool.files().create_as_it_was(&file.name);
            self.file(writer, decoded_len(&file.content), &file.content, false)?;
        }
        let reason = keys::of_message(keys::REASON, id);
        self.group.raw.push((reason[..].into(), Some(record::write_reason(&line.reason))));
        self.group.bytes += records.len() as u64 * record::VALUE_MAX as u64;
        self.group.raw.extend(records);
        self.group.counted.quarantined += 1;
        self.group.done.quarantined += 1;
        self.group.ids.insert(id);
        Ok(())
    }

    /// Writes `size` bytes to a content file and syncs it. What is to be delivered must be `strict`.
    fn file(
        &self,
        writer: io::Result<ContentWriter>,
        size: u64,
        text: &str,
        strict: bool,
    ) -> Result<(String, u64), Ended> {
        let failed = |error| Ended::Content(self.line, error);
        let mut writer = writer.map_err(failed)?;
        let (mut piece, mut looked_at) = (Vec::with_capacity(PIECE), StrictContent::default());
        for part in text.as_bytes().chunks(PIECE) {
            piece.clear();
            let decoded = STANDARD.decode_vec(part, &mut piece);
            decoded.map_err(|error| self.wrong(format!("its base64 does not decode: {error}")))?;
            if strict {
                looked_at.push(&piece).map_err(|stray| self.stray(stray))?;
            }
            writer.write(&piece).map_err(failed)?;
        }
        looked_at.finish().map_err(|stray| self.stray(stray))?;
        self.check_size(writer.size(), size)?;
        writer.finish().map_err(failed)
    }

    /// What a session would refuse.
    fn stray(&self, stray: Stray) -> Ended {
        self.wrong(match stray {
            Stray::LineEnd => {
                "its content has a CR or LF that is no end of line; end each line with CR and LF".to_owned()
            }
            Stray::Nul => "its content has a NUL character, which remote hosts refuse".to_owned(),
        })
    }

    fn check_size(&self, is: u64, size: u64) -> Result<(), Ended> {
        if is == size {
            Ok(())
        } else {
            Err(self.wrong(format!("its content has {is} bytes instead of {size}")))
        }
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        let Group { mut ops, raw, counted, done, .. } = std::mem::take(&mut self.group);
        if !ops.is_empty() || !raw.is_empty() {
            let counters = sum(self.counters, counted);
            ops.push(Op::Counters(counters));
            let mut changes = write::changes(&self.spool.tree, &ops)?;
            changes.extend(raw);
            self.spool.tree.apply(changes)?;
            self.counters = counters;
        }
        self.done.messages += done.messages;
        self.done.quarantined += done.quarantined;
        self.done.destinations += done.destinations;
        self.done.already += done.already;
        self.done.finished += done.finished;
        Ok(())
    }
}

/// No key of a record is longer, whole or damaged.
const KEY_MAX: usize = 64;

impl Group {
    fn is_full(&self) -> bool {
        self.ids.len() >= GROUP_MESSAGES
            || self.bytes >= GROUP_BYTES
            || self.ops.len() + self.raw.len() >= GROUP_OPS
    }
}

/// How many bytes a text in base64 with padding stands for.
fn decoded_len(text: &str) -> u64 {
    let padding = text.bytes().rev().take(2).filter(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

fn sum(counters: Counters, more: Counters) -> Counters {
    Counters {
        messages: counters.messages + more.messages,
        recipients: counters.recipients + more.recipients,
        bytes: counters.bytes + more.bytes,
        quarantined: counters.quarantined + more.quarantined,
        tree_bytes: counters.tree_bytes + more.tree_bytes,
        unindexed_from: counters.unindexed_from,
        held: counters.held + more.held,
    }
}
