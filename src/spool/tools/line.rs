//! The lines of an export: JSON, one line each for the header, a destination, a message, what is in quarantine, the end.
//!
//! A field that is added later gets a default here, so that older exports are still read. A field that is not known is
//! an error: leaving it out could change what happens to the mail.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::mail::envelope::{
    BodyType, ContentPlace, Envelope, LastReply, Origin, Recipient, RecipientState, Status, StoredMessage,
};
use crate::mail::id::QueueId;
use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::{Domain, ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply::{EnhancedStatus, Reply, ReplyCode};
use crate::spool::{DestinationRecord, UNTIL_RESUMED};

/// What the first line says that the file is.
pub(super) const KIND: &str = "posthaste spool export";
/// The version of these lines.
pub(super) const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub kind: String,
    pub version: u32,
    /// The version of the program that wrote it.
    pub writer: String,
}

/// Every other line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Line<'a> {
    Destination(DestinationLine),
    #[serde(borrow)]
    Message(MessageLine<'a>),
    #[serde(borrow)]
    Quarantine(QuarantineLine<'a>),
    End(EndLine),
}

/// A destination's back-off.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DestinationLine {
    destination: String,
    failures: u32,
    retry_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastLine>,
    /// `null`: until an operator resumes it; 0: it is not suspended.
    #[serde(default, serialize_with = "write_end", deserialize_with = "read_end")]
    suspended_until_ms: u64,
}

/// A queued message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageLine<'a> {
    id: String,
    /// Empty is the null path.
    reverse_path: String,
    body: BodyWord,
    arrived_ms: u64,
    origin: OriginLine,
    size: u64,
    recipients: Vec<RecipientLine>,
    /// Base64. The last field: the writer puts it in piece by piece.
    #[serde(borrow)]
    pub content: Cow<'a, str>,
}

/// A message in quarantine, or one that belongs there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuarantineLine<'a> {
    pub id: String,
    pub reason: String,
    pub records: Vec<RecordLine>,
    /// Its content files. The last field: the writer puts them in piece by piece.
    #[serde(borrow)]
    pub files: Vec<FileLine<'a>>,
}

/// A record as it was found; both in base64.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordLine {
    key: String,
    value: String,
}

/// A content file, byte for byte: with the checksum behind its content, so that damage stays damage.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLine<'a> {
    pub name: String,
    /// Base64. The last field.
    #[serde(borrow)]
    pub content: Cow<'a, str>,
}

/// The last line: what stands before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndLine {
    pub destinations: u64,
    pub messages: u64,
    pub quarantined: u64,
}

impl EndLine {
    /// What is wrong with an export of these lines whose last line says `counted`, and what to do.
    pub fn unlike(&self, counted: &Self) -> Wrong {
        let told = |lines: &Self| {
            format!(
                "{}, {} in quarantine and {}",
                count(lines.messages, "message"),
                lines.quarantined,
                count(lines.destinations, "destination")
            )
        };
        let pairs = [
            (self.messages, counted.messages),
            (self.quarantined, counted.quarantined),
            (self.destinations, counted.destinations),
        ];
        let fewer = pairs.iter().any(|(is, was)| is < was);
        let (what, remedy) = match (fewer, pairs.iter().any(|(is, was)| is > was)) {
            (true, true) => ("other lines", "get it as it was written"),
            (true, false) => ("fewer lines", "get the whole of it"),
            (false, _) => ("more lines", "take out what was added (a line that is there twice does no harm)"),
        };
        format!(
            "the last line of the export counts {}, but here are {what}: {}; {remedy}, or if that is as you want it, import \
             again with --partial",
            told(counted),
            told(self)
        )
    }
}

fn count(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

#[derive(Debug, Serialize, Deserialize)]
enum BodyWord {
    #[serde(rename = "7BIT")]
    SevenBit,
    #[serde(rename = "8BITMIME")]
    EightBitMime,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OriginLine {
    Smtp { peer: String, helo: String, extended: bool },
    Embedded,
    Report,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipientLine {
    path: String,
    destination: String,
    status: String,
    attempts: u32,
    due_ms: u64,
    #[serde(default)]
    delay_notified: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastLine>,
    #[serde(default)]
    held: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastLine {
    at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    class: String,
    status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<ReplyLine>,
    #[serde(default)]
    text: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyLine {
    code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enhanced: Option<String>,
    text: String,
}

/// No time is later: the end of the year 9999, the last one that dates are written for.
const TIME_MAX: u64 = 253_402_300_799_999;

/// The end of a suspension. Not as the number that stands for "until it is resumed": most programs that read JSON round it.
fn write_end<S: Serializer>(until_ms: &u64, to: S) -> Result<S::Ok, S::Error> {
    Some(*until_ms).filter(|until| *until != UNTIL_RESUMED).serialize(to)
}

/// Takes that number too, rounded or not: earlier exports have it.
fn read_end<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(UNTIL_RESUMED) };
    match (number.as_u64(), number.as_f64()) {
        (Some(until_ms), _) => Ok(until_ms),
        (None, Some(rounded)) if rounded >= UNTIL_RESUMED as f64 => Ok(UNTIL_RESUMED),
        _ => Err(serde::de::Error::custom(format!("{number} is no time in milliseconds"))),
    }
}

/// A time (ms) that can be one.
fn time(name: &str, at_ms: u64) -> Result<u64, Wrong> {
    if at_ms <= TIME_MAX {
        return Ok(at_ms);
    }
    Err(format!(
        "its {name} is {at_ms}; a time is milliseconds since 1970, and {TIME_MAX} (the year 9999) at most"
    ))
}

/// What is wrong with a line, in words that follow "line 7: ".
pub(super) type Wrong = String;

fn not<T>(name: &str, text: &str) -> impl FnOnce(T) -> Wrong {
    let told = format!("{text:?} is not a valid {name}");
    move |_| told
}

impl DestinationLine {
    pub fn of(destination: &Domain, record: &DestinationRecord) -> Self {
        Self {
            destination: destination.as_str().to_owned(),
            failures: record.failures,
            retry_at_ms: record.retry_at_ms,
            last: record.last.as_ref().map(LastLine::of),
            suspended_until_ms: record.suspended_until_ms,
        }
    }

    pub fn parse(self) -> Result<(Domain, DestinationRecord), Wrong> {
        let record = DestinationRecord {
            failures: self.failures,
            retry_at_ms: time("retry_at_ms", self.retry_at_ms)?,
            last: self.last.map(LastLine::parse).transpose()?,
            suspended_until_ms: match self.suspended_until_ms {
                UNTIL_RESUMED => UNTIL_RESUMED,
                until_ms => time("suspended_until_ms", until_ms)?,
            },
        };
        Ok((domain(&self.destination)?, record))
    }
}

impl MessageLine<'_> {
    /// The message, with nothing as content.
    pub fn of(stored: &StoredMessage) -> Self {
        let envelope = &stored.envelope;
        Self {
            id: envelope.id.to_string(),
            reverse_path: envelope.reverse_path.as_str().to_owned(),
            body: match envelope.body {
                BodyType::SevenBit => BodyWord::SevenBit,
                BodyType::EightBitMime => BodyWord::EightBitMime,
            },
            arrived_ms: envelope.arrived_ms,
            origin: OriginLine::of(&envelope.origin),
            size: envelope.size,
            recipients: envelope
                .recipients
                .iter()
                .zip(&stored.states)
                .map(|(recipient, state)| RecipientLine::of(recipient, state))
                .collect(),
            content: Cow::Borrowed(""),
        }
    }

    pub fn id(&self) -> Result<QueueId, Wrong> {
        id(&self.id)
    }

    /// The envelope, as of a message whose content is in the database, and the states of its recipients.
    pub fn parse(self) -> Result<(Envelope, Vec<RecipientState>), Wrong> {
        let id = self.id()?;
        let count = self.recipients.len();
        if count == 0 || count > usize::from(u16::MAX) {
            return Err(format!("{count} recipients; a message has 1 to {}", u16::MAX));
        }
        let (mut recipients, mut states) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for line in self.recipients {
            let (recipient, state) = line.parse()?;
            recipients.push(recipient);
            states.push(state);
        }
        let envelope = Envelope {
            id,
            reverse_path: ReversePath::parse(&self.reverse_path)
                .map_err(not("reverse_path", &self.reverse_path))?,
            body: match self.body {
                BodyWord::SevenBit => BodyType::SevenBit,
                BodyWord::EightBitMime => BodyType::EightBitMime,
            },
            arrived_ms: time("arrived_ms", self.arrived_ms)?,
            origin: self.origin.parse()?,
            size: self.size,
            place: ContentPlace::Database,
            recipients,
        };
        Ok((envelope, states))
    }
}

impl OriginLine {
    fn of(origin: &Origin) -> Self {
        match origin {
            Origin::Smtp { peer, helo, extended } => {
                Self::Smtp { peer: peer.to_string(), helo: helo.clone(), extended: *extended }
            }
            Origin::Embedded => Self::Embedded,
            Origin::Report => Self::Report,
        }
    }

    fn parse(self) -> Result<Origin, Wrong> {
        Ok(match self {
            Self::Smtp { peer, helo, extended } => {
                Origin::Smtp { peer: peer.parse().map_err(not("peer", &peer))?, helo, extended }
            }
            Self::Embedded => Origin::Embedded,
            Self::Report => Origin::Report,
        })
    }
}

impl RecipientLine {
    fn of(recipient: &Recipient, state: &RecipientState) -> Self {
        Self {
            path: recipient.path.as_str().to_owned(),
            destination: recipient.destination.as_str().to_owned(),
            status: state.status.word().to_owned(),
            attempts: state.attempts,
            due_ms: state.due_ms,
            delay_notified: state.delay_notified,
            last: state.last.as_ref().map(LastLine::of),
            held: state.held,
        }
    }

    fn parse(self) -> Result<(Recipient, RecipientState), Wrong> {
        let all = [Status::Queued, Status::Delivered, Status::Bounced, Status::Expired, Status::Removed];
        let status = all.into_iter().find(|status| status.word() == self.status);
        let path = Mailbox::parse(&self.path).map_err(not("path", &self.path))?;
        let recipient = Recipient { path: ForwardPath::new(path), destination: domain(&self.destination)? };
        let state = RecipientState {
            status: status.ok_or(()).map_err(not("status", &self.status))?,
            attempts: self.attempts,
            due_ms: time("due_ms", self.due_ms)?,
            delay_notified: self.delay_notified,
            last: self.last.map(LastLine::parse).transpose()?,
            held: self.held,
        };
        Ok((recipient, state))
    }
}

impl LastLine {
    fn of(last: &LastReply) -> Self {
        Self {
            at_ms: last.at_ms,
            host: last.host.clone(),
            class: last.cause.class.word().to_owned(),
            status: last.cause.status.to_string(),
            reply: last.cause.reply.as_ref().map(|reply| ReplyLine {
                code: reply.code.get(),
                enhanced: reply.enhanced.map(|status| status.to_string()),
                text: reply.text.clone(),
            }),
            text: last.cause.text.clone(),
        }
    }

    fn parse(self) -> Result<LastReply, Wrong> {
        let class = CauseClass::from_word(&self.class).ok_or(()).map_err(not("class", &self.class))?;
        let reply = self.reply.map(ReplyLine::parse).transpose()?;
        let cause = Cause { class, status: status(&self.status)?, reply, text: self.text };
        Ok(LastReply { at_ms: time("at_ms", self.at_ms)?, host: self.host, cause })
    }
}

impl ReplyLine {
    fn parse(self) -> Result<Reply, Wrong> {
        let code = ReplyCode::new(self.code).ok_or(());
        Ok(Reply {
            code: code.map_err(not("reply code", &self.code.to_string()))?,
            enhanced: self.enhanced.map(|text| status(&text)).transpose()?,
            text: self.text,
        })
    }
}

impl RecordLine {
    pub fn of(key: &[u8], value: &[u8]) -> Self {
        Self { key: STANDARD.encode(key), value: STANDARD.encode(value) }
    }

    pub fn parse(&self) -> Result<(Vec<u8>, Vec<u8>), Wrong> {
        Ok((bytes(&self.key)?, bytes(&self.value)?))
    }
}

pub(super) fn id(text: &str) -> Result<QueueId, Wrong> {
    text.parse().map_err(not("queue id", text))
}

/// The bytes of a text in base64.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>, Wrong> {
    STANDARD.decode(text).map_err(|error| format!("its base64 does not decode: {error}"))
}

fn domain(text: &str) -> Result<Domain, Wrong> {
    Domain::parse(text).map_err(not("destination", text))
}

fn status(text: &str) -> Result<EnhancedStatus, Wrong> {
    EnhancedStatus::parse(text).ok_or(()).map_err(not("enhanced status", text))
}
