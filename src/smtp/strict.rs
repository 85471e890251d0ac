//! What content must not have wherever it comes from: the rules of [`super::scanner`] for content that is not on the wire.

use memchr::{memchr, memchr2_iter};

/// What is wrong with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// A CR without LF, or an LF without CR: it would be refused, or split in two, down the road.
    LineEnd,
    /// A NUL character: remote hosts refuse it, or read another message than we do.
    Nul,
}

/// Looks for what must not be in content that comes in pieces.
#[derive(Debug, Default)]
pub struct StrictContent {
    /// The last byte so far is a CR.
    cr: bool,
}

impl StrictContent {
    /// Looks at a piece.
    ///
    /// # Errors
    /// What is in it that must not be; the rest is not looked at.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Stray> {
        let Some(last) = piece.last() else { return Ok(()) };
        if memchr(0, piece).is_some() {
            return Err(Stray::Nul);
        }
        if self.cr && piece[0] != b'\n' {
            return Err(Stray::LineEnd);
        }
        let strict = memchr2_iter(b'\r', b'\n', piece).all(|at| match piece[at] {
            b'\r' => piece.get(at + 1).is_none_or(|next| *next == b'\n'),
            _ => at.checked_sub(1).map_or(self.cr, |before| piece[before] == b'\r'),
        });
        self.cr = *last == b'\r';
        if strict { Ok(()) } else { Err(Stray::LineEnd) }
    }

    /// The content ends here.
    ///
    /// # Errors
    /// It ends with a CR.
    pub fn finish(self) -> Result<(), Stray> {
        if self.cr { Err(Stray::LineEnd) } else { Ok(()) }
    }
}

/// Looks at whole content.
///
/// # Errors
/// What is in it that must not be.
pub fn check(content: &[u8]) -> Result<(), Stray> {
    let mut strict = StrictContent::default();
    strict.push(content)?;
    strict.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stray_line_ends_and_nuls_are_found_however_the_content_is_cut() {
        for (content, expected) in [
            (&b"a\r\n\r\nb\r\n"[..], Ok(())),
            (b"", Ok(())),
            (b"no end", Ok(())),
            (b"8 bits: \xe4\xff\r\n", Ok(())),
            (b"a\nb\r\n", Err(Stray::LineEnd)),
            (b"\na", Err(Stray::LineEnd)),
            (b"a\rb\r\n", Err(Stray::LineEnd)),
            (b"a\r\r\n", Err(Stray::LineEnd)),
            (b"a\r", Err(Stray::LineEnd)),
            (b"a\r\nb\0c\r\n", Err(Stray::Nul)),
        ] {
            assert_eq!(check(content), expected, "{}", content.escape_ascii());
            for size in 1..=content.len() {
                let mut strict = StrictContent::default();
                let pushed = content.chunks(size).try_for_each(|piece| strict.push(piece));
                assert_eq!(
                    pushed.and_then(|()| strict.finish()),
                    expected,
                    "{} by {size}",
                    content.escape_ascii()
                );
            }
        }
    }
}
