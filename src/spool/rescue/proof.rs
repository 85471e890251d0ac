//! Whether what sled is about to read of its log is all there.
//!
//! sled takes the first message that it can't read for the end of the log, or of its segment, and writes over what
//! follows: right for what a crash tore, and silent loss where the disk damaged what had been safe for long. Which of the
//! two it is can be told by what was written later. A batch is written after the one before it was synced; so all up to the
//! end of the last but one was safe once, and so was all up to the position that the newest segment header names, or a
//! snapshot. What can't be read before that was damaged, and nobody may open the database before its mail was saved.
//!
//! One thing looks like damage and is none: a segment that was free and is written anew, of which a power cut left the
//! old header and some of the new messages. Those name a later segment. (They are searched for byte by byte, so a mail may
//! forge one. It would gain nothing but that damage to its own segment is overlooked, as sled does.)

use std::fs::File;
use std::io;
use std::thread;

use super::format::{self, Message, SEGMENT};
use super::log::{Log, Segment};
use super::walk::{Step, Walk};

/// Threads that look at a log at the same time.
const THREADS_MAX: usize = 4;

/// Looks through the part of a log that is newer than a snapshot of this position and that went up to `end` at least (0: nobody
/// knows). The place in the file where something is damaged that was safe once, if anything is.
///
/// # Errors
/// The system's, when the file can't be read at all.
pub fn first_damage(database: &File, snapshot: u64, end: u64) -> io::Result<Option<u64>> {
    let (log, headless) = Log::open_from(database.try_clone()?, snapshot)?;
    if let Some(offset) = log.lost_header(&headless, snapshot) {
        return Ok(Some(offset));
    }
    // A snapshot is written of what is safe.
    let buffer = &mut vec![0; SEGMENT];
    let safe = log.safe_until(buffer).max(snapshot).max(end);
    let count = log.segments().partition_point(|segment| segment.number * (SEGMENT as u64) < safe);
    let segments = &log.segments()[..count];
    // A start waits for this, and it is all checksums.
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let share = segments.len().div_ceil(threads).max(1);
    let found = thread::scope(|scope| {
        let look = |part| {
            let log = &log;
            scope.spawn(move || first_damage_in(log, part, safe))
        };
        let threads: Vec<_> = segments.chunks(share).map(look).collect();
        let join =
            |thread: thread::ScopedJoinHandle<'_, Option<u64>>| thread.join().map_err(|_| thread_ended());
        threads.into_iter().map(join).collect::<io::Result<Vec<Option<u64>>>>()
    })?;
    let (reached, offset) = log.reach(buffer);
    Ok(found.into_iter().flatten().next().or((reached < end).then_some(offset)))
}

/// The position behind the last message of a log that is whole, of which there is a snapshot of this position.
///
/// # Errors
/// The system's, when the file can't be read.
pub fn end(database: &File, snapshot: u64) -> io::Result<u64> {
    let (log, _) = Log::open_from(database.try_clone()?, snapshot)?;
    Ok(log.reach(&mut vec![0; SEGMENT]).0)
}

fn thread_ended() -> io::Error {
    io::Error::other("a thread that looked through the database ended")
}

fn first_damage_in(log: &Log, segments: &[Segment], safe: u64) -> Option<u64> {
    let mut buffer = vec![0; SEGMENT];
    segments.iter().find_map(|segment| {
        log.read_segment(segment.offset, &mut buffer);
        let at = Walk::new(&buffer, segment.number).find_map(|step| match step {
            Step::Message(..) => None,
            Step::Damaged(at, _) | Step::Lost(at, _) => Some(at),
        })?;
        let was_safe = segment.number * (SEGMENT as u64) + (at as u64) < safe;
        (was_safe && !is_written_anew(&buffer[at..], segment.number)).then_some(segment.offset + at as u64)
    })
}

/// Whether there is a message of a later segment in these bytes.
fn is_written_anew(bytes: &[u8], number: u64) -> bool {
    (0..bytes.len().saturating_sub(format::RED_ZONE)).any(|at| {
        Message::names_segment(&bytes[at..]).is_some_and(|named| named > number)
            && Message::read(&bytes[at..]).is_some_and(|message| message.sound)
    })
}
