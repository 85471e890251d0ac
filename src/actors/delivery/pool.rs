//! The idle connections of one arbiter, kept a moment for the next message.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::time::Instant;

use super::DeliveryContext;
use super::connection::Connection;
use crate::mail::outcome::RemoteHost;
use crate::route::table::Route;
use crate::smtp::address::Domain;

thread_local! {
    /// The pool of each context whose deliveries live on this arbiter: one, but for tests.
    static POOLS: RefCell<Vec<Weak<Pool>>> = const { RefCell::new(Vec::new()) };
}

/// Which mail may use a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Site {
    /// That of the destinations of static route number so-and-so.
    Route(usize),
    /// That of one domain; others that have the same MX host find it by the host.
    Domain(Domain),
}

impl Site {
    pub(super) fn new(route: &Route, destination: &Domain) -> Self {
        match route {
            Route::Static(route) => Self::Route(route.index),
            Route::Mx => Self::Domain(destination.clone()),
        }
    }
}

/// Idle connections, the one used last in front. While it is not empty, a task of its own closes what expires.
pub(super) struct Pool {
    context: Arc<DeliveryContext>,
    idle: RefCell<HashMap<Site, Vec<Idle>>>,
    reaping: Cell<bool>,
}

struct Idle {
    connection: Box<Connection>,
    until: Instant,
}

impl Pool {
    /// This arbiter's pool for deliveries with this context.
    pub(super) fn of_this_arbiter(context: &Arc<DeliveryContext>) -> Rc<Self> {
        POOLS.with_borrow_mut(|pools| {
            pools.retain(|pool| pool.strong_count() > 0);
            let known =
                pools.iter().filter_map(Weak::upgrade).find(|pool| Arc::ptr_eq(&pool.context, context));
            known.unwrap_or_else(|| {
                let pool = Rc::new(Self {
                    context: Arc::clone(context),
                    idle: RefCell::default(),
                    reaping: Cell::new(false),
                });
                pools.push(Rc::downgrade(&pool));
                pool
            })
        })
    }

    /// An idle connection of this site that the remote has not closed.
    pub(super) fn take(&self, site: &Site) -> Option<Box<Connection>> {
        let mut sites = self.idle.borrow_mut();
        let idle = sites.get_mut(site)?;
        while let Some(mut last) = idle.pop() {
            if last.connection.is_quiet() {
                return Some(last.connection);
            }
        }
        None
    }

    /// An idle connection to this very host that another domain left. Those of static routes are not given: they
    /// may be logged in as somebody.
    pub(super) fn take_host(&self, host: &RemoteHost) -> Option<Box<Connection>> {
        let mut sites = self.idle.borrow_mut();
        for (_, idle) in sites.iter_mut().filter(|(site, _)| matches!(site, Site::Domain(_))) {
            while let Some(place) = idle.iter().rposition(|idle| idle.connection.host() == host) {
                let mut found = idle.swap_remove(place);
                if found.connection.is_quiet() {
                    return Some(found.connection);
                }
            }
        }
        None
    }

    /// Keeps a connection for `delivery.idle_timeout`.
    pub(super) fn park(self: &Rc<Self>, site: Site, connection: Box<Connection>) {
        let until = self.context.clock.instant() + self.context.settings.idle_timeout;
        self.idle.borrow_mut().entry(site).or_default().push(Idle { connection, until });
        if !self.reaping.replace(true) {
            actix_rt::spawn(Rc::clone(self).reap());
        }
    }

    /// Closes one idle connection to this address, to make room for another; `false` when there is none.
    pub(super) fn evict(&self, address: IpAddr) -> bool {
        for idle in self.idle.borrow_mut().values_mut() {
            let to_it = |idle: &Idle| idle.connection.host().address.ip() == address;
            if let Some(place) = idle.iter().position(to_it) {
                let mut oldest = idle.remove(place);
                oldest.connection.give_back_slot();
                actix_rt::spawn(oldest.connection.quit());
                return true;
            }
        }
        false
    }

    /// Closes all that is idle.
    pub(super) fn close_all(&self) {
        let sites = std::mem::take(&mut *self.idle.borrow_mut());
        sites.into_values().flatten().for_each(|idle| drop(actix_rt::spawn(idle.connection.quit())));
    }

    /// Closes what expires, until nothing is left. Looks four times per time-out, not at each expiry.
    async fn reap(self: Rc<Self>) {
        let pause = self.context.settings.idle_timeout / 4;
        while !self.idle.borrow().is_empty() {
            tokio::time::sleep(pause).await;
            for idle in self.expired(self.context.clock.instant()) {
                actix_rt::spawn(idle.connection.quit());
            }
        }
        self.reaping.set(false);
    }

    fn expired(&self, now: Instant) -> Vec<Idle> {
        let mut expired = Vec::new();
        self.idle.borrow_mut().retain(|_, idle| {
            expired.extend(idle.extract_if(.., |idle| idle.until <= now));
            !idle.is_empty()
        });
        expired
    }
}
