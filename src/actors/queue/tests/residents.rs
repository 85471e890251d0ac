//! How long a message that nothing holds stays in memory.

use super::*;
use crate::actors::queue::residents::{Place, Residents};

#[test]
fn a_message_stays_until_every_read_that_may_have_seen_it_otherwise_is_back() {
    simulate(|| async {
        let world = World::new(|_| Answer::Deliver);
        let envelope = Arc::new(world.envelope("", &["ann@d.example"], 1));
        let id = envelope.id;
        let mut residents = Residents::default();
        residents.arrive(envelope, None);
        let first = residents.read_begins();
        residents.put(id, 0, Place::Disk);
        residents.put(id, 0, Place::Ready);
        let second = residents.read_begins();
        residents.put(id, 0, Place::Disk);
        residents.read_ends(first);
        assert!(residents.get(id).is_some(), "the second read is under way");
        residents.read_ends(second);
        assert!(residents.get(id).is_none());
        let destination = Domain::parse("d.example").expect("a domain");
        assert_eq!((residents.len(), residents.held(), residents.held_for(&destination)), (0, 0, 0));
    });
}
