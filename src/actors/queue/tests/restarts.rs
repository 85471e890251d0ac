//! What a restart keeps, and what downtime and a wrong clock must not do.

use super::*;

#[test]
fn a_restart_resumes_due_times_and_attempt_counts() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::Later);
        let id = world.accept(&["ann@slow.example"]).await;
        sleep(30 * MINUTE).await;
        let before = world.stored(id).expect("queued").states;
        assert_eq!(before[0].attempts, 4);
        world.restart().await;
        assert_eq!(world.stored(id).expect("queued").states, before);
        sleep(90 * MINUTE).await;
        let minutes: Vec<u64> = world.tries_of("ann@slow.example").iter().map(|at| at / MINUTE).collect();
        assert_eq!(minutes, [0, 1, 6, 21, 51, 111]);
        assert_eq!(world.stored(id).expect("queued").states[0].attempts, 6);
        world.check_idle().await;
    });
}

#[test]
fn a_restart_resumes_the_back_off_of_a_destination() {
    simulate(|| async {
        let mut world = World::new(|_| Answer::NoHost);
        world.accept(&["ann@dead.example"]).await;
        sleep(10).await;
        world.accept(&["bob@dead.example"]).await;
        world.restart().await;
        sleep(20 * MINUTE).await;
        world.restart().await;
        sleep(10 * MINUTE).await;
        let minutes: Vec<u64> = world.tried().iter().map(|tried| tried.at_s / MINUTE).collect();
        assert_eq!(minutes, [0, 1, 6, 21], "one probe at each due time");
        world.check_idle().await;
    });
}

#[test]
fn nothing_expires_after_a_long_stop_before_it_was_tried_again() {
    simulate(|| async {
        for destinations in [1, 300] {
            let mut world = World::new(|one| if one.at_s < HOUR { Answer::NoHost } else { Answer::Deliver });
            let names: Vec<String> = (0..destinations)
                .flat_map(|at| [format!("ann@d{at}.example"), format!("bob@d{at}.example")])
                .collect();
            for name in &names {
                world.accept(&[name]).await;
            }
            sleep(10).await;
            world.clock.jump(6 * 86_400_000);
            world.restart().await;
            sleep(2 * HOUR).await;
            for name in &names {
                assert_eq!(world.taken_by(name).len(), 1, "{name} of {destinations}");
            }
            assert_eq!(world.mail_of("joe@sender.example"), Vec::<String>::new());
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_clock_that_jumps_loses_no_mail() {
    simulate(|| async {
        for jump_days in [-10_i64, -1, 1, 10] {
            let mut probes = 0;
            let world = World::new(move |one| match (one.destination, one.number) {
                ("dead.example", _) if probes == 0 => {
                    probes += 1;
                    Answer::NoHost
                }
                ("slow.example", number) if number < 2 => Answer::Later,
                _ => Answer::Deliver,
            });
            world.accept(&["ann@slow.example"]).await;
            world.accept(&["ann@dead.example"]).await;
            world.accept(&["bob@dead.example"]).await;
            sleep(10).await;
            world.clock.jump(jump_days * 86_400_000);
            sleep(100).await;
            world.accept(&["cat@fresh.example"]).await;
            sleep(11 * DAY).await;
            for name in ["ann@slow.example", "ann@dead.example", "bob@dead.example", "cat@fresh.example"] {
                assert_eq!(world.taken_by(name).len(), 1, "{name} after {jump_days} days");
            }
            world.check_idle().await;
            world.check_left("");
        }
    });
}

#[test]
fn a_clock_that_goes_back_delays_no_mail() {
    simulate(|| async {
        for (days, bound) in [(1, 10_000), (10, 10_000), (10, 3)] {
            let limits = move || {
                let memory = MemoryBounds { destinations: bound, window: 10, ..MemoryBounds::default() };
                QueueSettings { memory, ..settings() }
            };
            let mut dead = true;
            let world = World::with(limits, move |one| match (one.destination, one.number) {
                ("dead.example", _) if dead => {
                    dead = one.to != "u5@dead.example";
                    Answer::NoHost
                }
                (destination, 1) if destination.starts_with("slow") => Answer::Later,
                _ => Answer::Deliver,
            });
            for number in 0..40 {
                world.accept(&[&format!("u{number}@dead.example")]).await;
                world.accept(&[&format!("u@slow{number}.example"), &format!("v@slow{number}.example")]).await;
            }
            sleep(200).await;
            world.clock.jump(-days * 86_400_000);
            sleep(HOUR).await;
            world.accept(&["ann@fresh.example"]).await;
            sleep(3 * HOUR).await;
            assert_eq!(lock(&world.remote).taken.len(), 121, "{days} days, {bound} destinations");
            world.check_idle().await;
        }
    });
}

#[test]
fn a_destination_that_fails_keeps_nobody_out_after_the_clock_went_back() {
    simulate(|| async {
        let limits = || {
            let memory = MemoryBounds { destinations: 1, ..MemoryBounds::default() };
            QueueSettings { memory, ..settings() }
        };
        let world = World::with(limits, |one| match one.destination {
            "dead.example" => Answer::Hang(383),
            _ => Answer::Deliver,
        });
        world.accept(&["ann@dead.example"]).await;
        sleep(2).await;
        world.accept(&["bob@other.example"]).await;
        world.clock.jump(-15 * 3_600_000);
        sleep(2 * HOUR).await;
        assert_eq!(world.taken_by("bob@other.example").len(), 1);
        let commits = world.metrics.commits_total.get();
        assert!(commits < 100, "{commits} commits");
    });
}

#[test]
fn a_busy_pause_ends_though_the_clock_goes_back() {
    simulate(|| async {
        let world = World::new(|one| if one.number == 1 { Answer::Busy } else { Answer::Deliver });
        world.accept(&["ann@busy.example"]).await;
        world.clock.jump(-3 * 86_400_000);
        sleep(5).await;
        assert_eq!(world.taken_by("ann@busy.example").len(), 1);
    });
}
