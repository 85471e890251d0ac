//! The keys of the tree: one prefix byte, then fields of fixed width in big endian, so that order is order of time. Those with `d`
//! and `t` lie in records of the tree, some in each ([`super::blocks`]).
//!
//! | prefix | key | value |
//! |---|---|---|
//! | `m` | name | format, start, counters, how far a migration is |
//! | `e` | queue id, chunk u32 | envelope |
//! | `s` | queue id, number u16 | state of a recipient; absent while it is fresh |
//! | `c` | queue id, chunk u32 | content |
//! | `d` | destination, 0x00, due ms u64, queue id, number u16 | – |
//! | `w` | time ms u64, destination | – |
//! | `t` | time ms u64, queue id | – (the next delay notice or expiry) |
//! | `n` | destination | back-off state |
//! | `q` | the key a record had | the record, as it was found |
//! | `x` | queue id | why that message is in quarantine |

use super::DueKey;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;

pub(super) const ENVELOPE: u8 = b'e';
pub(super) const STATE: u8 = b's';
pub(super) const CONTENT: u8 = b'c';
pub(super) const DUE: u8 = b'd';
pub(super) const WAKE: u8 = b'w';
pub(super) const DEADLINE: u8 = b't';
pub(super) const DESTINATION: u8 = b'n';
pub(super) const QUARANTINED: u8 = b'q';
pub(super) const REASON: u8 = b'x';

pub(super) const META_FORMAT: &[u8] = b"mformat";
pub(super) const META_START: &[u8] = b"mstart";
pub(super) const META_COUNTERS: &[u8] = b"mcounters";
pub(super) const META_MIGRATION: &[u8] = b"mmigration";

/// What follows the destination and its 0x00 in a due key: due time, queue id, number.
const DUE_TAIL: usize = 8 + 16 + 2;

/// The key of one chunk of a message's envelope or content.
pub(super) fn chunk(prefix: u8, id: QueueId, number: u32) -> [u8; 21] {
    let mut key = [prefix; 21];
    key[1..17].copy_from_slice(id.as_bytes());
    key[17..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The key of a recipient's state.
pub(super) fn state(id: QueueId, number: u16) -> [u8; 19] {
    let mut key = [STATE; 19];
    key[1..17].copy_from_slice(id.as_bytes());
    key[17..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A prefix byte and a queue id: a key of its own, or what all keys of a message start with.
pub(super) fn of_message(prefix: u8, id: QueueId) -> [u8; 17] {
    let mut key = [prefix; 17];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// What all due keys of a destination start with.
pub(super) fn due_prefix(destination: &Domain) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + destination.as_str().len() + DUE_TAIL);
    key.push(DUE);
    key.extend_from_slice(destination.as_str().as_bytes());
    key.push(0);
    key
}

pub(super) fn due(due: &DueKey) -> Vec<u8> {
    let mut key = due_prefix(&due.destination);
    key.extend_from_slice(&due.due_ms.to_be_bytes());
    key.extend_from_slice(due.id.as_bytes());
    key.extend_from_slice(&due.number.to_be_bytes());
    key
}

pub(super) fn wake(at_ms: u64, destination: &Domain) -> Vec<u8> {
    timed(WAKE, at_ms, destination.as_str().as_bytes())
}

pub(super) fn deadline(at_ms: u64, id: QueueId) -> Vec<u8> {
    timed(DEADLINE, at_ms, id.as_bytes())
}

fn timed(prefix: u8, at_ms: u64, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(prefix);
    key.extend_from_slice(&at_ms.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

pub(super) fn destination(destination: &Domain) -> Vec<u8> {
    prefixed(DESTINATION, destination.as_str().as_bytes())
}

/// Where a record goes when its message goes to quarantine.
pub(super) fn quarantined(key: &[u8]) -> Vec<u8> {
    prefixed(QUARANTINED, key)
}

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

/// Due time, message and recipient number of a due key; `None` when it is too short for one.
pub(super) fn read_due(key: &[u8]) -> Option<(u64, QueueId, u16)> {
    let tail = key.last_chunk::<DUE_TAIL>()?;
    let (due_ms, rest) = tail.split_first_chunk()?;
    let (id, number) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*due_ms), QueueId::from_bytes(*id), u16::from_be_bytes(number.try_into().ok()?)))
}

/// A due key with its destination; `None` when it was never written so.
pub(super) fn read_due_key(key: &[u8]) -> Option<DueKey> {
    let (due_ms, id, number) = read_due(key)?;
    let name = key[..key.len() - DUE_TAIL].strip_prefix(&[DUE])?.strip_suffix(&[0])?;
    Some(DueKey { destination: read_domain(name)?, due_ms, id, number })
}

pub(super) fn read_wake(key: &[u8]) -> Option<(u64, Domain)> {
    let (at_ms, name) = key.get(1..)?.split_first_chunk()?;
    Some((u64::from_be_bytes(*at_ms), read_domain(name)?))
}

pub(super) fn read_deadline(key: &[u8]) -> Option<(u64, QueueId)> {
    let (at_ms, id) = key.get(1..)?.split_first_chunk()?;
    Some((u64::from_be_bytes(*at_ms), QueueId::from_bytes(id.try_into().ok()?)))
}

pub(super) fn read_destination(key: &[u8]) -> Option<Domain> {
    read_domain(key.get(1..)?)
}

/// The message of a key that has its id after the prefix byte.
pub(super) fn read_id(key: &[u8]) -> Option<QueueId> {
    key.get(1..17)?.try_into().ok().map(QueueId::from_bytes)
}

/// The number at the end of a state key.
pub(super) fn read_number(key: &[u8]) -> Option<u16> {
    key.get(17..)?.try_into().ok().map(u16::from_be_bytes)
}

fn read_domain(bytes: &[u8]) -> Option<Domain> {
    let text = str::from_utf8(bytes).ok()?;
    Domain::parse(text).ok().filter(|domain| domain.as_str() == text)
}

/// The first key after all that start with `prefix`.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// The first key after this one.
pub(super) fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: QueueId = QueueId::from_bytes([0xab; 16]);

    fn domain(text: &str) -> Domain {
        Domain::parse(text).expect("a domain")
    }

    #[test]
    fn a_due_key_is_destination_zero_time_id_number() {
        let key = due(&DueKey { destination: domain("a.example"), due_ms: 0x0102, id: ID, number: 0x0304 });
        let mut golden = b"da.example\0\0\0\0\0\0\0\x01\x02".to_vec();
        golden.extend([0xab; 16]);
        golden.extend([3, 4]);
        assert_eq!(key, golden);
        assert_eq!(read_due(&key), Some((0x0102, ID, 0x0304)));
        assert_eq!(read_due(b"d"), None);
        let read = read_due_key(&key).expect("one");
        assert_eq!(
            (read.destination, read.due_ms, read.id, read.number),
            (domain("a.example"), 0x0102, ID, 0x0304)
        );
    }

    #[test]
    fn keys_read_back_as_what_they_were_made_of() {
        assert_eq!(read_wake(&wake(7, &domain("a.example"))), Some((7, domain("a.example"))));
        assert_eq!(read_deadline(&deadline(7, ID)), Some((7, ID)));
        assert_eq!(read_destination(&destination(&domain("[127.0.0.1]"))), Some(domain("[127.0.0.1]")));
        assert_eq!(read_id(&chunk(CONTENT, ID, 9)), Some(ID));
        assert_eq!(read_number(&state(ID, 513)), Some(513));
        assert_eq!(read_wake(b"w\0\0\0\0\0\0\0\0UPPER"), None, "never written so");
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_as_keys_without_a_panic(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (read_due(&key), read_due_key(&key), read_wake(&key), read_deadline(&key));
            let _ = (read_destination(&key), read_id(&key), read_number(&key));
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(end_of(b"ab"), b"ac");
        assert_eq!(end_of(&[1, 0xff, 0xff]), [2]);
        let ids = of_message(ENVELOPE, QueueId::from_bytes([0xff; 16]));
        assert_eq!(end_of(&ids), [ENVELOPE + 1]);
    }

    #[test]
    fn a_destination_is_no_prefix_of_another_ones_keys() {
        assert!(!due_prefix(&domain("example.org")).starts_with(&due_prefix(&domain("example"))));
    }
}
