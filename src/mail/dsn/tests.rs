//! Reports, whole and by their rules, read back by a parser that is not ours.

#![allow(clippy::unwrap_used)]

use mail_parser::{MessageParser, MimeHeaders, PartType};

use super::*;
use crate::mail::outcome::CauseClass;
use crate::smtp::reply::{Reply, ReplyCode};

const ARRIVED_MS: u64 = 1_795_183_293_456;
const HOUR_MS: u64 = 3_600_000;

fn message(sender: &str) -> Envelope {
    Envelope {
        id: QueueId::from_bytes([0x11; 16]),
        reverse_path: ReversePath::parse(sender).unwrap(),
        body: BodyType::SevenBit,
        arrived_ms: ARRIVED_MS,
        origin: Origin::Embedded,
        size: 100,
        place: ContentPlace::Database,
        recipients: Vec::new(),
    }
}

fn path(text: &str) -> ForwardPath {
    ForwardPath::parse(text, "relay.example").unwrap()
}

fn replied(code: u16, status: EnhancedStatus, text: &str) -> Cause {
    let code = ReplyCode::new(code).unwrap();
    let reply = Reply { code, enhanced: Some(status), text: text.to_owned() };
    Cause { class: CauseClass::Reply5xx, status, reply: Some(reply), text: String::new() }
}

fn found(class: CauseClass, status: EnhancedStatus, text: &str) -> Cause {
    Cause { class, status, reply: None, text: text.to_owned() }
}

fn report_of(kind: ReportKind, recipients: &[ReportRecipient<'_>], headers: &[u8]) -> String {
    let envelope = message("ann@sender.example");
    let report = Report {
        envelope: &envelope,
        reporting_mta: "relay.example",
        kind,
        recipients,
        headers,
        now_ms: ARRIVED_MS + 4 * HOUR_MS,
        id: QueueId::from_bytes([0x22; 16]),
    };
    let content = String::from_utf8(report.content().expect("a sender").to_vec()).expect("ASCII");
    check_lines(&content);
    content
}

/// One recipient with this cause.
fn report_with(kind: ReportKind, cause: &Cause, headers: &[u8]) -> String {
    let path = path("joe@example.org");
    let recipient = ReportRecipient {
        path: &path,
        cause,
        host: Some("mx.example.org[192.0.2.1]:25"),
        at_ms: ARRIVED_MS + HOUR_MS,
        will_retry_until_ms: Some(ARRIVED_MS + 120 * HOUR_MS),
    };
    report_of(kind, &[recipient], headers)
}

/// What every report keeps: 7-bit, CRLF only, no line over 998 octets.
fn check_lines(content: &str) {
    assert!(content.ends_with("\r\n"));
    for line in content.split("\r\n") {
        assert!(line.len() <= 998, "{} octets", line.len());
        assert!(line.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)), "{line:?}");
    }
}

/// The fields of `message/delivery-status` as the oracle cuts the report up.
fn status_part(content: &str) -> String {
    let read = MessageParser::default().parse(content.as_bytes()).expect("a message");
    let part = read
        .parts
        .iter()
        .find(|part| part.content_type().is_some_and(|kind| kind.subtype() == Some("delivery-status")));
    String::from_utf8(part.expect("a status part").contents().to_vec()).unwrap()
}

#[test]
fn a_failure_is_reported_in_words_in_fields_and_with_the_header() {
    let cause = replied(550, EnhancedStatus::new(5, 1, 1), "No such user here");
    let content = report_with(
        ReportKind::Failed,
        &cause,
        b"Subject: hello\r\nFrom: ann@sender.example\r\n\r\nbody\r\n",
    );
    let b = format!("=_posthaste_{}", "22".repeat(16));
    let (id, report_id) = ("11".repeat(16), "22".repeat(16));
    let expected = format!(
        "From: Mail Delivery System <MAILER-DAEMON@relay.example>\n\
         To: <ann@sender.example>\n\
         Subject: Your message could not be delivered\n\
         Date: Fri, 20 Nov 2026 18:01:33 +0000\n\
         Message-ID: <{report_id}@relay.example>\n\
         Auto-Submitted: auto-replied\n\
         MIME-Version: 1.0\n\
         Content-Type: multipart/report; report-type=delivery-status;\n\
         \tboundary=\"{b}\"\n\
         \n\
         This is a report in MIME format (RFC 3464).\n\
         \n\
         --{b}\n\
         Content-Type: text/plain; charset=us-ascii\n\
         \n\
         This is the mail relay at relay.example.\n\
         \n\
         Your message could not be delivered to the recipients below.\n\
         It was refused for good; the relay does not try again.\n\
         \n\
         <joe@example.org>:\n\
         \x20   mx.example.org[192.0.2.1]:25 said: 550 5.1.1 No such user here\n\
         \n\
         The queue id of your message was {id}.\n\
         \n\
         --{b}\n\
         Content-Type: message/delivery-status\n\
         \n\
         Reporting-MTA: dns; relay.example\n\
         X-Posthaste-Queue-ID: {id}\n\
         Arrival-Date: Fri, 20 Nov 2026 14:01:33 +0000\n\
         \n\
         Final-Recipient: rfc822; joe@example.org\n\
         Action: failed\n\
         Status: 5.1.1\n\
         Remote-MTA: dns; mx.example.org\n\
         Diagnostic-Code: smtp; 550 5.1.1 No such user here\n\
         Last-Attempt-Date: Fri, 20 Nov 2026 15:01:33 +0000\n\
         \n\
         --{b}\n\
         Content-Type: text/rfc822-headers\n\
         \n\
         Subject: hello\n\
         From: ann@sender.example\n\
         \n\
         --{b}--\n"
    );
    assert_eq!(content, expected.replace('\n', "\r\n"));
}

#[test]
fn an_independent_parser_finds_three_parts() {
    let cause = replied(550, EnhancedStatus::new(5, 1, 1), "No such user here");
    let content = report_with(ReportKind::Failed, &cause, b"Subject: hello\r\n\r\nbody\r\n");
    let read = MessageParser::default().parse(content.as_bytes()).expect("a message");
    let kind = read.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert_eq!(read.from().unwrap().first().unwrap().address(), Some("MAILER-DAEMON@relay.example"));
    assert_eq!(read.to().unwrap().first().unwrap().address(), Some("ann@sender.example"));
    let PartType::Multipart(parts) = &read.parts[0].body else { panic!("not multipart") };
    let kinds: Vec<_> = parts
        .iter()
        .map(|part| read.parts[*part as usize].content_type().unwrap())
        .map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap()))
        .collect();
    assert_eq!(kinds, ["text/plain", "message/delivery-status", "text/rfc822-headers"]);
    assert!(read.body_text(0).unwrap().contains("550 5.1.1 No such user here"));
}

#[test]
fn a_delay_tells_until_when_the_relay_tries() {
    let cause = found(CauseClass::Connect, EnhancedStatus::new(4, 4, 1), "connection refused");
    let content = report_with(ReportKind::Delayed, &cause, b"Subject: hello\r\n\r\n");
    let status = status_part(&content);
    for field in [
        "Action: delayed\r\n",
        "Status: 4.4.1\r\n",
        "Diagnostic-Code: X-Posthaste; connection refused\r\n",
        "Will-Retry-Until: Wed, 25 Nov 2026 14:01:33 +0000\r\n",
    ] {
        assert!(status.contains(field), "{field} in {status}");
    }
    assert!(content.contains("YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN"));
    assert!(content.contains("    4.4.1 connection refused (mx.example.org[192.0.2.1]:25)\r\n"));
}

#[test]
fn the_status_class_fits_the_action() {
    let transient = EnhancedStatus::new(4, 2, 2);
    let permanent = EnhancedStatus::new(5, 2, 2);
    for (kind, status, action, expected) in [
        (ReportKind::Failed, permanent, "failed", "5.2.2"),
        (ReportKind::Failed, transient, "failed", "5.2.2"),
        (ReportKind::Expired, transient, "failed", "4.2.2"),
        (ReportKind::Expired, permanent, "failed", "5.2.2"),
        (ReportKind::Delayed, transient, "delayed", "4.2.2"),
        (ReportKind::Delayed, permanent, "delayed", "4.2.2"),
    ] {
        let status = status_part(&report_with(kind, &replied(450, status, "full"), b""));
        assert!(status.contains(&format!("Action: {action}\r\nStatus: {expected}\r\n")), "{kind:?} {status}");
        assert_eq!(status.contains("Will-Retry-Until"), kind == ReportKind::Delayed, "{kind:?}");
    }
}

#[test]
fn each_recipient_has_its_own_group() {
    let (one, two) = (path("joe@example.org"), path("\"a b\"@[192.0.2.9]"));
    let refused = replied(550, EnhancedStatus::new(5, 1, 1), "unknown");
    let nowhere = found(CauseClass::NoHost, EnhancedStatus::new(5, 1, 10), "the domain takes no mail");
    let recipient =
        |path, cause, host| ReportRecipient { path, cause, host, at_ms: 0, will_retry_until_ms: None };
    let content = report_of(
        ReportKind::Failed,
        &[recipient(&one, &refused, Some("[192.0.2.1][192.0.2.1]:25")), recipient(&two, &nowhere, None)],
        b"",
    );
    let status = status_part(&content);
    let groups: Vec<_> = status.trim_end().split("\r\n\r\n").collect();
    assert_eq!(groups.len(), 3, "{status}");
    assert!(groups[1].contains("Remote-MTA: dns; [192.0.2.1]\r\n"));
    assert!(groups[2].starts_with("Final-Recipient: rfc822; \"a b\"@[192.0.2.9]\r\n"));
    assert!(!groups[2].contains("Remote-MTA"));
}

#[test]
fn remote_texts_can_not_break_out_of_their_field() {
    let evil = format!(
        "bad\r\n\r\n--=_posthaste_{}\r\nAction: delivered\0 ü \x7f {}",
        "22".repeat(16),
        "x".repeat(3000)
    );
    let content = report_with(ReportKind::Failed, &replied(550, EnhancedStatus::new(5, 0, 0), &evil), b"");
    let status = status_part(&content);
    assert_eq!(status.matches("\r\nAction:").count(), 1, "{status}");
    assert!(status.contains(" Action: delivered ?\r\n"), "{status}");
    let read = MessageParser::default().parse(content.as_bytes()).expect("a message");
    let PartType::Multipart(parts) = &read.parts[0].body else { panic!("not multipart") };
    assert_eq!(parts.len(), 3);
}

#[test]
fn long_diagnostics_are_folded() {
    let cause = replied(550, EnhancedStatus::new(5, 7, 1), &"a word or two ".repeat(20));
    let status = status_part(&report_with(ReportKind::Failed, &cause, b""));
    assert!(status.split("\r\n").all(|line| line.len() <= 78), "{status}");
    let unfolded = status.replace("\r\n ", " ");
    assert!(
        unfolded.contains(&format!("smtp; 550 5.7.1 {}", "a word or two ".repeat(20).trim_end())),
        "{unfolded}"
    );
}

#[test]
fn headers_that_are_not_clean_are_encoded_and_can_be_read_back() {
    let long = format!("X: {}\r\n", "y".repeat(2000));
    for headers in
        ["Subject: grüße = ok \r\nX: y\r\n", "Subject: bare\rreturn\r\n", "Subject: \0\r\n", long.as_str()]
    {
        let cause = replied(550, EnhancedStatus::new(5, 1, 1), "no");
        let content = report_with(ReportKind::Failed, &cause, format!("{headers}\r\nbody").as_bytes());
        assert!(content.contains("Content-Transfer-Encoding: quoted-printable\r\n"), "{headers:?}");
        let read = MessageParser::default().parse(content.as_bytes()).expect("a message");
        let last = read.parts.last().unwrap();
        assert_eq!(String::from_utf8_lossy(last.contents()).trim_end(), headers.trim_end(), "{headers:?}");
    }
}

#[test]
fn the_header_section_ends_at_the_empty_line_and_at_the_limit() {
    for (content, max, expected) in [
        ("A: b\r\n\r\nbody", 100, "A: b\r\n"),
        ("A: b\r\nC: d\r\n\r\n", 100, "A: b\r\nC: d\r\n"),
        ("A: b\r\nC: d\r\n\r\n", 11, "A: b\r\n"),
        ("A: b\r\nC: d", 11, "A: b\r\nC: d"),
        ("A: b\r\nC: d", 9, "A: b\r\n"),
        ("\r\nbody", 100, ""),
        ("", 100, ""),
    ] {
        assert_eq!(header_section(content.as_bytes(), max), expected.as_bytes(), "{content:?} {max}");
    }
}

#[test]
fn a_null_reverse_path_gets_no_report() {
    let envelope = message("");
    let report = Report {
        envelope: &envelope,
        reporting_mta: "relay.example",
        kind: ReportKind::Failed,
        recipients: &[],
        headers: b"",
        now_ms: 0,
        id: QueueId::from_bytes([0; 16]),
    };
    assert!(report.content().is_none() && report.envelope(0).is_none());
}

#[test]
fn a_report_travels_with_a_null_reverse_path_to_the_sender() {
    let envelope = message("Ann@Sender.Example");
    let report = Report {
        envelope: &envelope,
        reporting_mta: "relay.example",
        kind: ReportKind::Failed,
        recipients: &[],
        headers: b"",
        now_ms: 7,
        id: QueueId::from_bytes([0x22; 16]),
    };
    let carrier = report.envelope(42).expect("a sender");
    assert_eq!((carrier.id, carrier.arrived_ms, carrier.size), (report.id, 7, 42));
    assert_eq!(carrier.reverse_path, ReversePath::Null);
    assert_eq!(carrier.recipients.len(), 1);
    assert_eq!(carrier.recipients[0].path.as_str(), "Ann@Sender.Example");
    assert_eq!(carrier.recipients[0].destination.as_str(), "sender.example");
}
