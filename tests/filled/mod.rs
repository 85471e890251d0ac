//! Spools that are full before the relay starts: filled through the library, many times faster than over SMTP.
#![allow(dead_code, reason = "each user needs a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use posthaste::config::SpoolConfig;
use posthaste::mail::envelope::{
    BodyType, Content, ContentPlace, Envelope, LastReply, Origin, Recipient, RecipientState,
};
use posthaste::mail::id::QueueId;
use posthaste::mail::outcome::{Cause, CauseClass};
use posthaste::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use posthaste::smtp::reply::EnhancedStatus;
use posthaste::spool::sled::SledSpool;
use posthaste::spool::{Counters, DestinationRecord, DueKey, Op, Spool};

/// Messages of one commit: about 4 MiB of 4 KiB messages, as the Queue makes them under load.
const PER_COMMIT: u64 = 1_000;
const HOUR_MS: u64 = 3_600_000;

/// What a queue is made of: messages of one recipient each, spread evenly over the destinations.
#[derive(Clone, Copy, Debug)]
pub struct Mail {
    /// What the names of its destinations begin with.
    pub name: &'static str,
    /// How many.
    pub messages: u64,
    /// To how many destinations.
    pub destinations: u64,
    /// Content of each in bytes.
    pub size: usize,
    /// What it waits for.
    pub waits: Waits,
}

/// What queued mail waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Nothing: it was tried once and is overdue.
    Overdue,
    /// Its due time, hours from now: it was tried once.
    DueLater,
    /// Its destination, which backs off for hours: the first message to it was tried, the others not yet. By themselves
    /// all are due.
    BackOff,
    /// The same, but each message was tried once.
    BackOffTried,
}

/// Opens the spool in a folder as the program does by default, without a reserve.
pub fn open(folder: &Path) -> SledSpool {
    let config = SpoolConfig { path: folder.to_owned(), reserve: 0, ..SpoolConfig::default() };
    SledSpool::open(&config, uuid::Uuid::new_v4()).expect("the spool opens")
}

impl Mail {
    /// The domain of one of its destinations.
    pub fn destination(&self, number: u64) -> Domain {
        Domain::parse(&format!("{}{number}.dest.test", self.name)).expect("a domain")
    }
}

/// Adds mail to a spool.
pub fn fill(spool: &SledSpool, mail: &Mail) {
    let fill = Fill::new(mail);
    let mut counters = spool.counters().expect("counters");
    for first in (0..mail.destinations).step_by(1_000) {
        let numbers = first..mail.destinations.min(first + 1_000);
        let ops: Vec<Op> = numbers.flat_map(|number| fill.destination(number)).collect();
        spool.commit(&ops).expect("committed");
    }
    for first in (0..mail.messages).step_by(PER_COMMIT as usize) {
        let numbers = first..mail.messages.min(first + PER_COMMIT);
        count(&mut counters, numbers.end - numbers.start, mail.size);
        let mut ops: Vec<Op> = numbers.flat_map(|number| fill.message(number)).collect();
        ops.push(Op::Counters(counters));
        spool.commit(&ops).expect("committed");
    }
}

fn count(counters: &mut Counters, messages: u64, size: usize) {
    let bytes = messages * size as u64;
    counters.messages += messages;
    counters.recipients += messages;
    counters.bytes += bytes;
    counters.tree_bytes += bytes;
}

/// Ends the back-off of all destinations of mail that waits for it: all of it is due at once.
pub fn lift(spool: &SledSpool, mail: &Mail) {
    let now_ms = now_ms();
    let mut wakes = Vec::new();
    loop {
        let more = spool.wakes(wakes.last(), 10_000).expect("wake keys");
        if more.is_empty() {
            break;
        }
        wakes.extend(more);
    }
    let mut ops: Vec<Op> = wakes.into_iter().map(|(at_ms, domain)| Op::DeleteWake(at_ms, domain)).collect();
    for domain in (0..mail.destinations).map(|number| mail.destination(number)) {
        ops.push(Op::DeleteDestination(domain.clone()));
        ops.push(Op::PutWake(now_ms, domain));
    }
    spool.commit(&ops).expect("committed");
}

struct Fill {
    mail: Mail,
    now_ms: u64,
    content: Bytes,
    last: LastReply,
}

impl Fill {
    fn new(mail: &Mail) -> Self {
        let now_ms = now_ms();
        let mut content = b"Subject: one of many\r\n\r\n".to_vec();
        while content.len() + 64 <= mail.size {
            content.extend_from_slice(&[b'x'; 62]);
            content.extend_from_slice(b"\r\n");
        }
        content.resize(mail.size.saturating_sub(2), b'y');
        content.extend_from_slice(b"\r\n");
        let cause = Cause {
            class: CauseClass::Connect,
            status: EnhancedStatus::new(4, 4, 1),
            reply: None,
            text: "connection refused".to_owned(),
        };
        let host = Some("mx.dest.test[127.0.0.9]:25".to_owned());
        let last = LastReply { at_ms: now_ms - HOUR_MS, host, cause };
        Self { mail: *mail, now_ms, content: content.into(), last }
    }

    fn destination(&self, number: u64) -> Vec<Op> {
        let domain = self.mail.destination(number);
        match self.mail.waits {
            Waits::Overdue => vec![Op::PutWake(self.now_ms - HOUR_MS, domain)],
            Waits::DueLater => vec![Op::PutWake(self.now_ms + 20 * HOUR_MS, domain)],
            Waits::BackOff | Waits::BackOffTried => {
                let retry_at_ms = self.now_ms + 20 * HOUR_MS;
                let record = DestinationRecord {
                    failures: 5,
                    retry_at_ms,
                    last: Some(self.last.clone()),
                    suspended_until_ms: 0,
                };
                vec![Op::PutDestination(domain.clone(), record), Op::PutWake(retry_at_ms, domain)]
            }
        }
    }

    /// Arrived within the last hours, one after the other; tried once.
    fn message(&self, number: u64) -> Vec<Op> {
        let arrived_ms = self.now_ms - 3 * HOUR_MS + number * HOUR_MS / self.mail.messages;
        let mut random = [self.mail.name.as_bytes()[0]; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        let id = QueueId::from_parts(arrived_ms, &random);
        let destination = self.mail.destination(number % self.mail.destinations);
        let tried = self.mail.waits != Waits::BackOff || number < self.mail.destinations;
        let due_ms = match self.mail.waits {
            Waits::BackOff if !tried => arrived_ms,
            Waits::Overdue | Waits::BackOff | Waits::BackOffTried => arrived_ms + HOUR_MS,
            Waits::DueLater => arrived_ms + 24 * HOUR_MS,
        };
        let path = Mailbox::parse(&format!("recipient{number}@{destination}")).expect("an address");
        let envelope = Envelope {
            id,
            reverse_path: ReversePath::parse("sender@client.test").expect("an address"),
            body: BodyType::SevenBit,
            arrived_ms,
            origin: Origin::Smtp {
                peer: "127.0.0.1:40000".parse().expect("an address"),
                helo: "client.test".to_owned(),
                extended: true,
            },
            size: self.content.len() as u64,
            place: ContentPlace::Database,
            recipients: vec![Recipient { path: ForwardPath::new(path), destination: destination.clone() }],
        };
        let state = RecipientState {
            attempts: 1,
            due_ms,
            last: Some(self.last.clone()),
            ..RecipientState::fresh(arrived_ms)
        };
        let mut ops = vec![
            Op::PutMessage(Arc::new(envelope), Content::Memory(self.content.clone())),
            Op::PutDue(DueKey { destination, due_ms, id, number: 0 }),
            // When the sender is told of the delay by default; not before the run is over.
            Op::PutDeadline(arrived_ms + 4 * HOUR_MS, id),
        ];
        ops.extend(tried.then_some(Op::PutRecipient(id, 0, state)));
        ops
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_millis()).expect("a clock before the year 584556019")
}
