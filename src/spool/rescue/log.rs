//! sled's log, read from front to back without sled: what is damaged is stepped over, and noted.
//!
//! Where a message is damaged its length is believed only when its body has the shape of its kind, which holds the
//! length a second time; else what follows is given up, up to the next place that a snapshot knows, to the end of the batch
//! if its manifest could be read, or to that of the segment. Nothing is searched for byte by byte: what lies between messages
//! may be the text of a mail, and its sender could have written anything there, messages of this log included (promise P6).
//!
//! Where the log ends follows sled. A batch has a manifest in front that names its last position, and is written before the
//! next one begins: so all before the last readable manifest was on the disk once, and what is missing there is damage.
//! From that manifest on messages must follow each other without a gap. If they don't reach the end of its batch, a crash
//! tore the batch, nobody was told that it is safe, and the log ends before it. (sled gives up a last batch for a single
//! damaged message in it, too. Here such a one is stepped over: the rest was answered 250, most likely.) The end of a log
//! may also have been lost later; who finds that what is before the end does not fit together asks for all: [`Log::read_on`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{self, Kind, Message, SEGMENT, SEGMENT_HEADER, SegmentHeader};
use super::snapshot::Snapshot;
use super::walk::{Step, Walk};

const SIZE: u64 = SEGMENT as u64;
/// Numbers above this have no position.
const NUMBER_MAX: u64 = i64::MAX as u64 / SIZE - 1;
/// What a disk reports unreadable is read again in pieces of this size.
const SECTORS: usize = 4_096;

/// A database file, and what is known of its segments.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// Bytes of it.
    length: u64,
    snapshot: Snapshot,
    /// In order of number.
    segments: Vec<Segment>,
    /// No message from this position on is read.
    end: u64,
    /// Whether there are any.
    torn: bool,
    damage: Damage,
}

/// Where a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub number: u64,
    pub offset: u64,
    /// As its header says; 0 when that can't be read.
    pub stable: u64,
}

/// Where a readable message is, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its position in the log.
    pub position: u64,
    /// The place of its body in the file.
    pub place: Place,
    /// The message.
    pub message: Message<'a>,
}

/// Some bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where they begin.
    pub offset: u64,
    /// How many they are; less than a segment.
    pub length: u32,
}

/// What could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Segments of which nothing could be read.
    pub segments: u64,
    /// Damaged messages. What follows one counts as one with it, up to the next place that is known, if its length is lost too.
    pub messages: u64,
    /// Positions that were not read, by segment of known number, in order.
    holes: Vec<(u64, u64)>,
    /// The same, where a snapshot says that nothing was needed.
    old_holes: Vec<(u64, u64)>,
    /// The newest damaged message of each page that is known to have one.
    pages: Vec<(u64, u64)>,
}

impl Damage {
    /// Whether all was read.
    pub fn is_none(&self) -> bool {
        self.segments == 0 && self.messages == 0
    }

    /// Whether something between two positions was not read.
    pub fn between(&self, after: u64, before: u64) -> bool {
        any_between(&self.holes, after, before)
    }

    /// The pages of which a message could not be read, and its position.
    pub fn pages(&self) -> &[(u64, u64)] {
        &self.pages
    }
}

impl Log {
    /// Looks through the file for its segments, and for the end of the log. `snapshot` is the newest one of it.
    ///
    /// # Errors
    /// The system's, when not even the size of the file is known.
    pub fn open(file: File, snapshot: Snapshot) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut log = Self {
            file,
            length,
            snapshot,
            segments: Vec::new(),
            end: u64::MAX,
            torn: false,
            damage: Damage::default(),
        };
        let mut buffer = vec![0; SEGMENT];
        for offset in (0..length).step_by(SEGMENT) {
            log.read_segment(offset, &mut buffer);
            match identify(&buffer) {
                Some((number, stable)) => log.segments.push(Segment { number, offset, stable }),
                // sled overwrites what it has freed with zeros.
                None if buffer.iter().all(|byte| *byte == 0) => {}
                None => {
                    // Some of it may be read where the snapshot knows of messages; it may have been used again since.
                    log.damage.segments += 1;
                    let known = log.snapshot.segment_at(offset);
                    log.segments.extend(known.map(|number| Segment { number, offset, stable: 0 }));
                }
            }
        }
        log.segments.sort_unstable_by_key(|segment| (segment.number, segment.offset));
        log.end = log.find_end(&mut buffer);
        Ok(log)
    }

    /// As [`Log::open`], but knows only of the segments that sled finds when it has a snapshot of this position: those
    /// whose header is sound, from that segment on. The second value is where a header is that is not, though there is
    /// something: sled itself makes it zeros when it gives up a segment.
    ///
    /// # Errors
    /// The system's, when the file can't be read.
    pub(super) fn open_from(file: File, snapshot: u64) -> io::Result<(Self, Vec<u64>)> {
        let length = file.metadata()?.len();
        let (mut segments, mut headless) = (Vec::new(), Vec::new());
        let mut header = [0; SEGMENT_HEADER];
        let last = length.saturating_sub(SEGMENT_HEADER as u64 - 1);
        for offset in (0..last).step_by(SEGMENT) {
            file.read_exact_at(&mut header, offset)?;
            match SegmentHeader::read(&header) {
                Some(found) if (snapshot / SIZE..=NUMBER_MAX).contains(&found.number) => {
                    segments.push(Segment { number: found.number, offset, stable: found.stable });
                }
                None if header.iter().any(|byte| *byte != 0) => headless.push(offset),
                _ => {}
            }
        }
        segments.sort_unstable_by_key(|segment| (segment.number, segment.offset));
        Ok((
            Self {
                file,
                length,
                snapshot: Snapshot::default(),
                segments,
                end: u64::MAX,
                torn: false,
                damage: Damage::default(),
            },
            headless,
        ))
    }

    /// The first of these segments, of which the header can't be read, that sled would miss with a snapshot of this position.
    pub(super) fn lost_header(&self, headless: &[u64], snapshot: u64) -> Option<u64> {
        let mut buffer = vec![0; SEGMENT];
        headless.iter().copied().find(|offset| {
            self.read_segment(*offset, &mut buffer);
            match identify(&buffer) {
                Some((number, _)) => number >= snapshot / SIZE,
                None => snapshot == 0,
            }
        })
    }

    /// Its segments, in order of number.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Up to this position everything was on the disk once: see [`super::proof`].
    pub(super) fn safe_until(&self, buffer: &mut [u8]) -> u64 {
        let stable = self.segments.iter().map(|segment| segment.stable).max().unwrap_or(0);
        let mut newest = None;
        for segment in self.segments.iter().rev() {
            self.read_segment(segment.offset, buffer);
            for end in batch_ends(buffer, segment.number).into_iter().rev() {
                match newest {
                    None => newest = Some(end),
                    Some(_) => return stable.max(end + 1),
                }
            }
            if segment.number * SIZE < stable {
                break;
            }
        }
        stable
    }

    /// The position behind the last message of the last segment, and where that is in the file; a message whose body is damaged
    /// counts.
    pub(super) fn reach(&self, buffer: &mut [u8]) -> (u64, u64) {
        let Some(segment) = self.segments.last() else { return (0, 0) };
        self.read_segment(segment.offset, buffer);
        let behind = |step| match step {
            Step::Message(at, message) | Step::Damaged(at, message) => Some(at + message.len()),
            Step::Lost(..) => None,
        };
        let behind = Walk::new(buffer, segment.number).filter_map(behind).last().unwrap_or(SEGMENT_HEADER);
        (segment.number * SIZE + behind as u64, segment.offset + behind as u64)
    }

    /// What could not be read so far: all of it is known after [`Log::read`].
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Calls `visit` with each readable message that is about a page, in order of position.
    pub fn read(&mut self, mut visit: impl FnMut(Entry<'_>)) {
        let mut damage = Damage { segments: self.damage.segments, ..Damage::default() };
        let mut buffer = vec![0; SEGMENT];
        self.torn = false;
        let mut batch_end = 0;
        for segment in &self.segments {
            let base = segment.number * SIZE;
            if base >= self.end {
                self.torn = true;
                break;
            }
            self.read_segment(segment.offset, &mut buffer);
            let mut walk = Walk::new(&buffer, segment.number);
            walk.batch_end = batch_end;
            walk.known = self.snapshot.places(segment.number);
            for step in &mut walk {
                match step {
                    Step::Message(at, _) if base + at as u64 >= self.end => {
                        self.torn = true;
                        break;
                    }
                    Step::Damaged(at, _) | Step::Lost(at, _) if base + at as u64 >= self.end => break,
                    Step::Message(at, message) if message.kind != Kind::Elsewhere => {
                        visit(entry(segment, at, message));
                    }
                    Step::Message(at, message) | Step::Damaged(at, message) => {
                        let (from, to) = (base + at as u64, base + (at + message.len()) as u64);
                        damage.miss(&self.snapshot, from, to, Some(&message));
                    }
                    Step::Lost(from, to) => {
                        damage.miss(&self.snapshot, base + from as u64, base + to as u64, None);
                    }
                }
            }
            batch_end = walk.batch_end;
        }
        damage.holes.sort_unstable();
        damage.old_holes.sort_unstable();
        self.damage = damage;
    }

    /// Whether there are messages behind the end of the log; known after [`Log::read`].
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// From now on these are read too.
    pub fn read_on(&mut self) {
        self.end = u64::MAX;
    }

    /// The database was closed with this length and this end of the log: nothing before it was torn, and what is not there is lost.
    pub fn was_closed(&mut self, length: u64, end: u64) {
        self.end = self.end.max(end);
        let cut_off = length.saturating_sub(self.length).div_ceil(SIZE);
        let next = self.segments.last().map_or(0, |segment| segment.number + 1);
        self.damage.segments += cut_off.max(end.div_ceil(SIZE).saturating_sub(next));
    }

    /// Whether something may be missing between a message and a later one. What a snapshot does not need may be missing for
    /// versions that it does not know.
    pub fn may_miss(&self, after: u64, before: u64) -> bool {
        self.damage.between(after, before)
            || (!self.snapshot.knows(after) && any_between(&self.damage.old_holes, after, before))
    }

    /// Reads a place again; `None` when the disk refuses.
    pub fn bytes(&self, place: Place) -> Option<Vec<u8>> {
        let mut bytes = vec![0; place.length as usize];
        self.file.read_exact_at(&mut bytes, place.offset).ok()?;
        Some(bytes)
    }

    /// Whether a segment that was not read may have been written between these positions, as far as numbers tell.
    pub fn skips(&self, after: u64, before: u64) -> bool {
        let (first, last) = (after / SIZE, before / SIZE);
        let from = self.segments.partition_point(|segment| segment.number < first);
        let to = self.segments.partition_point(|segment| segment.number <= last);
        let mut numbers: Vec<u64> = self.segments[from..to].iter().map(|segment| segment.number).collect();
        numbers.dedup();
        (numbers.len() as u64) < last - first + 1
    }

    /// Fills `buffer` with a segment; what can't be read or is not there is zeros.
    pub(super) fn read_segment(&self, offset: u64, buffer: &mut [u8]) {
        if self.fill(offset, buffer).is_err() {
            for (number, piece) in buffer.chunks_mut(SECTORS).enumerate() {
                if self.fill(offset + (number * SECTORS) as u64, piece).is_err() {
                    piece.fill(0);
                }
            }
        }
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer[filled..].fill(0);
        Ok(())
    }

    fn find_end(&self, buffer: &mut [u8]) -> u64 {
        let stable = self.segments.iter().map(|segment| segment.stable).max().unwrap_or(0);
        let mut first = None;
        for (index, segment) in self.segments.iter().enumerate().rev() {
            if segment.number < stable / SIZE {
                break;
            }
            self.read_segment(segment.offset, buffer);
            let manifests = Walk::new(buffer, segment.number).filter_map(|step| match step {
                Step::Message(at, message) => Some((at, message.batch_end()?)),
                _ => None,
            });
            first = Some((index, SEGMENT_HEADER, None));
            if let Some((at, batch_end)) = manifests.last() {
                first = Some((index, at, Some(batch_end)));
                break;
            }
        }
        let Some((index, at, batch_end)) = first else { return u64::MAX };
        let begin = self.segments[index].number * SIZE + at as u64;
        let end = self.follow(index, at, buffer);
        // The end of a batch is the position of its last byte.
        if batch_end.is_some_and(|last| last >= end) { begin } else { end }
    }

    /// The end of the last readable one of the messages that follow each other from a place in a segment on.
    fn follow(&self, mut index: usize, mut at: usize, buffer: &mut [u8]) -> u64 {
        let mut end = self.segments[index].number * SIZE + at as u64;
        loop {
            let segment = self.segments[index];
            let base = segment.number * SIZE;
            self.read_segment(segment.offset, buffer);
            let mut whole = true;
            end = end.max(base + at as u64);
            for step in Walk::from(buffer, segment.number, at) {
                match step {
                    Step::Message(at, message) => end = base + (at + message.len()) as u64,
                    Step::Damaged(..) => {}
                    Step::Lost(..) => {
                        whole = false;
                        break;
                    }
                }
            }
            let next = self.segments.partition_point(|next| next.number <= segment.number);
            let follows = self.segments.get(next).is_some_and(|next| next.number == segment.number + 1);
            if !(whole && follows) {
                return end;
            }
            (index, at) = (next, SEGMENT_HEADER);
        }
    }
}

/// The ends of the batches that begin in a segment. Behind what can't be read the next message is searched for byte by byte:
/// a mail may forge one, and then a log that was torn there looks damaged; nothing is taken from there.
fn batch_ends(segment: &[u8], number: u64) -> Vec<u64> {
    let mut ends = Vec::new();
    let mut from = Some(SEGMENT_HEADER);
    while let Some(at) = from.take() {
        for step in Walk::from(segment, number, at) {
            match step {
                Step::Message(_, message) => ends.extend(message.batch_end()),
                Step::Damaged(..) => {}
                Step::Lost(at, SEGMENT) => from = next_message(segment, number, at + 1),
                // No batch begins in another one.
                Step::Lost(..) => {}
            }
        }
    }
    ends
}

/// The place of the next readable message of this segment.
fn next_message(segment: &[u8], number: u64, from: usize) -> Option<usize> {
    (from..segment.len().saturating_sub(format::RED_ZONE)).find(|at| {
        Message::names_segment(&segment[*at..]) == Some(number)
            && Message::read(&segment[*at..]).is_some_and(|message| message.sound)
    })
}

fn any_between(holes: &[(u64, u64)], after: u64, before: u64) -> bool {
    let first = holes.partition_point(|(_, end)| *end <= after);
    holes.get(first).is_some_and(|(start, _)| *start < before)
}

impl Damage {
    /// Nothing is read between two positions, where this message is, if that is known.
    fn miss(&mut self, snapshot: &Snapshot, from: u64, to: u64, message: Option<&Message<'_>>) {
        if !snapshot.needs(from, to) {
            return self.old_holes.push((from, to));
        }
        self.messages += 1;
        self.holes.push((from, to));
        let of_a_page =
            |kind| matches!(kind, Kind::Node | Kind::Link | Kind::Free | Kind::Meta | Kind::Elsewhere);
        if let Some(message) = message.filter(|message| of_a_page(message.kind)) {
            self.pages.push((message.page, from));
        }
    }
}

/// The number of a segment and how far the log was on the disk then. Without its header each message still names its segment.
fn identify(segment: &[u8]) -> Option<(u64, u64)> {
    let (number, stable) = match SegmentHeader::read(segment) {
        Some(header) => (header.number, header.stable),
        None => {
            let first = Message::read(&segment[SEGMENT_HEADER..]).filter(|message| message.sound)?;
            (first.segment, 0)
        }
    };
    (number <= NUMBER_MAX).then_some((number, stable))
}

fn entry<'a>(segment: &Segment, at: usize, message: Message<'a>) -> Entry<'a> {
    let place = Place {
        offset: segment.offset + (at + message.head) as u64,
        // Less than a segment.
        length: u32::try_from(message.body.len()).unwrap_or(u32::MAX),
    };
    Entry { position: segment.number * SIZE + at as u64, place, message }
}
