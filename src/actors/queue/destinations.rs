//! The destinations that are in memory: their windows, their back-off and their keys on disk.

use std::collections::{HashMap, VecDeque};

use crate::actors::delivery::DeliveryHandle;
use crate::mail::id::QueueId;
use crate::route::table::Route;
use crate::schedule::slots::Standing;
use crate::schedule::window::Window;
use crate::smtp::address::Domain;
use crate::spool::DestinationRecord;

/// What the Queue is doing with a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its record and first page are being read.
    Loading,
    /// Mail may be sent, unless it backs off.
    Active,
    /// Too many destinations are in memory: its mail stays on disk under its wake key.
    Parked,
    /// Nothing of it is in memory; forgotten with the commit that sets its wake key.
    Leaving,
}

/// One destination in memory.
#[derive(Debug)]
pub(super) struct Destination {
    pub route: Route,
    pub phase: Phase,
    /// Back-off state, as on disk after the open commit.
    pub record: DestinationRecord,
    /// Recipients waiting for a slot, in order; entries whose place is no longer `Ready` are passed over.
    pub ready: VecDeque<(QueueId, u16)>,
    /// Recipients in memory, whatever their place.
    pub resident: usize,
    /// Attempts under way.
    pub attempts: u32,
    pub window: Window,
    pub standing: Standing,
    /// Attempts that have been running for long.
    pub slow: u32,
    /// Wake keys known to be on disk (or in the open commit).
    pub wakes: Vec<u64>,
    /// There may be due mail on disk that is not in memory.
    pub more_on_disk: bool,
    /// The earliest later due time on disk.
    pub next_due_ms: Option<u64>,
    /// A page is being read.
    pub paging: bool,
    /// Waiting for its turn in a ring, or for its site.
    pub queued: bool,
    /// No attempt before this time: a remote address had no room.
    pub pause_until_ms: u64,
    pub delivery: Option<DeliveryHandle>,
}

impl Destination {
    pub fn new(route: Route, phase: Phase, connections: u32) -> Self {
        let connections = match &route {
            Route::Mx => connections,
            Route::Static(route) => u32::try_from(route.connections).unwrap_or(u32::MAX),
        };
        Self {
            route,
            phase,
            record: DestinationRecord::default(),
            ready: VecDeque::new(),
            resident: 0,
            attempts: 0,
            window: Window::new(connections),
            standing: Standing::Unknown,
            slow: 0,
            wakes: Vec::new(),
            more_on_disk: false,
            next_due_ms: None,
            paging: false,
            queued: false,
            pause_until_ms: 0,
            delivery: None,
        }
    }

    /// The static route whose connections it shares.
    pub fn site(&self) -> Option<usize> {
        match &self.route {
            Route::Mx => None,
            Route::Static(route) => Some(route.index),
        }
    }

    pub fn backs_off(&self, now_ms: u64) -> bool {
        self.record.retry_at_ms > now_ms
    }

    /// The standing under which it asks for a slot.
    pub fn asks_as(&self) -> Standing {
        if self.slow > 0 { Standing::Troubled } else { self.standing }
    }

    /// Whether it may start one more attempt, as far as it is concerned.
    pub fn wants_slot(&self, now_ms: u64) -> bool {
        self.phase == Phase::Active
            && !self.ready.is_empty()
            && self.attempts < self.window.get()
            && !self.backs_off(now_ms)
            && self.pause_until_ms <= now_ms
    }

    /// Whether due mail should be read from disk now.
    pub fn wants_page(&self, now_ms: u64, low_water: usize) -> bool {
        self.phase == Phase::Active
            && !self.paging
            && !self.backs_off(now_ms)
            && self.ready.len() < low_water
            && (self.more_on_disk || self.next_due_ms.is_some_and(|due| due <= now_ms))
    }

    /// Whether nothing of it needs to be in memory.
    pub fn is_idle(&self, now_ms: u64) -> bool {
        self.phase == Phase::Active
            && self.resident == 0
            && self.attempts == 0
            && !self.paging
            && (self.backs_off(now_ms) || !self.more_on_disk)
            && (self.backs_off(now_ms) || self.next_due_ms.is_none_or(|due| due > now_ms))
    }

    /// When it needs the Queue again; `None` when no mail is left.
    pub fn next_wake_ms(&self, now_ms: u64) -> Option<u64> {
        if !self.more_on_disk && self.next_due_ms.is_none() {
            return None;
        }
        let due = if self.more_on_disk { now_ms } else { self.next_due_ms.unwrap_or(now_ms) };
        Some(due.max(self.record.retry_at_ms))
    }

    /// Due mail exists on disk at this time.
    pub fn note_due(&mut self, due_ms: u64) {
        self.next_due_ms = Some(self.next_due_ms.map_or(due_ms, |known| known.min(due_ms)));
    }
}

/// All destinations in memory, and what the static routes share.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    pub map: HashMap<Domain, Destination>,
    sites: HashMap<usize, Site>,
}

#[derive(Debug, Default)]
struct Site {
    attempts: usize,
    waiting: VecDeque<Domain>,
}

impl Destinations {
    /// Takes a connection of a shared route; `false` when all are taken: the destination then waits in line.
    pub fn take_site(&mut self, destination: &Domain) -> bool {
        let Some(Route::Static(route)) = self.map.get(destination).map(|entry| &entry.route) else {
            return true;
        };
        let site = self.sites.entry(route.index).or_default();
        if site.attempts < route.connections {
            site.attempts += 1;
            return true;
        }
        site.waiting.push_back(destination.clone());
        false
    }

    /// Gives it back and returns the destination that waited longest for one.
    pub fn give_back_site(&mut self, site: Option<usize>) -> Option<Domain> {
        let site = self.sites.get_mut(&site?)?;
        site.attempts = site.attempts.saturating_sub(1);
        site.waiting.pop_front()
    }
}
