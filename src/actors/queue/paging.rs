//! Mail that waits on disk: which destinations to wake, and the pages of their due recipients.

use std::collections::HashSet;

use actix::{Context, Handler, Message};

use super::Queue;
use super::destinations::Phase;
use super::residents::Place;
use crate::mail::envelope::Status;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::spool::{DestinationRecord, DuePage, Op, SpoolError};

/// Wake keys read at once.
const WAKES_PER_READ: usize = 256;
/// Due recipients read at once.
const PAGE: usize = 250;

/// How far the wake index has been read. Keys before the cursor belong to destinations in memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    cursor: Option<(u64, Domain)>,
    next: Next,
    reading: bool,
}

/// What is known of the first key after the cursor.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    /// Nothing: read.
    #[default]
    Unknown,
    /// It is not before this time.
    At(u64),
    /// There is none.
    Nothing,
}

impl Index {
    /// When to read again.
    pub fn next_ms(&self) -> Option<u64> {
        match self.next {
            Next::Unknown if self.reading => None,
            Next::Unknown => Some(0),
            Next::At(at) => Some(at),
            Next::Nothing => None,
        }
    }

    /// A key was written.
    pub fn note(&mut self, at_ms: u64) {
        self.next = match self.next {
            Next::Unknown => Next::Unknown,
            Next::At(known) => Next::At(known.min(at_ms)),
            Next::Nothing => Next::At(at_ms),
        };
    }
}

/// Spool → Queue: a destination's record and a page of its due mail.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PageRead {
    destination: Domain,
    ticket: u64,
    record: Option<Result<Option<DestinationRecord>, SpoolError>>,
    page: Result<DuePage, SpoolError>,
    full: bool,
}

/// Spool → Queue: the first wake keys.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WakesRead {
    keys: Result<Vec<(u64, Domain)>, SpoolError>,
}

impl Queue {
    /// Reads the record and the first page of a destination that came into memory.
    pub(super) fn load_destination(&mut self, destination: &Domain) {
        self.read_page(destination, HashSet::new(), true);
    }

    fn read_page(&mut self, destination: &Domain, skip: HashSet<(QueueId, u16)>, with_record: bool) {
        let Some(me) = self.me() else { return };
        let ticket = self.residents.read_begins();
        let until_ms = self.now_ms();
        let name = destination.clone();
        self.parts.metrics.pages_read.inc();
        self.parts.front.read(
            move |spool| {
                let record = with_record.then(|| spool.destination(&name));
                let page = spool.due(&name, until_ms, &skip, PAGE);
                let full = page.as_ref().is_ok_and(|page| page.items.len() >= PAGE);
                PageRead { destination: name, ticket, record, page, full }
            },
            move |read| me.do_send(read),
        );
    }

    /// Reads more due mail of a destination when its window has room for it.
    pub(super) fn refill(&mut self, destination: &Domain, now_ms: u64) {
        let low_water = PAGE / 2;
        let memory_full = self.residents.held() > self.parts.settings.memory.recipients;
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if self.draining || memory_full || !entry.wants_page(now_ms, low_water) {
            return;
        }
        entry.paging = true;
        entry.more_on_disk = false;
        entry.next_due_ms = None;
        let skip = self.residents.in_memory_for(destination);
        self.read_page(destination, skip, false);
    }

    fn page_read(&mut self, read: PageRead) {
        let PageRead { destination, ticket, record, page, full } = read;
        match record {
            Some(Ok(record)) => self.loaded(&destination, record),
            Some(Err(error)) => {
                self.damaged(&error);
                self.loaded(&destination, None);
            }
            None => {}
        }
        match page {
            Ok(page) => self.adopt_page(&destination, page, full),
            Err(error) => self.damaged(&error),
        }
        if let Some(entry) = self.destinations.map.get_mut(&destination) {
            entry.paging = false;
        }
        self.residents.read_ends(ticket);
        let now_ms = self.now_ms();
        self.refill(&destination, now_ms);
        self.offer(&destination);
        self.leave_if_idle(&destination, now_ms);
    }

    fn loaded(&mut self, destination: &Domain, record: Option<DestinationRecord>) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if entry.phase != Phase::Loading {
            return;
        }
        entry.phase = Phase::Active;
        entry.record = record.unwrap_or_default();
        if entry.record.failures > 0 {
            entry.standing = crate::schedule::slots::Standing::Troubled;
        }
        let now_ms = self.parts.clock.now_ms();
        if entry.backs_off(now_ms) {
            self.unready(destination);
        }
    }

    fn adopt_page(&mut self, destination: &Domain, page: DuePage, full: bool) {
        let now_ms = self.now_ms();
        let backs_off = self.destinations.map.get(destination).is_none_or(|entry| entry.backs_off(now_ms));
        for (id, reason) in page.damaged {
            self.quarantine(id, &reason);
        }
        let mut left = full;
        for (key, stored) in page.items {
            if backs_off {
                left = true;
                break;
            }
            let resident = self.residents.adopt(&stored);
            let number = usize::from(key.number);
            let due = resident.places[number] == Place::Disk
                && resident.states[number].status == Status::Queued
                && resident.states[number].due_ms <= now_ms;
            if due && self.residents.put(key.id, key.number, Place::Ready) > 0 {
                if let Some(entry) = self.destinations.map.get_mut(destination) {
                    entry.ready.push_back((key.id, key.number));
                    entry.resident += 1;
                }
            } else {
                self.residents.release(key.id);
            }
        }
        if let Some(entry) = self.destinations.map.get_mut(destination) {
            entry.more_on_disk |= left;
            page.next_due_ms.into_iter().for_each(|due| entry.note_due(due));
        }
    }

    /// Takes a destination's waiting mail out of memory; it stays on disk.
    pub(super) fn unready(&mut self, destination: &Domain) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        let ready = std::mem::take(&mut entry.ready);
        entry.more_on_disk |= !ready.is_empty();
        for (id, number) in ready {
            if self.residents.get(id).is_some_and(|at| at.places[usize::from(number)] == Place::Ready) {
                self.to_disk(id, number, destination);
            }
        }
    }

    /// Lets a destination go that needs nothing now: one wake key stays, at the time when it needs something.
    pub(super) fn leave_if_idle(&mut self, destination: &Domain, now_ms: u64) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if self.draining || !entry.is_idle(now_ms) {
            return;
        }
        entry.phase = Phase::Leaving;
        let wake = entry.next_wake_ms(now_ms);
        let old = std::mem::replace(&mut entry.wakes, wake.into_iter().collect());
        for at in old.iter().filter(|at| Some(**at) != wake) {
            self.open.changes.push(Op::DeleteWake(*at, destination.clone()));
        }
        if let Some(at) = wake
            && !old.contains(&at)
        {
            self.open.changes.push(Op::PutWake(at, destination.clone()));
        }
        wake.into_iter().for_each(|at| self.wakes.note(at));
        self.open.leaving.push(destination.clone());
    }

    pub(super) fn forget_if_leaving(&mut self, destination: &Domain) {
        if self.destinations.map.get(destination).is_some_and(|entry| entry.phase == Phase::Leaving) {
            self.destinations.map.remove(destination);
        }
    }

    /// Once a tick: due times that have come, pauses that are over, room that was missing.
    pub(super) fn look_after_destinations(&mut self, now_ms: u64) {
        let names: Vec<Domain> = self.destinations.map.keys().cloned().collect();
        for name in names {
            self.refill(&name, now_ms);
            self.offer(&name);
            self.leave_if_idle(&name, now_ms);
        }
    }

    pub(super) fn read_wakes(&mut self, now_ms: u64) {
        if self.wakes.cursor.as_ref().is_some_and(|(at, _)| *at > now_ms) {
            // Wall time went back: keys may lie before the cursor.
            self.wakes.cursor = None;
            self.wakes.next = Next::Unknown;
        }
        let due = self.wakes.next_ms().is_some_and(|at| at <= now_ms);
        let Some(me) = self.me() else { return };
        let full = self.destinations.map.len() >= self.parts.settings.memory.destinations;
        if !due || self.wakes.reading || self.draining || full {
            return;
        }
        self.wakes.reading = true;
        self.wakes.next = Next::Nothing;
        let after = self.wakes.cursor.clone();
        self.parts.front.read(
            move |spool| WakesRead { keys: spool.wakes(after.as_ref(), WAKES_PER_READ) },
            move |read| me.do_send(read),
        );
    }

    fn wakes_read(&mut self, read: WakesRead) {
        self.wakes.reading = false;
        let keys = match read.keys {
            Ok(keys) => keys,
            Err(error) => return self.damaged(&error),
        };
        let now_ms = self.now_ms();
        let all = keys.len() < WAKES_PER_READ;
        for (at, destination) in keys {
            let full = self.destinations.map.len() >= self.parts.settings.memory.destinations;
            // Strictly before now: a key that is written with this very time must not end up before the cursor.
            if at >= now_ms || full {
                self.wakes.note(at);
                return;
            }
            self.wakes.cursor = Some((at, destination.clone()));
            self.wake(&destination, at);
        }
        if !all {
            self.wakes.next = Next::At(now_ms);
        }
    }

    fn wake(&mut self, destination: &Domain, at: u64) {
        if !self.destinations.map.contains_key(destination) {
            self.add_destination(destination, Phase::Loading);
        }
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if !entry.wakes.contains(&at) {
            entry.wakes.push(at);
        }
        if entry.phase == Phase::Leaving {
            entry.phase = Phase::Active;
        }
        let now_ms = self.parts.clock.now_ms();
        self.refill(destination, now_ms);
        self.leave_if_idle(destination, now_ms);
    }

    /// A record could not be read: say so; what can be named goes to quarantine where it is met.
    pub(super) fn damaged(&self, error: &SpoolError) {
        self.parts.metrics.damaged_records.inc();
        tracing::error!(%error, "a record of the spool can't be read");
    }

    pub(super) fn quarantine(&mut self, id: QueueId, reason: &str) {
        if self.residents.get(id).is_some_and(|resident| resident.places.iter().any(|at| *at != Place::Disk))
        {
            return;
        }
        tracing::error!(%id, reason, "a message goes to quarantine: its records can't be used");
        self.parts.metrics.damaged_records.inc();
        self.counters.quarantined += 1;
        self.open.changes.push(Op::Quarantine(id, reason.to_owned()));
    }
}

impl Handler<PageRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: PageRead, ctx: &mut Context<Self>) {
        self.page_read(read);
        self.turn(ctx);
    }
}

impl Handler<WakesRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: WakesRead, ctx: &mut Context<Self>) {
        self.wakes_read(read);
        self.turn(ctx);
    }
}
