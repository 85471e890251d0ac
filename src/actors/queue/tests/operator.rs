//! What an operator's commands do to recipients wherever they are.

use super::*;

fn done(recipients: u32, in_flight: u32) -> CommandResult {
    CommandResult::Done { recipients, in_flight }
}

#[test]
fn retry_makes_a_waiting_recipient_due_now() {
    simulate(|| async {
        for trouble in [Answer::Later, Answer::NoHost] {
            let world = World::new(move |one| if one.at_s < 30 { trouble } else { Answer::Deliver });
            let id = world.accept(&["ann@slow.example"]).await;
            let other = world.accept(&["bob@slow.example"]).await;
            sleep(40).await;
            assert_eq!(world.command(id, None, CommandVerb::Retry).await, done(1, 0));
            sleep(3).await;
            let taken = world.taken_by("ann@slow.example");
            assert!(taken.len() == 1 && taken[0] < 45, "{trouble:?} {taken:?}");
            assert_eq!(world.command(id, None, CommandVerb::Retry).await, CommandResult::NotFound);
            sleep(2 * MINUTE).await;
            assert!(world.stored(other).is_none());
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn remove_takes_a_waiting_recipient_out() {
    simulate(|| async {
        let world = World::new(|_| Answer::Later);
        let id = world.accept(&["ann@slow.example", "bob@slow.example"]).await;
        settle().await;
        assert_eq!(world.command(id, Some(1), CommandVerb::Remove).await, done(1, 0));
        assert_eq!(
            world.stored(id).expect("queued").states[1].status,
            Status::Removed,
            "durable when answered"
        );
        assert_eq!(world.command(id, Some(1), CommandVerb::Remove).await, CommandResult::NotFound);
        assert_eq!(world.command(id, Some(7), CommandVerb::Remove).await, CommandResult::NotFound);
        assert_eq!(world.command(id, None, CommandVerb::Remove).await, done(1, 0));
        assert!(world.stored(id).is_none());
        sleep(HOUR).await;
        assert_eq!(world.tried().len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn commands_reach_recipients_that_wait_for_a_slot() {
    simulate(|| async {
        let world = World::with(
            || QueueSettings { connections_per_destination: 1, ..settings() },
            |_| Answer::Slow(60),
        );
        world.accept(&["a@busy.example"]).await;
        let second = world.accept(&["b@busy.example"]).await;
        let third = world.accept(&["c@busy.example"]).await;
        settle().await;
        assert_eq!(world.command(second, None, CommandVerb::Remove).await, done(1, 0));
        assert_eq!(world.command(third, None, CommandVerb::Retry).await, done(1, 0));
        sleep(5 * MINUTE).await;
        assert_eq!(world.taken_by("b@busy.example").len(), 0);
        assert_eq!(world.taken_by("c@busy.example").len(), 1);
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn commands_for_what_is_in_flight_take_effect_at_the_report() {
    simulate(|| async {
        for (verb, outcome, taken, tries) in [
            (CommandVerb::Remove, Answer::Hang(60), 0, 1),
            (CommandVerb::Remove, Answer::Slow(60), 1, 1),
            (CommandVerb::Retry, Answer::Hang(60), 1, 2),
        ] {
            let world = World::new(move |one| if one.number == 1 { outcome } else { Answer::Deliver });
            let id = world.accept(&["ann@slow.example"]).await;
            settle().await;
            assert_eq!(world.command(id, None, verb).await, done(0, 1), "{verb:?} {outcome:?}");
            assert!(world.stored(id).is_some());
            sleep(63).await;
            assert!(world.stored(id).is_none(), "{verb:?} {outcome:?}");
            assert_eq!(world.taken_by("ann@slow.example").len(), taken, "{verb:?} {outcome:?}");
            assert_eq!(world.tries_of("ann@slow.example").len(), tries, "{verb:?} {outcome:?}");
            sleep(HOUR).await;
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_command_for_mail_whose_destination_wakes_meanwhile_is_counted_once() {
    simulate(|| async {
        let world = World::new(|one| match (one.to, one.number) {
            ("ann@slow.example", 1) => Answer::Later,
            ("bob@slow.example", _) => Answer::Slow(30),
            _ => Answer::Deliver,
        });
        let id = world.accept(&["ann@slow.example"]).await;
        sleep(30).await;
        // The destination is not in memory; a command and fresh mail for it come together.
        let queue = world.queue.clone();
        let retry = Command { id, recipient: None, verb: CommandVerb::Retry };
        let answer = actix_rt::spawn(async move { queue.send(retry).await });
        let fresh = world.hand_in("joe@sender.example", &["bob@slow.example"]);
        assert_eq!(answer.await.expect("no panic").expect("an answer"), done(1, 0));
        fresh.1.await.expect("an answer").expect("taken");
        sleep(90).await;
        assert_eq!(
            (world.taken_by("ann@slow.example").len(), world.taken_by("bob@slow.example").len()),
            (1, 1)
        );
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn commands_are_refused_while_the_relay_stops() {
    simulate(|| async {
        let world = World::new(|_| Answer::Later);
        let id = world.accept(&["ann@slow.example"]).await;
        settle().await;
        world.queue.send(Drain).await.expect("an answer");
        assert_eq!(world.command(id, None, CommandVerb::Retry).await, CommandResult::Unavailable);
    });
}
