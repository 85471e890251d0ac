//! Recipients on hold and suspended destinations: nothing is tried, no attempt is used up, nothing is forgotten.

use super::*;

fn done(recipients: u32, in_flight: u32) -> CommandResult {
    CommandResult::Done { recipients, in_flight }
}

/// Who was tried, reports to the sender left out.
fn tries(world: &World) -> Vec<String> {
    let to = world.tried().into_iter().flat_map(|tried| tried.to);
    to.filter(|to| to != "joe@sender.example").collect()
}

#[test]
fn a_recipient_on_hold_is_not_tried_until_it_is_released() {
    simulate(|| async {
        let mut world =
            World::new(|one| if one.number == 1 && one.at_s < 30 { Answer::Later } else { Answer::Deliver });
        let id = world.accept(&["ann@slow.example", "bob@slow.example"]).await;
        sleep(30).await;
        assert_eq!(world.command(id, Some(0), CommandVerb::Hold).await, done(1, 0));
        let state = || world.stored(id).expect("queued").states[0].clone();
        assert!(state().held, "durable when answered");
        sleep(DAY).await;
        world.check_idle().await;
        assert_eq!(world.tries_of("ann@slow.example"), [0], "bob went, ann did not");
        assert_eq!(world.taken_by("bob@slow.example").len(), 1);
        world.restart().await;
        sleep(DAY).await;
        let before = world.stored(id).expect("queued").states[0].clone();
        assert_eq!((world.tries_of("ann@slow.example").len(), before.attempts), (1, 1), "also after a start");
        assert_eq!(world.command(id, None, CommandVerb::Release).await, done(1, 0));
        sleep(2).await;
        assert_eq!(world.taken_by("ann@slow.example"), [30 + 2 * DAY]);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_released_recipient_keeps_its_schedule() {
    simulate(|| async {
        let world = World::new(|one| if one.number < 3 { Answer::Later } else { Answer::Deliver });
        let id = world.accept(&["ann@slow.example"]).await;
        sleep(90).await;
        let due_ms = world.stored(id).expect("queued").states[0].due_ms;
        for _ in 0..3 {
            assert_eq!(world.command(id, None, CommandVerb::Hold).await, done(1, 0));
            assert_eq!(world.command(id, None, CommandVerb::Release).await, done(1, 0));
        }
        let state = world.stored(id).expect("queued").states[0].clone();
        assert_eq!((state.due_ms, state.attempts, state.held), (due_ms, 2, false));
        sleep(10 * MINUTE).await;
        assert_eq!(world.tries_of("ann@slow.example"), [0, 60, 360]);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn fresh_mail_can_be_held_wherever_it_is() {
    simulate(|| async {
        let world = World::with(
            || QueueSettings { connections_per_destination: 1, ..settings() },
            |one| if one.to.starts_with('a') { Answer::Hang(60) } else { Answer::Deliver },
        );
        let in_flight = world.accept(&["a@busy.example"]).await;
        let in_line = world.accept(&["b@busy.example"]).await;
        settle().await;
        assert_eq!(world.command(in_flight, None, CommandVerb::Hold).await, done(0, 1));
        assert_eq!(
            world.command(in_line, None, CommandVerb::Release).await,
            CommandResult::Impossible { reason: "it is not on hold".to_owned() }
        );
        assert_eq!(world.command(in_line, None, CommandVerb::Hold).await, done(1, 0));
        sleep(DAY).await;
        assert_eq!(tries(&world), ["a@busy.example"]);
        for id in [in_flight, in_line] {
            assert!(world.stored(id).expect("queued").states[0].held);
            assert_eq!(
                world.command(id, None, CommandVerb::Retry).await,
                CommandResult::Impossible {
                    reason: format!("it is on hold; to have it tried: posthaste queue release {id}")
                }
            );
        }
        world.check_idle().await;
        assert_eq!(world.command(in_line, None, CommandVerb::Release).await, done(1, 0));
        sleep(10).await;
        assert_eq!(world.taken_by("b@busy.example").len(), 1);
        assert_eq!(world.command(in_flight, None, CommandVerb::Remove).await, done(1, 0));
        settle().await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_suspended_destination_gets_nothing_until_it_is_resumed() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::Deliver);
        assert_eq!(world.suspend("quiet.example", None).await, done(0, 0), "also without mail");
        let id = world.accept(&["ann@quiet.example", "bob@other.example"]).await;
        sleep(HOUR).await;
        world.accept(&["cat@quiet.example"]).await;
        sleep(DAY).await;
        assert_eq!(world.taken_by("bob@other.example"), [0], "nobody else waits");
        world.check_idle().await;
        world.restart().await;
        sleep(DAY).await;
        assert_eq!(tries(&world), ["bob@other.example"], "also after a start");
        assert_eq!(world.stored(id).expect("queued").states[0].attempts, 0);
        assert_eq!(world.command(id, Some(0), CommandVerb::Retry).await, done(1, 0));
        sleep(MINUTE).await;
        assert_eq!(tries(&world), ["bob@other.example"], "a retry does not end a suspension");
        assert_eq!(world.resume("quiet.example").await, done(0, 0));
        sleep(2).await;
        assert_eq!(world.taken_by("ann@quiet.example").len(), 1);
        assert_eq!(world.taken_by("cat@quiet.example").len(), 1);
        assert!(matches!(world.resume("quiet.example").await, CommandResult::Impossible { .. }));
        settle().await;
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_suspension_ends_by_itself_with_mail_and_without() {
    simulate(|| async {
        let world = World::new(|_| Answer::Deliver);
        world.suspend("a.example", Some(HOUR)).await;
        world.suspend("b.example", Some(HOUR)).await;
        world.accept(&["ann@a.example"]).await;
        sleep(HOUR - 10).await;
        assert_eq!(world.tried().len(), 0);
        world.check_idle().await;
        sleep(20).await;
        assert_eq!(world.taken_by("ann@a.example"), [HOUR]);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn what_is_in_flight_when_its_destination_is_suspended_goes_on() {
    simulate(|| async {
        let world = World::with(
            || QueueSettings { connections_per_destination: 1, ..settings() },
            |_| Answer::Slow(5),
        );
        world.accept(&["a@quiet.example"]).await;
        world.accept(&["b@quiet.example"]).await;
        settle().await;
        assert_eq!(world.suspend("quiet.example", None).await, done(0, 1));
        sleep(DAY).await;
        assert_eq!(world.taken_by("a@quiet.example").len(), 1);
        assert_eq!(world.taken_by("b@quiet.example").len(), 0);
        world.check_idle().await;
        world.resume("quiet.example").await;
        sleep(10).await;
        assert_eq!(world.taken_by("b@quiet.example").len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn a_failing_destination_that_is_suspended_remembers_its_failures() {
    simulate(|| async {
        let world = World::new(|_| Answer::NoHost);
        world.accept(&["ann@dead.example"]).await;
        sleep(90).await;
        let record = || {
            let name = Domain::parse("dead.example").expect("a domain");
            world.spool.destination(&name).expect("readable").expect("remembered")
        };
        assert_eq!(record().failures, 2);
        world.suspend("dead.example", Some(DAY)).await;
        sleep(HOUR).await;
        assert_eq!((record().failures, world.tried().len()), (2, 2));
        world.check_idle().await;
        world.resume("dead.example").await;
        sleep(MINUTE).await;
        assert_eq!((record().failures, world.tried().len()), (3, 3), "its next try was overdue");
        world.check_idle().await;
    });
}

#[test]
fn commands_for_a_destination_are_carried_out_though_memory_is_full() {
    simulate(|| async {
        let full = || QueueSettings {
            memory: MemoryBounds { destinations: 1, ..MemoryBounds::default() },
            ..settings()
        };
        let world = World::with(full, |one| match one.destination {
            "slow.example" => Answer::Slow(600),
            _ => Answer::Deliver,
        });
        world.accept(&["a@slow.example"]).await;
        settle().await;
        world.accept(&["b@quiet.example"]).await;
        assert_eq!(world.suspend("quiet.example", None).await, done(0, 0));
        sleep(HOUR).await;
        assert_eq!(world.taken_by("b@quiet.example").len(), 0);
        world.check_idle().await;
        world.resume("quiet.example").await;
        sleep(10).await;
        assert_eq!(world.taken_by("b@quiet.example").len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn what_is_held_back_is_reported_and_expires_as_ever() {
    simulate(|| async {
        let world = World::new(|_| Answer::Deliver);
        world.suspend("quiet.example", None).await;
        world.accept(&["ann@quiet.example"]).await;
        let tried =
            World::new(|one| if one.destination == "slow.example" { Answer::Later } else { Answer::Deliver });
        let held = tried.accept(&["bob@slow.example"]).await;
        settle().await;
        assert_eq!(tried.command(held, None, CommandVerb::Hold).await, done(1, 0));
        sleep(5 * HOUR).await;
        let notice = |world: &World| world.mail_of("joe@sender.example").concat();
        let suspended = notice(&world);
        assert!(suspended.contains("Action: delayed") && suspended.contains("is suspended by the operator"));
        assert!(
            notice(&tried).contains("it is held back by the operator of the relay"),
            "{}",
            notice(&tried)
        );
        assert!(tried.stored(held).expect("queued").states[0].held, "the notice does not end the hold");
        sleep(6 * DAY).await;
        for world in [world, tried] {
            assert!(notice(&world).contains("Status: 5.4.7"), "{}", notice(&world));
            assert_eq!(world.scan().messages, 0);
            world.check_idle().await;
            world.check_left("n");
        }
    });
}

#[test]
fn a_recipient_that_was_held_and_released_before_its_first_attempt_leaves_nothing() {
    simulate(|| async {
        let world = World::new(|_| Answer::Deliver);
        world.suspend("quiet.example", None).await;
        let id = world.accept(&["ann@quiet.example"]).await;
        sleep(MINUTE).await;
        assert_eq!(world.command(id, None, CommandVerb::Hold).await, done(1, 0));
        assert_eq!(world.command(id, None, CommandVerb::Release).await, done(1, 0));
        sleep(MINUTE).await;
        world.resume("quiet.example").await;
        sleep(MINUTE).await;
        assert_eq!(world.taken_by("ann@quiet.example").len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}
