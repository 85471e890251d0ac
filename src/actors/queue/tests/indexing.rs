//! When a message gets its keys on disk, and what finds it before.

use super::*;
use crate::spool::Op;
use crate::spool::front::by_hand::Hands;

/// Due and deadline keys in the spool.
fn keys(world: &World) -> usize {
    world.spool.keys().iter().filter(|key| matches!(key[0], b'd' | b't')).count()
}

#[test]
fn a_message_that_is_delivered_at_once_needs_no_keys() {
    simulate(|| async {
        let (spool, hands) = (Arc::new(MemorySpool::new()), Hands::default());
        let front = Front::by_hand(spool.clone(), &hands);
        let world = World::over(front, spool, settings, |_| Answer::Deliver);
        hands.hold_commits(true);
        let (_, answer) = world.hand_in("joe@sender.example", &["ann@a.example", "bob@b.example"]);
        settle().await;
        let ops = hands.waiting().expect("the arrival");
        assert!(matches!(ops[..], [Op::PutMessage(..), Op::Counters(_)]), "{ops:?}");
        hands.hold_commits(false);
        hands.finish_commit(&*world.spool);
        assert_eq!(answer.await, Ok(Ok(())));
        settle().await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_crash_loses_no_message_that_had_no_keys_yet() {
    simulate(|| async {
        let mut world = World::new(|one| if one.at_s < 5 { Answer::Slow(60) } else { Answer::Deliver });
        let names: Vec<String> = (0..600).map(|number| format!("u@d{}.example", number % 300)).collect();
        for name in &names {
            world.hand_in("joe@sender.example", &[name]);
        }
        sleep(5).await;
        assert_eq!(keys(&world), 0);
        assert!(world.spool.counters().expect("readable").unindexed_from.is_some());
        world.restart().await;
        sleep(HOUR).await;
        assert_eq!(lock(&world.remote).taken.len(), names.len());
        assert_eq!(world.spool.counters().expect("readable").unindexed_from, None);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_crash_during_the_look_through_loses_nothing() {
    simulate(|| async {
        let mut world = World::new(|one| if one.at_s < 5 { Answer::Slow(60) } else { Answer::Deliver });
        for number in 0..600 {
            world.hand_in("joe@sender.example", &[&format!("u@d{number}.example")]);
        }
        sleep(5).await;
        let (spool, hands) = (world.spool.clone(), Hands::default());
        hands.hold_commits(true);
        world.restart_over(Front::by_hand(spool, &hands), || ()).await;
        sleep(3).await;
        hands.finish_commit(&*world.spool);
        sleep(1).await;
        let left = world.spool.counters().expect("readable").unindexed_from;
        assert!(left.is_some() && keys(&world) > 0, "half of it is done: {left:?}");
        world.restart_over(Front::inline(world.spool.clone()), || hands.die()).await;
        sleep(HOUR).await;
        // What the second crash interrupted may have been taken twice.
        let taken: std::collections::HashSet<String> =
            lock(&world.remote).taken.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(taken.len(), 600);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_message_whose_first_attempt_takes_long_gets_its_keys() {
    simulate(|| async {
        let world = World::new(|_| Answer::Slow(300));
        world.accept(&["ann@slow.example"]).await;
        sleep(5).await;
        assert_eq!(keys(&world), 0);
        sleep(10).await;
        assert_eq!(keys(&world), 2);
        assert_eq!(world.spool.counters().expect("readable").unindexed_from, None);
        sleep(HOUR).await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_clean_stop_leaves_nothing_to_look_through() {
    simulate(|| async {
        let mut world = World::new(|one| if one.at_s < 50 { Answer::NoHost } else { Answer::Deliver });
        for number in 0..50 {
            world.hand_in("joe@sender.example", &[&format!("u{number}@dead.example"), "ann@other.example"]);
        }
        world.queue.send(Drain).await.expect("drained");
        assert_eq!(world.spool.counters().expect("readable").unindexed_from, None);
        world.restart().await;
        sleep(2 * HOUR).await;
        assert_eq!(lock(&world.remote).taken.len(), 100);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_damaged_message_without_keys_goes_to_quarantine_after_a_crash() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::Slow(60));
        let id = world.accept(&["ann@slow.example"]).await;
        world.accept(&["bob@slow.example"]).await;
        world.spool.spoil(id);
        world.restart().await;
        lock(&world.remote).follow(|_| Answer::Deliver);
        sleep(HOUR).await;
        let quarantined = world.spool.quarantined(None, 9).expect("readable");
        assert_eq!(quarantined.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
        assert_eq!(world.taken_by("bob@slow.example").len(), 1);
    });
}
