//! One table: what was found → the fate of each recipient and how it goes on.

use super::*;
use crate::smtp::reply::ReplyCode;

/// Reads `550 5.1.1 text`.
fn reply(text: &str) -> Reply {
    let (code, rest) = text.split_once(' ').unwrap_or((text, ""));
    let code = ReplyCode::new(code.parse().expect("a number")).expect("a code");
    let (enhanced, text) = match EnhancedStatus::split(rest) {
        Some((status, text)) => (Some(status), text),
        None => (None, rest),
    };
    Reply { code, enhanced, text: text.to_owned() }
}

fn trouble(step: Step, kind: TroubleKind) -> Trouble {
    Trouble { step, kind }
}

fn refusal(step: Step, text: &str) -> Trouble {
    trouble(step, TroubleKind::Refused(reply(text)))
}

fn lost(step: Step) -> Trouble {
    trouble(step, TroubleKind::Lost("reset".to_owned()))
}

fn session(trouble: Trouble) -> Finding {
    Finding::Session { trouble, tls: TlsUse::Always }
}

/// `+` accepted, `?` unanswered, else a refusal.
fn facts(answers: &[&str], end: End) -> Finding {
    let recipients = answers.iter().map(|answer| match *answer {
        "+" => RcptAnswer::Accepted,
        "?" => RcptAnswer::Unanswered,
        text => RcptAnswer::Refused(reply(text)),
    });
    Finding::Transaction(Facts { recipients: recipients.collect(), end })
}

fn cause(cause: &Cause) -> String {
    format!("{} {}", cause.class.word(), cause.status)
}

fn fate(fate: Option<&Fate>) -> String {
    match fate {
        None => "open".to_owned(),
        Some(Fate::Delivered(why)) => format!("delivered {}", why.status),
        Some(Fate::Deferred(why)) => format!("deferred {}", cause(why)),
        Some(Fate::Bounced(why)) => format!("bounced {}", cause(why)),
        Some(Fate::Damaged(why)) => format!("damaged {}", cause(why)),
        Some(other) => format!("{other:?}").to_lowercase(),
    }
}

fn effect(effect: &DestinationEffect) -> &'static str {
    match effect {
        DestinationEffect::Healthy => "healthy",
        DestinationEffect::Failed(_) => "failed",
        DestinationEffect::Untouched => "untouched",
    }
}

/// `fate, fate → what next`.
fn tell(decision: &Decision) -> String {
    let fates: Vec<_> = decision.fates.iter().map(|one| fate(one.as_ref())).collect();
    let next = match &decision.next {
        Next::Done(then) => effect(then).to_owned(),
        Next::Host(why, then) => format!("next host, else {} {}", cause(why), effect(then)),
        Next::ClearText => "clear text".to_owned(),
    };
    format!("{} → {next}", fates.join(", "))
}

fn check(table: Vec<(Finding, &str)>) {
    for (finding, expected) in table {
        let told = format!("{finding:?}");
        let count = match &finding {
            Finding::Transaction(facts) => facts.recipients.len(),
            _ => 1,
        };
        assert_eq!(tell(&decide(finding, count)), expected, "{told}");
    }
}

#[test]
fn a_route_without_hosts_bounces_or_waits() {
    let no_route = |class, status| Finding::NoRoute(ours(class, status, "why".to_owned()));
    check(vec![
        (no_route(CauseClass::NoHost, EnhancedStatus::new(5, 1, 2)), "bounced no_host 5.1.2 → untouched"),
        (no_route(CauseClass::NoHost, EnhancedStatus::new(5, 1, 10)), "bounced no_host 5.1.10 → untouched"),
        (no_route(CauseClass::Loop, EnhancedStatus::new(5, 4, 6)), "bounced loop 5.4.6 → untouched"),
        (no_route(CauseClass::Dns, EnhancedStatus::new(4, 4, 3)), "deferred dns 4.4.3 → failed"),
    ]);
}

#[test]
fn trouble_before_a_transaction_is_about_the_host() {
    use TroubleKind::{AuthNotOffered, Protocol, Timeout, TlsHandshake, TlsNotOffered};
    let to_next = |what| format!("open → next host, else {what} failed");
    let table: Vec<(Finding, String)> = vec![
        (Finding::NotConnected("connection refused".to_owned()), to_next("connect 4.4.1")),
        (session(refusal(Step::Greeting, "421 4.3.2 busy")), to_next("reply_4xx 4.3.2")),
        (session(refusal(Step::Greeting, "450 later")), to_next("reply_4xx 4.0.0")),
        (session(refusal(Step::Greeting, "554 5.7.1 go away")), to_next("reply_5xx 4.7.1")),
        (session(refusal(Step::Ehlo, "451 later")), to_next("reply_4xx 4.0.0")),
        (session(refusal(Step::Ehlo, "550 who are you?")), to_next("reply_5xx 4.0.0")),
        (session(trouble(Step::Greeting, Timeout)), to_next("timeout 4.4.2")),
        (session(lost(Step::Ehlo)), to_next("connection_lost 4.4.2")),
        (session(trouble(Step::Ehlo, Protocol("354".to_owned()))), to_next("protocol 4.5.0")),
        (session(trouble(Step::Ehlo, TlsNotOffered)), to_next("tls 4.7.4")),
        (session(trouble(Step::StartTls, TlsHandshake("bad".to_owned()))), to_next("tls 4.7.5")),
        (session(refusal(Step::StartTls, "454 4.7.0 no")), to_next("tls 4.7.0")),
        (session(refusal(Step::Auth, "454 4.7.0 later")), to_next("auth 4.7.0")),
        (session(trouble(Step::Auth, AuthNotOffered)), to_next("auth 4.7.0")),
        // A wrong password is ours to correct: nothing bounces, and no other host is asked to count it.
        (session(refusal(Step::Auth, "535 5.7.8 no")), "deferred auth 4.7.8 → failed".to_owned()),
        (session(trouble(Step::Greeting, TroubleKind::Aborted)), "again → untouched".to_owned()),
        (Finding::Aborted, "again → untouched".to_owned()),
        (Finding::Unreadable("gone".to_owned()), "deferred local 4.3.0 → untouched".to_owned()),
        (Finding::Damaged("gone".to_owned()), "damaged local 4.3.0 → untouched".to_owned()),
    ];
    check(table.iter().map(|(finding, expected)| (finding.clone(), expected.as_str())).collect());
}

#[test]
fn opportunistic_tls_that_fails_is_tried_again_in_clear_text() {
    let handshake = trouble(Step::StartTls, TroubleKind::TlsHandshake("bad".to_owned()));
    let opportunistic = |trouble| Finding::Session { trouble, tls: TlsUse::WhenOffered };
    check(vec![
        (opportunistic(handshake), "open → clear text"),
        (opportunistic(lost(Step::StartTls)), "open → clear text"),
        (opportunistic(trouble(Step::StartTls, TroubleKind::Timeout)), "open → clear text"),
        (
            opportunistic(trouble(Step::StartTls, TroubleKind::Protocol("early".to_owned()))),
            "open → clear text",
        ),
        (opportunistic(lost(Step::Ehlo)), "open → next host, else connection_lost 4.4.2 failed"),
        (opportunistic(refusal(Step::StartTls, "421 bye")), "open → next host, else reply_4xx 4.7.0 failed"),
    ]);
}

#[test]
fn replies_to_the_message_are_for_all_and_replies_to_rcpt_for_one() {
    let refused = |step, text| End::Refused { step, reply: reply(text) };
    let accepted = || End::Accepted(reply("250 2.6.0 queued"));
    check(vec![
        (facts(&["+", "+"], accepted()), "delivered 2.6.0, delivered 2.6.0 → healthy"),
        (facts(&["+"], End::Accepted(reply("250 ok"))), "delivered 2.0.0 → healthy"),
        (
            facts(&["550 5.1.1 who?", "+", "450 4.2.0 grey"], accepted()),
            "bounced reply_5xx 5.1.1, delivered 2.6.0, deferred reply_4xx 4.2.0 → healthy",
        ),
        (
            facts(&["550 no", "451 no"], End::NoRecipient),
            "bounced reply_5xx 5.0.0, deferred reply_4xx 4.0.0 → healthy",
        ),
        (
            facts(&["?", "?"], refused(Step::Mail, "451 4.7.1 later")),
            "deferred reply_4xx 4.7.1, deferred reply_4xx 4.7.1 → healthy",
        ),
        (facts(&["?"], refused(Step::Mail, "553 who?")), "bounced reply_5xx 5.0.0 → healthy"),
        (facts(&["+"], refused(Step::Data, "451 later")), "deferred reply_4xx 4.0.0 → healthy"),
        (facts(&["+"], refused(Step::Data, "554 no")), "bounced reply_5xx 5.0.0 → healthy"),
        (
            facts(&["+", "450 no"], refused(Step::FinalDot, "554 5.7.1 spam")),
            "bounced reply_5xx 5.7.1, deferred reply_4xx 4.0.0 → healthy",
        ),
        (
            facts(&["+", "550 no"], refused(Step::FinalDot, "452 4.3.1 full")),
            "deferred reply_4xx 4.3.1, bounced reply_5xx 5.0.0 → healthy",
        ),
        (facts(&["?"], End::TooLarge { limit: 10 }), "bounced reply_5xx 5.3.4 → healthy"),
    ]);
}

#[test]
fn too_many_recipients_go_again_at_once_only_behind_an_accepted_one() {
    let accepted = || End::Accepted(reply("250 ok"));
    check(vec![
        (facts(&["+", "452 4.5.3 many", "552 many"], accepted()), "delivered 2.0.0, again, again → healthy"),
        (facts(&["+", "450 no"], accepted()), "delivered 2.0.0, deferred reply_4xx 4.0.0 → healthy"),
        (facts(&["552 5.2.2 full", "+"], accepted()), "bounced reply_5xx 5.2.2, delivered 2.0.0 → healthy"),
        (facts(&["452 full"], End::NoRecipient), "deferred reply_4xx 4.0.0 → healthy"),
        (
            facts(&["+", "452 many"], End::Broken(lost(Step::Content))),
            "open, again → next host, else connection_lost 4.4.2 untouched",
        ),
    ]);
}

#[test]
fn a_connection_that_breaks_before_the_final_dot_leads_to_the_next_host() {
    let broken = |answers: &[&str], trouble| facts(answers, End::Broken(trouble));
    check(vec![
        (broken(&["?"], lost(Step::Mail)), "open → next host, else connection_lost 4.4.2 failed"),
        (broken(&["?"], refusal(Step::Mail, "421 bye")), "open → next host, else reply_4xx 4.0.0 failed"),
        (
            broken(&["+", "550 no", "?"], refusal(Step::Rcpt, "421 4.4.5 bye")),
            "open, bounced reply_5xx 5.0.0, open → next host, else reply_4xx 4.4.5 failed",
        ),
        (
            broken(&["+"], trouble(Step::Data, TroubleKind::Timeout)),
            "open → next host, else timeout 4.4.2 untouched",
        ),
        (broken(&["+"], lost(Step::Content)), "open → next host, else connection_lost 4.4.2 untouched"),
        (broken(&["550 no"], lost(Step::Data)), "bounced reply_5xx 5.0.0 → untouched"),
        (
            broken(&["+", "550 no"], trouble(Step::Content, TroubleKind::Local("gone".to_owned()))),
            "deferred local 4.3.0, bounced reply_5xx 5.0.0 → untouched",
        ),
        (
            broken(&["+", "550 no"], trouble(Step::Content, TroubleKind::Damaged("short".to_owned()))),
            "damaged local 4.3.0, bounced reply_5xx 5.0.0 → untouched",
        ),
    ]);
}

#[test]
fn recipients_that_were_answered_before_a_malformed_reply_keep_their_answers() {
    let garbage = |step| trouble(step, TroubleKind::Protocol("not a reply: 999 x".to_owned()));
    check(vec![
        (
            facts(&["550 5.1.1 who?", "451 4.2.1 later", "+", "?", "?"], End::Broken(garbage(Step::Rcpt))),
            "bounced reply_5xx 5.1.1, deferred reply_4xx 4.2.1, open, open, open → next host, else protocol 4.5.0 \
             untouched",
        ),
        (
            facts(&["550 5.1.1 who?", "450 no"], End::Broken(garbage(Step::Data))),
            "bounced reply_5xx 5.1.1, deferred reply_4xx 4.0.0 → untouched",
        ),
    ]);
}

#[test]
fn after_the_final_dot_mail_waits_and_says_that_it_may_come_twice() {
    let broken = |kind| facts(&["+", "550 no"], End::Broken(trouble(Step::FinalDot, kind)));
    let waits = |class| format!("deferred {class} 4.4.2, bounced reply_5xx 5.0.0 → untouched");
    check(vec![
        (broken(TroubleKind::Lost("reset".to_owned())), &waits("connection_lost")),
        (broken(TroubleKind::Timeout), &waits("timeout")),
        (
            broken(TroubleKind::Refused(reply("421 4.3.2 bye"))),
            "deferred reply_4xx 4.3.2, bounced reply_5xx 5.0.0 → failed",
        ),
    ]);
    for (kind, twice) in [(TroubleKind::Timeout, true), (TroubleKind::Refused(reply("421 bye")), false)] {
        let Some(Fate::Deferred(cause)) = &decide(broken(kind), 2).fates[0] else { panic!("deferred") };
        assert_eq!(cause.text.contains("may be delivered twice"), twice, "{cause}");
    }
}

#[test]
fn what_the_drain_time_cuts_off_is_interrupted_only_after_the_final_dot() {
    let aborted = |step| facts(&["+", "550 no", "?"], End::Broken(trouble(step, TroubleKind::Aborted)));
    check(vec![
        (aborted(Step::Rcpt), "again, bounced reply_5xx 5.0.0, again → untouched"),
        (aborted(Step::Content), "again, bounced reply_5xx 5.0.0, again → untouched"),
        (aborted(Step::FinalDot), "interrupted, bounced reply_5xx 5.0.0, interrupted → untouched"),
    ]);
}

#[test]
fn a_cause_reads_like_a_sentence() {
    let Next::Host(cause, _) = decide(session(refusal(Step::Ehlo, "450 4.7.1 who?")), 1).next else {
        panic!("next host")
    };
    assert_eq!(cause.to_string(), "EHLO refused: 450 4.7.1 who?");
    let turned_away = session(refusal(Step::Greeting, "421 4.3.2 busy"));
    let Next::Host(cause, _) = decide(turned_away, 1).next else { panic!("next host") };
    assert_eq!(cause.to_string(), "session refused: 421 4.3.2 busy", "the connection was made");
    let Next::Host(cause, _) = decide(session(lost(Step::Greeting)), 1).next else { panic!("next host") };
    assert_eq!(cause.to_string(), "4.4.2 connection lost while waiting for the greeting: reset");
}
