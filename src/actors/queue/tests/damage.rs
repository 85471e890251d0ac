//! Records that are damaged on disk: what they belong to goes to quarantine or is forgotten, and the rest flows.

use super::super::messages::{QuarantineCommand, QuarantineVerb};
use super::*;
use crate::spool::{Damage, DueKey, Op};

/// What the keys of a message's records of one kind start with.
fn records(kind: u8, id: QueueId) -> Vec<u8> {
    [&[kind][..], id.as_bytes()].concat()
}

/// A world in which mail to `later.example` waits on disk for its second attempt, and one message there.
async fn waiting() -> (World, QueueId) {
    let world = World::new(|one| match one.destination {
        "later.example" if one.number == 1 => Answer::Later,
        _ => Answer::Deliver,
    });
    let id = world.accept(&["ann@later.example", "bob@good.example"]).await;
    sleep(10).await;
    (world, id)
}

async fn decide(world: &World, id: QueueId, verb: QuarantineVerb) -> CommandResult {
    world.queue.send(QuarantineCommand { id, verb }).await.expect("the Queue lives")
}

#[test]
fn a_message_with_any_damaged_record_goes_to_quarantine_and_the_rest_flows() {
    simulate(|| async {
        for kind in *b"esc" {
            for how in Damage::ALL {
                let what = format!("{how:?} of {}", char::from(kind));
                let (world, id) = waiting().await;
                let neighbour = world.accept(&["carl@later.example"]).await;
                world.spool.damage(&records(kind, id), how);
                sleep(HOUR).await;
                let found = world.spool.quarantined(None, 9).expect("readable");
                assert_eq!(found.len(), 1, "{what}");
                assert_eq!(found[0].0, id, "{what}");
                assert!(found[0].1.contains("damaged record"), "{what}: {}", found[0].1);
                assert_eq!(world.taken_by("ann@later.example"), Vec::<u64>::new(), "{what}");
                assert_eq!(world.taken_by("carl@later.example").len(), 1, "{what}");
                assert!(world.stored(neighbour).is_none(), "{what}");
                world.check_idle().await;
                world.check_left("qx");
            }
        }
    });
}

#[test]
fn damage_is_found_by_whoever_meets_it_first() {
    simulate(|| async {
        // A start after a crash, an operator, a deadline, the patrol.
        for meets in 0..4 {
            let mut world = World::new(|one| match one.destination {
                "busy.example" => Answer::Slow(60),
                _ => Answer::NoHost,
            });
            let id = world.accept(&["ann@dead.example"]).await;
            let busy = if meets == 0 { world.accept(&["ann@busy.example"]).await } else { id };
            sleep(20).await;
            let damaged = if meets == 0 { busy } else { id };
            world.spool.damage(&records(b'e', damaged), Damage::Version);
            match meets {
                0 => world.restart().await,
                1 => {
                    let CommandResult::Impossible { reason } =
                        world.command(id, None, CommandVerb::Remove).await
                    else {
                        panic!("done to what can't be read")
                    };
                    assert!(reason.contains("version"), "{reason}");
                }
                2 => world.look(|queue, _| queue.patrol.pause()).await,
                _ => sleep(2 * HOUR).await,
            }
            sleep(if meets == 2 { 5 * DAY } else { 20 }).await;
            let found = world.spool.quarantined(None, 9).expect("readable");
            assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [damaged], "case {meets}");
            assert!(world.metrics.damaged_records.get() >= 1);
        }
    });
}

#[test]
fn what_is_in_flight_when_damage_is_found_still_meets_its_fate() {
    simulate(|| async {
        let world = World::new(|one| match (one.destination, one.number) {
            ("good.example", _) => Answer::Deliver,
            ("slow.example", 2) => Answer::Slow(400),
            (_, 1 | 2) => Answer::Later,
            _ => Answer::Deliver,
        });
        let to = ["ann@later.example", "bob@slow.example", "carl@good.example"];
        let id = world.accept(&to).await;
        sleep(100).await;
        // Bob's content was read a while ago, Ann's is read at 6 minutes.
        world.spool.damage(&records(b'c', id), Damage::Checksum);
        sleep(300).await;
        assert_eq!(world.tries_of(to[0]).len(), 3);
        assert_eq!(world.spool.quarantined(None, 9).expect("readable"), [], "bob is in flight");
        sleep(100).await;
        let found = world.spool.in_quarantine(id).expect("readable").expect("there");
        assert!(found.obstacle.expect("damaged").contains("checksum"));
        let states = found.message.expect("readable").states;
        let status = states.iter().map(|state| state.status).collect::<Vec<_>>();
        assert_eq!(status, [Status::Queued, Status::Delivered, Status::Delivered]);
        assert_eq!(states[0].attempts, 2, "what was not sent is no attempt");
        assert_eq!((world.taken_by(to[1]).len(), world.taken_by(to[2]).len()), (1, 1));
        let counted = "posthaste_recipients_total{class=\"local\",outcome=\"damaged\"} 1\n";
        assert!(world.metrics.encode().contains(counted), "{}", world.metrics.encode());
        sleep(DAY).await;
        assert_eq!(world.tries_of(to[0]).len(), 3);
        world.check_idle().await;
        world.check_left("qx");
    });
}

#[test]
fn all_recipients_of_damaged_content_go_together_wherever_they_wait() {
    simulate(|| async {
        // One connection each: some are in line, some are attempted at that moment, one waits for its destination.
        let world = World::with(
            || QueueSettings { connections_per_destination: 1, recipients_per_transaction: 1, ..settings() },
            |one| match one.destination {
                "dead.example" => Answer::NoHost,
                _ if one.number == 1 => Answer::Later,
                "slow.example" => Answer::Slow(30),
                _ => Answer::Deliver,
            },
        );
        let to = ["a@later.example", "b@later.example", "c@slow.example", "d@slow.example", "e@dead.example"];
        let id = world.accept(&to).await;
        sleep(10).await;
        world.spool.damage(&records(b'c', id), Damage::Kind);
        sleep(70).await;
        assert_eq!(world.spool.quarantined(None, 9).expect("readable"), [], "one is in flight");
        sleep(20).await;
        assert_eq!(world.spool.quarantined(None, 9).expect("readable").len(), 1);
        assert_eq!((world.tries_of(to[1]).len(), world.tries_of(to[3]).len()), (1, 1), "of no use");
        sleep(2 * DAY).await;
        world.check_idle().await;
        world.check_left("qx");
    });
}

#[test]
fn damaged_content_is_released_only_when_it_was_restored() {
    simulate(|| async {
        let (world, id) = waiting().await;
        let content = records(b'c', id);
        world.spool.damage(&content, Damage::Checksum);
        sleep(HOUR).await;
        let CommandResult::Impossible { reason } = decide(&world, id, QuarantineVerb::Release).await else {
            panic!("released");
        };
        assert!(reason.contains("restore its content, or discard it"), "{reason}");
        // The same bit once more.
        world.spool.damage(&[&b"q"[..], &content].concat(), Damage::Checksum);
        let done = decide(&world, id, QuarantineVerb::Release).await;
        assert_eq!(done, CommandResult::Done { recipients: 1, in_flight: 0 });
        sleep(HOUR).await;
        assert_eq!(
            (world.taken_by("ann@later.example").len(), world.taken_by("bob@good.example").len()),
            (1, 1)
        );
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_destination_whose_record_is_damaged_is_tried_as_if_nothing_were_known() {
    simulate(|| async {
        for how in Damage::ALL {
            let mut world = World::new(|one| if one.at_s < 30 { Answer::NoHost } else { Answer::Deliver });
            world.accept(&["ann@dead.example"]).await;
            sleep(10).await;
            world.spool.damage(b"ndead.example", how);
            world.restart().await;
            sleep(10 * MINUTE).await;
            assert_eq!(world.taken_by("ann@dead.example").len(), 1, "{how:?}");
            assert_eq!(world.metrics.damaged_records.get(), 1, "{how:?}");
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_quarantine_whose_reason_is_damaged_is_still_seen() {
    simulate(|| async {
        let (world, id) = waiting().await;
        world.spool.damage(&records(b'e', id), Damage::Checksum);
        sleep(HOUR).await;
        world.spool.damage(&records(b'x', id), Damage::Checksum);
        let found = world.spool.quarantined(None, 9).expect("readable");
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("reason can't be read"), "{}", found[0].1);
    });
}

/// Due keys for a recipient of a message, at these times.
fn due_keys(id: QueueId, number: u16, times: impl Iterator<Item = u64>) -> Vec<Op> {
    let destination = Domain::parse("later.example").expect("a domain");
    times.map(|due_ms| Op::PutDue(DueKey { destination: destination.clone(), due_ms, id, number })).collect()
}

#[test]
fn keys_that_lead_to_nothing_do_not_stop_the_mail_behind_them() {
    simulate(|| async {
        let (world, id) = waiting().await;
        let due_ms = world.stored(id).expect("queued").states[0].due_ms;
        // More than a page of each: of a settled recipient, of one that there is not, and of one that is due later.
        for number in [1, 7, 0] {
            world.spool.commit(&due_keys(id, number, due_ms - 2_000..due_ms - 1_500)).expect("committed");
        }
        sleep(10 * MINUTE).await;
        assert_eq!(world.taken_by("ann@later.example").len(), 1);
        assert_eq!(world.spool.quarantined(None, 9).expect("readable"), []);
        assert!(world.metrics.patrol_repairs.get() >= 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn unreadable_counters_are_counted_anew() {
    simulate(|| async {
        let mut world =
            World::new(|one| if one.destination == "bad.example" { Answer::Crash } else { Answer::NoHost });
        for number in 0..300 {
            world.accept(&[&format!("u{number}@dead.example"), "ann@dead.example"]).await;
        }
        world.accept(&["ann@bad.example"]).await;
        sleep(HOUR).await;
        let right = world.spool.counters().expect("readable");
        assert_eq!((right.messages, right.quarantined), (300, 1));
        world.spool.commit(&[Op::Counters(Counters::guess(1))]).expect("committed");
        world.restart().await;
        // Mail comes and goes meanwhile.
        for number in 0..100 {
            world.accept(&[&format!("v{number}@dead.example")]).await;
            let id = world.accept(&[&format!("w{number}@dead.example")]).await;
            world.command(id, None, CommandVerb::Remove).await;
            sleep(1).await;
        }
        sleep(MINUTE).await;
        let counters = world.spool.counters().expect("readable");
        assert_eq!((counters.messages, counters.recipients), (400, 700));
        assert_eq!(counters, world.scan());
        assert_eq!(world.metrics.patrol_repairs.get(), 0, "it was known");
    });
}
