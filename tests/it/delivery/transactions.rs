//! Transactions and connections: who shares them, and what each recipient's answer leads to.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use posthaste::sink::{Answer, ReceivedMessage};

use super::world::{LONG, Moment, Net, SENDER, await_mail, ip, made, mail_for, queue_id, refuse, with_mx};
use crate::support::smtp::stuffed;
use crate::support::wait_until;

fn paths(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("r{number}@x.test")).collect()
}

fn recipients(messages: &[ReceivedMessage]) -> Vec<String> {
    messages.iter().flat_map(|message| &message.recipients).map(|path| path.as_str().to_owned()).collect()
}

#[test]
fn one_transaction_carries_all_recipients_of_a_destination() {
    let net = Net::new();
    let (x, y) = (net.sink(), net.sink());
    let zone = with_mx(with_mx(net.zone(), "x.test", &[ip(&x)]), "y.test", &[ip(&y)]);
    let world = net.start(zone);
    world.send(&["a@x.test", "a@y.test", "b@x.test", "c@X.TEST", "b@y.test"]);
    world.await_empty_queue();
    assert_eq!((x.count(), y.count()), (1, 1));
    assert_eq!(recipients(&x.received()), ["a@x.test", "b@x.test", "c@X.TEST"]);
    assert_eq!(recipients(&y.received()), ["a@y.test", "b@y.test"]);
}

#[test]
fn each_recipient_meets_its_own_fate() {
    let net = Net::new();
    let later = AtomicUsize::new(0);
    let host = net.host(move |moment| match moment {
        Moment::Recipient("later@x.test") if later.fetch_add(1, SeqCst) == 0 => refuse(450),
        Moment::Recipient("never@x.test") => refuse(550),
        _ => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    world.send(&["now@x.test", "later@x.test", "never@x.test"]);
    let report = world.await_report(1);
    await_mail(&host, "later@x.test");
    world.await_empty_queue();
    assert_eq!(recipients(&host.received()), ["now@x.test", "later@x.test"]);
    assert!(report.contains("never@x.test") && report.contains("Action: failed"), "{report}");
    assert!(report.contains("550 5.2.0 says the host"), "the remote's words: {report}");
    assert!(!report.contains("now@x.test") && !report.contains("later@x.test"), "{report}");
    assert_eq!(mail_for(&world.home, SENDER).len(), 1);
    for (to, event, attempts) in
        [("now@x.test", "delivered", 1), ("later@x.test", "delivered", 2), ("never@x.test", "bounced", 1)]
    {
        let line = world.await_event(event, to);
        assert_eq!(line["attempts"], attempts, "{line}");
    }
}

#[test]
fn many_recipients_go_in_several_transactions() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start(zone);
    let to = paths(250);
    let reply = world.relay.client().mail(SENDER, &to, &stuffed(&made("crowd").content));
    queue_id(&reply.unwrap());
    world.await_empty_queue();
    let received = host.received();
    let sizes: Vec<usize> = received.iter().map(|message| message.recipients.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    let reached: BTreeSet<String> = recipients(&received).into_iter().collect();
    assert_eq!((recipients(&received).len(), reached), (250, to.into_iter().collect()), "each once");
}

#[test]
fn after_452_the_rest_goes_in_the_next_transaction_at_once() {
    let net = Net::new();
    let taken = AtomicUsize::new(0);
    let host = net.host(move |moment| match moment {
        Moment::Recipient(_) if taken.load(SeqCst) == 4 => refuse(452),
        Moment::Recipient(_) => {
            taken.fetch_add(1, SeqCst);
            Answer::Accept
        }
        Moment::Message => {
            taken.store(0, SeqCst);
            Answer::Accept
        }
        Moment::Connect => Answer::Accept,
    });
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    // With the default schedule a deferral would not come back while the test waits.
    let world = net.start_with(zone, |setup| {
        setup.set("retry.schedule", "[\"1h\"]").set("delivery.connections_per_destination", "1")
    });
    let to = paths(10);
    queue_id(&world.relay.client().mail(SENDER, &to, &stuffed(&made("four").content)).unwrap());
    world.await_empty_queue();
    let sizes: Vec<usize> = host.received().iter().map(|message| message.recipients.len()).collect();
    assert_eq!(sizes, [4, 4, 2]);
    for path in to {
        assert_eq!(world.await_event("delivered", &path)["attempts"], 1, "{path}");
        assert!(world.events_of("deferred", &path).is_empty(), "{path}");
    }
    assert_eq!(world.metric("posthaste_recipients_total", &["outcome=\"again\""]), 8.0, "6 once and 2 twice");
}

#[test]
fn a_connection_carries_at_most_100_messages() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start_with(zone, |setup| {
        setup.set("delivery.connections_per_destination", "1").set("delivery.idle_timeout", "\"5m\"")
    });
    world.send_many(250, |number| format!("r{number}@x.test"));
    wait_until("all mail", LONG, || host.count() == 250);
    assert_eq!(host.connections(), 3, "100 + 100 + 50");
}

#[test]
fn a_destination_never_has_more_connections_than_it_may() {
    let net = Net::new();
    let host = net.sink();
    let zone = with_mx(net.zone(), "x.test", &[ip(&host)]);
    let world = net.start_with(zone, |setup| {
        setup.set("delivery.connections_per_destination", "4").set("delivery.idle_timeout", "\"5m\"")
    });
    world.send_many(250, |number| format!("r{number}@x.test"));
    wait_until("all mail", LONG, || host.count() == 250);
    assert!(host.most_open_connections() <= 4, "{} at once", host.most_open_connections());
    assert!(host.connections() <= 8, "{} connections for 250 messages", host.connections());
    let reached: BTreeSet<String> = recipients(&host.received()).into_iter().collect();
    assert_eq!(reached.len(), 250, "each once");
}
