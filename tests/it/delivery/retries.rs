//! Deferred mail: what is remembered, over a stop and a start too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::sys::signal::Signal::SIGTERM;
use posthaste::sink::nameserver::Zone;
use posthaste::sink::{Answer, Sink};

use super::world::{
    LONG, Moment, Net, World, await_mail, behind_received, ip, made, mail_for, queue_id, refuse, with_mx,
};
use crate::support::{PATIENCE, wait_until};

/// A host that behaves badly until its switch is turned.
fn host_with_switch(
    net: &Net,
    bad: impl Fn(&Moment<'_>) -> Option<Answer> + Send + Sync + 'static,
) -> (Sink, Arc<AtomicBool>) {
    let good = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&good);
    let host =
        net.host(move |moment| bad(&moment).filter(|_| !switch.load(SeqCst)).unwrap_or(Answer::Accept));
    (host, good)
}

fn zone(net: &Net, host: &Sink) -> Zone {
    with_mx(net.zone(), "x.test", &[ip(host)])
}

#[track_caller]
fn stop(world: &mut World) {
    world.relay.signal(SIGTERM);
    let status = world.relay.ended_within(PATIENCE).unwrap_or_else(|| panic!("it does not end"));
    assert!(status.success(), "{status}");
}

#[track_caller]
fn start_again(world: &mut World) {
    world.relay.restart();
    world.relay.await_ready();
}

#[test]
fn a_greylisted_recipient_is_delivered_on_the_second_attempt() {
    let net = Net::new();
    let seen = AtomicBool::new(false);
    let host = net.host(move |moment| match moment {
        Moment::Recipient(_) if !seen.swap(true, SeqCst) => refuse(451),
        _ => Answer::Accept,
    });
    let zone = zone(&net, &host);
    let world = net.start(zone);
    world.send(&["b@x.test"]);
    let first = world.await_event("deferred", "b@x.test");
    assert_eq!((&first["attempts"], &first["class"]), (&1.into(), &"reply_4xx".into()), "{first}");
    assert_eq!(first["reply"], "451 4.2.0 says the host", "{first}");
    assert!(first["next"].is_string(), "{first}");
    let last = world.await_event("delivered", "b@x.test");
    assert_eq!(last["attempts"], 2, "{last}");
    assert_eq!(mail_for(&host, "b@x.test").len(), 1);
}

/// Defers until the relay has been stopped and started again.
#[track_caller]
fn check_survives_a_restart(
    bad: impl Fn(&Moment<'_>) -> Option<Answer> + Send + Sync + 'static,
    size: usize,
) {
    let net = Net::new();
    let (host, good) = host_with_switch(&net, bad);
    let zone = zone(&net, &host);
    let mut world = net.start(zone);
    let made = crate::support::message::make("old", size, &mut crate::support::message::Chance::new(3));
    let id = queue_id(&world.relay.submit(&["b@x.test"], &made.content));
    wait_until("two deferrals", LONG, || world.events_of("deferred", "b@x.test").len() >= 2);
    stop(&mut world);
    let before = world.events_of("deferred", "b@x.test");
    let counted: Vec<usize> =
        before.iter().filter_map(|line| line["attempts"].as_u64()).map(|n| n as usize).collect();
    assert_eq!(counted, (1..=before.len()).collect::<Vec<_>>());
    good.store(true, SeqCst);
    start_again(&mut world);
    let line = world.await_event("delivered", "b@x.test");
    assert_eq!(line["attempts"], before.len() + 1, "the attempts of the first run count: {line}");
    assert_eq!(line["id"], id, "{line}");
    assert!(behind_received(&await_mail(&host, "b@x.test").content) == made.content);
    world.await_empty_queue();
    assert_eq!(mail_for(&host, "b@x.test").len(), 1);
}

#[test]
fn a_deferred_recipient_survives_a_restart() {
    check_survives_a_restart(|moment| matches!(moment, Moment::Recipient(_)).then(|| refuse(450)), 3000);
}

#[test]
fn a_large_deferred_message_survives_a_restart() {
    check_survives_a_restart(|moment| matches!(moment, Moment::Message).then(|| refuse(452)), 100_000);
}

#[test]
fn a_destination_that_backs_off_survives_a_restart() {
    check_survives_a_restart(|moment| matches!(moment, Moment::Connect).then(|| refuse(421)), 3000);
}

#[test]
fn a_remote_that_owes_its_answer_at_the_end_of_the_drain_time_is_interrupted_and_gets_the_mail_again() {
    let net = Net::new();
    let (host, good) =
        host_with_switch(&net, |moment| matches!(moment, Moment::Message).then_some(Answer::Hang));
    let zone = zone(&net, &host);
    let mut world = net.start_with(zone, |setup| setup.set("server.drain_timeout", "\"1s\""));
    let made = made("owed");
    queue_id(&world.relay.submit(&["b@x.test"], &made.content));
    wait_until("the attempt", PATIENCE, || host.open_connections() == 1);
    wait_until("the final dot", PATIENCE, || world.metric("posthaste_attempts_started_total", &[]) == 1.0);
    stop(&mut world);
    let line = world.await_event("interrupted", "b@x.test");
    assert_eq!(line["attempts"], 0, "it does not count: {line}");
    good.store(true, SeqCst);
    start_again(&mut world);
    assert!(behind_received(&await_mail(&host, "b@x.test").content) == made.content);
    assert_eq!(world.await_event("delivered", "b@x.test")["attempts"], 1);
    world.await_empty_queue();
}

/// A thousand messages for a dead host cost one probe each time, not a thousand.
#[test]
fn a_failing_destination_is_probed_not_stormed() {
    let net = Net::new();
    let (host, good) =
        host_with_switch(&net, |moment| matches!(moment, Moment::Connect).then(|| refuse(421)));
    let zone = zone(&net, &host);
    let world = net.start_with(zone, |setup| setup.set("retry.schedule", "[\"2s\"]"));
    world.send_many(300, |number| format!("r{number}@x.test"));
    let deferrals = || world.events().iter().filter(|line| line["event"] == "deferred").count();
    wait_until("three deferrals", LONG, || deferrals() >= 3);
    assert!(host.connections() <= 10, "{} connections to a host that turns all away", host.connections());
    good.store(true, SeqCst);
    wait_until("all mail", LONG, || host.count() == 300);
    world.await_empty_queue();
    assert_eq!(host.received().len(), 300, "each once");
}
