//! Back-off of whole destinations, and what destinations share.

use super::faulty::FaultySpool;
use super::*;
use crate::config::RouteConfig;

#[test]
fn a_dead_destination_is_probed_once_at_each_due_time_and_then_ramps_up() {
    simulate(|| async {
        let world = World::new(|one| if one.at_s < 2 * HOUR { Answer::NoHost } else { Answer::Slow(1) });
        let mut ids = Vec::new();
        for number in 0..1_000 {
            ids.push(world.accept(&[&format!("u{number}@dead.example")]).await);
        }
        sleep(2 * HOUR).await;
        let probes: Vec<u64> = world.tried().iter().map(|tried| tried.at_s / MINUTE).collect();
        assert_eq!(probes, [0, 1, 6, 21, 51, 111]);
        world.check_idle().await;

        sleep(2 * HOUR + 30 * MINUTE).await;
        let tried = world.tried();
        let probe = tried.iter().map(|tried| tried.at_s).find(|at| *at >= 2 * HOUR).expect("one more probe");
        let each_second: Vec<usize> =
            (0..8).map(|after| tried.iter().filter(|tried| tried.at_s == probe + after).count()).collect();
        assert_eq!(each_second[0], 1, "{each_second:?}");
        assert!(each_second.windows(2).all(|pair| pair[1] <= 2 * pair[0].max(1) + 1), "{each_second:?}");
        assert_eq!(lock(&world.remote).open["dead.example"].1, 20);
        assert_eq!(
            lock(&world.remote).taken.iter().filter(|(to, ..)| to != "joe@sender.example").count(),
            1_000
        );
        world.check_idle().await;
        world.check_left("");
    });
}

#[test]
fn fresh_mail_for_a_dead_destination_does_not_read_the_mail_that_waits() {
    simulate(|| async {
        let spool = Arc::new(MemorySpool::new());
        let faulty = Arc::new(FaultySpool::new(spool.clone()));
        let world = World::over(Front::inline(faulty.clone()), spool, settings, |_| Answer::NoHost);
        for number in 0..300 {
            world.accept(&[&format!("u{number}@dead.example")]).await;
        }
        let paged = faulty.paged.load(Ordering::Relaxed);
        assert!(paged <= 300, "{paged} recipients were read to keep 300");
        world.check_idle().await;
    });
}

#[test]
fn a_refusal_for_now_delays_only_its_recipient() {
    simulate(|| async {
        let world = World::new(|one| {
            if one.to.starts_with("ann") && one.number == 1 { Answer::Later } else { Answer::Deliver }
        });
        world.accept(&["ann@mixed.example", "bob@mixed.example"]).await;
        world.accept(&["cat@mixed.example"]).await;
        sleep(10 * MINUTE).await;
        let minutes = |to: &str| world.taken_by(to).iter().map(|at| at / MINUTE).collect::<Vec<_>>();
        assert_eq!(minutes("bob@mixed.example"), [0]);
        assert_eq!(minutes("cat@mixed.example"), [0]);
        assert_eq!(minutes("ann@mixed.example"), [1]);
        world.check_idle().await;
    });
}

#[test]
fn mail_behind_a_dead_destination_expires_though_it_was_never_tried() {
    simulate(|| async {
        let world =
            World::new(
                |one| {
                    if one.destination == "dead.example" { Answer::NoHost } else { Answer::Deliver }
                },
            );
        // More than probes in five days: most are never tried.
        let names: Vec<String> = (10..70).map(|number| format!("u{number}")).collect();
        for name in &names {
            world.accept(&[&format!("{name}@dead.example")]).await;
        }
        sleep(5 * DAY + 10 * MINUTE).await;
        let reports = world.mail_of("joe@sender.example");
        for (action, status, cause) in
            [("delayed", "4.4.1", "connection refused"), ("failed", "5.4.7", "connection refused")]
        {
            for name in &names {
                let about = |report: &&String| {
                    report.contains(&format!("Action: {action}"))
                        && report.contains(&format!("{name}@dead.example"))
                };
                let found: Vec<_> = reports.iter().filter(about).collect();
                assert_eq!(found.len(), 1, "{action} {name} in {} reports", reports.len());
                assert!(found[0].contains(&format!("Status: {status}")), "{status} in {}", found[0]);
                assert!(found[0].replace("\r\n ", " ").contains(cause), "{cause} in {}", found[0]);
            }
        }
        assert_eq!(reports.len(), 120);
        sleep(DAY).await;
        world.check_idle().await;
        world.check_left("");
    });
}

fn two_connections_for_all() -> QueueSettings {
    let mut config = Config::default();
    let pattern = "*.example".to_owned().try_into().expect("a pattern");
    config.routes = vec![RouteConfig {
        domains: vec![pattern],
        hosts: vec!["192.0.2.1:25".to_owned()],
        connections: Some(2),
        ..RouteConfig::default()
    }];
    QueueSettings { routes: RouteTable::build(&config).expect("good routes"), ..settings() }
}

#[test]
fn a_freed_connection_of_a_shared_route_goes_to_whoever_still_wants_one() {
    simulate(|| async {
        let world = World::with(two_connections_for_all, |one| match one.destination {
            "a.example" | "b.example" => Answer::Slow(30),
            _ => Answer::Deliver,
        });
        world.accept(&["x@a.example"]).await;
        world.accept(&["x@b.example"]).await;
        settle().await;
        let gone = world.accept_from("", &["x@c.example"]).await;
        world.accept(&["x@d.example"]).await;
        world.accept(&["x@e.example"]).await;
        settle().await;
        world.command(gone, None, CommandVerb::Remove).await;
        sleep(35).await;
        assert_eq!((world.taken_by("x@d.example").len(), world.taken_by("x@e.example").len()), (1, 1));
        world.check_idle().await;
    });
}

#[test]
fn a_thousand_destinations_share_a_route_and_all_get_their_turn() {
    simulate(|| async {
        let world = World::with(two_connections_for_all, |_| Answer::Slow(1));
        for number in 0..300 {
            let to = format!("x@d{number}.example");
            world.accept(&[&to]).await;
            world.accept(&[&to]).await;
        }
        sleep(400).await;
        assert_eq!(lock(&world.remote).taken.len(), 600);
        world.check_idle().await;
    });
}
