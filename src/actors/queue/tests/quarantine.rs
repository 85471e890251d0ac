//! What an operator decides on messages in quarantine.

use super::super::messages::{QuarantineCommand, QuarantineVerb};
use super::*;

/// A message whose delivery crashed three times, in a world where it would now succeed.
async fn crashed() -> (World, QueueId) {
    let world = World::new(|_| Answer::Crash);
    let id = world.accept(&["ann@a.example", "bob@a.example"]).await;
    sleep(HOUR).await;
    assert_eq!(world.spool.quarantined(None, 9).expect("readable").len(), 1);
    lock(&world.remote).follow(|_| Answer::Deliver);
    (world, id)
}

async fn decide(world: &World, id: QueueId, verb: QuarantineVerb) -> CommandResult {
    world.queue.send(QuarantineCommand { id, verb }).await.expect("the Queue lives")
}

#[test]
fn a_released_message_is_delivered() {
    simulate(|| async {
        let (world, id) = crashed().await;
        let done = decide(&world, id, QuarantineVerb::Release).await;
        assert_eq!(done, CommandResult::Done { recipients: 2, in_flight: 0 });
        sleep(HOUR).await;
        for name in ["ann@a.example", "bob@a.example"] {
            assert_eq!(world.taken_by(name).len(), 1, "{name}");
        }
        assert_eq!(decide(&world, id, QuarantineVerb::Release).await, CommandResult::NotFound);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_released_message_survives_a_crash() {
    simulate(|| async {
        let (mut world, id) = crashed().await;
        lock(&world.remote).follow(|one| if one.at_s < 2 * HOUR { Answer::NoHost } else { Answer::Deliver });
        decide(&world, id, QuarantineVerb::Release).await;
        world.restart().await;
        sleep(3 * HOUR).await;
        assert_eq!(world.taken_by("ann@a.example").len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_discarded_message_is_gone_for_good() {
    simulate(|| async {
        let (world, id) = crashed().await;
        let done = decide(&world, id, QuarantineVerb::Discard).await;
        assert_eq!(done, CommandResult::Done { recipients: 2, in_flight: 0 });
        sleep(DAY).await;
        assert_eq!(world.taken_by("ann@a.example"), Vec::<u64>::new());
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_message_that_can_not_be_read_is_not_released_but_can_be_discarded() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::Slow(60));
        let id = world.accept(&["ann@slow.example"]).await;
        world.spool.spoil(id);
        world.restart().await;
        sleep(10).await;
        let CommandResult::Impossible { reason } = decide(&world, id, QuarantineVerb::Release).await else {
            panic!("released");
        };
        assert!(reason.contains("discard it"), "{reason}");
        let done = decide(&world, id, QuarantineVerb::Discard).await;
        assert_eq!(done, CommandResult::Done { recipients: 0, in_flight: 0 });
        assert_eq!(world.spool.quarantined(None, 9).expect("readable"), []);
    });
}
