//! Where lines, replies and content begin and end on the wire: the sending side.

use crate::smtp::reply::{EnhancedStatus, Reply, ReplyCode};

/// Longest reply line that is read, in octets. RFC 5321 section 4.5.3.1.5 allows 512; some servers exceed it.
const LINE_MAX: usize = 4096;
/// Most octets of one reply, all its lines together.
const REPLY_MAX: usize = 64 << 10;

/// Why what a server sends is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line that does not begin with a code, with its beginning.
    #[error("not a reply: {0}")]
    Syntax(String),
    /// Lines of one reply with two codes.
    #[error("a reply with two codes, {0} and {1}")]
    TwoCodes(u16, u16),
    /// A line or a reply without an end.
    #[error("an endless reply")]
    TooLong,
}

/// Cuts a stream of bytes into replies (RFC 5321 section 4.2). A bare LF ends a line too: what a server says
/// can't smuggle anything.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// Bytes that are not a whole line yet, behind `taken`.
    buffer: Vec<u8>,
    taken: usize,
    /// The lines of a reply whose last line is still to come.
    partial: Option<ReplyLines>,
}

impl ReplyParser {
    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..self.taken);
        }
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether every byte was part of a reply that was taken.
    pub fn is_empty(&self) -> bool {
        self.taken == self.buffer.len() && self.partial.is_none()
    }

    /// The next whole reply.
    ///
    /// # Errors
    /// [`ReplyError`]; the stream is of no use after that.
    pub fn next_reply(&mut self) -> Result<Option<ReplyLines>, ReplyError> {
        while let Some(length) = memchr::memchr(b'\n', &self.buffer[self.taken..]) {
            let line = &self.buffer[self.taken..self.taken + length];
            self.taken += length + 1;
            let (code, last, text) = split_line(line)?;
            let reply = match self.partial.take() {
                None => ReplyLines { code, text: visible(text) },
                Some(begun) => begun.and(code, text)?,
            };
            if last {
                return Ok(Some(reply));
            }
            self.partial = Some(reply);
        }
        if self.buffer.len() - self.taken > LINE_MAX { Err(ReplyError::TooLong) } else { Ok(None) }
    }
}

/// `250-text`, `250 text` or `250`: code, whether it is the last line, and the text.
fn split_line(line: &[u8]) -> Result<(ReplyCode, bool, &[u8]), ReplyError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let code = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit)).and_then(|digits| {
        ReplyCode::new(digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
    });
    match (code, line.get(3)) {
        (Some(code), Some(b' ' | b'-')) => Ok((code, line[3] == b' ', &line[4..])),
        (Some(code), None) => Ok((code, true, b"")),
        _ => Err(ReplyError::Syntax(visible(&line[..line.len().min(64)]))),
    }
}

/// Text that can stand in a log or a DSN: no control characters, no broken UTF-8.
fn visible(text: &[u8]) -> String {
    match std::str::from_utf8(text) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => String::from_utf8_lossy(text).replace(char::is_control, "?"),
    }
}

/// A reply with its lines apart, as EHLO needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyLines {
    code: ReplyCode,
    /// The texts of the lines, with LF between them.
    text: String,
}

impl ReplyLines {
    /// The code of its lines.
    pub fn code(&self) -> ReplyCode {
        self.code
    }

    /// The texts of its lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// The reply as it is kept: the enhanced status apart, the lines joined.
    pub fn into_reply(self) -> Reply {
        let fits = |status: &EnhancedStatus| u16::from(status.class) == self.code.get() / 100;
        let split = |line| EnhancedStatus::split(line).filter(|(status, _)| fits(status));
        let enhanced = self.lines().next().and_then(split).map(|(status, _)| status);
        if enhanced.is_none() && !self.text.contains('\n') {
            return Reply { code: self.code, enhanced, text: self.text };
        }
        // Servers repeat the status in every line (RFC 2034 section 4).
        let mut text = String::with_capacity(self.text.len());
        for line in self.lines().map(|line| split(line).map_or(line, |(_, rest)| rest)) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(line);
        }
        Reply { code: self.code, enhanced, text }
    }

    fn and(mut self, code: ReplyCode, text: &[u8]) -> Result<Self, ReplyError> {
        if code != self.code {
            return Err(ReplyError::TwoCodes(self.code.get(), code.get()));
        }
        self.text.push('\n');
        self.text.push_str(&visible(text));
        if self.text.len() > REPLY_MAX { Err(ReplyError::TooLong) } else { Ok(self) }
    }
}

/// Whether content has a line that begins with a dot.
pub fn needs_stuffing(content: &[u8]) -> bool {
    content.first() == Some(&b'.') || memchr::memmem::find(content, b"\n.").is_some()
}

/// Doubles each dot at the start of a line (RFC 5321 section 4.5.2), in content that comes in pieces.
#[derive(Debug, Default)]
pub struct DotStuffer {
    /// The last two bytes; none at the start of the content.
    tail: Option<[u8; 2]>,
}

impl DotStuffer {
    /// Adds a piece to `out`.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let Some(last) = piece.last() else { return };
        let at_line_start = self.tail.is_none_or(|tail| tail[1] == b'\n');
        if at_line_start && piece[0] == b'.' {
            out.push(b'.');
        }
        let mut from = 0;
        for place in memchr::memmem::find_iter(piece, b"\n.") {
            out.extend_from_slice(&piece[from..=place]);
            out.push(b'.');
            from = place + 1;
        }
        out.extend_from_slice(&piece[from..]);
        let before = match piece.len() {
            1 => self.tail.map_or(b'\n', |tail| tail[1]),
            length => piece[length - 2],
        };
        self.tail = Some([before, *last]);
    }

    /// Adds the end of the content: CRLF when it lacks one, and the final dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.tail.is_some_and(|tail| tail != *b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reply as `code: line|line`, then the error if there is one.
    fn read(bytes: &[u8], step: usize) -> Vec<String> {
        let mut parser = ReplyParser::default();
        let mut told = Vec::new();
        for piece in bytes.chunks(step) {
            parser.push(piece);
            loop {
                match parser.next_reply() {
                    Ok(Some(reply)) => {
                        told.push(format!(
                            "{}: {}",
                            reply.code().get(),
                            reply.lines().collect::<Vec<_>>().join("|")
                        ));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        told.push(error.to_string());
                        return told;
                    }
                }
            }
        }
        told
    }

    fn check(bytes: &[u8], expected: &[&str]) {
        for step in [1, 3, bytes.len()] {
            assert_eq!(read(bytes, step), expected, "{} in steps of {step}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn replies_are_cut_at_their_last_lines() {
        check(b"250 ok\r\n", &["250: ok"]);
        check(b"250-a\r\n250-\r\n250 b\r\n354 go\r\n", &["250: a||b", "354: go"]);
        check(b"221\r\n", &["221: "]);
        check(b"250 ok\n", &["250: ok"]);
        check(b"250 a\x1b[2Jb\xff\r\n", &["250: a?[2Jb\u{fffd}"]);
        check(b"250 half", &[]);
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        check(b"hello\r\n", &["not a reply: hello"]);
        check(b"\r\n", &["not a reply: "]);
        check(b"2x0 ok\r\n", &["not a reply: 2x0 ok"]);
        check(b"199 ok\r\n", &["not a reply: 199 ok"]);
        check(b"250+ok\r\n", &["not a reply: 250+ok"]);
        check(b"250-a\r\n550 b\r\n", &["a reply with two codes, 250 and 550"]);
        assert_eq!(read(&vec![b'2'; LINE_MAX + 1], 1000), ["an endless reply"]);
        assert_eq!(read(&b"250-more\r\n".repeat(REPLY_MAX / 4), 1000), ["an endless reply"]);
    }

    #[test]
    fn the_enhanced_status_is_kept_when_it_fits_the_code() {
        for (line, enhanced, text) in [
            ("550 5.1.1 who?", Some("5.1.1"), "who?"),
            ("550-5.1.1 who\r\n550 5.1.1 knows?", Some("5.1.1"), "who knows?"),
            ("550 4.1.1 who?", None, "4.1.1 who?"),
            ("250-one\r\n250 two", None, "one two"),
            ("250 2.0.0", Some("2.0.0"), ""),
        ] {
            let mut parser = ReplyParser::default();
            parser.push(format!("{line}\r\n").as_bytes());
            let reply = parser.next_reply().expect("good").expect("whole").into_reply();
            let status = reply.enhanced.map(|status| status.to_string());
            assert_eq!((status.as_deref(), reply.text.as_str()), (enhanced, text), "{line}");
            assert!(parser.is_empty());
        }
    }

    #[test]
    fn dots_at_line_starts_are_doubled_however_the_content_is_cut() {
        for (content, expected) in [
            ("", ".\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".\r\n..\r\n.a", "..\r\n...\r\n..a\r\n.\r\n"),
            ("a.b\r\n", "a.b\r\n.\r\n"),
            ("no end", "no end\r\n.\r\n"),
        ] {
            for step in 1..=content.len().max(1) {
                let (mut stuffer, mut out) = (DotStuffer::default(), Vec::new());
                content.as_bytes().chunks(step).for_each(|piece| stuffer.push(piece, &mut out));
                stuffer.finish(&mut out);
                assert_eq!(String::from_utf8_lossy(&out), expected, "{content:?} in steps of {step}");
            }
            assert_eq!(needs_stuffing(content.as_bytes()), expected.len() > content.len() + 5, "{content:?}");
        }
    }
}
