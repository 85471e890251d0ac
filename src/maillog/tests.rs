//! The lines as a reader sees them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mail::envelope::{BodyType, ContentPlace, Recipient};
use crate::mail::outcome::CauseClass;
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use crate::smtp::reply::{EnhancedStatus, Reply, ReplyCode};

const ARRIVED: u64 = 1_700_000_000_000;
const ID: &str = "018bcfe5680077078707070707070707";

fn envelope(to: &[&str]) -> Envelope {
    let recipients = to
        .iter()
        .map(|address| {
            let path = ForwardPath::new(Mailbox::parse(address).unwrap());
            Recipient { destination: path.domain().clone(), path }
        })
        .collect();
    Envelope {
        id: QueueId::from_parts(ARRIVED, &[7; 10]),
        reverse_path: ReversePath::parse("sender@app.example").unwrap(),
        body: BodyType::SevenBit,
        arrived_ms: ARRIVED,
        origin: Origin::Smtp {
            peer: "127.0.0.1:4711".parse().unwrap(),
            helo: "app".to_owned(),
            extended: true,
        },
        size: 4096,
        place: ContentPlace::Database,
        recipients,
    }
}

fn greylisted() -> Cause {
    Cause {
        class: CauseClass::Reply4xx,
        status: EnhancedStatus::new(4, 2, 0),
        reply: Some(Reply {
            code: ReplyCode::new(450).unwrap(),
            enhanced: Some(EnhancedStatus::new(4, 2, 0)),
            text: "come \"later\"".to_owned(),
        }),
        text: String::new(),
    }
}

/// The lines that `events` writes, as text and as JSON.
fn lines(events: impl Fn(&MailLog)) -> [Vec<String>; 2] {
    [LogFormat::Text, LogFormat::Json].map(|format| {
        let log = MailLog::discard(format);
        let mut tap = log.tap();
        events(&log);
        std::iter::from_fn(|| tap.try_recv().ok()).map(|line| line.to_string()).collect()
    })
}

fn check(event: impl Fn(&MailLog), text: &str, json: &str) {
    let [texts, jsons] = lines(event);
    assert_eq!(texts, [text]);
    assert_eq!(jsons, [json]);
    let _: serde_json::Value = serde_json::from_str(json).unwrap();
}

#[test]
fn accepted_names_sender_recipients_and_client() {
    let envelope = envelope(&["a@one.example", "b@two.example"]);
    check(
        |log| log.accepted(&envelope, ARRIVED),
        &format!(
            "{ID} accepted time=2023-11-14T22:13:20.000Z from=<sender@app.example> \
             to=<a@one.example>,<b@two.example> recipients=2 size=4096 peer=127.0.0.1:4711 helo=app"
        ),
        &format!(
            r#"{{"id":"{ID}","event":"accepted","time":"2023-11-14T22:13:20.000Z","from":"sender@app.example","to":["a@one.example","b@two.example"],"recipients":2,"size":4096,"peer":"127.0.0.1:4711","helo":"app"}}"#
        ),
    );
}

#[test]
fn deferred_tells_host_reply_and_next_attempt() {
    let envelope = envelope(&["a@one.example"]);
    let host = RemoteHost { name: "mx.one.example".to_owned(), address: "192.0.2.1:25".parse().unwrap() };
    let cause = greylisted();
    let line = RecipientLine {
        envelope: &envelope,
        number: 0,
        host: Some(&host),
        cause: &cause,
        attempts: 1,
        tls: true,
        now_ms: ARRIVED + 420,
    };
    check(
        |log| log.deferred(&line, ARRIVED + 60_000),
        &format!(
            "{ID} deferred time=2023-11-14T22:13:20.420Z to=<a@one.example> from=<sender@app.example> \
             host=mx.one.example[192.0.2.1]:25 tls=true class=reply_4xx status=4.2.0 attempts=1 delay=0.420s \
             reply=\"450 4.2.0 come \\\"later\\\"\" next=2023-11-14T22:14:20.000Z"
        ),
        &format!(
            r#"{{"id":"{ID}","event":"deferred","time":"2023-11-14T22:13:20.420Z","to":"a@one.example","from":"sender@app.example","host":"mx.one.example[192.0.2.1]:25","tls":true,"class":"reply_4xx","status":"4.2.0","attempts":1,"delay":0.420,"reply":"450 4.2.0 come \"later\"","next":"2023-11-14T22:14:20.000Z"}}"#
        ),
    );
}

#[test]
fn refused_has_no_id() {
    check(
        |log| log.refused("[::1]:9".parse().unwrap(), "RCPT", "550 5.7.1 no relaying\r\n", 0),
        "- refused time=1970-01-01T00:00:00.000Z peer=[::1]:9 command=RCPT reply=\"550 5.7.1 no relaying\"",
        r#"{"id":null,"event":"refused","time":"1970-01-01T00:00:00.000Z","peer":"[::1]:9","command":"RCPT","reply":"550 5.7.1 no relaying"}"#,
    );
}

#[test]
fn a_report_is_logged_under_the_message_it_is_about() {
    let report = envelope(&["sender@app.example"]);
    check(
        |log| log.dsn(report.id, &report, "failed", 0),
        &format!("{ID} dsn time=1970-01-01T00:00:00.000Z kind=failed report={ID} to=<sender@app.example>"),
        &format!(
            r#"{{"id":"{ID}","event":"dsn","time":"1970-01-01T00:00:00.000Z","kind":"failed","report":"{ID}","to":["sender@app.example"]}}"#
        ),
    );
}

#[test]
fn a_quoted_local_part_can_not_forge_fields() {
    let envelope = envelope(&["\"x> status=2.0.0 y\"@evil.example"]);
    let [texts, _] = lines(|log| log.accepted(&envelope, 0));
    assert!(texts[0].contains(r#" to="<\"x> status=2.0.0 y\"@evil.example>" recipients=1"#), "{}", texts[0]);
}

#[test]
fn the_words_of_events_are_the_words_of_metrics() {
    let (envelope, cause) = (envelope(&["a@one.example"]), greylisted());
    let line = RecipientLine {
        envelope: &envelope,
        number: 0,
        host: None,
        cause: &cause,
        attempts: 1,
        tls: false,
        now_ms: ARRIVED,
    };
    let [texts, _] = lines(|log| {
        log.delivered(&line);
        log.deferred(&line, 0);
        log.bounced(&line);
        log.expired(&line);
        log.removed(&line);
        log.interrupted(&line);
    });
    let events: Vec<_> = texts.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    let labels: Vec<_> =
        crate::metrics::Outcome::ALL.into_iter().map(crate::metrics::Outcome::word).take(6).collect();
    assert_eq!(events, labels);
}

#[test]
fn a_log_whose_reader_stands_still_keeps_nobody_waiting() {
    let (_reader, writer) = crate::log::small_pipe();
    let dropped = IntCounter::new("dropped", "lines").unwrap();
    let config = LogConfig { format: LogFormat::Text, buffer: 50 };
    let log = MailLog::start(&config, Box::new(writer), dropped.clone()).unwrap();
    let envelope = envelope(&["a@one.example"]);
    for _ in 0..5_000 {
        log.accepted(&envelope, 0);
    }
    assert!(dropped.get() > 4_500, "{}", dropped.get());
    assert!(!log.flush_within(Duration::from_millis(1)));
}
