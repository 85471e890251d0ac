//! How many connections there are to each remote address, over all arbiters (`delivery.connections_per_address`).

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a place in the line for an address is kept for a site that does not ask again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Counts the connections to each remote address. Cheap to clone; touched only when one is opened, parked or closed.
///
/// Sites that find an address full stand in line: what becomes free is for the one that has waited longest, and idle
/// connections are closed rather than kept while somebody waits. So two domains with one host share it fairly.
#[derive(Clone, Debug)]
pub struct AddressSlots {
    limit: usize,
    addresses: Arc<Mutex<HashMap<IpAddr, Address>>>,
}

#[derive(Debug, Default)]
struct Address {
    used: usize,
    /// Who found it full, the one that has waited longest in front, and until when its place is kept.
    line: VecDeque<(u64, Instant)>,
}

impl AddressSlots {
    /// At most `limit` connections to one address, at least one.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), addresses: Arc::default() }
    }

    /// A slot for one connection of `site` to this address; `None` when all are taken or owed to others. Dropping it
    /// gives it back.
    pub fn acquire(&self, address: IpAddr, site: &impl Hash, now: Instant) -> Option<AddressSlot> {
        let (key, site) = (address.to_canonical(), key_of(site));
        let mut addresses = self.lock();
        let entry = addresses.entry(key).or_default();
        entry.line.retain(|(_, until)| *until > now);
        let place = entry.line.iter().position(|(who, _)| *who == site);
        let before = place.unwrap_or(entry.line.len());
        if entry.used + before >= self.limit {
            match place {
                Some(place) => entry.line[place].1 = now + PATIENCE,
                None => entry.line.push_back((site, now + PATIENCE)),
            }
            return None;
        }
        if let Some(place) = place {
            entry.line.remove(place);
        }
        entry.used += 1;
        drop(addresses);
        Some(AddressSlot { address: key, slots: self.clone() })
    }

    /// Whether another site waits for a connection to this address.
    pub fn is_wanted(&self, address: IpAddr, site: &impl Hash, now: Instant) -> bool {
        let site = key_of(site);
        let addresses = self.lock();
        let line = addresses.get(&address.to_canonical()).map(|entry| &entry.line);
        line.is_some_and(|line| line.iter().any(|(who, until)| *who != site && *until > now))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Address>> {
        // A count is changed in one step: a panic elsewhere leaves it whole.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(site: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    site.hash(&mut hasher);
    hasher.finish()
}

/// The right to one connection to an address.
#[derive(Debug)]
pub struct AddressSlot {
    address: IpAddr,
    slots: AddressSlots,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut addresses = self.slots.lock();
        if let Some(entry) = addresses.get_mut(&self.address) {
            entry.used -= 1;
            if entry.used == 0 {
                // With nothing in use nobody has to wait.
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_slots_and_gets_them_back() {
        let (slots, now) = (AddressSlots::new(2), Instant::now());
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = slots.acquire(one, &"a", now);
        let second = slots.clone().acquire("::ffff:192.0.2.1".parse().expect("an address"), &"a", now);
        assert!(first.is_some() && second.is_some() && slots.acquire(one, &"a", now).is_none());
        assert!(slots.acquire(two, &"a", now).is_some(), "another address has its own");
        drop(first);
        assert!(slots.acquire(one, &"a", now).is_some());
        drop(second);
        assert!(slots.lock().is_empty(), "nothing is kept for addresses without connections");
    }

    #[test]
    fn what_becomes_free_is_for_the_site_that_has_waited_longest() {
        let (slots, now) = (AddressSlots::new(2), Instant::now());
        let address = IpAddr::from([192, 0, 2, 1]);
        let (first, _second) = (slots.acquire(address, &"a", now), slots.acquire(address, &"a", now));
        assert!(!slots.is_wanted(address, &"a", now));
        assert!(slots.acquire(address, &"b", now).is_none());
        assert!(slots.is_wanted(address, &"a", now) && !slots.is_wanted(address, &"b", now));
        drop(first);
        assert!(slots.acquire(address, &"a", now).is_none(), "it is owed to b");
        assert!(slots.acquire(address, &"b", now).is_some());
        assert!(
            slots.acquire(address, &"a", now + PATIENCE * 2).is_some(),
            "who does not come back loses its place"
        );
    }
}
