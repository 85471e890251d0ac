//! Every recipient meets exactly one fate, whatever an attempt finds.

use super::*;

#[test]
fn each_recipient_has_one_fate_and_the_message_leaves_with_the_last() {
    simulate(|| async {
        let world = World::new(|one| match one.destination {
            "refuses.example" => Answer::Refuse,
            "later.example" if one.number < 3 => Answer::Later,
            "dead.example" if one.number < 2 => Answer::NoHost,
            _ => Answer::Deliver,
        });
        let to =
            ["a@good.example", "b@good.example", "c@refuses.example", "d@later.example", "e@dead.example"];
        let id = world.accept(&to).await;
        settle().await;
        let status = |number: usize| world.stored(id).map(|stored| stored.states[number].status);
        assert_eq!(status(0), Some(Status::Delivered));
        assert_eq!(status(2), Some(Status::Bounced));
        assert_eq!(status(3), Some(Status::Queued));
        sleep(3 * MINUTE).await;
        assert_eq!(status(4), Some(Status::Delivered));
        sleep(10 * MINUTE).await;
        assert!(world.stored(id).is_none());
        for name in
            ["a@good.example", "b@good.example", "d@later.example", "e@dead.example", "joe@sender.example"]
        {
            assert_eq!(world.taken_by(name).len(), 1, "{name}");
        }
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn one_report_names_all_that_were_refused_in_an_attempt() {
    simulate(|| async {
        let world = World::new(|one| match (one.destination, &one.to[..1]) {
            ("strict.example", "a" | "b") => Answer::Refuse,
            _ => Answer::Deliver,
        });
        let to = ["a@strict.example", "b@strict.example", "c@strict.example"];
        world.accept(&to).await;
        world.accept_from("", &to).await;
        settle().await;
        let reports = world.mail_of("joe@sender.example");
        assert_eq!(reports.len(), 1, "none for a null reverse-path: {reports:?}");
        assert_eq!(reports[0].matches("Action: failed").count(), 2);
        assert!(reports[0].contains("a@strict.example") && reports[0].contains("b@strict.example"));
        assert!(!reports[0].contains("Final-Recipient: rfc822; c@"));
        world.check_idle().await;
        world.check_left("");
    });
}

fn short_lived() -> QueueSettings {
    let retry = RetryConfig {
        jitter: 0.0,
        give_up_after: Duration::from_secs(600),
        delay_notice_after: Duration::ZERO,
        ..RetryConfig::default()
    };
    QueueSettings { retry: RetryRules::new(&retry), ..settings() }
}

#[test]
fn one_report_names_all_that_expired_in_an_attempt() {
    simulate(|| async {
        let world = World::with(short_lived, |one| {
            if one.destination == "slow.example" { Answer::Hang(630) } else { Answer::Deliver }
        });
        world.accept(&["a@slow.example", "b@slow.example"]).await;
        sleep(700).await;
        let reports = world.mail_of("joe@sender.example");
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].matches("Status: 5.4.7").count(), 2);
        world.check_idle().await;
    });
}

#[test]
fn a_report_repeats_a_header_that_is_read_back_from_the_spool() {
    simulate(|| async {
        let world = World::new(|one| match (one.destination, one.number) {
            ("sender.example", _) => Answer::Deliver,
            (_, 1) => Answer::Later,
            _ => Answer::Refuse,
        });
        world.accept(&["ann@late.example"]).await;
        sleep(2 * MINUTE).await;
        let reports = world.mail_of("joe@sender.example");
        assert_eq!(reports.len(), 1);
        assert!(reports[0].contains("Subject: to ann@late.example"));
        assert_eq!(
            world.tried().iter().map(|tried| tried.from_memory).collect::<Vec<_>>(),
            [true, false, true]
        );
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn what_is_no_attempt_does_not_count_as_one() {
    simulate(|| async {
        for (first, within_s) in [(Answer::Again, 0), (Answer::Busy, 3)] {
            let world = World::new(move |one| match one.number {
                1 => first,
                2 => Answer::Later,
                _ => Answer::Deliver,
            });
            let id = world.accept(&["ann@full.example"]).await;
            sleep(5).await;
            let tries = world.tries_of("ann@full.example");
            assert!(tries.len() == 2 && tries[1] <= within_s, "{first:?} {tries:?}");
            assert_eq!(world.stored(id).expect("queued").states[0].attempts, 1, "{first:?}");
            sleep(2 * MINUTE).await;
            assert_eq!(world.taken_by("ann@full.example").len(), 1, "{first:?}");
            world.check_idle().await;
        }
    });
}

#[test]
fn an_interrupted_recipient_goes_back_to_the_queue_as_it_was() {
    simulate(|| async {
        let mut world = World::new(|one| if one.number == 1 { Answer::Interrupted } else { Answer::Deliver });
        let id = world.accept(&["ann@owing.example"]).await;
        settle().await;
        let fresh = world.stored(id).expect("queued").states;
        let queue = world.queue.clone();
        let drained = actix_rt::spawn(async move { queue.send(Drain).await });
        sleep(20).await;
        assert!(!drained.is_finished(), "an attempt is under way");
        world.queue.do_send(crate::actors::queue::messages::Abort);
        drained.await.expect("no panic").expect("an answer");
        assert_eq!(world.stored(id).expect("queued").states, fresh);
        world.restart().await;
        settle().await;
        assert_eq!(world.taken_by("ann@owing.example").len(), 1);
        world.check_idle().await;
    });
}

#[test]
fn a_message_that_crashes_its_delivery_three_times_goes_to_quarantine() {
    simulate(|| async {
        let world = World::new(|one| match (one.destination, one.to) {
            ("crash.example", _) => Answer::Crash,
            (_, "later@other.example") => Answer::Later,
            _ => Answer::Slow(400),
        });
        let to = ["a@crash.example", "b@crash.example", "later@other.example", "slow@slow.example"];
        let id = world.accept(&to).await;
        sleep(5 * MINUTE).await;
        assert_eq!(world.tries_of("a@crash.example").len(), 2);
        assert_eq!(world.stored(id).expect("queued").states[0].attempts, 2);
        sleep(10 * MINUTE).await;
        assert_eq!(world.tries_of("a@crash.example"), world.tries_of("b@crash.example"));
        assert_eq!(world.tries_of("a@crash.example").len(), 3);
        let quarantined = world.spool.quarantined(None, 9).expect("readable");
        assert_eq!(quarantined.len(), 1);
        let counted = world.metrics.encode().contains("posthaste_panics_total{place=\"delivery\"} 3\n");
        assert!(counted, "{}", world.metrics.encode());
        sleep(DAY).await;
        world.check_idle().await;
        world.check_left("qx");
    });
}

#[test]
fn crashes_lead_to_quarantine_over_restarts_too_and_the_rest_flows() {
    simulate(|| async {
        let mut world =
            World::new(
                |one| if one.destination == "crash.example" { Answer::Crash } else { Answer::Deliver },
            );
        world.accept(&["ann@crash.example"]).await;
        for number in 0..3 {
            sleep(2 * MINUTE).await;
            world.restart().await;
            world.accept(&[&format!("bob{number}@good.example")]).await;
        }
        sleep(HOUR).await;
        let tries = world.tries_of("ann@crash.example").len();
        assert!((3..=6).contains(&tries), "{tries} tries");
        assert_eq!(world.spool.quarantined(None, 9).expect("readable").len(), 1);
        for number in 0..3 {
            assert_eq!(world.taken_by(&format!("bob{number}@good.example")).len(), 1);
        }
        world.check_idle().await;
        world.check_left("qx");
    });
}

#[test]
fn only_crashes_in_a_row_lead_to_quarantine() {
    simulate(|| async {
        let world = World::new(|one| match one.number {
            1..=4 => Answer::Later,
            5 | 6 => Answer::Crash,
            7 => Answer::Later,
            8 | 9 => Answer::Crash,
            _ => Answer::Deliver,
        });
        world.accept(&["ann@shaky.example"]).await;
        sleep(2 * DAY).await;
        assert_eq!(world.taken_by("ann@shaky.example").len(), 1);
        assert_eq!(world.spool.quarantined(None, 9).expect("readable"), []);
        world.check_idle().await;
    });
}

#[test]
fn a_recipient_that_its_report_forgot_is_tried_again() {
    simulate(|| async {
        let world = World::new(|one| {
            if one.to.starts_with('a') && one.number == 1 { Answer::Forget } else { Answer::Deliver }
        });
        world.accept(&["a@faulty.example", "b@faulty.example"]).await;
        sleep(5 * MINUTE).await;
        assert_eq!(
            (world.taken_by("a@faulty.example").len(), world.taken_by("b@faulty.example").len()),
            (1, 1)
        );
        world.check_idle().await;
    });
}

#[test]
fn a_notice_of_delay_does_not_make_a_ready_recipient_ready_twice() {
    simulate(|| async {
        // One connection, so that the second message is still in line when its notice is due.
        let world = World::with(
            || QueueSettings { connections_per_destination: 1, ..settings() },
            |one| if one.destination == "tar.example" { Answer::Slow(5 * HOUR) } else { Answer::Deliver },
        );
        world.accept(&["a@tar.example"]).await;
        world.accept(&["b@tar.example"]).await;
        sleep(16 * HOUR).await;
        let tried = world.tried();
        let twice = tried.iter().find(|tried| tried.to.len() > 1);
        assert!(twice.is_none(), "{twice:?}");
        assert_eq!((world.taken_by("a@tar.example").len(), world.taken_by("b@tar.example").len()), (1, 1));
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn what_expires_in_the_attempt_that_sends_its_message_to_quarantine_is_reported_and_leaves_memory() {
    simulate(|| async {
        let world = World::with(short_lived, |one| match (one.to, one.number) {
            ("ann@odd.example", 1 | 2) => Answer::Later,
            ("ann@odd.example", _) => Answer::Hang(300),
            ("bob@odd.example", _) => Answer::Forget,
            _ => Answer::Deliver,
        });
        let id = world.accept(&["ann@odd.example", "bob@odd.example"]).await;
        sleep(20 * MINUTE).await;
        let quarantined = world.spool.quarantined(None, 10).expect("readable");
        assert_eq!(quarantined.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
        let reports = world.mail_of("joe@sender.example");
        assert_eq!(reports.len(), 1, "what the attempt found is her fate: {reports:?}");
        assert!(reports[0].contains("ann@odd.example") && !reports[0].contains("bob@odd.example"));
        let aside = world.spool.in_quarantine(id).expect("readable").expect("there");
        let states = aside.message.expect("readable").states;
        assert_eq!([states[0].status, states[1].status], [Status::Expired, Status::Queued]);
        world.check_idle().await;
    });
}
