//! The way through a segment of the log.

use super::format::{Kind, Message, RED_ZONE, SEGMENT, SEGMENT_HEADER};

const SIZE: u64 = SEGMENT as u64;

/// One step through a segment.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// A readable message, and where in the segment it is.
    Message(usize, Message<'a>),
    /// A damaged one, whose length is known.
    Damaged(usize, Message<'a>),
    /// From the first place on nothing can be read up to the second one.
    Lost(usize, usize),
}

/// Goes through a segment, message by message.
pub(super) struct Walk<'a> {
    segment: &'a [u8],
    number: u64,
    /// `None` after the last one.
    at: Option<usize>,
    /// Position of the last byte of the newest batch so far: the next message follows it.
    pub batch_end: u64,
    /// Positions in the segment where messages are known to be, in order.
    pub known: &'a [u64],
}

impl<'a> Walk<'a> {
    pub fn new(segment: &'a [u8], number: u64) -> Self {
        Self::from(segment, number, SEGMENT_HEADER)
    }

    pub fn from(segment: &'a [u8], number: u64, at: usize) -> Self {
        Self { segment, number, at: Some(at), batch_end: 0, known: &[] }
    }

    fn message(&self, at: usize) -> Option<Message<'a>> {
        Message::read(&self.segment[at..]).filter(|message| message.segment == self.number)
    }

    /// What is at `at` can't be read: goes on behind the batch, or at a place that is known before that, if there is a message.
    fn give_up(&mut self, at: usize) -> Step<'a> {
        let base = self.number * SIZE;
        let place = |position: u64| usize::try_from(position.checked_sub(base)?).ok();
        let is_next = |place: &usize| {
            *place > at
                && *place < self.segment.len()
                && self.message(*place).is_some_and(|message| message.sound)
        };
        let behind = place(self.batch_end + 1).filter(is_next);
        let known = self.known.iter().copied().filter_map(place).find(is_next);
        self.at = behind.into_iter().chain(known).min();
        Step::Lost(at, self.at.unwrap_or(self.segment.len()))
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let at = self.at.take()?;
        if at + RED_ZONE > self.segment.len() {
            return None;
        }
        match self.message(at) {
            Some(Message { kind: Kind::Cap, sound: true, .. }) => None,
            Some(message) if message.sound => {
                self.batch_end = message.batch_end().unwrap_or(self.batch_end);
                self.at = Some(at + message.len());
                Some(Step::Message(at, message))
            }
            Some(message) if message.is_shaped() => {
                self.at = Some(at + message.len());
                Some(Step::Damaged(at, message))
            }
            _ => Some(self.give_up(at)),
        }
    }
}
