//! Promise P5: no neighbour suffers, as far as the Queue's slots go.
//!
//! `schedule::slots` bounds it so: whoever fails or is slow gets at most half of all slots, together with strangers at most
//! three quarters. So a destination that has answered before finds room whatever the others do. A stranger finds room unless
//! three quarters of all slots are held by strangers that hang for the first time: then those over the half of all slots
//! give way after ten seconds, a quarter of all slots at a time, and after that they are known. So a stranger waits eleven
//! seconds for each quarter's worth of hanging strangers before it, and for nobody's time-out.

use super::*;

async fn crowd(world: &World, hanging: usize) {
    for number in 0..hanging {
        world.hand_in("", &[&format!("u@hang{number}.example")]);
        world.hand_in("", &[&format!("v@hang{number}.example")]);
    }
    for number in 0..200 {
        world.hand_in("", &[&format!("u@fail{number}.example")]);
    }
}

fn script(one: &Try<'_>) -> Answer {
    match &one.destination[..4] {
        "hang" => Answer::Hang(DAY),
        "fail" => Answer::NoHost,
        _ => Answer::Deliver,
    }
}

#[test]
fn a_destination_that_answers_is_served_at_once_beside_any_number_that_hang() {
    simulate(|| async {
        let world = World::new(script);
        world.accept(&["ann@good.example"]).await;
        sleep(HOUR).await;
        crowd(&world, 200).await;
        sleep(HOUR).await;
        let begin = world.clock.now_ms();
        world.accept(&["bob@good.example"]).await;
        settle().await;
        assert_eq!(world.taken_by("bob@good.example").len(), 1);
        assert!(world.clock.now_ms() - begin < 1_000);
        for number in 0..100 {
            world.accept_from("", &[&format!("n{number}@good.example")]).await;
        }
        settle().await;
        assert_eq!(lock(&world.remote).taken.len(), 102);
    });
}

#[test]
fn a_stranger_is_served_at_once_while_less_than_three_quarters_hang() {
    simulate(|| async {
        let world = World::new(script);
        crowd(&world, 74).await;
        for pause in [0, 30, HOUR] {
            sleep(pause).await;
            world.accept_from("", &[&format!("ann@new{pause}.example")]).await;
            settle().await;
            assert_eq!(world.taken_by(&format!("ann@new{pause}.example")).len(), 1, "after {pause} s");
        }
    });
}

#[test]
fn a_stranger_waits_for_no_time_out_of_any_number_that_hang() {
    simulate(|| async {
        let world = World::new(script);
        crowd(&world, 200).await;
        world.accept_from("", &["ann@new.example"]).await;
        // 75 begin at once; of the other 125 a quarter of 100 slots each eleven seconds.
        sleep(6 * 11).await;
        assert_eq!(world.taken_by("ann@new.example").len(), 1);
        for round in 0..20 {
            sleep(HOUR / 3).await;
            world.accept_from("", &[&format!("ann@new{round}.example")]).await;
            settle().await;
            assert_eq!(world.taken_by(&format!("ann@new{round}.example")).len(), 1, "round {round}");
        }
    });
}

#[test]
fn those_that_hang_are_known_after_their_first_time_out() {
    simulate(|| async {
        let world = World::new(|one| match &one.destination[..4] {
            "hang" => Answer::Hang(5 * MINUTE),
            _ => Answer::Deliver,
        });
        crowd(&world, 200).await;
        // 75 at a time, five minutes each.
        sleep(16 * MINUTE).await;
        for round in 0..20 {
            sleep(HOUR / 3).await;
            world.accept_from("", &[&format!("ann@new{round}.example")]).await;
            settle().await;
            assert_eq!(world.taken_by(&format!("ann@new{round}.example")).len(), 1, "round {round}");
        }
    });
}

#[test]
fn a_destination_that_recovers_does_not_stay_in_line_with_the_troubled() {
    simulate(|| async {
        let world = World::new(|one| match (one.destination, one.to) {
            ("good.example", "tar@good.example") => Answer::Slow(60),
            ("good.example", to) if to.starts_with("x") => Answer::Slow(3),
            ("good.example", _) => Answer::Deliver,
            (destination, _) if destination.starts_with("hang") && one.at_s < 5 => Answer::NoHost,
            (destination, _) if destination.starts_with("hang") => Answer::Hang(DAY),
            _ => Answer::Deliver,
        });
        crowd(&world, 200).await;
        sleep(10 * MINUTE).await;
        world.accept_from("", &["ann@good.example"]).await;
        world.accept_from("", &["tar@good.example"]).await;
        // While one attempt is slow the destination asks as one in trouble, and finds no room.
        sleep(30).await;
        world.accept_from("", &["bob@good.example"]).await;
        sleep(40).await;
        assert_eq!(world.taken_by("bob@good.example").len(), 1);
    });
}
