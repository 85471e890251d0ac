//! Records: `kind u8, version u8, CRC-32 u32, payload`, never longer than [`VALUE_MAX`].
//!
//! The checksum is CRC-32 as in Ethernet and zip (ISO-HDLC, polynomial 0x04C11DB7), little endian, over kind, version
//! and payload. The payload is bincode 1.3 with fixed little endian integers and u64 lengths; of a block of
//! keys it is what `blocks/block.rs` makes, and of a chunk raw bytes, in chunk 0 after the total length (u32, little
//! endian). `migrations/` has every byte. The version is that of the format since which this kind has its layout; an older one is carried up when it is read.
//!
//! Records hold numbers and texts only; domain types are parsed again when they are read, so a record that no longer
//! parses is damaged, not half believed.

mod layout;

use std::borrow::Cow;

use bincode::Options;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::IVec;

use super::{Counters, DestinationRecord};
use crate::mail::envelope::{Envelope, RecipientState};
use crate::mail::id::QueueId;
use crate::migrations;

/// No value of the tree is longer (design section 5, trap 2: larger ones make sled write unsynced files).
pub const VALUE_MAX: usize = 6_000;
/// Bytes of envelope or content in one chunk.
pub const CHUNK: usize = VALUE_MAX - HEADER - TOTAL;
/// Texts from outside are cut to this many bytes.
const TEXT_MAX: usize = 512;
/// An envelope that claims to be longer is damaged: 100,000 recipients with the longest addresses fit.
const ENVELOPE_MAX: u64 = 64 << 20;

const HEADER: usize = 6;
const TOTAL: usize = 4;
/// What a record is of. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Envelope = 1,
    State = 2,
    Content = 3,
    Destination = 4,
    Counters = 5,
    Format = 6,
    Start = 7,
    Reason = 8,
    Migration = 9,
    Keys = 10,
}

impl Kind {
    /// The format since which records of this kind have the layout they have now.
    fn version(self) -> u8 {
        match self {
            Self::Keys => 3,
            Self::State | Self::Destination | Self::Counters | Self::Migration => 2,
            Self::Envelope | Self::Content | Self::Format | Self::Start | Self::Reason => 1,
        }
    }
}

/// Why bytes are not the record that was looked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it is cut short")]
    Short,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it is of kind {0}, not of the kind its key stands for")]
    Kind(u8),
    #[error("its version {0} is not known to this program")]
    Version(u8),
    #[error("its payload does not decode: {0}")]
    Payload(String),
    #[error("its {0} is not valid")]
    Field(&'static str),
    #[error("chunk {0} is missing")]
    Chunk(u32),
}

/// The format of a spool and the program that wrote it first or migrated it last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format<'a> {
    pub version: u32,
    pub writer: Cow<'a, str>,
}

/// One start of the program on a spool.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start<'a> {
    /// 1 for the first start.
    pub number: u64,
    /// The instance id of that run.
    pub instance: Cow<'a, str>,
}

/// How far the migration from an older format is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MigrationMark {
    /// The format that the spool had.
    pub from: u32,
    /// The key to go on from.
    pub next: Vec<u8>,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_limit(ENVELOPE_MAX)
        .with_fixint_encoding()
        .with_little_endian()
        .reject_trailing_bytes()
}

/// Fills in the header of a record whose payload starts at [`HEADER`].
fn seal(kind: Kind, record: Vec<u8>) -> IVec {
    let record = seal_as(kind as u8, kind.version(), record);
    debug_assert!(record.len() <= VALUE_MAX, "a {kind:?} record of {} bytes", record.len());
    record.into()
}

fn seal_as(kind: u8, version: u8, mut record: Vec<u8>) -> Vec<u8> {
    record[0] = kind;
    record[1] = version;
    let crc = checksum(&record[..2], &record[HEADER..]);
    record[2..HEADER].copy_from_slice(&crc.to_le_bytes());
    record
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// Kind, version and payload of a record whose checksum is right.
fn open(record: &[u8]) -> Result<(u8, u8, &[u8]), Unreadable> {
    let (head, payload) = record.split_first_chunk::<HEADER>().ok_or(Unreadable::Short)?;
    let [kind, version, crc @ ..] = *head;
    if checksum(&head[..2], payload) != u32::from_le_bytes(crc) {
        return Err(Unreadable::Checksum);
    }
    Ok((kind, version, payload))
}

/// The payload of a record, in the layout of this program.
fn unseal(kind: Kind, record: &[u8]) -> Result<Cow<'_, [u8]>, Unreadable> {
    let (found, version, payload) = open(record)?;
    if found != kind as u8 {
        return Err(Unreadable::Kind(found));
    }
    if version == kind.version() {
        return Ok(payload.into());
    }
    match migrations::carried(found, version, payload) {
        Some((carried, payload)) if version > 0 && carried == kind.version() => Ok(payload.into()),
        _ => Err(Unreadable::Version(version)),
    }
}

/// A record of an older format as this program writes it; `None` when it is that already, or can't be read.
pub(super) fn carried(record: &[u8]) -> Option<IVec> {
    let (kind, version, payload) = open(record).ok()?;
    let (version, payload) = migrations::carried(kind, version, payload)?;
    Some(seal_as(kind, version, [&[0; HEADER], &payload[..]].concat()).into())
}

fn write(kind: Kind, payload: &impl Serialize) -> IVec {
    let mut record = vec![0; HEADER];
    put(&mut record, payload);
    seal(kind, record)
}

fn put(into: &mut Vec<u8>, payload: &impl Serialize) {
    let written = options().serialize_into(into, payload);
    debug_assert!(written.is_ok(), "numbers and texts serialise: {written:?}");
}

fn read<T: DeserializeOwned>(kind: Kind, record: &[u8]) -> Result<T, Unreadable> {
    decode(&unseal(kind, record)?)
}

fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Unreadable> {
    options().deserialize(payload).map_err(|error| Unreadable::Payload(error.to_string()))
}

/// The longest start of `text` that has at most [`TEXT_MAX`] bytes.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn write_state(state: &RecipientState) -> IVec {
    write(Kind::State, &layout::State::of(state))
}

pub(super) fn read_state(record: &[u8]) -> Result<RecipientState, Unreadable> {
    decode::<layout::State<'_>>(&unseal(Kind::State, record)?)?.parse()
}

pub(super) fn write_destination(destination: &DestinationRecord) -> IVec {
    write(Kind::Destination, &layout::Destination::of(destination))
}

pub(super) fn read_destination(record: &[u8]) -> Result<DestinationRecord, Unreadable> {
    decode::<layout::Destination<'_>>(&unseal(Kind::Destination, record)?)?.parse()
}

pub(super) fn write_counters(counters: &Counters) -> IVec {
    write(Kind::Counters, &layout::Counters::of(counters))
}

pub(super) fn read_counters(record: &[u8]) -> Result<Counters, Unreadable> {
    Ok(read::<layout::Counters>(Kind::Counters, record)?.into())
}

pub(super) fn write_format(format: &Format<'_>) -> IVec {
    write(Kind::Format, format)
}

pub(super) fn read_format(record: &[u8]) -> Result<Format<'static>, Unreadable> {
    read(Kind::Format, record)
}

pub(super) fn write_start(start: &Start<'_>) -> IVec {
    write(Kind::Start, start)
}

pub(super) fn read_start(record: &[u8]) -> Result<Start<'static>, Unreadable> {
    read(Kind::Start, record)
}

pub(super) fn write_migration(mark: &MigrationMark) -> IVec {
    write(Kind::Migration, mark)
}

pub(super) fn read_migration(record: &[u8]) -> Result<MigrationMark, Unreadable> {
    read(Kind::Migration, record)
}

pub(super) fn write_reason(reason: &str) -> IVec {
    write(Kind::Reason, &cut(reason))
}

pub(super) fn read_reason(record: &[u8]) -> Result<String, Unreadable> {
    read(Kind::Reason, record)
}

/// A block of keys; [`super::blocks`] knows what is in its payload.
pub(super) fn write_keys(payload: &[u8]) -> IVec {
    seal(Kind::Keys, [&[0; HEADER], payload].concat())
}

pub(super) fn read_keys(record: &[u8]) -> Result<Cow<'_, [u8]>, Unreadable> {
    unseal(Kind::Keys, record)
}

/// The whole of an envelope, to be put into chunks.
pub(super) fn write_envelope(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    put(&mut bytes, &layout::Envelope::of(envelope));
    bytes
}

/// How long [`write_envelope`] makes it.
pub(super) fn envelope_len(envelope: &Envelope) -> usize {
    let len = options().serialized_size(&layout::Envelope::of(envelope)).unwrap_or(0);
    usize::try_from(len).unwrap_or(usize::MAX)
}

pub(super) fn read_envelope(id: QueueId, bytes: &[u8]) -> Result<Envelope, Unreadable> {
    decode::<layout::Envelope<'_>>(bytes)?.parse(id)
}

/// How many chunks `len` bytes make; nothing makes one.
pub(super) fn chunks(len: usize) -> u32 {
    u32::try_from(len.div_ceil(CHUNK).max(1)).unwrap_or(u32::MAX)
}

/// The chunks of an envelope or content, in order.
pub(super) fn write_chunks(kind: Kind, bytes: &[u8]) -> impl Iterator<Item = (u32, IVec)> {
    (0..chunks(bytes.len())).map(move |number| {
        let start = number as usize * CHUNK;
        let piece = &bytes[start..bytes.len().min(start + CHUNK)];
        let mut record = Vec::with_capacity(HEADER + TOTAL + piece.len());
        record.resize(HEADER, 0);
        if number == 0 {
            record.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        record.extend_from_slice(piece);
        (number, seal(kind, record))
    })
}

/// Puts chunks together again, asking `get` for each record until the total of chunk 0 is reached.
/// `Ok(None)` when there is no chunk 0.
pub(super) fn read_chunks<E: From<Unreadable>>(
    kind: Kind,
    mut get: impl FnMut(u32) -> Result<Option<IVec>, E>,
) -> Result<Option<Bytes>, E> {
    let Some(first) = get(0)? else { return Ok(None) };
    let first = unseal(kind, &first)?;
    let (total, piece) = first.split_first_chunk().ok_or(Unreadable::Short)?;
    let total = u32::from_le_bytes(*total) as usize;
    let check = |piece: &[u8], before: usize| {
        let expected = (total - before).min(CHUNK);
        if piece.len() == expected { Ok(()) } else { Err(Unreadable::Field("length")) }
    };
    check(piece, 0)?;
    if piece.len() == total {
        return Ok(Some(Bytes::copy_from_slice(piece)));
    }
    let mut whole = piece.to_vec();
    for number in 1..chunks(total) {
        let record = get(number)?.ok_or(Unreadable::Chunk(number))?;
        let piece = unseal(kind, &record)?;
        check(&piece, whole.len())?;
        whole.extend_from_slice(&piece);
    }
    Ok(Some(whole.into()))
}

/// A record as format 1 had it, whose layout has `added` bytes more at its end since.
#[cfg(test)]
pub(super) fn of_format_1(record: &[u8], added: usize) -> IVec {
    seal_as(record[0], 1, record[..record.len() - added].to_vec()).into()
}

/// What can be wrong with a record.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    Checksum,
    Kind,
    Version,
}

#[cfg(test)]
impl Damage {
    pub(crate) const ALL: [Self; 3] = [Self::Checksum, Self::Kind, Self::Version];

    /// The record with this damage. Kind and version are under a good checksum.
    pub(super) fn of(self, record: &[u8]) -> IVec {
        let mut bytes = record.to_vec();
        match self {
            Self::Checksum => {
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
            }
            Self::Kind => bytes[0] = 99,
            Self::Version => bytes[1] = 99,
        }
        if !matches!(self, Self::Checksum) {
            let crc = checksum(&bytes[..2], &bytes[HEADER..]);
            bytes[2..HEADER].copy_from_slice(&crc.to_le_bytes());
        }
        bytes.into()
    }
}

#[cfg(test)]
mod tests;
