//! Expiry holds wherever a recipient is, and the time in which nobody could try it does not count against it.

use super::*;
use crate::spool::front::by_hand::Hands;

/// One slot for each destination, and mail that expires after six hours.
fn patient() -> QueueSettings {
    let retry = RetryConfig {
        jitter: 0.0,
        give_up_after: Duration::from_secs(6 * HOUR),
        delay_notice_after: Duration::ZERO,
        ..RetryConfig::default()
    };
    QueueSettings { retry: RetryRules::new(&retry), connections_per_destination: 1, ..settings() }
}

/// The reports of a recipient.
fn reports_of(world: &World, to: &str) -> usize {
    let line = format!("Final-Recipient: rfc822;{to}\r\n");
    let reports = world.mail_of("joe@sender.example");
    reports.iter().filter(|report| report.replace("; ", ";").contains(&line)).count()
}

#[test]
fn a_recipient_that_waits_in_line_all_its_time_expires_though_nobody_tried_it() {
    simulate(|| async {
        let world = World::with(patient, |one| match one.to {
            "first@silent.example" => Answer::Slow(2 * DAY),
            _ => Answer::Deliver,
        });
        world.accept_from("", &["first@silent.example"]).await;
        let id = world.accept(&["ann@silent.example"]).await;
        sleep(6 * HOUR - MINUTE).await;
        assert_eq!(world.stored(id).expect("queued").states[0].attempts, 0);
        assert_eq!(reports_of(&world, "ann@silent.example"), 0);
        sleep(2 * MINUTE).await;
        assert_eq!(reports_of(&world, "ann@silent.example"), 1);
        sleep(3 * DAY).await;
        assert_eq!(world.tries_of("ann@silent.example"), Vec::<u64>::new());
        assert_eq!(reports_of(&world, "ann@silent.example"), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_recipient_whose_address_is_always_full_expires() {
    simulate(|| async {
        let world = World::with(patient, |one| match one.destination {
            "full.example" => Answer::Busy,
            _ => Answer::Deliver,
        });
        let id = world.accept(&["ann@full.example"]).await;
        sleep(6 * HOUR - MINUTE).await;
        assert_eq!(world.stored(id).expect("queued").states[0].attempts, 0);
        sleep(3 * MINUTE).await;
        assert_eq!(reports_of(&world, "ann@full.example"), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_recipient_in_flight_at_its_deadline_expires_when_its_attempt_fails_and_not_when_it_is_taken() {
    simulate(|| async {
        let world = World::with(patient, |one| match one.to {
            "ann@hangs.example" => Answer::Hang(7 * HOUR),
            "bob@slow.example" => Answer::Slow(7 * HOUR),
            _ => Answer::Deliver,
        });
        world.accept(&["ann@hangs.example"]).await;
        world.accept(&["bob@slow.example"]).await;
        sleep(7 * HOUR - MINUTE).await;
        assert_eq!(world.mail_of("joe@sender.example"), Vec::<String>::new());
        sleep(2 * MINUTE).await;
        assert_eq!(reports_of(&world, "ann@hangs.example"), 1);
        assert_eq!(world.taken_by("bob@slow.example").len(), 1);
        assert_eq!(reports_of(&world, "bob@slow.example"), 0);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_recipient_whose_destination_backs_off_expires_at_its_time() {
    simulate(|| async {
        let world = World::with(patient, |one| match one.destination {
            "dead.example" => Answer::NoHost,
            _ => Answer::Deliver,
        });
        world.accept(&["ann@dead.example"]).await;
        sleep(10).await;
        world.accept(&["bob@dead.example"]).await;
        sleep(6 * HOUR - MINUTE).await;
        assert_eq!(world.mail_of("joe@sender.example"), Vec::<String>::new());
        sleep(2 * MINUTE).await;
        assert_eq!((reports_of(&world, "ann@dead.example"), reports_of(&world, "bob@dead.example")), (1, 1));
        sleep(DAY).await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_start_gives_whoever_is_overdue_its_turn_but_not_for_ever() {
    simulate(|| async {
        let mut world = World::with(patient, |one| match one.to {
            "first@silent.example" => Answer::Slow(3 * DAY),
            _ => Answer::Deliver,
        });
        world.accept_from("", &["first@silent.example"]).await;
        world.accept(&["ann@silent.example"]).await;
        world.accept(&["bob@good.example"]).await;
        sleep(MINUTE).await;
        world.clock.jump(2 * 86_400_000);
        world.restart().await;
        sleep(11 * HOUR).await;
        assert_eq!(reports_of(&world, "ann@silent.example"), 0, "its slot was taken ever since the start");
        sleep(2 * HOUR).await;
        assert_eq!(reports_of(&world, "ann@silent.example"), 1);
        assert_eq!(world.taken_by("bob@good.example").len(), 1);
        sleep(5 * DAY).await;
        world.check_idle().await;
        world.check_left("");
    });
}

/// A world where mail for dead.example waits, and what holds back its reads.
fn held(settings: impl Fn() -> QueueSettings + 'static) -> (World, Hands) {
    let (spool, hands) = (Arc::new(MemorySpool::new()), Hands::default());
    let front = Front::by_hand(spool.clone(), &hands);
    let world = World::over(front, spool, settings, |one| match one.destination {
        "dead.example" => Answer::NoHost,
        _ => Answer::Deliver,
    });
    (world, hands)
}

fn deadlines(world: &World) -> Vec<(u64, QueueId)> {
    world.spool.deadlines(None, 9).expect("readable")
}

#[test]
fn a_message_keeps_a_deadline_until_it_has_expired_on_disk() {
    simulate(|| async {
        let (world, hands) = held(patient);
        let id = world.accept(&["ann@dead.example"]).await;
        sleep(6 * HOUR - MINUTE).await;
        hands.hold_reads(true);
        sleep(2 * MINUTE).await;
        let mut reads = 0;
        while hands.finish_read() {
            reads += 1;
            settle().await;
            assert!(world.stored(id).is_none() || deadlines(&world).len() == 1, "after read {reads}");
        }
        assert!(world.stored(id).is_none() && reads > 1, "{reads} reads");
        hands.hold_reads(false);
        sleep(DAY).await;
        assert_eq!(reports_of(&world, "ann@dead.example"), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_delay_is_told_though_the_relay_was_killed_while_it_made_the_report() {
    simulate(|| async {
        let noticing = || {
            let retry =
                RetryConfig { delay_notice_after: Duration::from_secs(HOUR), ..RetryConfig::default() };
            QueueSettings { retry: RetryRules::new(&retry), ..settings() }
        };
        let (mut world, hands) = held(noticing);
        world.accept(&["ann@dead.example"]).await;
        sleep(HOUR - MINUTE).await;
        let before = deadlines(&world);
        hands.hold_reads(true);
        sleep(2 * MINUTE).await;
        while deadlines(&world) == before {
            assert!(hands.finish_read());
            settle().await;
        }
        assert_eq!(reports_of(&world, "ann@dead.example"), 0, "the report is not made yet");
        let front = Front::inline(world.spool.clone());
        world.restart_over(front, || hands.die()).await;
        sleep(5 * MINUTE).await;
        assert_eq!(reports_of(&world, "ann@dead.example"), 1);
    });
}
