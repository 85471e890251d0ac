//! Reports to senders, and when there are none.

use super::world::Moment;
use super::world::{LONG, Net, SENDER, await_mail, ip, made, mail_for, refuse, with_mx};
use crate::support::smtp::stuffed;
use crate::support::wait_until;
use posthaste::sink::Answer;

#[test]
fn mail_with_a_null_reverse_path_bounces_without_a_report() {
    let net = Net::new();
    let zone = net.zone().null_mx("x.test");
    let world = net.start(zone);
    world.send_from("", &["b@x.test"]);
    world.await_event("bounced", "b@x.test");
    world.await_empty_queue();
    assert_eq!(world.metric("posthaste_dsns_total", &[]), 0.0);
    assert_eq!(world.home.count(), 0);
    assert!(!world.events().iter().any(|line| line["event"] == "dsn"));
}

#[test]
fn a_report_that_bounces_itself_disappears_and_is_counted() {
    let net = Net::new();
    let zone = net.zone().null_mx("x.test").null_mx("gone.test");
    let world = net.start(zone);
    world.send_from("a@gone.test", &["b@x.test"]);
    world.await_event("bounced", "a@gone.test");
    world.await_empty_queue();
    assert_eq!(world.metric("posthaste_dsns_total", &[]), 1.0, "no report about the report");
    assert_eq!(
        world.metric("posthaste_recipients_total", &["outcome=\"bounced\"", "class=\"no_host\""]),
        2.0
    );
}

/// RFC 3464 read by somebody else's parser.
#[test]
fn a_report_is_a_multipart_report_about_the_failed_recipients() {
    use mail_parser::{MessageParser, MimeHeaders};
    let net = Net::new();
    let host = net.host(|moment| match moment {
        Moment::Message => refuse(554),
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    let id = world.send(&["b@x.test", "c@x.test"]);
    let text = world.await_report(1);
    let report = MessageParser::new().parse(text.as_bytes()).expect("a message");
    let kind = report.content_type().expect("a type");
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert_eq!(report.parts.len(), 4, "the whole, words, status, header");
    assert!(text.contains(&id));
    for to in ["b@x.test", "c@x.test"] {
        assert!(text.contains(&format!("Final-Recipient: rfc822; {to}\r\n")), "{text}");
    }
    assert_eq!(text.matches("Diagnostic-Code: smtp; 554 5.2.0 says the host\r\n").count(), 2, "{text}");
    assert!(text.contains("Subject: small\r\n"), "the original's header is in it: {text}");
    world.await_empty_queue();
    assert_eq!(mail_for(&world.home, SENDER).len(), 1, "one report about one attempt");
}

#[test]
fn a_delay_notice_comes_before_the_report_of_expiry() {
    let net = Net::new();
    let host = net.host(|moment| match moment {
        Moment::Recipient("b@x.test") => refuse(450),
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    // No attempt is due near the two deadlines.
    let world = net.start_with(zone, |setup| {
        setup
            .set("retry.schedule", "[\"1s\", \"1h\"]")
            .set("retry.delay_notice_after", "\"3s\"")
            .set("retry.give_up_after", "\"6s\"")
    });
    world.send(&["b@x.test", "c@x.test"]);
    await_mail(&host, "c@x.test");
    let notice = world.await_report(1);
    assert!(notice.contains("Action: delayed\r\n") && notice.contains("Will-Retry-Until: "), "{notice}");
    assert!(notice.contains("450 4.2.0 says the host"), "{notice}");
    let report = world.await_report(2);
    assert!(report.contains("Action: failed\r\n") && report.contains("4.7\r\n"), "{report}");
    assert!(report.contains("450 4.2.0 says the host"), "what stood in the way last: {report}");
    for text in [&notice, &report] {
        assert!(text.contains("b@x.test") && !text.contains("c@x.test"), "{text}");
    }
    world.await_empty_queue();
    let line = world.await_event("expired", "b@x.test");
    assert_eq!(line["attempts"], 2, "{line}");
    assert_eq!(mail_for(&world.home, SENDER).len(), 2);
    let kinds: Vec<_> = world
        .events()
        .iter()
        .filter(|line| line["event"] == "dsn")
        .map(|line| line["kind"].clone())
        .collect();
    assert_eq!(kinds, ["delayed", "expired"]);
}

/// A destination that can't be reached at all expires too.
#[test]
fn mail_for_a_dead_destination_expires() {
    let net = Net::new();
    let zone = with_mx(net.zone(), "x.test", &[net.dead()]);
    let world = net.start_with(zone, |setup| {
        setup.set("retry.give_up_after", "\"3s\"").set("retry.delay_notice_after", "\"0s\"")
    });
    for number in 0..20 {
        world.send(&[&format!("r{number}@x.test")]);
    }
    wait_until("20 reports", LONG, || mail_for(&world.home, SENDER).len() == 20);
    world.await_empty_queue();
    assert_eq!(world.metric("posthaste_recipients_total", &["outcome=\"expired\""]), 20.0);
}

/// The report is read from disk: the original is a file and was deferred before.
#[test]
fn a_report_about_a_large_old_message_has_its_header() {
    let net = Net::new();
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let host = net.host(move |moment| match moment {
        Moment::Recipient(_) if tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => refuse(451),
        Moment::Recipient(_) => refuse(551),
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    let mut content = b"Subject: large and old\r\n".to_vec();
    content.extend(made("large").content);
    content.extend(b"filler\r\n".repeat(100_000));
    let to = ["b@x.test".to_owned()];
    assert_eq!(world.relay.client().mail(SENDER, &to, &stuffed(&content)).unwrap().code, 250);
    let report = world.await_report(1);
    assert!(report.contains("Subject: large and old\r\n") && report.contains("551 5.2.0"), "{report}");
    assert!(report.len() < 100_000, "the header, not the body");
    world.await_empty_queue();
}
