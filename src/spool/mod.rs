//! Durable truth. Every accepted message lives here until each of its recipients has met one fate.
//!
//! LAW: sled is named here and in `migrations/` only; nothing here knows an actor, a socket or a schedule.
//! Calls block: only the writer thread and the reader pools ([`front`]) make them.
//!
//! # Every state of a message on disk
//!
//! E is its envelope, C its content (in the tree or in a file), R the states of recipients that were tried, D a due key
//! for each unsettled recipient, T its deadline key, Q its records in quarantine. `+` there, `-` not, `?` either. A file is
//! the content and behind it a trailer with its checksum, as each record has one ([`content`]); without a trailer it is of an
//! older program and is taken as it is.
//!
//! | state | on disk | a crash here leaves | who puts it right |
//! |---|---|---|---|
//! | S0 unknown | -E -C -R -D -T -Q | nothing | the client still has the message: it got no 250 |
//! | S1 arriving | -E ?C -R -D -T -Q | for large content a file that nothing names, perhaps cut, perhaps without its trailer | [`content::ContentFiles::sweep`] at the next start removes it |
//! | S2 fresh | +E +C ?R -D -T -Q | the message, whose first attempt was not over; its id is not below [`Counters::unindexed_from`] of the last commit | the Queue looks through the ids from there on, in the background, and writes D and T: S3 |
//! | S3 queued | +E +C ?R +D +T -Q | the message, each recipient as its last commit left it | nobody needs to: the Queue finds it by wake and due keys. What was in flight is tried again (promise P3 says when that doubles) |
//! | S4 finished | -E ?C -R -D -T -Q | for large content a file that nothing names | the sweep, as for S1 |
//! | S5 quarantined | -E ?C -R -D -T +Q | every byte of it, and why | an operator: released once all of it can be read, its file included, and is what was written; the sweep leaves the file alone |
//!
//! ```text
//! S0 ─ first byte of a large content ─► S1 ─ commit of PutMessage: the instant of the 250 ─► S2
//! S2 ─ commit of its keys, when it leaves memory, waits for a later attempt or its first one takes long ─► S3
//! S2, S3 ─ commit that settles the last recipient (with its DSN, if any, as a message in S2) ─► S4 ─ file removed ─► S0
//! S5 ─ commit of Release with its keys ─► S3, or of Discard ─► S4
//! S2, S3 ─ commit of Quarantine, when a record or the content is damaged or gone, or an attempt crashed three times ─► S5
//! ```
//!
//! A small message goes from S0 to S2 and from S2 or S3 to S0 at once. One that finds no room in memory arrives in S3. Each arrow with a commit is one batch: after a crash it
//! happened or it did not. A commit is answered only after its sync, so a 250 means S2 is on the device.
//!
//! What else a crash can leave, and who removes it: a sled snapshot half written ([`sled`], before it opens), a reserve
//! half allocated (made again at the next start), a compaction half done ([`sled::compact`] has its states; the next open
//! removes the copy or finishes the swap), a wake key of a destination that has nothing due (the Queue, when that
//! time comes), a new spool without its format record (it is written at the next start), a database that `closed` says nothing of, or a torn
//! `closed` (the next start takes what it can't read at the end of the log for torn, as after any crash), records of an older format beside the
//! mark of a migration (the next start goes on where it was).
//!
//! What no crash leaves, but damage can: an unsettled recipient without its due key, a due key that leads to nothing, a message
//! without deadline key, a block of such keys that can't be read (`blocks/`), counters that are wrong (the patrol puts them right),
//! counters that can't be read (the start writes a guess, all messages are looked through as in S2, the patrol counts them), a destination's record that can't be read (it is
//! forgotten), a due key without its message (quarantined, so that the loss is seen), a content file with a changed byte, of
//! another length or with anything but a whole trailer behind its content (whoever reads it finds that before its last byte is
//! passed on, and the message is quarantined: the file was synced before the commit that names it). A database of which
//! something that was safe once can't be read, or that is missing beside content or a snapshot, or that was closed and is
//! shorter now, is refused before sled changes it ([`sled`], `before.rs`, `closed.rs`): `posthaste spool rescue` saves the rest.

mod blocks;
pub mod content;
mod database;
mod error;
pub mod front;
mod keys;
pub mod memory;
mod migrate;
mod patrol;
mod quarantine;
mod read;
mod record;
pub mod rescue;
pub mod sled;
pub mod space;
#[cfg(test)]
mod suite;
pub mod sync;
pub mod tools;
mod write;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

pub use self::error::SpoolError;
pub use self::patrol::{Deadlines, due_time, is_due_key_of};
#[cfg(test)]
pub(crate) use self::record::Damage;
use crate::mail::envelope::{Content, Envelope, LastReply, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

/// One change; a commit is a list of them that becomes durable as a whole or not at all.
#[derive(Clone, Debug)]
pub enum Op {
    /// Stores envelope and content of a new message. Recipients without a state record are fresh.
    PutMessage(Arc<Envelope>, Content),
    /// Writes the state of one recipient.
    PutRecipient(QueueId, u16, RecipientState),
    /// Removes envelope, states and content (the content file after the commit). `states` says whether any
    /// state record was ever written for it.
    RemoveMessage {
        /// The message.
        envelope: Arc<Envelope>,
        /// Whether any [`Op::PutRecipient`] was ever committed or is in this commit for it.
        states: bool,
    },
    /// Makes a recipient findable under its destination and due time (ms).
    PutDue(DueKey),
    /// The opposite.
    DeleteDue(DueKey),
    /// Makes a destination findable at the time (ms) when it next needs the queue.
    PutWake(u64, Domain),
    /// The opposite.
    DeleteWake(u64, Domain),
    /// Makes a message findable at the time (ms) of its next delay notice or expiry.
    PutDeadline(u64, QueueId),
    /// The opposite.
    DeleteDeadline(u64, QueueId),
    /// Writes the back-off state of a destination.
    PutDestination(Domain, DestinationRecord),
    /// Forgets it.
    DeleteDestination(Domain),
    /// Moves every record of a message to quarantine, with the reason. The counters follow in the same commit.
    Quarantine(QueueId, String),
    /// Puts every record of a message in quarantine back to where it was. Its keys and the counters follow in the same commit.
    Release(QueueId),
    /// Removes every record of a message in quarantine (its content file, if that is known, after the commit).
    Discard(QueueId, Option<String>),
    /// The counters after this commit.
    Counters(Counters),
    /// The next step of the migration from an older format, if one is under way ([`Spool::migration`]). The first of its commit,
    /// so that what the commit writes holds.
    Migrate,
}

/// The key of one due recipient.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DueKey {
    /// The destination it is queued for.
    pub destination: Domain,
    /// When it is due, wall time in milliseconds.
    pub due_ms: u64,
    /// The message.
    pub id: QueueId,
    /// The recipient's number.
    pub number: u16,
}

/// What is remembered of a destination that failed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DestinationRecord {
    /// Failures in a row.
    pub failures: u32,
    /// No attempt before this wall time (ms).
    pub retry_at_ms: u64,
    /// When it last failed and why.
    pub last: Option<LastReply>,
    /// An operator suspended it: no attempt before this wall time (ms). 0: it is not suspended; [`UNTIL_RESUMED`]: until an
    /// operator resumes it.
    pub suspended_until_ms: u64,
}

/// As `suspended_until_ms`: until an operator resumes it.
pub const UNTIL_RESUMED: u64 = u64::MAX;

impl DestinationRecord {
    /// Whether nothing is worth remembering.
    pub fn is_blank(&self) -> bool {
        self.failures == 0 && self.suspended_until_ms == 0
    }

    /// When it may be tried again (wall time, ms), whatever stands in the way.
    pub fn not_before_ms(&self) -> u64 {
        self.retry_at_ms.max(self.suspended_until_ms)
    }
}

/// Due keys of one destination that are counted at most, for [`Spool::queued`].
pub const COUNTED_MAX: u64 = 10_000;

/// What waits for a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Recipients with a due key, counted up to [`COUNTED_MAX`].
    pub recipients: u64,
    /// Whether there are more.
    pub more: bool,
    /// The earliest due time (wall time, ms); `None` without mail.
    pub next_due_ms: Option<u64>,
}

/// A migration under way: records of an older format are still to be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The format that the spool had.
    pub from: u32,
    /// The format that it gets.
    pub to: u32,
}

/// What the spool holds, kept in the same commits as the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages with at least one unsettled recipient.
    pub messages: u64,
    /// Unsettled recipients.
    pub recipients: u64,
    /// Content bytes of those messages.
    pub bytes: u64,
    /// Messages in quarantine.
    pub quarantined: u64,
    /// Content bytes of those of them that have it in the tree.
    pub tree_bytes: u64,
    /// The lowest id of a message that may not be indexed (has no due and deadline keys yet); `None`: all are.
    pub unindexed_from: Option<QueueId>,
    /// Recipients on hold.
    pub held: u64,
}

impl Counters {
    /// Counters of a spool whose record of them can't be read: nothing is known but what is in quarantine. All messages
    /// are looked through as after a crash, and then counted.
    pub fn guess(quarantined: u64) -> Self {
        let unindexed_from = Some(QueueId::from_bytes([0; 16]));
        Self { quarantined, unindexed_from, ..Self::default() }
    }

    /// Whether they are such.
    pub fn is_guess(&self) -> bool {
        self.unindexed_from == Self::guess(0).unindexed_from
    }
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Length of the database file before, in bytes.
    pub before: u64,
    /// And after; the same when the copy would not have been smaller and was not used.
    pub after: u64,
}

/// What a message adds to the [`Counters`], beside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Unsettled recipients.
    pub recipients: u64,
    /// Content bytes.
    pub bytes: u64,
    /// Content bytes in the tree.
    pub tree_bytes: u64,
    /// Unsettled recipients on hold.
    pub held: u64,
}

/// How much was read of a spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Records of messages, destinations and the spool itself.
    pub records: u64,
    /// Those of them that are of a message: envelope, state, content.
    pub of_messages: u64,
    /// Blocks of due or deadline keys, and wake keys.
    pub keys: u64,
}

/// What a look through some messages found.
#[derive(Debug, Default)]
pub struct Patrolled {
    /// Messages of which a recipient has no due key and should have one.
    pub lacking: Vec<StoredMessage>,
    /// Other messages that have no deadline key.
    pub undated: Vec<StoredMessage>,
    /// Other messages whose deadline key is not where it would be by now: by the retry times of another day, or, when there are
    /// too many to look through, perhaps nowhere.
    pub misdated: Vec<StoredMessage>,
    /// Messages that can't be read, and why.
    pub damaged: Vec<(QueueId, String)>,
    /// What each that was looked at counts.
    pub tallies: Vec<(QueueId, Tally)>,
    /// Where the next look begins; `None` when this one reached the end.
    pub next: Option<QueueId>,
}

/// What a look through some due keys found.
#[derive(Debug, Default)]
pub struct Strays {
    /// Keys of no recipient, of a settled one, or of one that is due at another time.
    pub keys: Vec<DueKey>,
    /// Messages that can't be read, and why.
    pub damaged: Vec<(QueueId, String)>,
    /// After which key the next look begins; `None` when this one reached the end.
    pub next: Option<DueKey>,
}

/// A message in quarantine.
#[derive(Debug)]
pub struct Quarantined {
    /// Its id.
    pub id: QueueId,
    /// Why it is there.
    pub reason: String,
    /// How many records are kept of it.
    pub records: usize,
    /// How many bytes they have.
    pub bytes: u64,
    /// What can be read of it: the message, or what stands in the way.
    pub message: Result<StoredMessage, String>,
    /// What is wrong with its content, if anything is.
    pub obstacle: Option<String>,
}

/// Messages in order of id.
#[derive(Debug, Default)]
pub struct Survey {
    /// Those that can be read.
    pub messages: Vec<StoredMessage>,
    /// Those that can't, and why.
    pub damaged: Vec<(QueueId, String)>,
    /// Where the next survey begins; `None` when this one reached the end.
    pub next: Option<QueueId>,
}

/// A page of a destination's due recipients.
#[derive(Debug, Default)]
pub struct DuePage {
    /// Their keys and messages, earliest due first; recipients of one message share one `StoredMessage`. `None` for a
    /// message that the caller knows.
    pub items: Vec<(DueKey, Option<Arc<StoredMessage>>)>,
    /// The due time of the first key that was neither skipped nor returned; `None` when there is none.
    pub next_due_ms: Option<u64>,
    /// Messages whose records can't be read, to be quarantined.
    pub damaged: Vec<(QueueId, String)>,
}

/// What a spool can do. All calls block. One thread calls `commit`; reads may run on several others.
pub trait Spool: Send + Sync + 'static {
    /// Makes all changes durable: when it returns `Ok` they survive a power cut.
    ///
    /// # Errors
    /// Any error is final (design section 5, trap 5): the caller stops accepting and ends the process.
    fn commit(&self, ops: &[Op]) -> Result<(), SpoolError>;

    /// The destination's recipients with due time ≤ `until_ms` that are not in `skip`, at most `limit`.
    /// Messages for which `known` holds are not read: a destination with mail of many recipients would read each of them
    /// again for each destination.
    fn due(
        &self,
        destination: &Domain,
        until_ms: u64,
        skip: &HashSet<(QueueId, u16)>,
        limit: usize,
        known: &dyn Fn(QueueId) -> bool,
    ) -> Result<DuePage, SpoolError>;

    /// Up to `limit` wake keys in order of time, whatever their time, starting after `after`.
    fn wakes(&self, after: Option<&(u64, Domain)>, limit: usize) -> Result<Vec<(u64, Domain)>, SpoolError>;

    /// Up to `limit` deadline keys in order of time, whatever their time, starting after `after`.
    fn deadlines(
        &self,
        after: Option<(u64, QueueId)>,
        limit: usize,
    ) -> Result<Vec<(u64, QueueId)>, SpoolError>;

    /// One message; `None` when it is not (or no longer) here.
    fn message(&self, id: QueueId) -> Result<Option<StoredMessage>, SpoolError>;

    /// Up to `limit` messages with ids above `after`, in order of id; unreadable ones are left out.
    fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<StoredMessage>, SpoolError>;

    /// At most `limit` messages with ids from `from` on, in order of id.
    fn survey(&self, from: QueueId, limit: usize) -> Result<Survey, SpoolError>;

    /// Looks at no more than `limit` messages with ids from `from` on, in order of id: do they have their keys?
    ///
    /// # Errors
    /// As for any read.
    fn patrol(&self, from: QueueId, limit: usize, deadlines: &Deadlines<'_>)
    -> Result<Patrolled, SpoolError>;

    /// Looks at no more than `limit` due keys after `after`: has each of them its recipient?
    ///
    /// # Errors
    /// As for any read.
    fn strays(&self, after: Option<&DueKey>, limit: usize) -> Result<Strays, SpoolError>;

    /// The content of a message that lies in the database ([`crate::mail::envelope::ContentPlace::Database`]).
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when a chunk is missing or fails its checksum.
    fn content(&self, id: QueueId) -> Result<Bytes, SpoolError>;

    /// What is remembered of a destination.
    fn destination(&self, destination: &Domain) -> Result<Option<DestinationRecord>, SpoolError>;

    /// The destinations that have a record, after `after`, at most `limit`.
    fn destinations(
        &self,
        after: Option<&Domain>,
        limit: usize,
    ) -> Result<Vec<(Domain, DestinationRecord)>, SpoolError>;

    /// The destinations that due keys name, after `after`, at most `limit`, and how much waits for each. Keys only are read, at most
    /// [`COUNTED_MAX`] for each destination.
    ///
    /// # Errors
    /// As for any read.
    fn queued(&self, after: Option<&Domain>, limit: usize) -> Result<Vec<(Domain, Waiting)>, SpoolError>;

    /// Up to `limit` messages in quarantine with ids above `after`, and why they are there.
    ///
    /// # Errors
    /// As for any read; a spool that knows no quarantine has none.
    fn quarantined(
        &self,
        _after: Option<QueueId>,
        _limit: usize,
    ) -> Result<Vec<(QueueId, String)>, SpoolError> {
        Ok(Vec::new())
    }

    /// One message in quarantine; `None` when it is not there.
    ///
    /// # Errors
    /// As for any read; what can't be read of the message itself is told in the answer.
    fn in_quarantine(&self, _id: QueueId) -> Result<Option<Quarantined>, SpoolError> {
        Ok(None)
    }

    /// Whether any record of the message is here, quarantine included: its content file must stay.
    ///
    /// # Errors
    /// As for any read.
    fn holds(&self, _id: QueueId) -> Result<bool, SpoolError> {
        Ok(true)
    }

    /// The migration that is under way; [`Op::Migrate`] goes on with it.
    ///
    /// # Errors
    /// As for any read.
    fn migration(&self) -> Result<Option<Migration>, SpoolError> {
        Ok(None)
    }

    /// The counters as of the last commit.
    fn counters(&self) -> Result<Counters, SpoolError>;

    /// What could not be read of the database itself since it was opened, and what to do: more than a record that is damaged.
    fn damage(&self) -> Option<String> {
        None
    }

    /// How many times data was synced to the device since the start (file syncs included).
    fn syncs(&self) -> u64;

    /// What was read of it since it was opened; nothing where that is not counted.
    fn reads(&self) -> Reads {
        Reads::default()
    }

    /// Writes the database anew without the room that removed records left in it, unless there are more than `most` bytes
    /// of keys and values. Reads and commits wait meanwhile. `None` when it stays as it is.
    ///
    /// # Errors
    /// It may be closed for good then, and the next commit says so.
    fn compact(&self, _most: u64) -> Result<Option<Compacted>, SpoolError> {
        Ok(None)
    }

    /// The last commit is done: does what makes the next start short. May take some seconds. Everything is on disk
    /// without it.
    fn settle(&self) {}
}
