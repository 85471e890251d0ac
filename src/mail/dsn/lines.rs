//! The lines of a report: 7-bit, folded, and free of anything that a remote text could break out with.

use std::borrow::Cow;
use std::fmt::Write;

/// Where lines are folded, in octets (RFC 5322 section 2.1.1 wants 78 at most).
const FOLD_AT: usize = 76;
/// Longest word that stays whole, in octets (RFC 5322 section 2.1.1 forbids lines over 998).
const WORD_MAX: usize = 900;
/// Longest line without its CRLF (RFC 5322 section 2.1.1).
const LINE_MAX: usize = 998;

/// A field of `message/delivery-status`, folded at blanks when it is long.
pub(super) struct Field {
    name: &'static str,
    value: String,
}

impl Field {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, value: String::new() }
    }

    /// Adds words; what isn't printable ASCII is replaced.
    pub(super) fn text(mut self, text: &str) -> Self {
        if !self.value.is_empty() {
            self.value.push(' ');
        }
        self.value.push_str(&ascii(text));
        self
    }

    /// Adds an MTA name of the type `dns` (RFC 3464 section 2.1.2).
    pub(super) fn dns(self, name: &str) -> Self {
        self.text("dns;").text(name)
    }

    pub(super) fn write(self, out: &mut String) {
        let _ = write!(out, "{}:", self.name);
        let mut column = self.name.len() + 1;
        for word in words(&self.value) {
            if column + 1 + word.len() > FOLD_AT && column > self.name.len() + 1 {
                out.push_str("\r\n");
                column = 0;
            }
            out.push(' ');
            out.push_str(word);
            column += 1 + word.len();
        }
        out.push_str("\r\n");
    }
}

/// Writes words in lines of at most 76 octets, each with the indent in front.
pub(super) fn fold_words(out: &mut String, indent: &str, text: &str) {
    let mut column = 0;
    for word in words(text) {
        if column > 0 && column + 1 + word.len() > FOLD_AT {
            out.push_str("\r\n");
            column = 0;
        }
        let before = if column == 0 { indent } else { " " };
        out.push_str(before);
        out.push_str(word);
        column += before.len() + word.len();
    }
    out.push_str("\r\n");
}

/// The words of an ASCII text; one that is too long for a line comes in pieces.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty()).flat_map(|word| {
        (0..word.len().div_ceil(WORD_MAX))
            .map(move |n| &word[n * WORD_MAX..word.len().min((n + 1) * WORD_MAX)])
    })
}

/// The text with control characters as blanks and other letters than ASCII's as `?`.
pub(super) fn ascii(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let plain = |letter: char| match letter {
        ' '..='~' => letter,
        letter if letter.is_control() => ' ',
        _ => '?',
    };
    Cow::Owned(text.chars().map(plain).collect())
}

/// The header section at the start of a content, without the empty line; at most `max` bytes, in whole lines.
pub(super) fn header_section(content: &[u8], max: usize) -> &[u8] {
    let mut end = 0;
    while let Some(length) = memchr::memchr(b'\n', &content[end..]) {
        let line = &content[end..=end + length];
        if matches!(line, b"\r\n" | b"\n") || end + line.len() > max {
            return &content[..end];
        }
        end += line.len();
    }
    // Content that ends within a line: the line belongs to the header unless it was cut to size.
    if content.len() <= max { content } else { &content[..end] }
}

/// A header section as a part of the report: the field that tells of its encoding, if it needs one, and its text.
///
/// Clean 7-bit headers stand as they are; others are quoted-printable, which RFC 3462 section 3 permits here.
pub(super) fn header_part(headers: &[u8]) -> (&'static str, String) {
    let clean = |line: &[u8]| {
        line.len() <= LINE_MAX && line.iter().all(|byte| *byte == b'\t' || (b' '..=b'~').contains(byte))
    };
    let mut lines = headers.split_inclusive(|byte| *byte == b'\n');
    match std::str::from_utf8(headers) {
        Ok(text) if lines.all(|line| line.strip_suffix(b"\r\n").is_some_and(clean)) => ("", text.to_owned()),
        _ => ("Content-Transfer-Encoding: quoted-printable\r\n", quoted_printable(headers)),
    }
}

/// RFC 2045 section 6.7; line ends of the original, CRLF or LF, become line ends.
fn quoted_printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let ended = line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n"));
        let line = ended.unwrap_or(line);
        let mut column = 0;
        for (index, byte) in line.iter().enumerate() {
            let is_last = index + 1 == line.len();
            let literal =
                matches!(byte, b'!'..=b'<' | b'>'..=b'~') || (matches!(byte, b' ' | b'\t') && !is_last);
            let width = if literal { 1 } else { 3 };
            if column + width >= FOLD_AT {
                out.push_str("=\r\n");
                column = 0;
            }
            if literal {
                out.push(char::from(*byte));
            } else {
                let _ = write!(out, "={byte:02X}");
            }
            column += width;
        }
        out.push_str("\r\n");
    }
    out
}
