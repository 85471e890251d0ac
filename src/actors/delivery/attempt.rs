//! One attempt: an idle connection or the hosts in order, one transaction, one report.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

use super::connection::Connection;
use super::content::Loaded;
use super::dials::{Expected, Lane};
use super::guard::{StopSignal, asked_to_give_way};
use super::messages::Attempt;
use super::pool::Site;
use super::slots::AddressSlot;
use super::{DeliveryContext, Shared};
use crate::config::TlsPolicy;
use crate::mail::envelope::Envelope;
use crate::mail::outcome::{
    AttemptResult, Cause, CauseClass, Decision, DestinationEffect, Fate, Finding, Next, RemoteHost, decide,
};
use crate::route::plan::{Target, plan};
use crate::route::table::Route;
use crate::smtp::client::{Login, Options, TlsUse};
use crate::smtp::reply::EnhancedStatus;
use crate::spool::SpoolError;

/// Runs an attempt and reports. The report goes out before the connection is put away: the Queue waits for it.
pub(super) async fn run(shared: Rc<Shared>, attempt: Attempt) {
    let clock = &shared.context.clock;
    let started = clock.instant();
    let mut job = Job {
        shared: &shared,
        site: Site::new(&attempt.route, &attempt.destination),
        route: attempt.route,
        envelope: attempt.envelope,
        content: attempt.content.map(Loaded::Whole),
        ticket: attempt.ticket,
        lane: if attempt.expected.is_some() { Lane::Other } else { Lane::Proven },
        expected: attempt.expected,
        signal: StopSignal::new(&shared.stop),
        way: shared.give_way.subscribe(),
        open: attempt.recipients,
        unreached: None,
        result: AttemptResult {
            fates: Vec::new(),
            effect: DestinationEffect::Untouched,
            host: None,
            tls: false,
        },
    };
    let connection = job.work().await;
    let Job { site, result, .. } = job;
    attempt.report.send(result, clock.instant().duration_since(started));
    let is_wanted = |connection: &Connection| {
        let address = connection.host().address.ip();
        shared.context.slots.is_wanted(address, &site, clock.instant())
    };
    match connection {
        Some(connection) if connection.is_reusable() && !shared.draining.get() && !is_wanted(&connection) => {
            shared.pool.park(site, connection);
        }
        Some(connection) => connection.quit().await,
        None => {}
    }
}

struct Job<'a> {
    shared: &'a Shared,
    site: Site,
    route: Route,
    envelope: Arc<Envelope>,
    /// Loaded and not used up.
    content: Option<Loaded>,
    ticket: u64,
    /// In which line it waits to connect.
    lane: Lane,
    /// Until it connects.
    expected: Option<Expected>,
    signal: StopSignal,
    /// Tells which attempt is asked to make room.
    way: watch::Receiver<u64>,
    /// The recipients without a fate.
    open: Vec<u16>,
    /// Why the last host could not be used, and what that means when there is no other.
    unreached: Option<(Cause, DestinationEffect)>,
    result: AttemptResult,
}

/// How it goes on after a host was tried.
enum After {
    /// Every recipient has its fate. The connection may serve again.
    Done(Option<Box<Connection>>),
    /// The next host.
    NextHost,
    /// The idle connection was dead: as if it had not been there.
    Stale,
}

impl Job<'_> {
    async fn work(&mut self) -> Option<Box<Connection>> {
        let mut tried = None;
        while let Some(connection) = self.shared.pool.take(&self.site) {
            let host = connection.host().clone();
            match self.converse(connection, true).await {
                After::Done(connection) => return connection,
                After::Stale => {}
                After::NextHost => {
                    tried = Some(host);
                    break;
                }
            }
        }
        let targets = self.targets().await?;
        self.dial(targets, tried).await
    }

    /// The addresses to dial; none when the route settles it.
    async fn targets(&mut self) -> Option<Vec<Target>> {
        let context = &self.shared.context;
        let shuffle = shuffle(&self.envelope, self.ticket);
        let started = context.clock.instant();
        let destination = &self.shared.destination;
        let planning = plan(context.resolver.as_ref(), destination, &self.route, &context.plan, shuffle);
        let planned = tokio::select! {
            biased;
            planned = self.signal.unless_raised(planning) => planned,
            () = asked_to_give_way(&mut self.way, self.ticket) => {
                self.settle(Finding::GaveWay);
                return None;
            }
        };
        let took = context.clock.instant().duration_since(started);
        context.metrics.dns_lookup_seconds.observe(took.as_secs_f64());
        let finding = match planned {
            Some(Ok(targets)) => return Some(targets),
            Some(Err(cause)) => {
                context.metrics.dns_failures.inc_by(u64::from(cause.class == CauseClass::Dns));
                Finding::NoRoute(cause)
            }
            None => Finding::Aborted,
        };
        self.settle(finding);
        None
    }

    /// Tries the hosts in order, but for the one that was tried over an idle connection.
    async fn dial(&mut self, targets: Vec<Target>, tried: Option<RemoteHost>) -> Option<Box<Connection>> {
        let mut busy = false;
        let mut left = self.shared.context.settings.addresses_per_attempt.max(1);
        for Target { name, address } in targets {
            let host = RemoteHost { name, address };
            if tried.as_ref() == Some(&host) {
                continue;
            }
            if left == 0 {
                break;
            }
            match self.try_host(host).await {
                Some(After::Done(connection)) => return connection,
                Some(_) => left -= 1,
                None => busy = true,
            }
        }
        self.give_up(busy);
        None
    }

    /// Talks to a host over an idle connection of another domain, or a new one; `None` when all connections that its
    /// address may have are in use.
    async fn try_host(&mut self, host: RemoteHost) -> Option<After> {
        if matches!(self.route, Route::Mx) {
            while let Some(connection) = self.shared.pool.take_host(&host) {
                match self.converse(connection, true).await {
                    After::Stale => {}
                    after => return Some(after),
                }
            }
        }
        let context = &self.shared.context;
        let address = host.address.ip();
        let acquire = || context.slots.acquire(address, &self.site, context.clock.instant());
        let slot = match acquire() {
            Some(slot) => slot,
            None if self.shared.pool.evict(address) => acquire()?,
            None => return None,
        };
        let slot = Rc::new(slot);
        self.result.host = Some(host.clone());
        self.result.tls = false;
        let mut options = self.options();
        loop {
            let (line, signal) = ((self.lane, &mut self.expected), &mut self.signal);
            let opening = open(context, &host, &slot, options.clone(), line, signal);
            let opened = tokio::select! {
                biased;
                opened = opening => opened,
                () = asked_to_give_way(&mut self.way, self.ticket) => Err(Finding::GaveWay),
            };
            let finding = match opened {
                Ok(connection) => return Some(self.converse(connection, false).await),
                Err(finding) => finding,
            };
            match self.settle(finding) {
                Settled::All => return Some(After::Done(None)),
                Settled::NotYet => return Some(After::NextHost),
                Settled::ClearText => options.tls = TlsUse::Never,
            }
        }
    }

    /// One transaction for all open recipients.
    async fn converse(&mut self, mut connection: Box<Connection>, reused: bool) -> After {
        self.expected.take().iter().for_each(Expected::release);
        let mut content = match self.take_content().await {
            Ok(content) => content,
            Err(finding) => {
                self.settle(finding);
                return After::Done(Some(connection));
            }
        };
        let facts = connection.transact(&self.envelope, &self.open, &mut content, &mut self.signal).await;
        if matches!(content, Loaded::Whole(_)) {
            self.content = Some(content);
        }
        if reused && facts.nothing_was_heard() {
            return After::Stale;
        }
        if reused {
            self.shared.context.metrics.connections_reused.inc();
        }
        self.result.host = Some(connection.host().clone());
        self.result.tls = connection.is_secure();
        match self.settle(Finding::Transaction(facts)) {
            Settled::All => After::Done(Some(connection)),
            Settled::NotYet | Settled::ClearText => After::NextHost,
        }
    }

    async fn take_content(&mut self) -> Result<Loaded, Finding> {
        if let Some(content) = self.content.take() {
            return Ok(content);
        }
        let loading = self.shared.context.content.load(Arc::clone(&self.envelope));
        match self.signal.unless_raised(loading).await {
            Some(Ok(content)) => Ok(content),
            Some(Err(error @ SpoolError::Damaged { .. })) => Err(Finding::Damaged(error.to_string())),
            Some(Err(error)) => {
                tracing::warn!(id = %self.envelope.id, %error, "the content can't be read; delivery waits");
                Err(Finding::Unreadable(error.to_string()))
            }
            None => Err(Finding::Aborted),
        }
    }

    /// Gives the open recipients the fates that a finding means.
    fn settle(&mut self, finding: Finding) -> Settled {
        let Decision { fates, next } = decide(finding, self.open.len());
        let mut still_open = Vec::new();
        for (number, fate) in std::mem::take(&mut self.open).into_iter().zip(fates) {
            match fate {
                Some(fate) => self.result.fates.push((number, fate)),
                None => still_open.push(number),
            }
        }
        self.open = still_open;
        match next {
            Next::Done(effect) => {
                self.result.effect = effect;
                Settled::All
            }
            Next::Host(cause, effect) => {
                self.unreached = Some((cause, effect));
                Settled::NotYet
            }
            Next::ClearText => Settled::ClearText,
        }
    }

    /// No host is left.
    fn give_up(&mut self, busy: bool) {
        let (cause, effect) = self.unreached.take().unwrap_or_else(no_host);
        // With a host that has merely no room, the destination has not failed.
        let (fate, effect) =
            if busy { (Fate::Busy, DestinationEffect::Untouched) } else { (Fate::Deferred(cause), effect) };
        self.result.fates.extend(self.open.drain(..).map(|number| (number, fate.clone())));
        self.result.effect = effect;
    }

    fn options(&self) -> Options {
        let context = &self.shared.context;
        let (policy, credentials) = match &self.route {
            Route::Mx => (context.settings.tls, None),
            Route::Static(route) => (route.tls, route.credentials.as_ref()),
        };
        let login = credentials
            .map(|known| Login { username: known.username.clone(), password: known.password.clone() });
        let tls = match policy {
            TlsPolicy::Off => TlsUse::Never,
            TlsPolicy::Opportunistic => TlsUse::WhenOffered,
            TlsPolicy::Required => TlsUse::Always,
        };
        Options { hostname: Arc::clone(&context.hostname), tls, login }
    }
}

/// Opens a connection when it is its turn.
async fn open(
    context: &Arc<DeliveryContext>,
    host: &RemoteHost,
    slot: &Rc<AddressSlot>,
    options: Options,
    (lane, expected): (Lane, &mut Option<Expected>),
    signal: &mut StopSignal,
) -> Result<Box<Connection>, Finding> {
    if signal.unless_raised(context.dials.turn(lane)).await.is_none() {
        return Err(Finding::Aborted);
    }
    expected.take().iter().for_each(Expected::release);
    Connection::open(context, host, slot, options, signal).await
}

/// What a decision leaves to do.
enum Settled {
    /// Every recipient has its fate.
    All,
    /// Another host for those that are open.
    NotYet,
    /// The same address without TLS.
    ClearText,
}

fn no_host() -> (Cause, DestinationEffect) {
    let cause = Cause {
        class: CauseClass::Connect,
        status: EnhancedStatus::new(4, 4, 1),
        reply: None,
        text: "there is no host to try".to_owned(),
    };
    (cause.clone(), DestinationEffect::Failed(cause))
}

/// Chance for the order of hosts with one preference: the random part of the queue id, turned by the attempt.
fn shuffle(envelope: &Envelope, ticket: u64) -> u64 {
    let id = u128::from_be_bytes(*envelope.id.as_bytes());
    #[allow(clippy::cast_possible_truncation)]
    let random = id as u64;
    random ^ ticket.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
