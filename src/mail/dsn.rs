//! Reports to the sender (DSNs): `multipart/report` of RFC 3462 with a `message/delivery-status` of RFC 3464.
//!
//! A report has three parts: words for people, the same for programs, and the header of the original message. It is
//! all 7-bit with CRLF line ends, whatever a remote host answered and whatever the original's header holds.

mod lines;

use std::fmt::Write;

use bytes::Bytes;

use self::lines::{Field, ascii, fold_words, header_part, header_section};
use super::envelope::{BodyType, ContentPlace, Envelope, Origin, Recipient};
use super::id::QueueId;
use super::outcome::Cause;
use super::trace::rfc5322_date;
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply::EnhancedStatus;

/// How much of the original's header a report repeats, in bytes; it is cut behind a whole line.
pub const HEADERS_MAX: usize = 32 << 10;

/// A report about recipients of one message: the facts.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The message that is reported on.
    pub envelope: &'a Envelope,
    /// The relay's name or address literal.
    pub reporting_mta: &'a str,
    /// What is reported.
    pub kind: ReportKind,
    /// The recipients it is about; at least one.
    pub recipients: &'a [ReportRecipient<'a>],
    /// The message's content, or the start of it: up to [`HEADERS_MAX`] bytes of its header section are repeated.
    pub headers: &'a [u8],
    /// When the report is made, wall time in milliseconds.
    pub now_ms: u64,
    /// The queue id of the report itself.
    pub id: QueueId,
}

/// What a report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReportKind {
    /// Refused for good.
    Failed,
    /// Given up after `retry.give_up_after`.
    Expired,
    /// Not yet delivered; attempts go on.
    Delayed,
}

impl ReportKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Expired, Self::Delayed];

    /// The word for labels and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Delayed => "delayed",
        }
    }
}

/// One recipient of a report.
#[derive(Clone, Copy, Debug)]
pub struct ReportRecipient<'a> {
    /// The address as the client gave it.
    pub path: &'a ForwardPath,
    /// Why it is not delivered.
    pub cause: &'a Cause,
    /// The host that answered or was tried, as `name[address]:port`.
    pub host: Option<&'a str>,
    /// When that was, wall time in milliseconds.
    pub at_ms: u64,
    /// For a delay: when the relay will give up, wall time in milliseconds.
    pub will_retry_until_ms: Option<u64>,
}

impl Report<'_> {
    /// The whole message, header included. `None` when the reverse-path is null: a report is never answered with one
    /// (RFC 5321 section 6.1).
    pub fn content(&self) -> Option<Bytes> {
        let ReversePath::Mailbox(sender) = &self.envelope.reverse_path else { return None };
        let human = self.human_part();
        let status = self.status_part();
        let (encoding, original) = header_part(header_section(self.headers, HEADERS_MAX));
        let boundary = self.boundary(&[&human, &status, &original]);

        let mut out = String::with_capacity(human.len() + status.len() + original.len() + 1536);
        // Writing to a String can't fail.
        let _ = self.write_header(&mut out, sender, &boundary);
        out.push_str("This is a report in MIME format (RFC 3464).\r\n");
        let _ = write!(out, "\r\n--{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{human}");
        let _ = write!(out, "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\n{status}");
        let _ =
            write!(out, "\r\n--{boundary}\r\nContent-Type: text/rfc822-headers\r\n{encoding}\r\n{original}");
        let _ = write!(out, "\r\n--{boundary}--\r\n");
        Some(Bytes::from(out))
    }

    /// The envelope that carries the report to the sender; `size` is the length of [`Report::content`]. `None` when the
    /// reverse-path is null.
    pub fn envelope(&self, size: u64) -> Option<Envelope> {
        let ReversePath::Mailbox(sender) = &self.envelope.reverse_path else { return None };
        let path = ForwardPath::new(sender.clone());
        Some(Envelope {
            id: self.id,
            reverse_path: ReversePath::Null,
            body: BodyType::SevenBit,
            arrived_ms: self.now_ms,
            origin: Origin::Report,
            size,
            place: ContentPlace::Database,
            recipients: vec![Recipient { destination: path.domain().clone(), path }],
        })
    }

    fn write_header(&self, out: &mut String, sender: &Mailbox, boundary: &str) -> std::fmt::Result {
        let mta = self.reporting_mta;
        write!(out, "From: Mail Delivery System <MAILER-DAEMON@{mta}>\r\n")?;
        write!(out, "To: <{sender}>\r\n")?;
        write!(out, "Subject: {}\r\n", self.kind.subject())?;
        write!(out, "Date: {}\r\n", rfc5322_date(self.now_ms))?;
        write!(out, "Message-ID: <{}@{mta}>\r\n", self.id)?;
        out.push_str("Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n");
        write!(
            out,
            "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\r\n"
        )
    }

    fn human_part(&self) -> String {
        let mut out = String::with_capacity(1024);
        fold_words(&mut out, "", &format!("This is the mail relay at {}.", self.reporting_mta));
        out.push_str("\r\n");
        for line in self.kind.explanation() {
            out.push_str(line);
            out.push_str("\r\n");
        }
        for recipient in self.recipients {
            let _ = write!(out, "\r\n{}:\r\n", recipient.path);
            let said = match (&recipient.cause.reply, recipient.host) {
                (Some(_), Some(host)) => format!("{host} said: {}", recipient.cause),
                (None, Some(host)) => format!("{} ({host})", recipient.cause),
                (_, None) => recipient.cause.to_string(),
            };
            fold_words(&mut out, "    ", &ascii(&said));
            if let Some(until_ms) = self.retries_until(recipient) {
                let _ = write!(out, "    The relay keeps trying until {}.\r\n", rfc5322_date(until_ms));
            }
        }
        let _ = write!(out, "\r\nThe queue id of your message was {}.\r\n", self.envelope.id);
        out
    }

    /// RFC 3464 section 2: the fields of the message, then a group of fields for each recipient.
    fn status_part(&self) -> String {
        let mut out = String::with_capacity(256 + 512 * self.recipients.len());
        Field::new("Reporting-MTA").dns(self.reporting_mta).write(&mut out);
        Field::new("X-Posthaste-Queue-ID").text(&self.envelope.id.to_string()).write(&mut out);
        Field::new("Arrival-Date").text(&rfc5322_date(self.envelope.arrived_ms)).write(&mut out);
        for recipient in self.recipients {
            out.push_str("\r\n");
            self.write_recipient(&mut out, recipient);
        }
        out
    }

    fn write_recipient(&self, out: &mut String, recipient: &ReportRecipient<'_>) {
        let cause = recipient.cause;
        Field::new("Final-Recipient").text("rfc822;").text(recipient.path.as_str()).write(out);
        Field::new("Action").text(self.kind.action()).write(out);
        Field::new("Status").text(&self.kind.status(cause.status).to_string()).write(out);
        if let Some(host) = recipient.host {
            Field::new("Remote-MTA").dns(host_name(host)).write(out);
        }
        match &cause.reply {
            Some(reply) => Field::new("Diagnostic-Code").text("smtp;").text(&reply.to_string()),
            None => Field::new("Diagnostic-Code").text("X-Posthaste;").text(&cause.text),
        }
        .write(out);
        Field::new("Last-Attempt-Date").text(&rfc5322_date(recipient.at_ms)).write(out);
        if let Some(until_ms) = self.retries_until(recipient) {
            Field::new("Will-Retry-Until").text(&rfc5322_date(until_ms)).write(out);
        }
    }

    fn retries_until(&self, recipient: &ReportRecipient<'_>) -> Option<u64> {
        recipient.will_retry_until_ms.filter(|_| self.kind == ReportKind::Delayed)
    }

    /// A boundary that none of the parts holds. The report's id is younger than anything a remote could have written, so
    /// the first one is free unless someone guessed it.
    fn boundary(&self, parts: &[&str]) -> String {
        let mut boundary = format!("=_posthaste_{}", self.id);
        while parts.iter().any(|part| part.contains(&boundary)) {
            boundary.push('_');
        }
        boundary
    }
}

impl ReportKind {
    fn subject(self) -> &'static str {
        match self {
            Self::Failed => "Your message could not be delivered",
            Self::Expired => "Your message could not be delivered in time",
            Self::Delayed => "Your message is delayed",
        }
    }

    fn explanation(self) -> &'static [&'static str] {
        match self {
            Self::Failed => &[
                "Your message could not be delivered to the recipients below.",
                "It was refused for good; the relay does not try again.",
            ],
            Self::Expired => &[
                "Your message could not be delivered to the recipients below",
                "in the time that the relay keeps trying. It does not try again.",
            ],
            Self::Delayed => &[
                "This is a warning only: YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN.",
                "It could not be delivered yet to the recipients below.",
            ],
        }
    }

    /// RFC 3464 section 2.3.3.
    fn action(self) -> &'static str {
        match self {
            Self::Failed | Self::Expired => "failed",
            Self::Delayed => "delayed",
        }
    }

    /// The status in the class that belongs to the action (RFC 3463 section 2): a failure is permanent though the last
    /// answer was transient, and the other way round. An expiry keeps its transient class, as RFC 3463 X.4.7 has it.
    fn status(self, status: EnhancedStatus) -> EnhancedStatus {
        let class = match self {
            Self::Failed => 5,
            Self::Delayed => 4,
            Self::Expired => status.class.clamp(4, 5),
        };
        EnhancedStatus { class, ..status }
    }
}

/// The name in `name[address]:port`, or the address literal that stands for one.
fn host_name(host: &str) -> &str {
    let end = match host.strip_prefix('[') {
        Some(_) => host.find(']').map(|end| end + 1),
        None => host.find('['),
    };
    &host[..end.unwrap_or(host.len())]
}

#[cfg(test)]
mod tests;
