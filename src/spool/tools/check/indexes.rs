//! The indexes by themselves: keys that lead nowhere, and destinations that nothing would wake.

use std::collections::HashMap;

use super::{ANEW, Check, each_pair, shown};
use crate::mail::envelope::StoredMessage;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::spool::database::Tree;
use crate::spool::{SpoolError, UNTIL_RESUMED, keys, read};

/// Mail that is due so much (ms) before its destination wakes, as kills may leave it, goes out that much late: nothing to mend.
const LATE_MS: u64 = 60_000;

/// Destinations whose wake keys are looked for in one pass over that index.
const WINDOW: usize = 50_000;

/// When a destination needs the relay, and the first of its wake keys.
struct Need {
    at_ms: u64,
    wake_ms: Option<u64>,
}

/// A due key, taken apart.
struct Due {
    destination: Domain,
    due_ms: u64,
    id: QueueId,
    number: u16,
}

impl Due {
    fn read(key: &[u8]) -> Option<Self> {
        let (due_ms, id, number) = keys::read_due(key)?;
        let end = key.iter().position(|byte| *byte == 0)?;
        let destination = Domain::parse(str::from_utf8(&key[1..end]).ok()?).ok()?;
        Some(Self { destination, due_ms, id, number })
    }
}

impl Check<'_> {
    /// Due keys beside those that each recipient should have. They are searched for only when there are some.
    pub(super) fn strays(&mut self) -> Result<(), SpoolError> {
        let mut all = 0;
        self.tree.scan(&[keys::DUE], &[keys::DUE + 1], &mut |_, _| {
            all += 1;
            true
        })?;
        let expected = std::mem::replace(&mut self.checked.due_keys, all);
        if all == expected {
            return Ok(());
        }
        let mut last: Option<(QueueId, Option<StoredMessage>)> = None;
        each_pair(self.tree, &[keys::DUE], &[keys::DUE + 1], |key, _| {
            let Some(due) = Due::read(key) else {
                let key = shown(key);
                self.harmless(format!("due key {key} can't be read, and nothing reads it"));
                return Ok(());
            };
            if last.as_ref().is_none_or(|(id, _)| *id != due.id) {
                match read::message(self.tree, due.id) {
                    Ok(stored) => last = Some((due.id, stored)),
                    // It was told with the messages.
                    Err(SpoolError::Damaged { .. }) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            let stored = last.as_ref().and_then(|(_, stored)| stored.as_ref());
            self.judge(&due, stored);
            Ok(())
        })
    }

    fn judge(&mut self, due: &Due, stored: Option<&StoredMessage>) {
        let Due { destination, due_ms, id, number } = due;
        let Some(stored) = stored else {
            self.damage(format!(
                "a due key of {destination} leads to message {id}, which is gone: the relay will set that message aside"
            ));
            return;
        };
        let at = usize::from(*number);
        let (Some(recipient), Some(state)) = (stored.envelope.recipients.get(at), stored.states.get(at))
        else {
            self.damage(format!(
                "a due key leads to recipient {number} of message {id}, which has none of that number: the relay will set \
                 the message aside"
            ));
            return;
        };
        if state.status.is_settled() {
            self.damage(format!(
                "recipient {number} of message {id} is {}, but a due key is left of it; {ANEW}",
                state.status.word()
            ));
        } else if state.held {
            self.damage(format!(
                "recipient {number} of message {id} is on hold, but has a due key: the relay will remove it"
            ));
        } else if *destination != recipient.destination || *due_ms != state.due_ms {
            self.damage(format!("recipient {number} of message {id} has a due key too many; {ANEW}"));
        }
    }

    /// Each destination with due keys must have a wake key that comes in time.
    pub(super) fn wakes(&mut self) -> Result<(), SpoolError> {
        let mut window = HashMap::new();
        let mut from = vec![keys::DUE];
        loop {
            let mut first = None;
            self.tree.scan(&from, &[keys::DUE + 1], &mut |key, _| {
                first = Some(key.to_vec());
                false
            })?;
            let Some(key) = first else { break };
            from = match Due::read(&key) {
                Some(due) => {
                    let at_ms = due.due_ms.max(self.not_before(&due.destination)?);
                    let next = keys::end_of(&keys::due_prefix(&due.destination));
                    window.insert(due.destination, Need { at_ms, wake_ms: None });
                    next
                }
                None => keys::after(key),
            };
            if window.len() == WINDOW {
                self.wake_keys(&mut window)?;
            }
        }
        self.wake_keys(&mut window)?;
        self.idle_wakes()
    }

    /// Until when the destination backs off; a record that can't be read is told elsewhere.
    fn not_before(&self, destination: &Domain) -> Result<u64, SpoolError> {
        match read::destination(self.tree, destination) {
            Ok(record) => Ok(record.map_or(0, |record| record.not_before_ms())),
            Err(SpoolError::Damaged { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Looks for the wake keys of the destinations in the window, and empties it.
    fn wake_keys(&mut self, window: &mut HashMap<Domain, Need>) -> Result<(), SpoolError> {
        self.tree.scan(&[keys::WAKE], &[keys::WAKE + 1], &mut |key, _| {
            if let Some((at_ms, destination)) = keys::read_wake(key)
                && let Some(need) = window.get_mut(&destination)
            {
                // They come in order of time.
                need.wake_ms.get_or_insert(at_ms);
            }
            true
        })?;
        for (destination, need) in window.drain() {
            match need.wake_ms {
                // Whoever resumes it looks for its mail.
                None if need.at_ms == UNTIL_RESUMED => {}
                None => self.damage(format!(
                    "destination {destination} has mail, but no wake key: its mail would wait until more comes for it; {ANEW}"
                )),
                Some(at_ms) if at_ms > need.at_ms && at_ms - need.at_ms <= LATE_MS => self.harmless(format!(
                    "destination {destination} has mail that is due up to a minute before it wakes"
                )),
                Some(at_ms) if at_ms > need.at_ms => self.damage(format!(
                    "destination {destination} has mail that is due {} s before it wakes; {ANEW}",
                    (at_ms - need.at_ms).div_ceil(1_000)
                )),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Wake keys of destinations that have no mail: hints that have come to nothing.
    fn idle_wakes(&mut self) -> Result<(), SpoolError> {
        let mut idle = 0_u64;
        each_pair(self.tree, &[keys::WAKE], &[keys::WAKE + 1], |key, _| {
            self.checked.wake_keys += 1;
            match keys::read_wake(key) {
                Some((_, destination)) if self.has_any(&keys::due_prefix(&destination))? => {}
                Some(_) => idle += 1,
                None => {
                    let key = shown(key);
                    self.harmless(format!("wake key {key} can't be read, and nothing reads it"));
                }
            }
            Ok::<(), SpoolError>(())
        })?;
        if idle > 0 {
            self.harmless(format!(
                "{idle} wake keys are of destinations without due keys: the relay removes each when its time comes"
            ));
        }
        Ok(())
    }
}
