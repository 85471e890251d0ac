//! Remote hosts, operators and restarts that follow random scripts: every recipient meets exactly one fate.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::spool::front::by_hand::Hands;

/// What happens in a life of the relay.
#[derive(Clone, Debug)]
enum Event {
    /// A message for these recipients: the number of a destination, and what its remote does at each attempt.
    Mail(Vec<(u8, Vec<Answer>)>),
    /// The process is killed and starts again.
    Kill,
    /// A drain, and then a start.
    Restart,
    /// Wall time jumps by these hours.
    Jump(i64),
    /// A command for the message of this number.
    Command(usize, CommandVerb),
    /// The destination of this number is suspended, for these hours or until it is resumed.
    Suspend(u8, Option<u64>),
    /// It is resumed.
    Resume(u8),
}

#[derive(Clone, Debug)]
struct Plot {
    events: Vec<(u64, Event)>,
    bounds: MemoryBounds,
    connections: usize,
    delays: Vec<u64>,
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let one = prop_oneof![
        4 => Just(Answer::Deliver),
        4 => Just(Answer::Later),
        1 => Just(Answer::Refuse),
        3 => Just(Answer::NoHost),
        1 => Just(Answer::Again),
        1 => Just(Answer::Busy),
        2 => (1_u64..400).prop_map(Answer::Hang),
        2 => (1_u64..100).prop_map(Answer::Slow),
        1 => Just(Answer::Crash),
        1 => Just(Answer::TakeAndLose),
        1 => Just(Answer::Forget),
    ];
    proptest::collection::vec(one, 1..6)
}

fn plots() -> impl Strategy<Value = Plot> {
    let event = prop_oneof![
        12 => proptest::collection::vec((0_u8..6, answers()), 1..4).prop_map(Event::Mail),
        1 => Just(Event::Kill),
        1 => Just(Event::Restart),
        1 => (-30_i64..30).prop_map(Event::Jump),
        1 => (0_usize..20).prop_map(|number| Event::Command(number, CommandVerb::Retry)),
        1 => (0_usize..20).prop_map(|number| Event::Command(number, CommandVerb::Remove)),
    ];
    let wait_ms = prop_oneof![0_u64..50, 0_u64..5_000, 0_u64..1_000_000];
    let bounds = (1_usize..9, 1_usize..20, 1_usize..7, 0_usize..300).prop_map(
        |(window, recipients, destinations, content)| MemoryBounds {
            window,
            recipients,
            destinations,
            content,
        },
    );
    let events = proptest::collection::vec((wait_ms, event), 1..60);
    let delays = proptest::collection::vec(prop_oneof![0_u64..3, 0_u64..100], 1..20);
    (events, bounds, 4_usize..8, delays).prop_map(|(events, bounds, connections, delays)| Plot {
        events,
        bounds,
        connections,
        delays,
    })
}

/// Plots in which an operator holds mail back as well.
fn plots_with_holds() -> impl Strategy<Value = Plot> {
    let event = prop_oneof![
        (0_usize..20).prop_map(|number| Event::Command(number, CommandVerb::Hold)),
        (0_usize..20).prop_map(|number| Event::Command(number, CommandVerb::Release)),
        (0_u8..6, proptest::option::of(1_u64..30)).prop_map(|(number, hours)| Event::Suspend(number, hours)),
        (0_u8..6).prop_map(Event::Resume),
    ];
    let more = proptest::collection::vec((0_usize..60, 0_u64..100_000, event), 1..20);
    (plots(), more).prop_map(|(mut plot, more)| {
        for (at, wait_ms, event) in more {
            let at = at % (plot.events.len() + 1);
            plot.events.insert(at, (wait_ms, event));
        }
        plot
    })
}

/// What is known of the recipients of a plot, outside of the relay.
#[derive(Default)]
struct Told {
    /// Recipients of answered messages, by address.
    accepted: HashMap<String, QueueId>,
    messages: Vec<QueueId>,
    /// Recipients that an operator removed (or asked to remove while in flight).
    removed: HashSet<QueueId>,
    /// Recipients that were taken by their remote when that was not yet on disk, and the process died.
    lost: HashSet<String>,
}

type Scripts = Arc<Mutex<HashMap<String, Vec<Answer>>>>;

fn by_hand(spool: &Arc<MemorySpool>, delays: &[u64]) -> (Front, Hands) {
    let (hands, delays) = (Hands::default(), delays.to_vec());
    let mut at = 0;
    hands.delay(move || {
        at += 1;
        delays[at % delays.len()]
    });
    (Front::by_hand(spool.clone(), &hands), hands)
}

async fn play(plot: Plot) {
    let scripts = Scripts::default();
    let script = {
        let scripts = scripts.clone();
        move |one: &Try<'_>| {
            let scripts = scripts.lock().expect("no panic");
            let Some(answers) = scripts.get(one.to) else { return Answer::Deliver };
            let at = usize::try_from(one.number - 1).expect("small");
            let last = *answers.last().expect("not empty");
            // What stays the same for ever must be something that ends.
            let last = if matches!(last, Answer::Again | Answer::Busy) { Answer::Deliver } else { last };
            answers.get(at).copied().unwrap_or(last)
        }
    };
    let spool = Arc::new(MemorySpool::new());
    let (front, mut hands) = by_hand(&spool, &plot.delays);
    let (bounds, connections) = (plot.bounds, plot.connections);
    let limits = move || {
        let give_up_after = Duration::from_secs(20 * HOUR);
        let retry = RetryConfig { give_up_after, ..RetryConfig::default() };
        QueueSettings { memory: bounds, connections, retry: RetryRules::new(&retry), ..settings() }
    };
    let mut world = World::over(front, spool, limits, script);
    let (mut told, mut jumps) = (Told::default(), 0);
    for (number, (wait_ms, event)) in plot.events.into_iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        match event {
            Event::Mail(recipients) => mail(&world, &scripts, &mut told, number, recipients),
            Event::Kill | Event::Restart => {
                if matches!(event, Event::Restart) {
                    let _ = tokio::time::timeout(Duration::from_secs(30), world.queue.send(Drain)).await;
                }
                let (front, new_hands) = by_hand(&world.spool, &plot.delays);
                world.restart_over(front, || hands.die()).await;
                hands = new_hands;
                told.note_lost(&world);
            }
            Event::Jump(hours) => {
                world.clock.jump(hours * 3_600_000);
                jumps += 1;
            }
            Event::Command(number, verb) => {
                if let Some(id) = told.messages.get(number).copied() {
                    if verb == CommandVerb::Remove {
                        told.removed.insert(id);
                    }
                    world.queue.do_send(Command { id, recipient: None, verb });
                }
            }
            Event::Suspend(number, hours) => tell(&world, number, suspend_for(&world, hours)),
            Event::Resume(number) => tell(&world, number, DestinationVerb::Resume),
        }
    }
    // Long enough for every expiry, though the clock went back before a restart.
    wait_for_every_expiry(&world, 30 * (jumps + 1)).await;
    told.check(&world, &scripts).await;
    check_patrol(&world, jumps);
}

fn suspend_for(world: &World, hours: Option<u64>) -> DestinationVerb {
    let until_ms = hours.map_or(UNTIL_RESUMED, |hours| world.clock.now_ms() + hours * 3_600_000);
    DestinationVerb::Suspend { until_ms }
}

/// A command for the destination of this number.
fn tell(world: &World, number: u8, verb: DestinationVerb) {
    let destination = Domain::parse(&format!("d{number}.example")).expect("a domain");
    world.queue.do_send(DestinationCommand { destination, verb });
}

/// Where wall time never jumped the patrol has nothing to put right, whatever happened meanwhile.
fn check_patrol(world: &World, jumps: u64) {
    assert!(jumps > 0 || world.metrics.patrol_repairs.get() == 0, "the patrol repaired something");
}

/// Lets time pass in which nothing happens, and so little must be written.
async fn wait_for_every_expiry(world: &World, hours: u64) {
    for _ in 0..hours {
        let before = world.metrics.commits_total.get();
        sleep(HOUR).await;
        let commits = world.metrics.commits_total.get() - before;
        assert!(commits < 1_000, "{commits} commits in a quiet hour");
    }
}

/// Hands in a message; it counts as accepted when it is in the spool in the end.
fn mail(
    world: &World,
    scripts: &Scripts,
    told: &mut Told,
    number: usize,
    recipients: Vec<(u8, Vec<Answer>)>,
) {
    let mut names = Vec::new();
    for (at, (destination, answers)) in recipients.into_iter().enumerate() {
        let name = format!("u{number}-{at}@d{destination}.example");
        scripts.lock().expect("no panic").insert(name.clone(), answers);
        names.push(name);
    }
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    let (id, answer) = world.hand_in("joe@sender.example", &to);
    told.messages.push(id);
    let accepted = world.accepted.clone();
    drop(actix_rt::spawn(async move {
        if answer.await == Ok(Ok(())) {
            let mut accepted = accepted.lock().expect("no panic");
            accepted.extend(names.into_iter().map(|name| (name, id)));
        }
    }));
}

impl Told {
    /// At a death: what was taken and is not settled on disk may be taken once more (RFC 5321 section 6.1).
    fn note_lost(&mut self, world: &World) {
        for (to, id, ..) in &lock(&world.remote).taken {
            let stored = world.stored(*id);
            let queued = stored.is_some_and(|stored| {
                (stored.envelope.recipients.iter().zip(&stored.states))
                    .any(|(recipient, state)| recipient.path.as_str() == to && !state.status.is_settled())
            });
            if queued {
                self.lost.insert(to.clone());
            }
        }
    }

    async fn check(&mut self, world: &World, scripts: &Scripts) {
        self.accepted = world.accepted.lock().expect("no panic").clone();
        let quarantined: HashSet<QueueId> = world
            .spool
            .quarantined(None, usize::MAX)
            .expect("readable")
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let mut reports: HashMap<QueueId, String> = HashMap::new();
        for (to, id, _, content) in &lock(&world.remote).taken {
            if to == "joe@sender.example" && content.contains("Action: failed") {
                reports.insert(*id, content.clone());
            }
        }
        for (name, id) in &self.accepted {
            let taken = world.taken_by(name).len();
            let line = format!("Final-Recipient: rfc822;{name}\r\n");
            let told = reports.values().filter(|report| report.replace("; ", ";").contains(&line)).count();
            let script = scripts.lock().expect("no panic")[name].clone();
            let about = format!("{name} taken {taken} times, reported {told} times; {script:?}");
            let excused = self.removed.contains(id) || quarantined.contains(id);
            if self.lost.contains(name) || script.contains(&Answer::TakeAndLose) {
                assert!(told <= 1 && (taken + told > 0 || excused), "{about}");
            } else {
                assert!(taken + told <= 1 && (taken + told == 1 || excused), "{about}");
            }
        }
        world.check_idle().await;
        // What is suspended stays so.
        world.check_left("qxn");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_recipient_meets_one_fate(plot in plots()) {
        simulate(|| play(plot));
    }

    #[test]
    fn whatever_is_held_back_every_recipient_meets_one_fate(plot in plots_with_holds()) {
        simulate(|| play(plot));
    }
}
