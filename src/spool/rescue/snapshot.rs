//! What sled's snapshot says of its log: where each page is, as of a position. Pure, but for the reading of the file.
//!
//! ```text
//! snapshot = position i64, active segment, page*, length u64, CRC-32 u32      little endian
//! page     = 0, place without size                                          it is free
//!          | 1 + number of changes u8, place, (place of a change)*
//! place    = position i64, (0, offset | 1, offset, blob i64), size
//! ```
//!
//! So a rescue goes on behind what it can't read at the next place that the snapshot knows, and knows that nothing is lost where
//! the snapshot has no place: what was there before it was of older versions.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::format::{Reader, SEGMENT};
use crate::spool::sled::swap;

const SIZE: u64 = SEGMENT as u64;

/// What a snapshot says; nothing at all, when there is none.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// It holds what is before this position.
    position: u64,
    /// Positions of all messages that count, in order.
    places: Vec<u64>,
    /// The number of the segment at each 512 KiB of the file that has one of them.
    segments: HashMap<u64, u64>,
}

impl Snapshot {
    /// The newest one of a folder; one that is damaged says nothing.
    pub fn newest(folder: &Path) -> Self {
        let newest = swap::newest_snapshot(folder).ok().flatten();
        newest
            .and_then(|(_, name)| fs::read(folder.join(name)).ok())
            .and_then(|bytes| Self::read(&bytes))
            .unwrap_or_default()
    }

    /// Reads a snapshot; `None` when it is damaged.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (rest, crc) = bytes.split_last_chunk::<4>()?;
        let (rest, _) = rest.split_last_chunk::<8>()?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut reader = Reader(rest);
        let mut snapshot = Self { position: reader.position()?.checked_sub(1)?, ..Self::default() };
        reader.number()?;
        while !reader.0.is_empty() {
            match reader.byte()? {
                0 => snapshot.note(&mut reader)?,
                count => {
                    for _ in 0..count {
                        snapshot.note(&mut reader)?;
                        reader.number()?;
                    }
                }
            }
        }
        snapshot.places.sort_unstable();
        Some(snapshot)
    }

    fn note(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let position = reader.position()?;
        let elsewhere = reader.byte()? != 0;
        let offset = reader.number()?;
        if elsewhere {
            reader.position()?;
        }
        self.places.push(position);
        self.segments.insert(offset / SIZE, position / SIZE);
        Some(())
    }

    /// The positions of messages in a segment, in order.
    pub fn places(&self, segment: u64) -> &[u64] {
        let from = self.places.partition_point(|place| *place / SIZE < segment);
        let to = self.places.partition_point(|place| *place / SIZE <= segment);
        &self.places[from..to]
    }

    /// Whether it names the message at a position.
    pub fn knows(&self, position: u64) -> bool {
        self.places.binary_search(&position).is_ok()
    }

    /// Whether anything that counts may be between two positions.
    pub fn needs(&self, from: u64, to: u64) -> bool {
        let first = self.places.partition_point(|place| *place < from);
        to > self.position || self.places.get(first).is_some_and(|place| *place < to)
    }

    /// The number of the segment at an offset of the file.
    pub fn segment_at(&self, offset: u64) -> Option<u64> {
        self.segments.get(&(offset / SIZE)).copied()
    }
}
