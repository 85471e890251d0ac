//! Format 2: recipients on hold, destinations that an operator suspended.
//!
//! # What differs from format 1
//!
//! The version byte of a record is now the format since which its kind has the layout it has: kinds 2, 4 and 5 have 2,
//! all others still 1. Each of the three got one field more, at the end of its payload:
//!
//! | kind | field | from format 1 |
//! |---|---|---|
//! | 2 state | on hold bool | false |
//! | 4 destination | suspended until u64: no attempt before this time; 0 is not suspended, 2^64-1 until an operator resumes it | 0 |
//! | 5 counters | recipients on hold u64 | 0 |
//!
//! A content file may have a trailer behind its content: 00 `phcont`, version u8 (1), CRC-32 (ISO-HDLC) of the content as u32 little
//! endian. Files without one are read as before.
//!
//! A recipient on hold has no due key. A destination that is suspended has a record, also without mail.
//!
//! | key | value |
//! |---|---|
//! | `mmigration` | record 9; there while records of older formats may be left |
//!
//! | kind | payload |
//! |---|---|
//! | 9 migration | the format the spool had u32; the key to go on from, seq of u8 |

use super::Step;

/// The version that this file describes.
pub const VERSION: u32 = 2;

/// From format 1 to this one.
pub(super) const STEP: Step = Step { to: VERSION, changed: &[b"mcounters", b"n", b"qs", b"s"], carry };

const STATE: u8 = 2;
const DESTINATION: u8 = 4;
const COUNTERS: u8 = 5;

/// What follows the payload that a record of this kind had in format 1; `None`: nothing changed.
fn carry(kind: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let added: &[u8] = match kind {
        STATE => &[0],
        DESTINATION | COUNTERS => &[0; 8],
        _ => return None,
    };
    Some([payload, added].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_not_there_in_a_record_of_format_1() {
        assert_eq!(carry(STATE, b"state"), Some(b"state\0".to_vec()));
        assert_eq!(carry(DESTINATION, b"d"), Some(b"d\0\0\0\0\0\0\0\0".to_vec()));
        assert_eq!(carry(COUNTERS, b"c"), Some(b"c\0\0\0\0\0\0\0\0".to_vec()));
        assert_eq!(carry(3, b"content"), None);
    }
}
