//! The group commit, and what may happen while a commit or a read is on its way.

use super::faulty::FaultySpool;
use super::*;
use crate::spool::Op;
use crate::spool::front::by_hand::Hands;

fn held(script: impl FnMut(&Try<'_>) -> Answer + Send + 'static) -> (World, Hands) {
    let (spool, hands) = (Arc::new(MemorySpool::new()), Hands::default());
    let front = Front::by_hand(spool.clone(), &hands);
    (World::over(front, spool, settings, script), hands)
}

#[test]
fn arrivals_gather_while_a_commit_is_under_way_and_go_into_one() {
    simulate(|| async {
        let (world, hands) = held(|_| Answer::Later);
        world.accept(&["first@slow.example"]).await;
        hands.hold_commits(true);
        let (_, mut second) = world.hand_in("joe@sender.example", &["second@slow.example"]);
        settle().await;
        let more: Vec<_> = (0..5)
            .map(|number| world.hand_in("joe@sender.example", &[&format!("u{number}@slow.example")]).1)
            .collect();
        sleep(70).await;
        assert_eq!(world.tried().len(), 2, "only what is on disk is tried, the first one twice");
        assert!(second.try_recv().is_err(), "no answer before the commit");
        hands.finish_commit(&*world.spool);
        settle().await;
        assert_eq!(second.await, Ok(Ok(())));
        let ops = hands.waiting().expect("the next commit");
        let puts: Vec<usize> =
            (0..).zip(&ops).filter(|(_, op)| matches!(op, Op::PutMessage(..))).map(|(at, _)| at).collect();
        let reports =
            ops.iter().position(|op| matches!(op, Op::PutRecipient(..))).expect("the second try's report");
        assert_eq!(puts.len(), 5);
        assert!(reports < puts[0], "reports ride before mail");
        hands.hold_commits(false);
        hands.finish_commit(&*world.spool);
        for answer in more {
            assert_eq!(answer.await, Ok(Ok(())));
        }
        settle().await;
        world.check_idle().await;
    });
}

#[test]
fn a_failed_commit_refuses_all_who_wait_and_everyone_after() {
    simulate(|| async {
        let (world, hands) = held(|_| Answer::Deliver);
        hands.hold_commits(true);
        let first = world.hand_in("joe@sender.example", &["a@d.example"]).1;
        settle().await;
        let second = world.hand_in("joe@sender.example", &["b@d.example"]).1;
        settle().await;
        assert_eq!(*world.failure.borrow(), None);
        hands.fail_commit();
        assert_eq!(first.await, Ok(Err(NotQueued::Spool)));
        assert_eq!(second.await, Ok(Err(NotQueued::Spool)));
        assert!(world.failure.borrow().is_some());
        let third = world.hand_in("joe@sender.example", &["c@d.example"]).1;
        assert_eq!(third.await, Ok(Err(NotQueued::Spool)));
        sleep(DAY).await;
        assert!(world.tried().is_empty());
        world.queue.send(Drain).await.expect("a drain still ends");
    });
}

#[test]
fn a_removal_while_a_deferral_is_on_its_way_to_disk_holds() {
    simulate(|| async {
        let (world, hands) = held(|one| if one.number == 1 { Answer::Slow(1) } else { Answer::Deliver });
        lock(&world.remote).follow(|_| Answer::Later);
        let id = world.accept(&["ann@slow.example", "bob@other.example"]).await;
        hands.hold_commits(true);
        sleep(61).await;
        assert_eq!(world.tried().len(), 4);
        // The deferral's commit waits; the removal gathers behind it.
        let (queue, remove) =
            (world.queue.clone(), Command { id, recipient: None, verb: CommandVerb::Remove });
        let answer = actix_rt::spawn(async move { queue.send(remove).await });
        settle().await;
        hands.finish_commit(&*world.spool);
        settle().await;
        let messages = world.look(|queue, _| queue.residents.len()).await;
        assert_eq!(messages, 1, "its last change is not on disk yet");
        hands.hold_commits(false);
        while hands.waiting().is_some() {
            hands.finish_commit(&*world.spool);
            settle().await;
        }
        assert_eq!(
            answer.await.expect("no panic").expect("an answer"),
            CommandResult::Done { recipients: 2, in_flight: 0 }
        );
        sleep(DAY).await;
        assert_eq!(world.tried().len(), 4);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_drain_waits_for_reports_that_are_still_being_written() {
    simulate(|| async {
        let (world, hands) = held(|one| match (one.destination, one.number) {
            ("sender.example", _) => Answer::Deliver,
            (_, 1) => Answer::Later,
            _ => Answer::Slow(5),
        });
        let id = world.accept(&["ann@d.example"]).await;
        sleep(30).await;
        lock(&world.remote).follow(|_| Answer::Refuse);
        sleep(29).await;
        hands.hold_reads(true);
        sleep(2).await;
        // The page that brings the recipient back, then the header of the message for the report.
        while world.tried().len() < 2 {
            assert!(hands.finish_read());
            settle().await;
        }
        let queue = world.queue.clone();
        let drained = actix_rt::spawn(async move { queue.send(Drain).await });
        sleep(5).await;
        assert!(!drained.is_finished(), "the report is not on disk");
        while hands.finish_read() {
            settle().await;
        }
        drained.await.expect("no panic").expect("an answer");
        assert!(world.stored(id).is_none(), "bounced");
        assert_eq!(world.scan().messages, 1, "the report");
    });
}

#[test]
fn a_deferral_during_a_page_read_is_woken_again() {
    simulate(|| async {
        let (world, hands) = held(|one| match (one.at_s, one.number) {
            (0..30, _) => Answer::NoHost,
            (_, 1..=2) if one.to.starts_with("u3") => Answer::Later,
            _ => Answer::Deliver,
        });
        let mut number = 0;
        hands.delay(move || {
            number += 1;
            [1, 7, 3, 12, 5][number % 5]
        });
        for number in 0..600 {
            world.hand_in("", &[&format!("u{number}@big.example")]);
        }
        sleep(10 * MINUTE).await;
        assert_eq!(lock(&world.remote).taken.len(), 600);
        sleep(DAY).await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_page_that_cannot_be_read_is_read_again() {
    check_bad_reads(false);
}

#[test]
fn a_read_that_panics_is_done_again() {
    check_bad_reads(true);
}

fn check_bad_reads(panics: bool) {
    simulate(|| async {
        let spool = Arc::new(MemorySpool::new());
        let faulty = Arc::new(FaultySpool { panics, ..FaultySpool::new(spool.clone()) });
        let front = Front::inline(faulty.clone());
        let world = World::over(front, spool, settings, |one| match one.destination {
            "sender.example" => Answer::Deliver,
            _ if one.at_s < 30 => Answer::Later,
            _ => Answer::Deliver,
        });
        for round in 0..8 {
            let to = format!("ann@d{round}.example");
            world.accept(&[&to]).await;
            settle().await;
            faulty.faults.store(round, Ordering::Relaxed);
            sleep(HOUR).await;
            assert_eq!(world.taken_by(&to).len(), 1, "after {round} faults");
        }
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_short_wait_is_not_slept_through_while_its_commit_is_slow() {
    simulate(|| async {
        for (commit_ms, schedule_ms) in [(500, 100), (300, 200), (40, 20), (2_000, 1)] {
            let (world, hands) = held(|one| if one.number < 5 { Answer::Later } else { Answer::Deliver });
            world
                .look(move |queue, _| {
                    let schedule = vec![Duration::from_millis(schedule_ms)];
                    let retry = RetryConfig { jitter: 0.0, schedule, ..RetryConfig::default() };
                    queue.parts.settings.retry = RetryRules::new(&retry);
                })
                .await;
            hands.delay(move || commit_ms);
            for number in 0..20 {
                world.hand_in("", &[&format!("u@d{number}.example")]);
                tokio::time::sleep(Duration::from_millis(13)).await;
            }
            sleep(2 * MINUTE).await;
            assert_eq!(lock(&world.remote).taken.len(), 20, "commits of {commit_ms} ms");
            world.check_idle().await;
            world.check_left("");
        }
    });
}
