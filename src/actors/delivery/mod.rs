//! Delivery: one actor per active destination. It owns sockets, reports facts, and ends with its last address.
//!
//! | takes | from | does | when full |
//! |---|---|---|---|
//! | [`messages::Attempt`] | Queue | one transaction in a task of its own, one report | the Queue grants slots, so it never is |
//! | [`messages::Drain`] | Queue | closes idle connections; attempts under way finish | – |
//! | [`messages::GiveWay`] | Queue | that attempt gives up if no transaction has begun | – |
//! | [`messages::Abort`] | Queue | every attempt under way reports now | – |
//!
//! LAW: what a reply or a failure means is decided in `mail::outcome`, what is said in `smtp::client`; here is only
//! the order of the effects: `attempt` chooses the connection, `connection` moves the bytes, `pool` keeps idle
//! connections, [`slots`] counts them, [`dials`] says when one may be opened. An attempt runs as a spawned task, so that a panic in it loses nothing else.

mod attempt;
mod connection;
pub mod content;
pub mod dials;
mod guard;
pub mod messages;
mod pool;
pub mod slots;
mod stream;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Context, Handler, Recipient};
use tokio::sync::watch;

use crate::clock::SharedClock;
use crate::config::DeliveryConfig;
use crate::metrics::Metrics;
use crate::route::plan::PlanSettings;
use crate::route::resolver::Resolve;
use crate::route::table::Route;
use crate::smtp::address::Domain;
use crate::tls::TlsClients;
pub use content::{ContentSource, SpoolContent};
pub use dials::Dials;
use messages::{Abort, Attempt, Drain, GiveWay};
use pool::Pool;
pub use slots::AddressSlots;

/// What every delivery works with.
pub struct DeliveryContext {
    /// What EHLO says.
    pub hostname: Arc<str>,
    /// Time-outs and limits.
    pub settings: DeliveryConfig,
    /// The name servers.
    pub resolver: Arc<dyn Resolve>,
    /// What routing needs to know of the relay.
    pub plan: PlanSettings,
    /// TLS to remote hosts.
    pub tls: TlsClients,
    /// Stored content.
    pub content: Arc<dyn ContentSource>,
    /// Time.
    pub clock: SharedClock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Connections per remote address, over all arbiters.
    pub slots: AddressSlots,
    /// New connections per second, over all arbiters.
    pub dials: Dials,
}

impl std::fmt::Debug for DeliveryContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryContext").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// How the Queue reaches one Delivery. Dropping it lets the Delivery end.
#[derive(Clone, Debug)]
pub struct DeliveryHandle {
    /// Takes attempts.
    pub attempt: Recipient<Attempt>,
    /// Takes the notice that the relay drains.
    pub drain: Recipient<Drain>,
    /// Takes the notice that the drain time is over.
    pub abort: Recipient<Abort>,
    /// Takes the request that an attempt makes room for others.
    pub give_way: Recipient<GiveWay>,
}

/// Starts Delivery actors; the Queue knows no more of them.
pub trait Deliveries: Send + 'static {
    /// Starts the Delivery of a destination.
    fn start(&self, destination: &Domain, route: &Route) -> DeliveryHandle;
}

/// Sends the mail of one destination.
pub struct Delivery {
    shared: Rc<Shared>,
}

/// What a delivery and its attempts share. Holds no address of the actor, so that it can end.
struct Shared {
    context: Arc<DeliveryContext>,
    destination: Domain,
    pool: Rc<Pool>,
    stop: watch::Sender<bool>,
    /// The ticket of the attempt that was last asked to make room.
    give_way: watch::Sender<u64>,
    draining: Cell<bool>,
}

impl Delivery {
    /// A delivery for this destination. To be called on the arbiter that it will run on: it shares that arbiter's
    /// idle connections.
    pub fn new(destination: Domain, context: Arc<DeliveryContext>) -> Self {
        let pool = Pool::of_this_arbiter(&context);
        let (stop, _) = watch::channel(false);
        let (give_way, _) = watch::channel(0);
        let draining = Cell::new(false);
        Self { shared: Rc::new(Shared { context, destination, pool, stop, give_way, draining }) }
    }
}

impl Actor for Delivery {
    type Context = Context<Self>;
}

impl Handler<Attempt> for Delivery {
    type Result = ();

    fn handle(&mut self, attempt: Attempt, _: &mut Self::Context) {
        // Not ctx.spawn: its futures are polled again at every message, and a panic there ends the actor.
        actix_rt::spawn(attempt::run(Rc::clone(&self.shared), attempt));
    }
}

impl Handler<Drain> for Delivery {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.shared.draining.set(true);
        self.shared.pool.close_all();
    }
}

impl Handler<GiveWay> for Delivery {
    type Result = ();

    fn handle(&mut self, asked: GiveWay, _: &mut Self::Context) {
        self.shared.give_way.send_replace(asked.ticket);
    }
}

impl Handler<Abort> for Delivery {
    type Result = ();

    fn handle(&mut self, _: Abort, _: &mut Self::Context) {
        self.shared.draining.set(true);
        self.shared.stop.send_replace(true);
    }
}
