//! What the relay writes in front of a message: `Received:` (RFC 5321 section 4.4) and, when the submitting client left
//! them out, `Date:` and `Message-ID:` (RFC 6409 section 8). Nothing that the client sent is changed.
//!
//! The prefix ends so that the whole stays well-formed, whatever the content begins with:
//!
//! | content begins with | the prefix ends with |
//! |---|---|
//! | a header field, or the empty line that ends an empty header | its last field |
//! | a `From ` line of a mailbox file | `X-Mailbox-Line: `, which makes a field of that line |
//! | anything else, or nothing at all | an empty line: all of the content is body |

use std::fmt::Write;
use std::net::IpAddr;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::envelope::{Envelope, Origin};

/// Longest HELO name that `Received:` repeats, in octets (RFC 5321 section 4.5.3.1.2).
const HELO_MAX: usize = 255;

/// What the header section of a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadersPresent {
    /// There is a `Date:` field.
    pub date: bool,
    /// There is a `Message-ID:` field.
    pub message_id: bool,
    /// How many `Received:` fields there are; more than 50 are a loop.
    pub received_count: usize,
    /// What the content begins with.
    pub beginning: Beginning,
    /// The end of the header section was seen: an empty line, or a line that is no field.
    pub ended: bool,
}

impl HeadersPresent {
    /// For a scan of no more than the start of the content: when the header goes on behind it, `Date:` and
    /// `Message-ID:` count as present, since a message without them is better than one that has them twice.
    #[must_use]
    pub fn of_cut_head(self) -> Self {
        Self { date: self.date || !self.ended, message_id: self.message_id || !self.ended, ..self }
    }
}

/// What content begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// A header field, or the empty line behind no fields at all.
    Header,
    /// A `From ` line, as mailbox files have them in front of each message.
    MailboxLine,
    /// Something that is no header, or nothing.
    Body,
}

/// Reads the header section at the start of `head`: the content, or as much of it as is at hand.
///
/// Stops at the first empty line and at the first line that is neither a field nor the continuation of one; readers
/// take what follows for the body.
pub fn scan_headers(head: &[u8]) -> HeadersPresent {
    let beginning = beginning(head);
    let mut found =
        HeadersPresent { date: false, message_id: false, received_count: 0, beginning, ended: false };
    let mut rest = match beginning {
        Beginning::Body => {
            found.ended = true;
            return found;
        }
        Beginning::MailboxLine => split_line(head).1,
        Beginning::Header => head,
    };
    while !rest.is_empty() {
        let (line, behind) = split_line(rest);
        let cut = behind.is_empty() && !rest.ends_with(b"\n");
        rest = behind;
        match line.first() {
            Some(b' ' | b'\t') => continue,
            Some(b'd' | b'D') => found.date |= is_field(line, b"date"),
            Some(b'm' | b'M') => found.message_id |= is_field(line, b"message-id"),
            Some(b'r' | b'R') => found.received_count += usize::from(is_field(line, b"received")),
            _ => {}
        }
        if field_name(line).is_none() {
            found.ended = !cut;
            break;
        }
    }
    found
}

fn beginning(head: &[u8]) -> Beginning {
    let (line, _) = split_line(head);
    if head.is_empty() {
        Beginning::Body
    } else if line.is_empty() || field_name(line).is_some() {
        Beginning::Header
    } else if line.starts_with(b"From ") || line.starts_with(b">From ") {
        Beginning::MailboxLine
    } else {
        Beginning::Body
    }
}

/// The first line without its CRLF, and what follows it.
fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'\n', text) {
        Some(end) => (text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]), &text[end + 1..]),
        None => (text, &[]),
    }
}

/// The name of a field line (RFC 5322 section 2.2), which may have blanks before its colon (section 4.5).
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', line)?;
    let name = line[..colon].trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(name)
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    field_name(line).is_some_and(|found| found.eq_ignore_ascii_case(name))
}

/// The bytes to put in front of a message's content; empty for a report of the relay itself, which comes complete.
///
/// `hostname` is the relay's own name or address literal. The date is that of the message's arrival.
pub fn prefix(envelope: &Envelope, hostname: &str, present: HeadersPresent) -> Bytes {
    if envelope.origin == Origin::Report {
        return Bytes::new();
    }
    let date = rfc5322_date(envelope.arrived_ms);
    let mut text = String::with_capacity(512);
    // Writing to a String can't fail.
    let _ = write_received(&mut text, envelope, hostname, &date);
    if !present.message_id {
        let _ = write!(text, "Message-ID: <{}@{hostname}>\r\n", envelope.id);
    }
    if !present.date {
        let _ = write!(text, "Date: {date}\r\n");
    }
    text.push_str(match present.beginning {
        Beginning::Header => "",
        Beginning::MailboxLine => "X-Mailbox-Line: ",
        Beginning::Body => "\r\n",
    });
    Bytes::from(text)
}

/// The `Received:` field with its CRLF (RFC 5321 section 4.4). `FOR` is given for a single recipient only: with more it
/// would tell each of the others.
pub fn received_line(envelope: &Envelope, hostname: &str) -> String {
    let mut text = String::with_capacity(384);
    // Writing to a String can't fail.
    let _ = write_received(&mut text, envelope, hostname, &rfc5322_date(envelope.arrived_ms));
    text
}

fn write_received(out: &mut String, envelope: &Envelope, hostname: &str, date: &str) -> std::fmt::Result {
    match &envelope.origin {
        Origin::Smtp { peer, helo, extended } => {
            // A dual-stack socket shows IPv4 peers as mapped addresses.
            let literal = AddressLiteral(peer.ip().to_canonical());
            out.push_str("Received: from ");
            if is_plain(helo) {
                out.push_str(helo)
            } else {
                write!(out, "{literal}")?
            }
            let with = if *extended { "ESMTP" } else { "SMTP" };
            write!(out, " ({literal})\r\n\tby {hostname} with {with} id {}", envelope.id)?;
        }
        Origin::Embedded | Origin::Report => write!(out, "Received: by {hostname} id {}", envelope.id)?,
    }
    if let [only] = envelope.recipients.as_slice() {
        write!(out, "\r\n\tfor {}", only.path)?;
    }
    write!(out, ";\r\n\t{date}\r\n")
}

/// Whether a HELO name can stand in `Received:` as it is: a name or an address literal, and nothing that a comment, a
/// folded line or a forged field could be made of.
fn is_plain(helo: &str) -> bool {
    (1..=HELO_MAX).contains(&helo.len())
        && helo.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}

/// RFC 5321 section 4.1.3.
struct AddressLiteral(IpAddr);

impl std::fmt::Display for AddressLiteral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "[{v4}]"),
            IpAddr::V6(v6) => write!(f, "[IPv6:{v6}]"),
        }
    }
}

/// A time (milliseconds since the Unix epoch) as header fields write it, in UTC: `Fri, 20 Nov 2026 14:01:33 +0000`
/// (RFC 5322 section 3.3). What lies beyond the year 9999 is written as its end.
pub fn rfc5322_date(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let time = time.unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC);
    jiff::fmt::rfc2822::to_string(&time).unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::envelope::{BodyType, ContentPlace, Recipient};
    use crate::mail::id::QueueId;
    use crate::smtp::address::{ForwardPath, ReversePath};

    const ARRIVED_MS: u64 = 1_795_183_293_456;

    fn envelope(origin: Origin, recipients: &[&str]) -> Envelope {
        let recipient = |text: &&str| {
            let path = ForwardPath::parse(text, "relay.example").expect("good");
            Recipient { destination: path.domain().clone(), path }
        };
        Envelope {
            id: QueueId::from_bytes([0x5a; 16]),
            reverse_path: ReversePath::parse("ann@sender.example").expect("good"),
            body: BodyType::SevenBit,
            arrived_ms: ARRIVED_MS,
            origin,
            size: 0,
            place: ContentPlace::Database,
            recipients: recipients.iter().map(recipient).collect(),
        }
    }

    fn smtp(peer: &str, helo: &str, extended: bool) -> Origin {
        Origin::Smtp { peer: peer.parse().expect("good"), helo: helo.to_owned(), extended }
    }

    fn prefixed(content: &str) -> String {
        let envelope = envelope(smtp("192.0.2.1:40000", "client.example", true), &["joe@example.org"]);
        let prefix = prefix(&envelope, "relay.example", scan_headers(content.as_bytes()));
        String::from_utf8(prefix.to_vec()).expect("ASCII") + content
    }

    #[test]
    fn the_date_is_written_in_utc() {
        for (unix_ms, expected) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
            (ARRIVED_MS, "Fri, 20 Nov 2026 14:01:33 +0000"),
            (951_782_400_999, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (u64::MAX, "Thu, 30 Dec 9999 22:00:00 +0000"),
        ] {
            assert_eq!(rfc5322_date(unix_ms), expected);
        }
    }

    #[test]
    fn received_names_client_relay_id_and_a_single_recipient() {
        let id = "5a".repeat(16);
        let date = "Fri, 20 Nov 2026 14:01:33 +0000";
        for (origin, recipients, expected) in [
            (
                smtp("192.0.2.1:40000", "client.example", true),
                &["joe@example.org"][..],
                format!(
                    "from client.example ([192.0.2.1])\r\n\tby relay.example with ESMTP id {id}\r\n\
                     \tfor <joe@example.org>;"
                ),
            ),
            (
                smtp("[::1]:40000", "[IPv6:::1]", false),
                &["joe@example.org", "ann@example.org"],
                format!("from [IPv6:::1] ([IPv6:::1])\r\n\tby relay.example with SMTP id {id};"),
            ),
            (
                smtp("[::ffff:192.0.2.1]:9", "evil)\r\nX-Forged: 1", true),
                &["a@b.example", "c@b.example"],
                format!("from [192.0.2.1] ([192.0.2.1])\r\n\tby relay.example with ESMTP id {id};"),
            ),
            (
                Origin::Embedded,
                &["joe@example.org"],
                format!("by relay.example id {id}\r\n\tfor <joe@example.org>;"),
            ),
        ] {
            let received = received_line(&envelope(origin, recipients), "relay.example");
            assert_eq!(received, format!("Received: {expected}\r\n\t{date}\r\n"));
        }
    }

    #[test]
    fn headers_are_found_whatever_their_case_and_only_in_the_header() {
        for (head, date, message_id, received_count, ended) in [
            ("Date: x\r\nMessage-ID: y\r\n\r\n", true, true, 0, true),
            ("dAtE:x\r\nMESSAGE-id :y\r\n\r\n", true, true, 0, true),
            ("Subject: x\r\n\r\nDate: x\r\nMessage-ID: y\r\n", false, false, 0, true),
            ("Subject: x\r\n Date: x\r\n\tMessage-ID: y\r\n\r\n", false, false, 0, true),
            ("Received: a\r\n\tb\r\nReceived: c\r\nreceived:d\r\nSubject: e\r\n\r\n", false, false, 3, true),
            ("Dates: x\r\nResent-Date: x\r\nX-Message-ID: y\r\n\r\n", false, false, 0, true),
            ("Subject: x\r\nno field\r\nDate: x\r\n\r\n", false, false, 0, true),
            ("Subject: x\r\nDate: x", true, false, 0, false),
            ("Subject: x\r\n", false, false, 0, false),
            ("From joe Fri Nov 20 14:01:33 2026\r\nDate: x\r\n\r\n", true, false, 0, true),
            ("\r\nDate: x\r\n", false, false, 0, true),
            ("hello\r\nDate: x\r\n", false, false, 0, true),
            ("", false, false, 0, true),
        ] {
            let found = scan_headers(head.as_bytes());
            let facts = (found.date, found.message_id, found.received_count, found.ended);
            assert_eq!(facts, (date, message_id, received_count, ended), "{head:?}");
        }
    }

    #[test]
    fn nothing_is_added_to_a_header_whose_end_was_not_seen() {
        let cut = scan_headers(b"Subject: x\r\nReceived: y\r\nMess").of_cut_head();
        assert!(cut.date && cut.message_id);
        let whole = scan_headers(b"Subject: x\r\n\r\nhello").of_cut_head();
        assert!(!whole.date && !whole.message_id);
    }

    #[test]
    fn what_the_client_gave_is_not_given_again() {
        let whole = prefixed("Date: x\r\nMessage-ID: <y>\r\n\r\nhello\r\n");
        assert_eq!((whole.matches("Date:").count(), whole.matches("Message-ID:").count()), (1, 1));
        assert!(
            whole.starts_with("Received: ")
                && whole.ends_with("+0000\r\nDate: x\r\nMessage-ID: <y>\r\n\r\nhello\r\n")
        );
    }

    #[test]
    fn a_message_stays_well_formed_whatever_it_begins_with() {
        for (content, subject, body) in [
            ("Subject: s\r\n\r\nhello\r\n", Some("s"), "hello\r\n"),
            ("Subject: s\r\n", Some("s"), ""),
            ("\r\nhello\r\n", None, "hello\r\n"),
            ("hello: a field\r\n\r\nbody\r\n", None, "body\r\n"),
            ("hello\r\nworld\r\n", None, "hello\r\nworld\r\n"),
            ("  folded nothing\r\nhello\r\n", None, "  folded nothing\r\nhello\r\n"),
            ("two words: x\r\nhello\r\n", None, "two words: x\r\nhello\r\n"),
            ("From joe Fri Nov 20 14:01:33 2026\r\nSubject: s\r\n\r\nhello\r\n", Some("s"), "hello\r\n"),
            ("", None, ""),
        ] {
            let whole = prefixed(content);
            let read = mail_parser::MessageParser::default().parse(whole.as_bytes()).expect("a message");
            assert_eq!(read.subject(), subject, "{content:?}");
            assert_eq!(read.body_text(0).unwrap_or_default().as_ref(), body, "{content:?}");
            let id = format!("{}@relay.example", "5a".repeat(16));
            assert_eq!(read.message_id(), Some(id.as_str()), "{content:?}");
            assert_eq!(read.date().map(|date| date.to_timestamp()), Some(ARRIVED_MS as i64 / 1000));
            assert!(read.received().is_some(), "{content:?}");
        }
    }

    #[test]
    fn a_report_of_the_relay_gets_no_prefix() {
        let report = envelope(Origin::Report, &["ann@sender.example"]);
        assert!(prefix(&report, "relay.example", scan_headers(b"Subject: s\r\n\r\n")).is_empty());
    }
}
