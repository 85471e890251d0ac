//! Mail that waits on disk: a destination's record, and the pages of its due recipients.

use std::collections::HashSet;
use std::time::Duration;

use actix::{Context, Handler, Message};

use super::Queue;
use super::destinations::{Destination, Phase, backs_off};
use super::intake::HELD_MIN;
use super::residents::Place;
use super::wakes::READ_AGAIN_MS;
use crate::mail::envelope::{Envelope, RecipientState, StoredMessage};
use crate::mail::id::QueueId;
use crate::schedule::slots::Standing;
use crate::smtp::address::Domain;
use crate::spool::{DestinationRecord, DueKey, DuePage, Op, SpoolError, is_due_key_of};

/// Due recipients read at once.
const PAGE: usize = 250;

/// Spool → Queue: a destination's record and a page of its due mail.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PageRead {
    destination: Domain,
    ticket: u64,
    /// Whether the record was asked for.
    with_record: bool,
    /// How many recipients it could have brought.
    asked: usize,
    read: Result<Page, SpoolError>,
}

/// What one read of a destination brought.
#[derive(Debug)]
struct Page {
    record: Result<Option<DestinationRecord>, SpoolError>,
    due: Result<DuePage, SpoolError>,
    extent: Extent,
}

/// How much of what was asked for a page brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Nothing was asked for.
    Nothing,
    /// As much as fits.
    Full,
    /// All there is.
    Whole,
}

/// Where a recipient stands that a page brought.
enum Adopted {
    /// In memory already, or settled.
    Here,
    /// Due.
    Ready,
    /// By a clock that has jumped since: due at this time (ms).
    PutOff(u64),
    /// Not due before this time (ms).
    Later(u64),
    /// The key is not that of the recipient, or of no recipient.
    Stray,
}

impl Queue {
    /// Reads the record and the first page of a destination that came into memory.
    pub(super) fn load_destination(&mut self, destination: &Domain) {
        let limit = self.room_for_page(destination, self.page());
        self.read_page(destination, HashSet::new(), limit.max(1), true);
    }

    /// As many recipients as a page may bring.
    fn page(&self) -> usize {
        PAGE.min(self.parts.settings.memory.window).max(1)
    }

    /// With fewer recipients than these in line, a destination gets more from disk.
    pub(super) fn low_water(&self) -> usize {
        (self.page() / 2).max(1)
    }

    /// How many of the wanted recipients of a destination may come into memory.
    fn room_for_page(&self, destination: &Domain, wanted: usize) -> usize {
        let room = self.parts.settings.memory.recipients.saturating_sub(self.residents.held_soon());
        wanted.min(room.max(HELD_MIN.saturating_sub(self.residents.held_for(destination))))
    }

    fn read_page(
        &mut self,
        destination: &Domain,
        skip: HashSet<(QueueId, u16)>,
        limit: usize,
        with_record: bool,
    ) {
        let Some(me) = self.me() else { return };
        let ticket = self.residents.read_begins();
        let now_ms = self.now_ms();
        let until_ms =
            self.destinations.map.get(destination).map_or(now_ms, |entry| entry.until_ms.max(now_ms));
        let (name, destination, known) = (destination.clone(), destination.clone(), self.residents.known());
        self.parts.metrics.pages_read.inc();
        self.residents.page_asked(limit);
        self.parts.front.read(
            move |spool| {
                let record = if with_record { spool.destination(&name) } else { Ok(None) };
                let backs_off = matches!(&record, Ok(Some(record)) if backs_off(record, now_ms));
                // Fresh mail brings a destination that backs off into memory again and again: that must be cheap.
                let limit = if backs_off { 0 } else { limit };
                let due = spool.due(&name, until_ms, &skip, limit, &|id| known.contains(id));
                let extent = match &due {
                    _ if limit == 0 => Extent::Nothing,
                    Ok(page) if page.items.len() >= limit => Extent::Full,
                    _ => Extent::Whole,
                };
                Ok(Page { record, due, extent })
            },
            move |read| me.do_send(PageRead { destination, ticket, with_record, asked: limit, read }),
        );
    }

    /// Reads more due mail of a destination when its window has room for it.
    pub(super) fn refill(&mut self, destination: &Domain, now_ms: u64) {
        let (now, low_water) = (self.parts.clock.instant(), self.low_water());
        let memory = self.parts.settings.memory;
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if self.draining || !entry.wants_page(now_ms, now, low_water) {
            return;
        }
        let wanted = PAGE.min(memory.window.saturating_sub(entry.ready.len())).max(1);
        let limit = self.room_for_page(destination, wanted);
        if limit == 0 {
            return;
        }
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        entry.paging = true;
        entry.more_on_disk = false;
        entry.next_due_ms = None;
        let skip = self.residents.in_memory_for(destination);
        self.read_page(destination, skip, limit, false);
    }

    fn page_read(&mut self, read: PageRead) {
        let PageRead { destination, ticket, with_record, asked, read } = read;
        self.residents.page_came(asked);
        let (record, due) = match read {
            Ok(Page { record, due, extent }) => (record, due.map(|page| (page, extent))),
            Err(error) => (Ok(None), Err(error)),
        };
        if with_record {
            self.record_read(&destination, record);
        }
        match due {
            Ok((page, extent)) => self.adopt_page(&destination, page, extent),
            Err(error) => self.page_failed(&destination, &error),
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

    /// A record that can't be read is forgotten: its mail is tried as if nothing were known.
    fn record_read(&mut self, destination: &Domain, record: Result<Option<DestinationRecord>, SpoolError>) {
        let record = record.unwrap_or_else(|error| {
            self.damaged(&error);
            if matches!(error, SpoolError::Damaged { .. }) {
                self.open.changes.push(Op::DeleteDestination(destination.clone()));
            }
            None
        });
        self.loaded(destination, record);
    }

    fn loaded(&mut self, destination: &Domain, record: Option<DestinationRecord>) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        if entry.phase != Phase::Loading {
            return;
        }
        entry.phase = Phase::Active;
        entry.record = record.unwrap_or_default();
        if entry.record.failures > 0 {
            entry.standing = Standing::Troubled;
        }
        self.shift_back_off(destination);
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        // What happens in the meantime must not let it go before its page is looked at.
        entry.paging = true;
        self.grant_destination_wishes(destination);
        let now_ms = self.parts.clock.now_ms();
        if self.destinations.map.get(destination).is_some_and(|entry| entry.backs_off(now_ms)) {
            self.unready(destination, 0);
        }
    }

    /// Wall time has jumped: what is left of the back-off of a destination is left now.
    fn shift_back_off(&mut self, destination: &Domain) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        let Some(last) = &mut entry.record.last else { return };
        let retry_at_ms = self.jumps.due(last.at_ms, entry.record.retry_at_ms);
        if retry_at_ms > entry.record.retry_at_ms {
            last.at_ms += retry_at_ms - entry.record.retry_at_ms;
            entry.record.retry_at_ms = retry_at_ms;
            self.open.changes.push(Op::PutDestination(destination.clone(), entry.record.clone()));
        }
    }

    /// Does so for those in memory; the others follow when they come.
    pub(super) fn shift_back_offs(&mut self) {
        let here = |entry: &Destination| matches!(entry.phase, Phase::Active | Phase::Leaving);
        let all = self.destinations.map.iter().filter(|(_, entry)| here(entry));
        let names: Vec<Domain> = all.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.shift_back_off(name));
    }

    /// Its mail is still there, whatever the reason: a page is asked for again, but not at once.
    fn page_failed(&mut self, destination: &Domain, error: &SpoolError) {
        self.damaged(error);
        let again = self.parts.clock.instant() + Duration::from_millis(READ_AGAIN_MS);
        if let Some(entry) = self.destinations.map.get_mut(destination) {
            entry.more_on_disk = true;
            entry.page_after = Some(again);
        }
    }

    fn adopt_page(&mut self, destination: &Domain, page: DuePage, extent: Extent) {
        let now_ms = self.now_ms();
        let backs_off = self.destinations.map.get(destination).is_none_or(|entry| entry.backs_off(now_ms));
        let mut later = page.next_due_ms;
        for (id, reason) in page.damaged {
            if !self.quarantine(id, &reason) {
                let again = now_ms + READ_AGAIN_MS;
                later = Some(later.map_or(again, |due| due.min(again)));
            }
        }
        let (mut left, mut used, mut strays) = (extent == Extent::Full, false, 0);
        for (key, stored) in page.items {
            let was_here = self.residents.get(key.id).is_some();
            match self.adopt(&key, stored.as_deref(), now_ms) {
                Adopted::Ready if backs_off => {
                    left = true;
                    self.residents.release(key.id);
                }
                Adopted::Ready => {
                    used = true;
                    self.residents.put(key.id, key.number, Place::Ready);
                    if let Some(entry) = self.destinations.map.get_mut(destination) {
                        entry.ready.push_back((key.id, key.number));
                    }
                }
                Adopted::PutOff(due_ms) => {
                    used = true;
                    self.reschedule(key.id, key.number, due_ms);
                }
                Adopted::Later(due_ms) => {
                    later = Some(later.map_or(due_ms, |due| due.min(due_ms)));
                    self.residents.release(key.id);
                }
                Adopted::Here => self.residents.release(key.id),
                Adopted::Stray => {
                    // Of what was in memory the page may have brought an old key.
                    strays += u64::from(!was_here);
                    self.residents.release(key.id);
                    self.open.changes.push(Op::DeleteDue(key));
                }
            }
        }
        self.strays_removed(strays);
        if let Some(entry) = self.destinations.map.get_mut(destination) {
            entry.more_on_disk |= left;
            later.into_iter().for_each(|due| entry.note_due(due));
        }
        if extent != Extent::Full || !used {
            self.looked_until(destination, extent, backs_off);
        }
    }

    /// Notes how far a destination has been looked through for what an earlier clock put off.
    fn looked_until(&mut self, destination: &Domain, extent: Extent, backs_off: bool) {
        let unlooked_max = self.parts.settings.memory.destinations;
        if let Some(entry) = self.destinations.map.get_mut(destination) {
            match extent {
                // What is due lies before what was put off: it looks again when that may go out, and keeps no place till then.
                Extent::Full if backs_off && entry.until_ms > 0 => {
                    let until_ms = std::mem::take(&mut entry.until_ms);
                    if self.unlooked.len() < unlooked_max {
                        self.unlooked.insert(destination.clone(), until_ms);
                    }
                }
                Extent::Full | Extent::Whole => entry.until_ms = 0,
                // It backs off and was not looked at: what the earlier clock put off is still to be found.
                Extent::Nothing => entry.more_on_disk |= entry.until_ms > 0,
            }
        }
    }

    /// What to do with a recipient that a page brought. What is in memory holds, not what the page says.
    fn adopt(&mut self, key: &DueKey, stored: Option<&StoredMessage>, now_ms: u64) -> Adopted {
        let resident = match stored {
            Some(stored) => self.residents.adopt(stored),
            // It was in memory during the read, and stays until the read is dealt with.
            None => match self.residents.get_mut(key.id) {
                Some(resident) => resident,
                None => return Adopted::Here,
            },
        };
        if resident.places.get(usize::from(key.number)).is_some_and(|place| *place != Place::Disk) {
            return Adopted::Here;
        }
        if !is_due_key_of(key, &resident.envelope, &resident.states) {
            return Adopted::Stray;
        }
        let state = &mut resident.states[usize::from(key.number)];
        let noted_ms = noted_ms(&resident.envelope, state);
        if state.due_ms <= now_ms {
            let due_ms = self.jumps.due(noted_ms, state.due_ms);
            if due_ms <= now_ms {
                return Adopted::Ready;
            }
            // The note moves too: should the clock go back, it was put off by one that was ahead.
            state.last.iter_mut().for_each(|last| last.at_ms += due_ms - state.due_ms);
            Adopted::PutOff(due_ms)
        } else if noted_ms > now_ms {
            Adopted::PutOff(now_ms)
        } else {
            Adopted::Later(state.due_ms)
        }
    }

    /// Takes a destination's waiting mail out of memory, but for the first `keep`; it stays on disk.
    pub(super) fn unready(&mut self, destination: &Domain, keep: usize) {
        let Some(entry) = self.destinations.map.get_mut(destination) else { return };
        let ready = entry.ready.split_off(keep.min(entry.ready.len()));
        entry.more_on_disk |= !ready.is_empty();
        for (id, number) in ready {
            if self.residents.get(id).is_some_and(|at| at.places[usize::from(number)] == Place::Ready) {
                self.drop_to_disk(id, number, destination);
            }
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
}

/// When a recipient's due time was noted.
pub(super) fn noted_ms(envelope: &Envelope, state: &RecipientState) -> u64 {
    state.last.as_ref().map_or(envelope.arrived_ms, |last| last.at_ms)
}

impl Handler<PageRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: PageRead, ctx: &mut Context<Self>) {
        self.page_read(read);
        self.turn(ctx);
    }
}
