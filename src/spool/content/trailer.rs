//! What a content file has behind its content: the checksum of it, so that no changed byte is ever sent.
//!
//! `magic 7 bytes, version u8, CRC-32 of the content u32`, the checksum as in records and little endian. A file of an older
//! program ends with its content and has none. The length tells which of the two it is, never the bytes: content may
//! have any.

/// How long it is.
pub(super) const LEN: u64 = SIZE as u64;
const SIZE: usize = MAGIC.len() + 1 + 4;
const MAGIC: &[u8; 7] = b"\0phcont";
const VERSION: u8 = 1;

/// A trailer as it is on disk.
pub(super) type Bytes = [u8; SIZE];

/// That of content with this checksum.
pub(super) fn write(crc: u32) -> Bytes {
    let mut bytes = [0; SIZE];
    let (head, sum) = bytes.split_at_mut(MAGIC.len() + 1);
    head[..MAGIC.len()].copy_from_slice(MAGIC);
    head[MAGIC.len()] = VERSION;
    sum.copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The checksum in it, or why there is none.
pub(super) fn read(bytes: &Bytes) -> Result<u32, String> {
    let [head @ .., version, a, b, c, d] = bytes;
    if head != MAGIC {
        return Err("what is behind its content is no checksum".to_owned());
    }
    match *version {
        VERSION => Ok(u32::from_le_bytes([*a, *b, *c, *d])),
        other => Err(format!("its checksum is of version {other}, which is not known to this program")),
    }
}
