//! Bounded memory: what does not fit waits on disk, and nothing that waits there is forgotten.

use super::*;

fn small_window() -> QueueSettings {
    QueueSettings { memory: MemoryBounds { window: 100, ..MemoryBounds::default() }, ..settings() }
}

/// The most recipients that wait in memory for one destination.
async fn ready(world: &World) -> usize {
    world.look(|queue, _| queue.destinations.map.values().map(|at| at.ready.len()).max().unwrap_or(0)).await
}

#[test]
fn a_long_queue_for_one_destination_stays_on_disk_and_goes_out_once_in_order() {
    simulate(|| async {
        let world =
            World::with(small_window, |one| if one.at_s < 30 { Answer::NoHost } else { Answer::Slow(1) });
        let mut answers = Vec::new();
        for number in 0..10_000 {
            answers.push(world.hand_in("", &[&format!("u{number}@big.example")]).1);
        }
        for answer in answers {
            answer.await.expect("an answer").expect("taken");
        }
        for _ in 0..700 {
            sleep(1).await;
            let ready = ready(&world).await;
            assert!(ready <= 100, "{ready} in memory");
        }
        let taken: Vec<QueueId> = lock(&world.remote).taken.iter().map(|(_, id, ..)| *id).collect();
        assert_eq!(taken.len(), 10_000);
        // The first was the probe that failed; it is due again later than the others.
        let late: Vec<usize> = (1..taken.len()).filter(|at| taken[*at] < taken[at - 1]).collect();
        let unordered = late.iter().filter(|at| {
            let later_by = taken[..**at].iter().rev().take_while(|id| **id > taken[**at]).count();
            later_by > 60
        });
        assert!(unordered.count() <= 1, "out of order at {late:?}");
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn fresh_mail_does_not_starve_what_waits_on_disk() {
    simulate(|| async {
        let world =
            World::with(small_window, |one| if one.at_s < 30 { Answer::NoHost } else { Answer::Slow(1) });
        for number in 0..1_000 {
            world.hand_in("", &[&format!("old{number}@big.example")]);
        }
        sleep(65).await;
        // 20 go out each second; 18 come in.
        for second in 0..400 {
            for number in 0..18 {
                world.hand_in("", &[&format!("new{number}-{second}@big.example")]);
            }
            sleep(1).await;
        }
        let old = lock(&world.remote).taken.iter().filter(|(to, ..)| to.starts_with("old")).count();
        assert_eq!(old, 1_000);
        sleep(600).await;
        assert_eq!(lock(&world.remote).taken.len(), 1_000 + 400 * 18);
        world.check_idle().await;
        world.check_left("");
    });
}

fn few_destinations() -> QueueSettings {
    QueueSettings { memory: MemoryBounds { destinations: 10, ..MemoryBounds::default() }, ..settings() }
}

#[test]
fn more_destinations_than_fit_all_get_their_mail() {
    simulate(|| async {
        for first in [Answer::Deliver, Answer::Slow(20), Answer::Later, Answer::NoHost] {
            let world = World::with(
                few_destinations,
                move |one| if one.number == 1 { first } else { Answer::Deliver },
            );
            for round in 0..3 {
                let mut answers = Vec::new();
                for number in 0..200 {
                    answers.push(world.hand_in("", &[&format!("u{round}@d{number}.example")]).1);
                }
                for answer in answers {
                    answer.await.expect("an answer").expect("taken");
                }
                sleep(7).await;
            }
            sleep(2 * HOUR).await;
            assert_eq!(lock(&world.remote).taken.len(), 600, "{first:?}");
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_full_memory_and_a_drain_do_not_keep_the_queue_busy() {
    simulate(|| async {
        let world = World::with(few_destinations, |_| Answer::Slow(600));
        for number in 0..50 {
            world.accept_from("", &[&format!("u@d{number}.example")]).await;
        }
        sleep(10).await;
        let naps = |queue: &mut Queue, _: &mut Context<Queue>| {
            let now = queue.parts.clock.instant();
            queue.timer.as_ref().map(|(at, _)| at.saturating_duration_since(now))
        };
        for draining in [false, true] {
            if draining {
                let queue = world.queue.clone();
                actix_rt::spawn(async move { queue.send(Drain).await });
                sleep(2).await;
            }
            let mut longest = Duration::ZERO;
            for _ in 0..20 {
                longest = longest.max(world.look(naps).await.expect("armed"));
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
            assert!(longest > Duration::from_millis(500), "draining {draining}: {longest:?}");
        }
    });
}

#[test]
fn a_destination_that_answers_finds_room_though_memory_is_full_of_others() {
    simulate(|| async {
        let world = World::with(few_destinations, |one| match one.destination {
            "good.example" => Answer::Deliver,
            _ => Answer::Slow(DAY),
        });
        world.accept(&["ann@good.example"]).await;
        sleep(MINUTE).await;
        for number in 0..200 {
            world.hand_in("", &[&format!("u@hang{number}.example")]);
        }
        sleep(MINUTE).await;
        world.accept(&["bob@good.example"]).await;
        sleep(2).await;
        assert_eq!(world.taken_by("bob@good.example").len(), 1);
    });
}

fn few_recipients() -> QueueSettings {
    let memory = MemoryBounds { recipients: 200, window: 100, ..MemoryBounds::default() };
    QueueSettings { memory, connections_per_destination: 1, ..settings() }
}

#[test]
fn slow_destinations_with_long_queues_leave_memory_for_others() {
    simulate(|| async {
        let world = World::with(few_recipients, |one| {
            if one.destination.starts_with("slow") { Answer::Slow(3 * HOUR) } else { Answer::Deliver }
        });
        for number in 0..10 {
            for _ in 0..100 {
                world.hand_in("", &[&format!("u@slow{number}.example")]);
            }
        }
        sleep(30).await;
        world.accept_from("", &["ann@quick.example"]).await;
        sleep(5).await;
        assert_eq!(world.taken_by("ann@quick.example").len(), 1);
    });
}

#[test]
fn first_pages_of_many_destinations_stay_within_memory_together() {
    simulate(|| async {
        let world =
            World::with(few_recipients, |one| if one.at_s < 30 { Answer::NoHost } else { Answer::Slow(1) });
        for number in 0..40 {
            for _ in 0..60 {
                world.hand_in("", &[&format!("u@d{number}.example")]);
            }
        }
        sleep(30).await;
        for _ in 0..600 {
            sleep(1).await;
            let held = world.look(|queue, _| queue.residents.held_soon()).await;
            assert!(held <= 200 + 4 * 40, "{held} in memory");
        }
        assert_eq!(lock(&world.remote).taken.len(), 40 * 60);
        world.check_idle().await;
        world.check_left("");
    });
}
