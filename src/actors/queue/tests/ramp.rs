//! Much that is overdue at once is a queue and not a herd: the real Queue and real Deliveries, whose connections go to a
//! server on loopback, all on one thread in simulated time. The look-ups are counted where they leave the relay, the
//! connections where they arrive.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::actors::delivery::{
    AddressSlots, Deliveries, Delivery, DeliveryContext, DeliveryHandle, SpoolContent,
};
use crate::config::{DeliveryConfig, TlsPolicy};
use crate::mail::envelope::{LastReply, RecipientState};
use crate::mail::outcome::{Cause, CauseClass};
use crate::route::bounded::{Ask, Bounded, Kind, LOOKUPS, NoAnswer, Place, Record};
use crate::route::mx::MxRecord;
use crate::route::plan::PlanSettings;
use crate::route::table::Route;
use crate::smtp::reply::EnhancedStatus;
use crate::spool::{DestinationRecord, DueKey, Op};
use crate::tls::TlsClients;

/// Addresses of loopback that the server listens on.
const ADDRESSES: u8 = 50;
/// Each destination whose number is a multiple of this has a host on which nobody listens.
const DEAD_EACH: usize = 100;

/// The host of a destination is on one of the server's addresses, by its number; each answer takes a while.
#[derive(Debug, Default)]
struct Names {
    takes_ms: u64,
    /// Questions in flight, and the most there ever were.
    open: Mutex<(usize, usize)>,
}

impl Ask for Arc<Names> {
    fn ask<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<Record>, NoAnswer>> {
        Box::pin(async move {
            {
                let mut open = self.open.lock().expect("no panic");
                open.0 += 1;
                open.1 = open.1.max(open.0);
            }
            tokio::time::sleep(Duration::from_millis(self.takes_ms)).await;
            self.open.lock().expect("no panic").0 -= 1;
            drop(place);
            Ok(match kind {
                Kind::Mx => vec![Record::Mx(MxRecord { preference: 10, exchange: format!("mx.{name}") })],
                Kind::A => vec![Record::Address(address_of(name))],
                Kind::Aaaa => Vec::new(),
            })
        })
    }
}

fn address_of(host: &str) -> IpAddr {
    let digits: String = host.chars().filter(char::is_ascii_digit).collect();
    let number: usize = digits.parse().unwrap_or(1);
    let dead = number.is_multiple_of(DEAD_EACH);
    let last = if dead { 200 } else { u8::try_from(number % usize::from(ADDRESSES)).expect("small") + 1 };
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// A server that takes all mail, and counts.
#[derive(Debug, Default)]
struct Server {
    /// Connections by the second of simulated time in which they arrived.
    arrived: Mutex<BTreeMap<u64, usize>>,
    /// Recipients of mail that was taken, and when (milliseconds).
    taken: Mutex<Vec<(String, u64)>>,
}

impl Server {
    /// Listens on one port of many addresses.
    async fn listen(self: &Arc<Self>, clock: &Arc<SimulatedClock>) -> u16 {
        let address = |last, port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
        'port: loop {
            let first = TcpListener::bind(address(1, 0)).await.expect("a port");
            let port = first.local_addr().expect("an address").port();
            let mut listeners = vec![first];
            for last in 2..=ADDRESSES {
                match TcpListener::bind(address(last, port)).await {
                    Ok(listener) => listeners.push(listener),
                    Err(_) => continue 'port,
                }
            }
            for listener in listeners {
                let (server, clock) = (self.clone(), clock.clone());
                actix_rt::spawn(async move {
                    while let Ok((socket, _)) = listener.accept().await {
                        let second = (clock.now_ms() - START_MS) / 1000;
                        *server.arrived.lock().expect("no panic").entry(second).or_default() += 1;
                        let (server, clock) = (server.clone(), clock.clone());
                        actix_rt::spawn(async move { server.serve(socket, &clock).await });
                    }
                });
            }
            return port;
        }
    }

    async fn serve(&self, socket: TcpStream, clock: &SimulatedClock) -> Option<()> {
        // The kernel would hold back small answers for a while of its own time, in which simulated time runs away.
        socket.set_nodelay(true).ok()?;
        let mut socket = BufReader::new(socket);
        socket.write_all(b"220 hi\r\n").await.ok()?;
        let mut line = String::new();
        let mut to = Vec::new();
        loop {
            line.clear();
            if socket.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let answer = match line.get(..4)? {
                "EHLO" => "250-mx\r\n250 PIPELINING\r\n",
                "RCPT" => {
                    to.extend(line.split(['<', '>']).nth(1).map(str::to_owned));
                    "250 ok\r\n"
                }
                "DATA" => {
                    socket.write_all(b"354 go\r\n").await.ok()?;
                    while line != ".\r\n" {
                        line.clear();
                        socket.read_line(&mut line).await.ok()?;
                    }
                    let now_ms = clock.now_ms();
                    let mut taken = self.taken.lock().expect("no panic");
                    taken.extend(to.drain(..).map(|to| (to, now_ms)));
                    "250 taken\r\n"
                }
                "QUIT" => {
                    socket.write_all(b"221 bye\r\n").await.ok()?;
                    return None;
                }
                _ => "250 ok\r\n",
            };
            socket.write_all(answer.as_bytes()).await.ok()?;
        }
    }

    fn taken(&self) -> usize {
        self.taken.lock().expect("no panic").len()
    }

    /// The most connections that arrived in one second, and how many there were in the first seconds.
    fn arrivals(&self) -> (usize, Vec<usize>) {
        let arrived = self.arrived.lock().expect("no panic");
        let first = (0..60).map(|second| arrived.get(&second).copied().unwrap_or(0)).collect();
        (arrived.values().copied().max().unwrap_or(0), first)
    }
}

/// Real Deliveries on the arbiter of the Queue.
struct Here(Arc<DeliveryContext>);

impl Deliveries for Here {
    fn start(&self, destination: &Domain, _: &Route) -> DeliveryHandle {
        let delivery = Delivery::new(destination.clone(), self.0.clone()).start();
        DeliveryHandle {
            attempt: delivery.clone().recipient(),
            drain: delivery.clone().recipient(),
            abort: delivery.clone().recipient(),
            give_way: delivery.recipient(),
        }
    }
}

/// A world whose Queue died some time ago, with one overdue message for each of so many destinations: one attempt was made,
/// and every second destination backed off until an hour ago.
async fn overdue(destinations: usize) -> World {
    let world = World::new(|_| Answer::Deliver);
    world.look(|_, ctx| ctx.stop()).await;
    let now_ms = world.clock.now_ms();
    let (arrived_ms, tried_ms, due_ms) = (now_ms - 7_300_000, now_ms - 7_200_000, now_ms - 3_600_000);
    let cause = Cause {
        class: CauseClass::Connect,
        status: EnhancedStatus::new(4, 4, 1),
        reply: None,
        text: "connection refused".to_owned(),
    };
    let last = Some(LastReply { at_ms: tried_ms, host: None, cause });
    let mut ops = Vec::new();
    for number in 0..destinations {
        let content = Bytes::from_static(b"Subject: late\r\n\r\nhello\r\n");
        let mut envelope = world.envelope("", &[&format!("u@d{number}.example")], content.len());
        envelope.arrived_ms = arrived_ms;
        let (id, destination) = (envelope.id, envelope.recipients[0].destination.clone());
        let state =
            RecipientState { attempts: 1, due_ms, last: last.clone(), ..RecipientState::fresh(arrived_ms) };
        ops.push(Op::PutMessage(Arc::new(envelope), Content::Memory(content)));
        ops.push(Op::PutRecipient(id, 0, state));
        ops.push(Op::PutDue(DueKey { destination: destination.clone(), due_ms, id, number: 0 }));
        ops.push(Op::PutWake(due_ms, destination.clone()));
        ops.push(Op::PutDeadline(arrived_ms + 5 * 86_400_000, id));
        if number % 2 == 0 {
            let record = DestinationRecord {
                failures: 1,
                retry_at_ms: due_ms,
                last: last.clone(),
                suspended_until_ms: 0,
            };
            ops.push(Op::PutDestination(destination, record));
        }
    }
    world.spool.commit(&ops).expect("good");
    let counters = world.scan();
    world.spool.commit(&[Op::Counters(counters)]).expect("good");
    world
}

/// A start over that spool, with real Deliveries.
async fn start_for_real(world: &mut World, per_second: usize, takes_ms: u64) -> (Arc<Names>, Arc<Server>) {
    let (server, names) = (Arc::new(Server::default()), Arc::new(Names { takes_ms, ..Names::default() }));
    let port = server.listen(&world.clock).await;
    let front = Front::inline(world.spool.clone());
    let clock: Arc<SimulatedClock> = world.clock.clone();
    let metrics = Metrics::new().expect("good metrics");
    let dials = Dials::new(per_second, clock.clone());
    let settings = DeliveryConfig {
        port,
        tls: TlsPolicy::Off,
        idle_timeout: Duration::from_millis(100),
        connections_per_address: 1000,
        ..DeliveryConfig::default()
    };
    let context = DeliveryContext {
        hostname: "relay.example".into(),
        resolver: Arc::new(Bounded::new(names.clone(), clock.clone())),
        plan: PlanSettings { port, own: Vec::new(), hostname: "relay.example".to_owned(), addresses: 5 },
        tls: TlsClients::with_roots(rustls::RootCertStore::empty()).expect("good"),
        content: Arc::new(SpoolContent::new(front.clone())),
        clock: clock.clone(),
        metrics: metrics.clone(),
        slots: AddressSlots::new(settings.connections_per_address),
        dials: dials.clone(),
        settings,
    };
    let (failure, failed) = watch::channel(None);
    let parts = QueueParts {
        settings: QueueSettings { connections: 1000, ..(world.settings)() },
        clock,
        front,
        deliveries: Box::new(Here(Arc::new(context))),
        dials,
        metrics: metrics.clone(),
        maillog: MailLog::discard(LogFormat::Text),
        health: Arc::new(Health::new()),
        failure,
    };
    world.queue = Queue::new(parts, world.spool.counters().expect("readable")).start();
    (world.metrics, world.failure) = (metrics, failed);
    actix_rt::spawn(steps());
    (names, server)
}

/// Paused time would pass while sockets still have something to say. So it goes in steps that are small beside a second, and
/// each waits until bytes that were sent before it have gone around: time stands still while something blocks.
async fn steps() {
    use std::io::{Read, Write};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut out =
        std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (mut back, _) = listener.accept().expect("accepted");
    loop {
        let rounds = move || {
            for _ in 0..1 {
                out.write_all(b"!").expect("written");
                back.read_exact(&mut [0]).expect("read");
                back.write_all(b"!").expect("written");
                out.read_exact(&mut [0]).expect("read");
            }
            (out, back)
        };
        (out, back) = tokio::task::spawn_blocking(rounds).await.expect("no panic");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so much has been taken.
async fn until_taken(world: &World, server: &Server, count: usize) {
    let begin = world.clock.now_ms();
    while server.taken() < count {
        sleep(1).await;
        let passed = (world.clock.now_ms() - begin) / 1000;
        assert!(passed < 1_000, "{} of {count} after {passed} s: {:?}", server.taken(), server.arrivals());
    }
}

/// Every message left that had a host; those without one were tried exactly once more, and wait for their next time.
async fn check_schedule(world: &World, server: &Server, destinations: usize) {
    let left = world.spool.list(None, usize::MAX).expect("readable");
    assert_eq!(left.len(), destinations.div_ceil(DEAD_EACH));
    for message in &left {
        let (state, name) = (&message.states[0], message.envelope.recipients[0].path.as_str());
        assert!(address_of(name) == address_of("d0.example"), "{name} has a host");
        let last = state.last.as_ref().expect("tried");
        assert_eq!((state.attempts, state.due_ms - last.at_ms), (2, 300_000), "{name}");
        assert!(last.at_ms >= START_MS, "{name} was tried since the start");
    }
    let mut names: Vec<String> =
        server.taken.lock().expect("no panic").iter().map(|(to, _)| to.clone()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), server.taken(), "nothing was sent twice");
}

#[test]
fn twenty_thousand_overdue_destinations_are_a_queue_with_bounded_look_ups_and_connections() {
    simulate(|| async {
        const DESTINATIONS: usize = 20_000;
        let mut world = overdue(DESTINATIONS).await;
        let (names, server) = start_for_real(&mut world, 1000, 250).await;
        until_taken(&world, &server, DESTINATIONS - DESTINATIONS / DEAD_EACH).await;
        let ((most, first), looked_up) = (server.arrivals(), names.open.lock().expect("no panic").1);
        assert_eq!(looked_up, LOOKUPS, "look-ups at once");
        assert!(first[..2].iter().all(|count| *count <= 50), "{first:?}");
        assert!(most <= 500, "{most} connections in a second");
        sleep(5).await;
        assert_eq!(world.metrics.attempts_started.get(), DESTINATIONS as u64, "one attempt for each");
        check_schedule(&world, &server, DESTINATIONS).await;
    });
}

#[test]
fn connections_ramp_up_to_the_bound_and_a_destination_that_answers_does_not_wait_for_them() {
    simulate(|| async {
        const DESTINATIONS: usize = 4_000;
        let mut world = overdue(DESTINATIONS).await;
        let (_, server) = start_for_real(&mut world, 300, 1).await;
        world.accept_from("", &["first@good1.example"]).await;
        let good = |name: &str| {
            let taken = server.taken.lock().expect("no panic");
            taken.iter().find(|(to, _)| to == name).map(|(_, at_ms)| *at_ms)
        };
        sleep(8).await;
        assert!(good("first@good1.example").is_some(), "a stranger takes turns with the others");
        for number in 0..5 {
            sleep(3).await;
            let (name, begin_ms) = (format!("u{number}@good1.example"), world.clock.now_ms());
            world.accept_from("", &[&name]).await;
            sleep(1).await;
            let waited = good(&name).unwrap_or_else(|| panic!("{name} waits")) - begin_ms;
            assert!(waited < 500, "{name} waited {waited} ms");
            assert!(
                server.taken() < DESTINATIONS - DESTINATIONS / DEAD_EACH,
                "the others are still under way"
            );
        }
        until_taken(&world, &server, DESTINATIONS - DESTINATIONS / DEAD_EACH + 6).await;
        let (most, first) = server.arrivals();
        assert!(first[..2].iter().all(|count| *count <= 51), "{first:?}");
        assert!(most <= 151, "half of the bound, and the one that answers: {first:?}");
        assert!(first[20..30].iter().all(|count| *count >= 130), "{first:?}");
        sleep(5).await;
        assert_eq!(world.metrics.attempts_started.get(), DESTINATIONS as u64 + 6);
        check_schedule(&world, &server, DESTINATIONS).await;
    });
}
