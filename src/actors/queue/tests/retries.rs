//! When recipients and destinations are tried again, and what their senders hear.

use super::*;

#[test]
fn a_recipient_is_tried_on_schedule_until_it_expires() {
    simulate(|| async {
        let world =
            World::new(
                |one| if one.destination == "sender.example" { Answer::Deliver } else { Answer::Later },
            );
        world.accept(&["ann@slow.example"]).await;
        sleep(6 * DAY).await;

        let mut expected = vec![0, 1, 6, 21, 51, 111, 231];
        expected.extend((0..29).map(|number| 471 + number * 240));
        let minutes: Vec<u64> = world.tries_of("ann@slow.example").iter().map(|at| at / MINUTE).collect();
        assert_eq!(minutes, expected);

        assert_eq!(
            world.taken_by("joe@sender.example").iter().map(|at| at / MINUTE).collect::<Vec<_>>(),
            [240, 7200]
        );
        let reports = world.mail_of("joe@sender.example");
        let [delayed, expired] = &reports[..] else { panic!("{reports:?}") };
        for (report, words) in [
            (
                delayed,
                [
                    "Action: delayed",
                    "Status: 4.2.0",
                    "Final-Recipient: rfc822;ann@slow.example",
                    "Will-Retry-Until:",
                    "Subject: to ann@slow.example",
                    "greylisted",
                ],
            ),
            (
                expired,
                [
                    "Action: failed",
                    "Status: 5.4.7",
                    "Final-Recipient: rfc822;ann@slow.example",
                    "Reporting-MTA: dns;relay.example",
                    "Subject: to ann@slow.example",
                    "greylisted",
                ],
            ),
        ] {
            for word in words {
                assert!(report.replace("; ", ";").contains(word), "{word} is missing in {report}");
            }
        }
        world.check_idle().await;
        world.check_left("");
    });
}
