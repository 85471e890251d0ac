//! The destinations that are in memory: their windows, their back-off and their keys on disk.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::JUMP_MS;
use super::messages::{CommandResult, DestinationVerb};
use crate::actors::delivery::DeliveryHandle;
use crate::mail::id::QueueId;
use crate::route::table::Route;
use crate::schedule::slots::Standing;
use crate::schedule::window::Window;
use crate::smtp::address::Domain;
use crate::spool::{DestinationRecord, UNTIL_RESUMED};

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

/// What an operator asked for, and who waits for it.
#[derive(Debug)]
pub(super) enum DestinationWish {
    /// Mail of it is to be tried at once: its back-off ends.
    Lift,
    /// A command.
    Command(DestinationVerb, oneshot::Sender<CommandResult>),
}

/// Where a destination waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nowhere.
    Out,
    /// In the ring of this standing.
    Ring(Standing),
    /// For a connection of its shared route.
    Site,
}

/// One destination in memory.
#[derive(Debug)]
pub(super) struct Destination {
    pub route: Route,
    pub phase: Phase,
    /// Back-off state, as on disk after the open commit.
    pub record: DestinationRecord,
    /// What an operator asked for while the record was still being read.
    pub wishes: Vec<DestinationWish>,
    /// Recipients waiting for a slot, in order; entries whose place is no longer `Ready` are passed over.
    pub ready: VecDeque<(QueueId, u16)>,
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
    /// Mail counts as due up to this time, if that is later than now: it was queued before wall time went back.
    pub until_ms: u64,
    /// A page is being read.
    pub paging: bool,
    /// No page before this time: the last one could not be read.
    pub page_after: Option<Instant>,
    pub line: Line,
    /// No attempt before this time: a remote address had no room.
    pub pause_until: Option<Instant>,
    /// Which of its leavings is the latest: an earlier commit must not let it go.
    pub leaving: u64,
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
            wishes: Vec::new(),
            ready: VecDeque::new(),
            attempts: 0,
            window: Window::new(connections),
            standing: Standing::Unknown,
            slow: 0,
            wakes: Vec::new(),
            more_on_disk: false,
            next_due_ms: None,
            until_ms: 0,
            paging: false,
            page_after: None,
            line: Line::Out,
            pause_until: None,
            leaving: 0,
            delivery: None,
        }
    }

    pub fn backs_off(&self, now_ms: u64) -> bool {
        backs_off(&self.record, now_ms)
    }

    /// The standing under which it asks for a slot.
    pub fn asks_as(&self) -> Standing {
        if self.slow > 0 { Standing::Troubled } else { self.standing }
    }

    /// Whether it may start one more attempt, as far as it is concerned.
    pub fn wants_slot(&self, now_ms: u64, now: Instant) -> bool {
        self.phase == Phase::Active
            && !self.ready.is_empty()
            && self.attempts < self.window.get()
            && !self.backs_off(now_ms)
            && self.pause_until.is_none_or(|until| until <= now)
    }

    /// Whether due mail waits on disk, or may do so.
    pub fn has_backlog(&self, now_ms: u64) -> bool {
        self.more_on_disk || self.paging || self.next_due_ms.is_some_and(|due| due <= now_ms)
    }

    /// Whether due mail should be read from disk now.
    pub fn wants_page(&self, now_ms: u64, now: Instant, low_water: usize) -> bool {
        self.phase == Phase::Active
            && !self.paging
            && (!self.backs_off(now_ms) || self.until_ms > 0)
            && self.ready.len() < low_water
            && self.has_backlog(now_ms)
            && self.page_after.is_none_or(|after| after <= now)
    }

    /// Whether nothing of it needs to be in memory; `held` of its recipients are.
    pub fn is_idle(&self, now_ms: u64, held: usize) -> bool {
        self.phase == Phase::Active
            && held == 0
            && self.attempts == 0
            && !self.paging
            && self.until_ms == 0
            && (self.backs_off(now_ms) || !self.has_backlog(now_ms))
    }

    /// When it needs the Queue again; `None` when no mail is left.
    pub fn next_wake_ms(&self, now_ms: u64) -> Option<u64> {
        let suspended = Some(self.record.suspended_until_ms).filter(|until| *until > now_ms);
        if suspended == Some(UNTIL_RESUMED) {
            return None;
        }
        if !self.more_on_disk && self.next_due_ms.is_none() {
            // The end of a suspension is to be noticed without mail, too: its record goes.
            return suspended;
        }
        let due = if self.more_on_disk { now_ms } else { self.next_due_ms.unwrap_or(now_ms) };
        Some(if self.backs_off(now_ms) { due.max(self.record.not_before_ms()) } else { due })
    }

    /// It answered, or its back-off means nothing without mail.
    pub fn forget_failures(&mut self) {
        self.record = DestinationRecord {
            suspended_until_ms: self.record.suspended_until_ms,
            ..DestinationRecord::default()
        };
    }

    /// When it leaves memory, what nobody else would ever forget: failures without mail, and a suspension that has ended.
    /// Whether that changed its record.
    pub fn forget_what_is_over(&mut self, now_ms: u64) -> bool {
        let before = self.record.clone();
        if !self.more_on_disk && self.next_due_ms.is_none() {
            self.forget_failures();
        }
        if self.record.suspended_until_ms <= now_ms {
            self.record.suspended_until_ms = 0;
        }
        self.record != before
    }

    /// Mail on disk is due at this time.
    pub fn note_due(&mut self, due_ms: u64) {
        self.next_due_ms = Some(self.next_due_ms.map_or(due_ms, |known| known.min(due_ms)));
    }
}

/// Whether a destination with this record is not to be tried yet. A failure that is still to come was noted before wall
/// time went back, and says nothing of when to try again.
pub(super) fn backs_off(record: &DestinationRecord, now_ms: u64) -> bool {
    let from_the_future = record.last.as_ref().is_some_and(|last| last.at_ms > now_ms + JUMP_MS);
    record.suspended_until_ms > now_ms || (record.retry_at_ms > now_ms && !from_the_future)
}

/// All destinations in memory, what the static routes share, and who is known to answer.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    pub map: HashMap<Domain, Destination>,
    sites: HashMap<usize, Site>,
    proven: Proven,
}

#[derive(Debug, Default)]
struct Site {
    attempts: usize,
    waiting: VecDeque<Domain>,
}

impl Destinations {
    /// Takes a connection of a shared route; `false` when all are taken: the destination then waits in line.
    pub fn take_site(&mut self, destination: &Domain) -> bool {
        let Some(entry) = self.map.get_mut(destination) else { return false };
        let Route::Static(route) = &entry.route else { return true };
        let site = self.sites.entry(route.index).or_default();
        if site.attempts < route.connections {
            site.attempts += 1;
            return true;
        }
        site.waiting.push_back(destination.clone());
        entry.line = Line::Site;
        false
    }

    /// Gives it back.
    pub fn give_back_site(&mut self, site: usize) {
        if let Some(site) = self.sites.get_mut(&site) {
            site.attempts = site.attempts.saturating_sub(1);
        }
    }

    /// The destination that has waited longest for a connection of a shared route; it waits no more.
    pub fn next_at_site(&mut self, site: usize) -> Option<Domain> {
        let waiting = &mut self.sites.get_mut(&site)?.waiting;
        while let Some(next) = waiting.pop_front() {
            if let Some(entry) = self.map.get_mut(&next)
                && entry.line == Line::Site
            {
                entry.line = Line::Out;
                return Some(next);
            }
        }
        None
    }

    /// Lets a destination out of memory; how it stands is remembered for the next time. Returns its wake keys.
    pub fn forget(&mut self, destination: &Domain, remembered: usize) -> Vec<u64> {
        let Some(entry) = self.map.remove(destination) else { return Vec::new() };
        match entry.asks_as() {
            Standing::Proven => self.proven.insert(destination, remembered),
            Standing::Troubled => self.proven.remove(destination),
            Standing::Unknown => {}
        }
        entry.wakes
    }

    /// Whether a destination gets a place in memory though there are `bound` already: one that answers must not wait
    /// for those that hang. The names that are remembered bound how many do.
    pub fn may_exceed(&self, destination: &Domain, bound: usize) -> bool {
        self.proven.contains(destination) && self.map.len() < bound.saturating_mul(2)
    }

    /// How a destination stands that comes into memory.
    pub fn standing_of(&self, destination: &Domain) -> Standing {
        if self.proven.contains(destination) { Standing::Proven } else { Standing::Unknown }
    }
}

/// The destinations that answered when they were last in memory: two generations, so that it stays bounded and who is
/// seen often is not forgotten.
#[derive(Debug, Default)]
struct Proven {
    young: HashSet<Domain>,
    old: HashSet<Domain>,
}

impl Proven {
    fn insert(&mut self, destination: &Domain, bound: usize) {
        if self.young.contains(destination) {
            return;
        }
        if self.young.len() >= bound {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(destination.clone());
    }

    fn remove(&mut self, destination: &Domain) {
        self.young.remove(destination);
        self.old.remove(destination);
    }

    fn contains(&self, destination: &Domain) -> bool {
        self.young.contains(destination) || self.old.contains(destination)
    }
}
