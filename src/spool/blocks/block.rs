//! One block: the record that holds some neighbouring keys of an index. `migrations/v0003_blocks.rs` has every byte.

use std::ops::Range;

use sled::IVec;

use super::super::record::{self, Unreadable};

/// Bytes of keys in a block, unless it has one key only. Many keys share a page of the tree then, and a change of one of them
/// writes no more than this.
pub(super) const FULL: usize = 512;
/// What stands before the own bytes of each key: how many it shares, and how many it has.
const PREFIX: usize = 3;

/// Calls `visit` for each key of a block in order until it says `false`; whether it never did.
///
/// # Errors
/// When the record is not a block; then nothing was visited, unless it is a block that was never written so.
pub(super) fn each(
    block: &[u8],
    record: &[u8],
    visit: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<bool, Unreadable> {
    if record.is_empty() {
        // As formats 1 and 2 had it: a key by itself.
        return Ok(visit(block));
    }
    let payload = record::read_keys(record)?;
    let mut rest = &payload[..];
    let mut key = block.to_vec();
    while let Some((&[shared, low, high], behind)) = rest.split_first_chunk::<PREFIX>() {
        let own = usize::from(u16::from_le_bytes([low, high]));
        if usize::from(shared) > key.len() || own > behind.len() {
            return Err(Unreadable::Field("list of keys"));
        }
        let (own, behind) = behind.split_at(own);
        key.truncate(shared.into());
        key.extend_from_slice(own);
        if !visit(&key) {
            return Ok(false);
        }
        rest = behind;
    }
    if rest.is_empty() { Ok(true) } else { Err(Unreadable::Short) }
}

/// All keys of a block, in order.
pub(super) fn read(block: &[u8], record: &[u8]) -> Result<Vec<IVec>, Unreadable> {
    let mut keys = Vec::new();
    each(block, record, &mut |key| {
        keys.push(IVec::from(key));
        true
    })?;
    Ok(keys)
}

/// The record of a block with these keys, in order.
pub(super) fn write(block: &[u8], keys: &[IVec]) -> IVec {
    let mut payload = Vec::with_capacity(FULL);
    let mut before = block;
    for key in keys {
        let (shared, own) = split(before, key);
        payload.push(shared);
        payload.extend_from_slice(&own.to_le_bytes());
        payload.extend_from_slice(&key[usize::from(shared)..]);
        before = key;
    }
    record::write_keys(&payload)
}

/// How many bytes a key shares with the one before it, and how many it has of its own.
fn split(before: &[u8], key: &[u8]) -> (u8, u16) {
    let shared = before.iter().zip(key).take(u8::MAX.into()).take_while(|(a, b)| a == b).count();
    debug_assert!(key.len() < 300, "a domain and numbers: {} bytes", key.len());
    (u8::try_from(shared).unwrap_or(u8::MAX), u16::try_from(key.len() - shared).unwrap_or(u16::MAX))
}

fn cost(before: &[u8], key: &[u8]) -> usize {
    PREFIX + usize::from(split(before, key).1)
}

/// How the keys of a block are divided when they are too many for one. `grows_at_end`: more are likely to come behind the
/// last one, as where keys begin with a time, so all pieces but the last one are full.
pub(super) fn pieces(block: &[u8], keys: &[IVec], grows_at_end: bool) -> Vec<Range<usize>> {
    let costs = || {
        let before = [block].into_iter().chain(keys.iter().map(|key| &key[..]));
        before.zip(keys).map(|(before, key)| cost(before, key))
    };
    let all: usize = costs().sum();
    let most = if grows_at_end { FULL } else { all.div_ceil(all.div_ceil(FULL).max(1)) };
    let mut pieces = Vec::with_capacity(1);
    let (mut start, mut size) = (0, 0);
    for (at, bytes) in costs().enumerate() {
        if at > start && size + bytes > most {
            pieces.push(start..at);
            // The first key of a piece is the name of its block.
            (start, size) = (at, cost(&keys[at], &keys[at]));
        } else {
            size += bytes;
        }
    }
    pieces.push(start..keys.len());
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(names: &[&str]) -> Vec<IVec> {
        names.iter().map(|name| IVec::from(*name)).collect()
    }

    #[test]
    fn a_block_has_for_each_key_what_it_shares_with_the_one_before() {
        let record = write(b"da", &keys(&["dab", "dabc", "dbx"]));
        assert_eq!(record[..2], [10, 3], "kind and format");
        assert_eq!(&record[6..], b"\x02\x01\0b\x03\x01\0c\x01\x02\0bx");
        assert_eq!(read(b"da", &record), Ok(keys(&["dab", "dabc", "dbx"])));
    }

    #[test]
    fn an_empty_value_is_a_key_by_itself() {
        assert_eq!(read(b"dab", b""), Ok(keys(&["dab"])));
    }

    #[test]
    fn each_flipped_byte_of_a_block_is_noticed() {
        let record = write(b"da", &keys(&["dab", "dabc", "dbx"]));
        for at in 0..record.len() {
            let mut bad = record.to_vec();
            bad[at] ^= 0x20;
            assert!(read(b"da", &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_longer_than_what_can_be_shared_are_whole() {
        let long = |end: char| format!("d{}{end}", "x".repeat(290));
        let names = [long('a'), long('b')];
        let keys: Vec<IVec> = names.iter().map(|name| IVec::from(name.as_str())).collect();
        assert_eq!(read(b"d", &write(b"d", &keys)), Ok(keys));
    }

    #[test]
    fn keys_that_came_at_the_end_leave_full_blocks_behind_them_and_others_leave_room() {
        let keys: Vec<IVec> = (0..100).map(|at| IVec::from(format!("d{at:030}").as_str())).collect();
        let sizes = |pieces: &[Range<usize>]| -> Vec<usize> {
            pieces.iter().map(|piece| write(&keys[piece.start], &keys[piece.clone()]).len() - 6).collect()
        };
        let full = pieces(&keys[0], &keys, true);
        let even = pieces(&keys[0], &keys, false);
        for pieces in [&full, &even] {
            assert_eq!(pieces.first().map(|piece| piece.start), Some(0));
            assert_eq!(pieces.last().map(|piece| piece.end), Some(100));
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(sizes(pieces).iter().all(|size| *size <= FULL), "{:?}", sizes(pieces));
        }
        assert!(sizes(&full).iter().rev().skip(1).all(|size| *size > FULL - 40), "{:?}", sizes(&full));
    }

    proptest! {
        #[test]
        fn random_bytes_as_a_block_never_panic(record in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(b"dab", &record);
            let sealed = record::write_keys(&record);
            let _ = read(b"dab", &sealed);
        }
    }
}
