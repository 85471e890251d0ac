//! What the patrol finds and puts right.

use super::*;
use crate::spool::{Damage, DueKey, Op};

#[test]
fn mail_that_lost_its_due_key_goes_out() {
    simulate(|| async {
        let world = World::new(|one| if one.at_s < MINUTE { Answer::Later } else { Answer::Deliver });
        let id = world.accept(&["ann@lost.example"]).await;
        let other = world.accept(&["bob@found.example"]).await;
        sleep(10).await;
        let due_ms = world.stored(id).expect("queued").states[0].due_ms;
        let destination = Domain::parse("lost.example").expect("a domain");
        let lost = Op::DeleteDue(DueKey { destination, due_ms, id, number: 0 });
        world.spool.commit(&[lost]).expect("committed");
        sleep(30 * MINUTE).await;
        assert_eq!(world.taken_by("ann@lost.example"), Vec::<u64>::new(), "nobody finds it");
        assert!(world.stored(other).is_none());
        sleep(HOUR).await;
        assert_eq!(world.taken_by("ann@lost.example").len(), 1);
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn wrong_counters_are_put_right_when_nothing_happens() {
    simulate(|| async {
        let world = World::new(|_| Answer::Later);
        world.accept(&["ann@slow.example"]).await;
        sleep(10).await;
        world.look(|queue, _| queue.counters.recipients = 17).await;
        sleep(3 * HOUR).await;
        assert_eq!(world.spool.counters().expect("readable").recipients, 1);
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        world.check_idle().await;
    });
}

#[test]
fn a_healthy_queue_is_left_alone() {
    simulate(|| async {
        let world = World::new(|one| match one.destination {
            "dead.example" => Answer::NoHost,
            "slow.example" => Answer::Slow(400),
            _ => Answer::Later,
        });
        for number in 0..500 {
            let to = [format!("u{number}@dead.example"), format!("u{number}@slow.example")];
            world.hand_in("joe@sender.example", &[&to[0], &to[1], "ann@later.example"]);
        }
        sleep(DAY).await;
        assert_eq!(world.metrics.patrol_repairs.get(), 0);
    });
}

/// A message that waits on disk for the attempt after the first, and its due key.
async fn waiting(world: &World) -> (QueueId, DueKey) {
    let id = world.accept(&["ann@dead.example"]).await;
    sleep(10).await;
    let due_ms = world.stored(id).expect("queued").states[0].due_ms;
    (id, DueKey { destination: Domain::parse("dead.example").expect("a domain"), due_ms, id, number: 0 })
}

#[test]
fn due_keys_that_lead_to_nothing_are_removed() {
    simulate(|| async {
        let world = World::new(|_| Answer::NoHost);
        let (id, right) = waiting(&world).await;
        // Not before the patrol comes: else a page finds them.
        let far = right.due_ms + 9 * DAY * 1_000;
        let other = Domain::parse("other.example").expect("a domain");
        let strays = [
            DueKey { due_ms: far, ..right.clone() },
            DueKey { number: 3, due_ms: far, ..right.clone() },
            DueKey { destination: other, due_ms: far, ..right.clone() },
        ];
        let put: Vec<Op> = strays.into_iter().map(Op::PutDue).collect();
        world.spool.commit(&put).expect("committed");
        sleep(3 * HOUR).await;
        let left = world.spool.keys().iter().filter(|key| key[0] == b'd').count();
        assert_eq!(left, 1);
        assert_eq!(world.metrics.patrol_repairs.get(), 3);
        assert!(world.stored(id).is_some());
        world.check_idle().await;
    });
}

#[test]
fn mail_without_a_deadline_expires_all_the_same() {
    simulate(|| async {
        let world =
            World::new(
                |one| if one.destination == "dead.example" { Answer::NoHost } else { Answer::Deliver },
            );
        let (id, _) = waiting(&world).await;
        let deadlines = world.spool.deadlines(None, 9).expect("readable");
        let lost: Vec<Op> = deadlines.into_iter().map(|(at, id)| Op::DeleteDeadline(at, id)).collect();
        assert_eq!(lost.len(), 1);
        world.spool.commit(&lost).expect("committed");
        sleep(2 * HOUR).await;
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        assert_eq!(world.spool.deadlines(None, 9).expect("readable").len(), 1);
        sleep(6 * DAY).await;
        assert!(world.stored(id).is_none());
        assert_eq!(world.mail_of("joe@sender.example").len(), 2, "a notice of delay and a report");
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn other_retry_times_hold_for_mail_that_waits_and_nothing_was_broken() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::NoHost);
        let (id, _) = waiting(&world).await;
        let sooner = || {
            let retry = RetryConfig {
                give_up_after: Duration::from_secs(DAY),
                delay_notice_after: Duration::ZERO,
                jitter: 0.0,
                ..RetryConfig::default()
            };
            QueueSettings { retry: RetryRules::new(&retry), ..settings() }
        };
        sleep(5 * HOUR).await;
        let times = |world: &World| -> Vec<u64> {
            let keys = world.spool.deadlines(None, 9).expect("readable");
            keys.into_iter().filter(|(_, of)| *of == id).map(|(at_ms, _)| at_ms).collect()
        };
        let before = times(&world);
        world.settings = Box::new(sooner);
        world.restart().await;
        sleep(2 * HOUR).await;
        assert_eq!(times(&world), [before[0] - 4 * DAY * 1_000, before[0]]);
        assert_eq!(world.metrics.patrol_repairs.get(), 0, "nothing was lost");
        sleep(20 * HOUR).await;
        assert!(world.stored(id).is_none(), "it expired after a day");
        sleep(6 * DAY).await;
        assert_eq!(world.metrics.patrol_repairs.get(), 0);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn wrong_counters_are_put_right_while_mail_flows() {
    simulate(|| async {
        let world = World::new(|one| if one.number < 9 { Answer::Later } else { Answer::Deliver });
        for number in 0..500 {
            world.hand_in("", &[&format!("u{number}@slow.example"), "ann@later.example"]);
        }
        sleep(10).await;
        world.look(|queue, _| (queue.counters.recipients, queue.counters.bytes) = (17, 4)).await;
        for number in 0..5_000 {
            world.hand_in("", &[&format!("v{number}@d{}.example", number % 50)]);
            sleep(1).await;
        }
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        let counted = world.look(|queue, _| queue.counters.recipients).await;
        assert!(counted > 1_000, "{counted}");
        sleep(DAY).await;
        assert_eq!(world.metrics.patrol_repairs.get(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn counters_are_exact_again_soon_after_a_message_went_unread_to_quarantine() {
    simulate(|| async {
        let world = World::new(|_| Answer::NoHost);
        let (id, _) = waiting(&world).await;
        let (other, _) = waiting(&world).await;
        world.spool.damage(&[&b"e"[..], id.as_bytes()].concat(), Damage::Kind);
        sleep(90).await;
        assert!(world.stored(other).is_some());
        assert_eq!(world.spool.counters().expect("readable"), world.scan());
        assert_eq!(world.metrics.patrol_repairs.get(), 0, "it was to be expected");
    });
}

#[test]
fn the_metric_tells_the_age_of_the_oldest_message_that_can_be_read() {
    simulate(|| async {
        let world = World::new(|_| Answer::NoHost);
        let (first, _) = waiting(&world).await;
        sleep(MINUTE).await;
        let (second, _) = waiting(&world).await;
        let age = || async {
            world.queue.send(crate::actors::queue::messages::Observe).await.expect("the Queue lives");
            world.metrics.queue_oldest_seconds.get().round()
        };
        assert_eq!(age().await, 80.0);
        world.spool.damage(&[&b"e"[..], first.as_bytes()].concat(), Damage::Checksum);
        assert_eq!(age().await, 10.0);
        world.command(second, None, CommandVerb::Remove).await;
        assert_eq!(age().await, 0.0);
    });
}
