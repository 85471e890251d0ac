//! Introduces the actors to each other: the only place that knows them by struct.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use actix::{Actor, Addr, Arbiter, ArbiterHandle};
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::delivery::{Deliveries, Delivery, DeliveryContext, DeliveryHandle};
use super::listener::Listener;
use super::queue::{Queue, QueueParts};
use super::session::SessionContext;
use crate::route::table::Route;
use crate::smtp::address::Domain;
use crate::spool::Counters;

/// The threads that actors run on, besides the caller's: one for the Queue, the others for sessions and deliveries.
#[derive(Debug)]
pub struct Arbiters {
    queue: Arbiter,
    workers: Vec<Arbiter>,
}

impl Arbiters {
    /// Starts the threads; `workers` 0 means one per core.
    pub fn start(workers: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = if workers == 0 { cores } else { workers };
        Self { queue: Arbiter::new(), workers: (0..count).map(|_| Arbiter::new()).collect() }
    }

    /// The workers.
    pub fn workers(&self) -> Vec<ArbiterHandle> {
        self.workers.iter().map(Arbiter::handle).collect()
    }

    /// Ends the threads where they stand: the drain is over.
    pub fn stop(self) {
        for arbiter in self.workers.iter().chain([&self.queue]) {
            arbiter.stop();
        }
    }

    /// Starts the Queue on its own thread.
    ///
    /// # Errors
    /// `None` when that thread has ended.
    pub async fn start_queue(&self, parts: QueueParts, counters: Counters) -> Option<Addr<Queue>> {
        let (started, wait) = oneshot::channel();
        self.queue.spawn_fn(move || drop(started.send(Queue::new(parts, counters).start())));
        wait.await.ok()
    }

    /// Starts the Listener on the caller's thread.
    pub fn start_listener(
        &self,
        sockets: Vec<std::net::TcpListener>,
        networks: Vec<IpNet>,
        limit: usize,
        context: Arc<SessionContext>,
    ) -> Addr<Listener> {
        Listener::new(sockets, networks, limit, context, self.workers()).start()
    }
}

/// Starts Deliveries on the workers. Those of one static route share a worker, and so its connections.
pub struct WorkerDeliveries {
    /// What all Deliveries share.
    pub context: Arc<DeliveryContext>,
    /// Where they run.
    pub workers: Vec<ArbiterHandle>,
}

impl Deliveries for WorkerDeliveries {
    fn start(&self, destination: &Domain, route: &Route) -> DeliveryHandle {
        let mut hasher = DefaultHasher::new();
        match route {
            Route::Mx => destination.hash(&mut hasher),
            Route::Static(route) => route.index.hash(&mut hasher),
        }
        let count = self.workers.len().max(1) as u64;
        let worker = usize::try_from(hasher.finish() % count).unwrap_or(0);
        let (destination, context) = (destination.clone(), self.context.clone());
        let delivery =
            Delivery::start_in_arbiter(&self.workers[worker], move |_| Delivery::new(destination, context));
        DeliveryHandle {
            attempt: delivery.clone().recipient(),
            drain: delivery.clone().recipient(),
            abort: delivery.clone().recipient(),
            give_way: delivery.recipient(),
        }
    }
}
