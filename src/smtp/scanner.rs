//! Content on its way in: finds the end of data, removes dot-stuffing (RFC 5321 section 4.5.2), and catches what must
//! not pass.
//!
//! ```text
//!            '.'            CR             LF
//! LineStart ─────► Dot ──────────► DotCr ──────► end of data
//!   ▲  │ other      │ other: the dot is dropped
//!   │  ▼            ▼
//!   │ InLine ◄──────┘
//!   │  │ CR                      a CR without LF, or an LF without CR, in any state: Bare
//!   │  ▼
//!   └─ Cr   (LF)
//! ```

use bytes::BytesMut;
use memchr::memchr2;

/// Longest line of content in octets, CRLF excluded. RFC 5321 section 4.5.3.1.6 asks for 998 at least; applications
/// send longer ones and remotes take them, so they pass up to this bound.
pub const TEXT_LINE_MAX: usize = 64 << 10;

/// Where the scanner is; every state is named, so `CR CR LF` has nowhere to hide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    LineStart,
    InLine,
    Cr,
    Dot,
    DotCr,
}

/// What a scan met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// All input is content; more is to come.
    More,
    /// The final dot.
    End,
    /// A bare CR or LF: refuse, never treat it as an end of line or of data.
    Bare,
}

/// Scans the content of one message.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    state: State,
    line: usize,
    longest: usize,
    header: HeaderWatch,
}

impl Scanner {
    /// Scans `input`, appends unstuffed content to `out`, and returns how much of the input it took.
    pub fn scan(&mut self, input: &[u8], out: &mut BytesMut) -> (usize, Scan) {
        let mut at = 0;
        while at < input.len() {
            let byte = input[at];
            match (self.state, byte) {
                (State::LineStart, b'.') => (self.state, at) = (State::Dot, at + 1),
                (State::Dot, b'\r') => (self.state, at) = (State::DotCr, at + 1),
                (State::DotCr, b'\n') => return (at + 1, Scan::End),
                (State::Cr, b'\n') => {
                    self.end_line(out);
                    at += 1;
                }
                (State::Cr | State::DotCr, _) => return (at, Scan::Bare),
                (State::LineStart | State::Dot | State::InLine, _) => {
                    self.state = State::InLine;
                    let rest = &input[at..];
                    let end = memchr2(b'\r', b'\n', rest);
                    let text = &rest[..end.unwrap_or(rest.len())];
                    self.header.text(self.line, text);
                    self.line += text.len();
                    out.extend_from_slice(text);
                    at += text.len();
                    match end.map(|end| rest[end]) {
                        None => {}
                        Some(b'\r') => (self.state, at) = (State::Cr, at + 1),
                        Some(_) => return (at, Scan::Bare),
                    }
                }
            }
        }
        (at, Scan::More)
    }

    fn end_line(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(b"\r\n");
        self.header.end_line(self.line);
        self.longest = self.longest.max(self.line);
        self.line = 0;
        self.state = State::LineStart;
    }

    /// Whether a line was longer than [`TEXT_LINE_MAX`].
    pub fn has_long_line(&self) -> bool {
        self.longest.max(self.line) > TEXT_LINE_MAX
    }

    /// `Received:` fields seen in the header section.
    pub fn received(&self) -> usize {
        self.header.received
    }
}

const RECEIVED: &[u8; 9] = b"received:";

/// Counts `Received:` fields while content passes.
#[derive(Clone, Debug, Default)]
struct HeaderWatch {
    ended: bool,
    start: [u8; RECEIVED.len()],
    received: usize,
}

impl HeaderWatch {
    fn text(&mut self, line: usize, text: &[u8]) {
        if !self.ended && line < self.start.len() {
            let count = text.len().min(self.start.len() - line);
            self.start[line..line + count].copy_from_slice(&text[..count]);
        }
    }

    fn end_line(&mut self, line: usize) {
        if self.ended {
            return;
        }
        self.ended = line == 0;
        self.received += usize::from(line >= RECEIVED.len() && self.start.eq_ignore_ascii_case(RECEIVED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(input: &[u8], pieces: usize) -> (Vec<u8>, Scan, usize) {
        let (mut scanner, mut out) = (Scanner::default(), BytesMut::new());
        let mut taken = 0;
        for piece in input.chunks(pieces) {
            let (used, scan) = scanner.scan(piece, &mut out);
            taken += used;
            if scan != Scan::More {
                return (out.to_vec(), scan, taken);
            }
        }
        (out.to_vec(), Scan::More, taken)
    }

    fn check(input: &[u8], content: &[u8], expected: Scan) {
        for pieces in [1, 2, 3, input.len()] {
            let (out, scan, _) = scan(input, pieces);
            assert_eq!((out.as_slice(), scan), (content, expected), "{:?} by {pieces}", input.escape_ascii());
        }
    }

    #[test]
    fn content_ends_at_a_dot_alone_and_stuffed_dots_lose_one() {
        check(b".\r\n", b"", Scan::End);
        check(b"a\r\n.\r\n", b"a\r\n", Scan::End);
        check(b"..\r\n...x\r\n.\r\n", b".\r\n..x\r\n", Scan::End);
        check(b".a\r\n.\r\n", b"a\r\n", Scan::End);
        check(b"a\r\n", b"a\r\n", Scan::More);
    }

    #[test]
    fn no_bare_cr_or_lf_ends_or_passes() {
        for bad in [
            &b"a\n.\n"[..],
            b"a\n.\r\n",
            b"a\r.\r",
            b"a\r\n.\nb",
            b"a\r\n.\r.\r\n",
            b"a\r\r\n.\r\n",
            b"\n",
            b"\r\r\n",
        ] {
            for pieces in [1, 2, bad.len()] {
                assert_eq!(scan(bad, pieces).1, Scan::Bare, "{:?}", bad.escape_ascii());
            }
        }
    }

    #[test]
    fn received_fields_are_counted_in_the_header_only() {
        let (mut scanner, mut out) = (Scanner::default(), BytesMut::new());
        let input = b"RECEIVED: a\r\n b\r\nReceived : no\r\nreceived: c\r\n\r\nReceived: body\r\n.\r\n";
        for piece in input.chunks(4) {
            scanner.scan(piece, &mut out);
        }
        assert_eq!(scanner.received(), 2);
    }
}
