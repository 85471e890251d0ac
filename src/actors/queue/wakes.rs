//! The wake index: which destinations need the Queue, and when; and how they enter and leave memory.

use std::collections::HashSet;

use actix::{Context, Handler, Message};

use super::destinations::Phase;
use super::paging::noted_ms;
use super::{JUMP_MS, Queue};
use crate::smtp::address::Domain;
use crate::spool::{Op, Spool, SpoolError};

/// Wake keys read at once.
const WAKES_PER_READ: usize = 256;
/// How long to wait when the index could not be read.
pub(super) const READ_AGAIN_MS: u64 = 10_000;

/// How far the wake index has been read. Keys up to the cursor belong to destinations in memory: a key that becomes
/// visible there while its destination leaves moves the cursor back.
#[derive(Debug, Default)]
pub(super) struct Index {
    cursor: Option<(u64, Domain)>,
    next: Next,
    reading: bool,
    /// The first key noted while a read was under way that may not have seen it.
    noted: Option<u64>,
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
    /// When to read again; `None` while that is not known.
    pub fn next_ms(&self) -> Option<u64> {
        match self.next {
            _ if self.reading => None,
            Next::Unknown => Some(0),
            Next::At(at) => Some(at),
            Next::Nothing => None,
        }
    }

    /// A key is on disk whose destination is not in memory.
    pub fn note(&mut self, at_ms: u64) {
        self.expect(at_ms);
        if self.reading {
            self.noted = Some(self.noted.map_or(at_ms, |noted| noted.min(at_ms)));
        } else {
            self.rewind(at_ms);
        }
    }

    /// There is a key of this time after the cursor.
    fn expect(&mut self, at_ms: u64) {
        self.next = match self.next {
            Next::Unknown => Next::Unknown,
            Next::At(known) => Next::At(known.min(at_ms)),
            Next::Nothing => Next::At(at_ms),
        };
    }

    /// Makes sure that keys of this time are still to be read.
    fn rewind(&mut self, at_ms: u64) {
        if let Some((cursor, _)) = &mut self.cursor
            && *cursor >= at_ms
        {
            *cursor = at_ms.saturating_sub(1);
        }
    }

    /// Whether all keys before this time have been read; of time zero there are none to read.
    fn is_read_until(&self, at_ms: u64) -> bool {
        let read = match self.next {
            Next::Unknown => false,
            Next::At(next) => next >= at_ms,
            Next::Nothing => true,
        };
        at_ms > 0 && read && !self.reading
    }

    /// Forgets how far the index was read.
    pub fn start_over(&mut self) {
        (self.cursor, self.next) = (None, Next::Unknown);
        if self.reading {
            // What is being read comes after keys that are to be read again.
            self.noted = Some(0);
        }
    }

    fn ended(&mut self) {
        self.reading = false;
        if let Some(at_ms) = self.noted.take() {
            self.rewind(at_ms);
        }
    }
}

/// Spool → Queue: the first wake keys; those before `until_ms` are due.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WakesRead {
    keys: Result<Vec<(u64, Domain)>, SpoolError>,
    until_ms: u64,
    full: bool,
}

/// Spool → Queue: whether the spool was written by a clock that was ahead of this one.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Ahead(Result<bool, SpoolError>);

impl Queue {
    /// At a start: mail that a clock put off that was days ahead must not wait for those days.
    pub(super) fn look_ahead(&self) {
        let Some(me) = self.me() else { return };
        let now_ms = self.now_ms();
        let longest = u64::try_from(self.parts.settings.retry.longest().as_millis()).unwrap_or(u64::MAX);
        let beyond_ms = now_ms.saturating_add(longest).saturating_add(JUMP_MS);
        self.parts
            .front
            .read(move |spool| was_ahead(spool, now_ms, beyond_ms), move |ahead| me.do_send(Ahead(ahead)));
    }

    /// Lets a destination go that needs nothing now: one wake key stays, at the time when it needs something.
    pub(super) fn leave_if_idle(&mut self, destination: &Domain, now_ms: u64) {
        let held = self.residents.held_for(destination);
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if self.draining || !entry.is_idle(now_ms, held) {
            return;
        }
        entry.phase = Phase::Leaving;
        entry.leaving += 1;
        let wake = entry.next_wake_ms(now_ms);
        let old = std::mem::replace(&mut entry.wakes, wake.into_iter().collect());
        let stale = entry.forget_what_is_over(now_ms);
        for at in old.iter().filter(|at| Some(**at) != wake) {
            self.open.changes.push(Op::DeleteWake(*at, destination.clone()));
        }
        if let Some(at) = wake
            && !old.contains(&at)
        {
            self.open.changes.push(Op::PutWake(at, destination.clone()));
        }
        self.open.leaving.push((destination.clone(), entry.leaving));
        if stale {
            self.write_destination(destination);
        }
    }

    /// The commit of a destination's leaving is on disk.
    pub(super) fn forget_if_leaving(&mut self, destination: &Domain, leaving: u64) {
        let gone = self
            .destinations
            .map
            .get(destination)
            .is_some_and(|entry| entry.phase == Phase::Leaving && entry.leaving == leaving);
        if gone {
            self.forget(destination);
        }
    }

    /// Takes a destination out of memory; its wake keys, which are on disk by now, bring it back.
    pub(super) fn forget(&mut self, destination: &Domain) {
        let wakes = self.destinations.forget(destination, self.parts.settings.memory.destinations);
        // While keys are read that were written before wall time went back, those that are written now wait for the end
        // of that: else one destination could come and go for ever, and the others would find no place.
        let waits = |at: &u64| self.horizon_ms > 0 && *at > self.now_ms();
        let now: Vec<u64> = wakes.into_iter().filter(|at| !waits(at)).collect();
        now.into_iter().for_each(|at| self.wakes.note(at));
    }

    /// When there is a wake key to read and room for its destination.
    pub(super) fn next_wake_ms(&self) -> Option<u64> {
        let blocked = self.draining || self.destinations_are_full();
        self.wakes.next_ms().filter(|_| !blocked)
    }

    pub(super) fn read_wakes(&mut self, now_ms: u64) {
        if self.horizon_ms == 0 && self.wakes.cursor.as_ref().is_some_and(|(at, _)| *at > now_ms) {
            // Wall time went back: keys may lie before the cursor.
            self.wakes.start_over();
        }
        let until_ms = now_ms.max(self.horizon_ms);
        let Some(me) = self.me() else { return };
        if self.wakes.is_read_until(self.horizon_ms) {
            // All that was queued before the clock went back has been looked at.
            self.horizon_ms = 0;
            self.wakes.start_over();
            return;
        }
        if self.next_wake_ms().is_none_or(|at| at >= until_ms) {
            return;
        }
        self.wakes.reading = true;
        self.wakes.next = Next::Nothing;
        let after = self.wakes.cursor.clone();
        let room = self.parts.settings.memory.destinations.saturating_sub(self.destinations.map.len());
        let limit = WAKES_PER_READ.min(room.saturating_add(1));
        self.parts.front.read(
            move |spool| spool.wakes(after.as_ref(), limit),
            move |keys| {
                let full = keys.as_ref().is_ok_and(|keys| keys.len() >= limit);
                // Strictly before: a key that is written with this very time must not end up before the cursor.
                me.do_send(WakesRead { keys, until_ms, full });
            },
        );
    }

    fn wakes_read(&mut self, read: WakesRead) {
        match read.keys {
            Ok(keys) => {
                let next = self.wake_all(keys, read.until_ms);
                if next.is_none() && read.full {
                    // There may be more, due or not: they have not been looked at.
                    self.wakes.next = Next::Unknown;
                }
                self.wakes.ended();
                // Without going back: thousands of keys may have this very time, and were just read.
                next.into_iter().for_each(|at| self.wakes.expect(at));
            }
            Err(error) => {
                self.damaged(&error);
                self.wakes.ended();
                let again = self.now_ms() + READ_AGAIN_MS;
                self.wakes.next = Next::At(again);
            }
        }
    }

    /// Wakes those whose time has come, as long as there is room; returns the time of the first that is left.
    fn wake_all(&mut self, keys: Vec<(u64, Domain)>, until_ms: u64) -> Option<u64> {
        for (at, destination) in keys {
            let entry = self.destinations.map.get(&destination);
            let here = entry.is_some_and(|entry| entry.phase != Phase::Parked);
            if at >= until_ms || (!here && self.destinations_are_full()) {
                return Some(at);
            }
            self.wakes.cursor = Some((at, destination.clone()));
            self.wake(&destination, at);
        }
        None
    }

    fn wake(&mut self, destination: &Domain, at: u64) {
        let now_ms = self.now_ms();
        if !self.destinations.map.contains_key(destination) {
            self.add_destination(destination, Phase::Loading);
        }
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if !entry.wakes.contains(&at) {
            entry.wakes.push(at);
        }
        match entry.phase {
            Phase::Leaving => entry.phase = Phase::Active,
            Phase::Parked => {
                entry.phase = Phase::Loading;
                self.load_destination(destination);
            }
            Phase::Loading | Phase::Active => {}
        }
        if let Some(entry) = self.destinations.map.get_mut(destination)
            && self.horizon_ms > now_ms
        {
            (entry.until_ms, entry.more_on_disk) = (self.horizon_ms, true);
        }
        self.refill(destination, now_ms);
        self.leave_if_idle(destination, now_ms);
    }
}

/// Whether the first mail that is due later than any delay can explain was put off in the future. One key is read and one
/// message, however many there are.
fn was_ahead(spool: &dyn Spool, now_ms: u64, beyond_ms: u64) -> Result<bool, SpoolError> {
    let Ok(first) = Domain::parse("a") else { return Ok(false) };
    let Some((_, destination)) = spool.wakes(Some(&(beyond_ms, first)), 1)?.pop() else { return Ok(false) };
    let page = spool.due(&destination, u64::MAX, &HashSet::new(), 1, &|_| false)?;
    Ok(page.items.first().is_some_and(|(key, stored)| {
        let state =
            stored.as_ref().and_then(|stored| Some((stored, stored.states.get(usize::from(key.number))?)));
        state.is_some_and(|(stored, state)| noted_ms(&stored.envelope, state) > now_ms)
    }))
}

impl Handler<Ahead> for Queue {
    type Result = ();

    fn handle(&mut self, ahead: Ahead, ctx: &mut Context<Self>) {
        match ahead.0 {
            Ok(true) => {
                tracing::warn!(
                    "the spool was written by a clock that was ahead: what it put off is tried now"
                );
                self.horizon_ms = u64::MAX;
                self.wakes.start_over();
            }
            Ok(false) => {}
            Err(error) => self.damaged(&error),
        }
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
