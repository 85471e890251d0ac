//! How many connections there are to each remote address, over all arbiters (`delivery.connections_per_address`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the connections to each remote address. Cheap to clone; touched only when one is opened or closed.
#[derive(Clone, Debug)]
pub struct AddressSlots {
    limit: usize,
    used: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl AddressSlots {
    /// At most `limit` connections to one address, at least one.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), used: Arc::default() }
    }

    /// A slot for one connection to this address; `None` when all are taken. Dropping it gives it back.
    pub fn acquire(&self, address: IpAddr) -> Option<AddressSlot> {
        let address = address.to_canonical();
        let mut used = self.lock();
        let count = used.entry(address).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(used);
        Some(AddressSlot { address, slots: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // A count is changed in one step: a panic elsewhere leaves it whole.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one connection to an address.
#[derive(Debug)]
pub struct AddressSlot {
    address: IpAddr,
    slots: AddressSlots,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut used = self.slots.lock();
        if let Some(count) = used.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_slots_and_gets_them_back() {
        let slots = AddressSlots::new(2);
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = slots.acquire(one);
        let second = slots.clone().acquire("::ffff:192.0.2.1".parse().expect("an address"));
        assert!(first.is_some() && second.is_some() && slots.acquire(one).is_none());
        assert!(slots.acquire(two).is_some(), "another address has its own");
        drop(first);
        assert!(slots.acquire(one).is_some());
        drop(second);
        assert!(slots.lock().is_empty(), "nothing is kept for addresses without connections");
    }
}
