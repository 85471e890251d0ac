//! Format 3: due and deadline keys in blocks.
//!
//! # What differs from format 2
//!
//! A key that begins with `d` or `t` names a block, which holds due or deadline keys as they were in format 2:
//!
//! | key | value |
//! |---|---|
//! | `d` alone, or `d` and any bytes | record 10: due keys |
//! | `t` alone, or `t` and any bytes | record 10: deadline keys |
//!
//! | kind | payload |
//! |---|---|
//! | 10 keys | for each key, in ascending order: how many bytes it shares with the one before u8, how many follow u16 little endian, these bytes; the first one shares with the block's own key |
//!
//! Record 10 has version 3. Each key in a block is at or after the block's own key, and before that of the next block with
//! the same first byte. Keys before the first block go into one whose own key is the first byte alone.
//!
//! A block with an empty value holds its own key alone. So every due or deadline key of format 2 is such a block, and nothing
//! has to be rewritten: these go as their recipients are delivered, or grow as others come.

use super::Step;

/// The version that this file describes.
pub const VERSION: u32 = 3;

/// From format 2 to this one.
pub(super) const STEP: Step = Step { to: VERSION, changed: &[], carry };

/// No record changes.
fn carry(_: u8, _: &[u8]) -> Option<Vec<u8>> {
    None
}
