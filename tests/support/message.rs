//! Messages that prove on arrival that they are whole.

/// The header that names a message; the test writes it first, so that what a relay adds stands above it.
pub const MARK: &str = "X-Ledger: ";

/// A made message.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its name in the ledger.
    pub id: String,
    /// Header and body, CRLF lines, not stuffed; it begins with [`MARK`].
    pub content: Vec<u8>,
    /// Checksum of `content`.
    pub crc: u32,
}

/// A reproducible source of chance (xorshift); tests need variety, not quality.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number from 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A message of about `size` bytes (at least 200), with lines that tempt a relay to change them: leading dots, single
/// dots, empty lines, trailing blanks, `From `, 8-bit bytes, 998 octets.
pub fn make(id: &str, size: usize, chance: &mut Chance) -> Made {
    let mut content = format!(
        "{MARK}{id}\r\nFrom: <ledger@sender.test>\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n\
         Message-ID: <{id}@sender.test>\r\nSubject: {id}\r\n\r\n"
    )
    .into_bytes();
    let long = "l".repeat(998);
    let tempting: [&[u8]; 8] = [
        b".",
        b"..",
        b".leading",
        b"",
        b"trailing \t",
        b"From someone",
        b"gr\xC3\xBC\xC3\x9Fe",
        long.as_bytes(),
    ];
    while content.len() < size {
        let room = size - content.len();
        let line = tempting[chance.below(8) as usize];
        if chance.below(8) == 0 && line.len() + 2 <= room {
            content.extend_from_slice(line);
        } else {
            let length = (1 + chance.below(76) as usize).min(room);
            content.extend((0..length).map(|_| b'a' + chance.below(26) as u8));
        }
        content.extend_from_slice(b"\r\n");
    }
    Made { id: id.to_owned(), crc: crc32fast::hash(&content), content }
}

/// Name and checksum of a received message, from its [`MARK`] header to its end.
pub fn recognise(content: &[u8]) -> Option<(String, u32)> {
    let mut at = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if let Some(id) = line.strip_prefix(MARK.as_bytes()) {
            return Some((String::from_utf8_lossy(id).trim().to_owned(), crc32fast::hash(&content[at..])));
        }
        if line == b"\r\n" {
            return None;
        }
        at += line.len();
    }
    None
}
