//! The payloads as this program writes them. Frozen: a change is a new format and a step in `migrations/`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::super as spool;
use super::{Unreadable, cut};
use crate::mail::envelope as mail;
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply;

#[derive(Serialize, Deserialize)]
pub(super) struct Envelope<'a> {
    /// Empty is the null path.
    reverse_path: &'a str,
    /// 0 is 7BIT, 1 is 8BITMIME.
    body: u8,
    arrived_ms: u64,
    #[serde(borrow)]
    origin: Origin<'a>,
    size: u64,
    /// The name of the content file; empty when the content is in the tree.
    file: &'a str,
    recipients: Vec<Recipient<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Origin<'a> {
    /// 0 is SMTP, 1 the embedding program, 2 the relay itself; of the last two the rest is empty.
    from: u8,
    #[serde(borrow)]
    peer: Cow<'a, str>,
    helo: &'a str,
    extended: bool,
}

#[derive(Serialize, Deserialize)]
struct Recipient<'a> {
    path: &'a str,
    /// Empty when it is the path's own domain.
    destination: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(super) struct State<'a> {
    /// 0 queued, 1 delivered, 2 bounced, 3 expired, 4 removed.
    status: u8,
    attempts: u32,
    due_ms: u64,
    delay_notified: bool,
    #[serde(borrow)]
    last: Option<LastReply<'a>>,
    held: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Destination<'a> {
    failures: u32,
    retry_at_ms: u64,
    #[serde(borrow)]
    last: Option<LastReply<'a>>,
    /// 0: it is not suspended.
    suspended_until_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct LastReply<'a> {
    at_ms: u64,
    host: Option<&'a str>,
    /// As `class_number` has it.
    class: u8,
    status: [u16; 3],
    #[serde(borrow)]
    reply: Option<Reply<'a>>,
    text: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Reply<'a> {
    code: u16,
    enhanced: Option<[u16; 3]>,
    text: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Counters {
    messages: u64,
    recipients: u64,
    bytes: u64,
    quarantined: u64,
    tree_bytes: u64,
    unindexed_from: Option<[u8; 16]>,
    held: u64,
}

impl<'a> Envelope<'a> {
    pub fn of(envelope: &'a mail::Envelope) -> Self {
        Self {
            reverse_path: envelope.reverse_path.as_str(),
            body: match envelope.body {
                mail::BodyType::SevenBit => 0,
                mail::BodyType::EightBitMime => 1,
            },
            arrived_ms: envelope.arrived_ms,
            origin: Origin::of(&envelope.origin),
            size: envelope.size,
            file: match &envelope.place {
                mail::ContentPlace::Database => "",
                mail::ContentPlace::File(name) => name,
            },
            recipients: envelope.recipients.iter().map(Recipient::of).collect(),
        }
    }

    pub fn parse(self, id: QueueId) -> Result<mail::Envelope, Unreadable> {
        Ok(mail::Envelope {
            id,
            reverse_path: ReversePath::parse(self.reverse_path)
                .map_err(|_| Unreadable::Field("reverse-path"))?,
            body: match self.body {
                0 => mail::BodyType::SevenBit,
                1 => mail::BodyType::EightBitMime,
                _ => return Err(Unreadable::Field("body type")),
            },
            arrived_ms: self.arrived_ms,
            origin: self.origin.parse()?,
            size: self.size,
            place: match self.file {
                "" => mail::ContentPlace::Database,
                name => mail::ContentPlace::File(name.to_owned()),
            },
            recipients: self.recipients.into_iter().map(Recipient::parse).collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> Origin<'a> {
    fn of(origin: &'a mail::Origin) -> Self {
        let own = |from| Self { from, peer: "".into(), helo: "", extended: false };
        match origin {
            mail::Origin::Smtp { peer, helo, extended } => {
                Self { from: 0, peer: peer.to_string().into(), helo: cut(helo), extended: *extended }
            }
            mail::Origin::Embedded => own(1),
            mail::Origin::Report => own(2),
        }
    }

    fn parse(self) -> Result<mail::Origin, Unreadable> {
        match self.from {
            0 => Ok(mail::Origin::Smtp {
                peer: self.peer.parse().map_err(|_| Unreadable::Field("peer address"))?,
                helo: self.helo.to_owned(),
                extended: self.extended,
            }),
            1 => Ok(mail::Origin::Embedded),
            2 => Ok(mail::Origin::Report),
            _ => Err(Unreadable::Field("origin")),
        }
    }
}

impl<'a> Recipient<'a> {
    fn of(recipient: &'a mail::Recipient) -> Self {
        let own = recipient.destination == *recipient.path.domain();
        Self {
            path: recipient.path.as_str(),
            destination: if own { "" } else { recipient.destination.as_str() },
        }
    }

    fn parse(self) -> Result<mail::Recipient, Unreadable> {
        let path = Mailbox::parse(self.path).map_err(|_| Unreadable::Field("forward-path"))?;
        let destination = match self.destination {
            "" => path.domain().clone(),
            name => Domain::parse(name).map_err(|_| Unreadable::Field("destination"))?,
        };
        Ok(mail::Recipient { path: ForwardPath::new(path), destination })
    }
}

impl<'a> State<'a> {
    pub fn of(state: &'a mail::RecipientState) -> Self {
        Self {
            status: match state.status {
                mail::Status::Queued => 0,
                mail::Status::Delivered => 1,
                mail::Status::Bounced => 2,
                mail::Status::Expired => 3,
                mail::Status::Removed => 4,
            },
            attempts: state.attempts,
            due_ms: state.due_ms,
            delay_notified: state.delay_notified,
            last: state.last.as_ref().map(LastReply::of),
            held: state.held,
        }
    }

    pub fn parse(self) -> Result<mail::RecipientState, Unreadable> {
        Ok(mail::RecipientState {
            status: match self.status {
                0 => mail::Status::Queued,
                1 => mail::Status::Delivered,
                2 => mail::Status::Bounced,
                3 => mail::Status::Expired,
                4 => mail::Status::Removed,
                _ => return Err(Unreadable::Field("status")),
            },
            attempts: self.attempts,
            due_ms: self.due_ms,
            delay_notified: self.delay_notified,
            last: self.last.map(LastReply::parse).transpose()?,
            held: self.held,
        })
    }
}

impl<'a> Destination<'a> {
    pub fn of(record: &'a spool::DestinationRecord) -> Self {
        Self {
            failures: record.failures,
            retry_at_ms: record.retry_at_ms,
            last: record.last.as_ref().map(LastReply::of),
            suspended_until_ms: record.suspended_until_ms,
        }
    }

    pub fn parse(self) -> Result<spool::DestinationRecord, Unreadable> {
        Ok(spool::DestinationRecord {
            failures: self.failures,
            retry_at_ms: self.retry_at_ms,
            last: self.last.map(LastReply::parse).transpose()?,
            suspended_until_ms: self.suspended_until_ms,
        })
    }
}

impl<'a> LastReply<'a> {
    fn of(last: &'a mail::LastReply) -> Self {
        Self {
            at_ms: last.at_ms,
            host: last.host.as_deref().map(cut),
            class: class_number(last.cause.class),
            status: status_numbers(last.cause.status),
            reply: last.cause.reply.as_ref().map(|reply| Reply {
                code: reply.code.get(),
                enhanced: reply.enhanced.map(status_numbers),
                text: cut(&reply.text),
            }),
            text: cut(&last.cause.text),
        }
    }

    fn parse(self) -> Result<mail::LastReply, Unreadable> {
        let class = CauseClass::ALL.into_iter().find(|class| class_number(*class) == self.class);
        Ok(mail::LastReply {
            at_ms: self.at_ms,
            host: self.host.map(str::to_owned),
            cause: Cause {
                class: class.ok_or(Unreadable::Field("class of trouble"))?,
                status: read_status(self.status)?,
                reply: self.reply.map(Reply::parse).transpose()?,
                text: self.text.to_owned(),
            },
        })
    }
}

impl Reply<'_> {
    fn parse(self) -> Result<reply::Reply, Unreadable> {
        Ok(reply::Reply {
            code: reply::ReplyCode::new(self.code).ok_or(Unreadable::Field("reply code"))?,
            enhanced: self.enhanced.map(read_status).transpose()?,
            text: self.text.to_owned(),
        })
    }
}

impl Counters {
    pub fn of(counters: &spool::Counters) -> Self {
        let spool::Counters { messages, recipients, bytes, quarantined, tree_bytes, unindexed_from, held } =
            *counters;
        Self {
            messages,
            recipients,
            bytes,
            quarantined,
            tree_bytes,
            unindexed_from: unindexed_from.map(|id| *id.as_bytes()),
            held,
        }
    }
}

impl From<Counters> for spool::Counters {
    fn from(counters: Counters) -> Self {
        let Counters { messages, recipients, bytes, quarantined, tree_bytes, unindexed_from, held } =
            counters;
        Self {
            messages,
            recipients,
            bytes,
            quarantined,
            tree_bytes,
            unindexed_from: unindexed_from.map(QueueId::from_bytes),
            held,
        }
    }
}

fn status_numbers(status: reply::EnhancedStatus) -> [u16; 3] {
    [status.class.into(), status.subject, status.detail]
}

fn read_status([class, subject, detail]: [u16; 3]) -> Result<reply::EnhancedStatus, Unreadable> {
    match class {
        2 | 4 | 5 if subject <= 999 && detail <= 999 => {
            Ok(reply::EnhancedStatus::new(u8::try_from(class).unwrap_or(5), subject, detail))
        }
        _ => Err(Unreadable::Field("enhanced status")),
    }
}

fn class_number(class: CauseClass) -> u8 {
    match class {
        CauseClass::Accepted => 0,
        CauseClass::Reply4xx => 1,
        CauseClass::Reply5xx => 2,
        CauseClass::NoHost => 3,
        CauseClass::Dns => 4,
        CauseClass::Connect => 5,
        CauseClass::Timeout => 6,
        CauseClass::ConnectionLost => 7,
        CauseClass::Protocol => 8,
        CauseClass::Tls => 9,
        CauseClass::Auth => 10,
        CauseClass::Loop => 11,
        CauseClass::Expired => 12,
        CauseClass::Crashed => 13,
        CauseClass::Operator => 14,
        CauseClass::Local => 15,
    }
}
