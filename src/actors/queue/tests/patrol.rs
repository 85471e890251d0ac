//! What the patrol finds and puts right.

use super::*;
use crate::spool::{DueKey, Op};

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
