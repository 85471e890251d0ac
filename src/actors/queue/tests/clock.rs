//! Wall time jumps, by days and in either direction, at a start and in a run: nothing expires, nothing is a stampede, and
//! what waits goes on waiting for as long as it would have without the jump.

use super::*;

const DAY_MS: i64 = 86_400_000;
/// So many destinations of each kind: together more than one read of the wake index brings.
const EACH: usize = 200;

/// Recipients that were greylisted and destinations that are dead, some hours into their schedules; the
/// next attempts are hours away. Everything that is tried later is taken.
async fn some_hours_in() -> World {
    let world = World::new(|one| match &one.destination[..4] {
        "dead" => Answer::NoHost,
        _ => Answer::Later,
    });
    for number in 0..EACH {
        world.accept_from("", &[&format!("u@slow{number}.example")]).await;
        world
            .accept_from("", &[&format!("u@dead{number}.example"), &format!("v@dead{number}.example")])
            .await;
    }
    // Tried at 0, 1, 6, 21, 51, 111 and 231 minutes; next at 471.
    sleep(6 * HOUR).await;
    assert_eq!(world.spool.counters().expect("readable").recipients, 3 * EACH as u64);
    lock(&world.remote).follow(|_| Answer::Deliver);
    world
}

fn tries(world: &World) -> usize {
    lock(&world.remote).tried.len()
}

fn taken(world: &World) -> usize {
    lock(&world.remote).taken.len()
}

#[test]
fn a_jump_ahead_in_a_run_shifts_what_is_due_and_expires_nothing() {
    simulate(|| async {
        for days in [1, 4, 30] {
            let world = some_hours_in().await;
            let (before, commits) = (tries(&world), world.metrics.commits_total.get());
            world.clock.jump(days * DAY_MS);
            // Till just before the time at which they would have been due without the jump.
            sleep(108 * MINUTE).await;
            assert_eq!(tries(&world) - before, 0, "{days} days: nothing is due any sooner");
            assert!(world.metrics.commits_total.get() - commits < 1_000);
            assert_eq!(world.spool.counters().expect("readable").recipients, 3 * EACH as u64);
            sleep(10 * MINUTE).await;
            assert_eq!(taken(&world), 3 * EACH, "{days} days: and nothing any later");
            sleep(DAY).await;
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn jumps_ahead_that_follow_each_other_add_up() {
    simulate(|| async {
        let mut world = some_hours_in().await;
        let before = tries(&world);
        for _ in 0..3 {
            world.clock.jump(2 * DAY_MS);
            sleep(30 * MINUTE).await;
        }
        assert_eq!(tries(&world) - before, 0);
        world.restart().await;
        sleep(15 * MINUTE).await;
        assert_eq!(tries(&world) - before, 0, "the shifted times are on disk");
        sleep(10 * MINUTE).await;
        assert_eq!(taken(&world), 3 * EACH);
        sleep(DAY).await;
        world.check_idle().await;
    });
}

#[test]
fn a_jump_ahead_that_is_taken_back_delays_nothing_by_days() {
    simulate(|| async {
        for days in [1, 30] {
            let world = some_hours_in().await;
            world.clock.jump(days * DAY_MS);
            sleep(20 * MINUTE).await;
            world.clock.jump(-days * DAY_MS);
            sleep(5 * HOUR).await;
            assert_eq!(taken(&world), 3 * EACH, "{days} days");
            world.check_idle().await;
            // What was to be looked at again soon in that future is looked at, and deleted, then.
            world.check_left("t");
        }
    });
}

#[test]
fn a_jump_back_in_a_run_expires_nothing_and_tries_each_at_most_once_more() {
    simulate(|| async {
        for days in [1, 4, 30] {
            let world = some_hours_in().await;
            let before = tries(&world);
            world.clock.jump(-days * DAY_MS);
            sleep(5 * HOUR).await;
            assert_eq!(taken(&world), 3 * EACH, "{days} days");
            // A dead destination is probed with one message, the other follows.
            assert!(tries(&world) - before <= 3 * EACH, "{days} days: {}", tries(&world) - before);
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_start_with_a_clock_days_ahead_or_behind_loses_no_time_and_expires_nothing() {
    simulate(|| async {
        for days in [-30, -10, -1, 1, 10, 30] {
            let mut world = some_hours_in().await;
            let before = tries(&world);
            world.clock.jump(days * DAY_MS);
            world.restart().await;
            sleep(5 * HOUR).await;
            assert_eq!(taken(&world), 3 * EACH, "{days} days");
            assert!(tries(&world) - before <= 3 * EACH, "{days} days: {}", tries(&world) - before);
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_start_without_a_jump_looks_at_nothing_that_is_not_due() {
    simulate(|| async {
        let mut world = some_hours_in().await;
        world.restart().await;
        sleep(30 * MINUTE).await;
        assert_eq!(world.metrics.pages_read.get(), 0);
    });
}

#[test]
fn a_jump_ahead_past_the_expiry_gives_each_recipient_its_attempt() {
    simulate(|| async {
        for days in [6, 60] {
            let world = World::new(|one| match one.destination {
                "sender.example" => Answer::Deliver,
                _ if one.at_s < HOUR => Answer::Later,
                _ => Answer::Deliver,
            });
            for number in 0..50 {
                world.accept(&[&format!("u@d{number}.example")]).await;
            }
            sleep(10).await;
            world.clock.jump(days * DAY_MS);
            sleep(DAY).await;
            assert_eq!(world.mail_of("joe@sender.example"), Vec::<String>::new(), "{days} days");
            assert_eq!(taken(&world), 50, "{days} days");
            world.check_idle().await;
            world.check_left("");
        }
    });
}
