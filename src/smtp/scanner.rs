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
use memchr::{memchr, memchr2};

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
    nul: bool,
    header: HeaderWatch,
}

impl Scanner {
    /// Scans `input`, appends unstuffed content to `out`, and returns how much of the input it took.
    ///
    /// Whole runs of lines are copied at once: only a stuffed dot, a CR at the end of the input and the end of data
    /// cut a run.
    pub fn scan(&mut self, input: &[u8], out: &mut BytesMut) -> (usize, Scan) {
        let (used, scan) = self.scan_lines(input, out);
        self.nul = self.nul || memchr(0, &input[..used]).is_some();
        (used, scan)
    }

    fn scan_lines(&mut self, input: &[u8], out: &mut BytesMut) -> (usize, Scan) {
        // `input[run..at]` is content that is not in `out` yet.
        let (mut run, mut at) = (0, 0);
        while at < input.len() {
            match (self.state, input[at]) {
                (State::LineStart, b'.') => {
                    out.extend_from_slice(&input[run..at]);
                    at += 1;
                    (self.state, run) = (State::Dot, at);
                }
                (State::Dot, b'\r') => {
                    at += 1;
                    (self.state, run) = (State::DotCr, at);
                }
                (State::DotCr, b'\n') => return (at + 1, Scan::End),
                (State::Cr, b'\n') => {
                    out.extend_from_slice(b"\r\n");
                    self.end_line();
                    at += 1;
                    run = at;
                }
                (State::Cr | State::DotCr, _) => return (at, Scan::Bare),
                (State::LineStart | State::Dot | State::InLine, _) => {
                    let rest = &input[at..];
                    let end = memchr2(b'\r', b'\n', rest);
                    self.text(&rest[..end.unwrap_or(rest.len())]);
                    at += end.unwrap_or(rest.len());
                    match &input[at..] {
                        [] => {}
                        [b'\r', b'\n', ..] => {
                            at += 2;
                            self.end_line();
                        }
                        [b'\r'] => {
                            out.extend_from_slice(&input[run..at]);
                            at += 1;
                            (self.state, run) = (State::Cr, at);
                        }
                        _ => return (at, Scan::Bare),
                    }
                }
            }
        }
        out.extend_from_slice(&input[run..at]);
        (at, Scan::More)
    }

    /// Some of the text of a line.
    fn text(&mut self, text: &[u8]) {
        self.header.text(self.line, text);
        self.line += text.len();
        self.state = State::InLine;
    }

    fn end_line(&mut self) {
        self.header.end_line(self.line);
        self.longest = self.longest.max(self.line);
        self.line = 0;
        self.state = State::LineStart;
    }

    /// Whether a line was longer than [`TEXT_LINE_MAX`].
    pub fn has_long_line(&self) -> bool {
        self.longest.max(self.line) > TEXT_LINE_MAX
    }

    /// Whether a NUL came: no text has one (RFC 5322 section 4 takes it out of the obsolete syntax too), and hosts that
    /// end a line there, or drop it, would read another message.
    pub fn has_nul(&self) -> bool {
        self.nul
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
        check(b"a\r\n\r\nb\r\n.c\r\nd\r\n..\r\n.\r\n", b"a\r\n\r\nb\r\nc\r\nd\r\n.\r\n", Scan::End);
    }

    #[test]
    fn no_bare_cr_or_lf_ends_or_passes() {
        for bad in [
            b"a\n.\n".as_slice(),
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
    fn a_nul_is_seen_wherever_it_is_but_not_behind_the_end_of_data() {
        for (input, expected) in [
            (b"a\0b\r\n.\r\n".as_slice(), true),
            (b"\0\r\n.\r\n", true),
            (b".\0\r\n.\r\n", true),
            (b"a\r\n.\r\n\0", false),
            (b"0\x01\x7f\r\n.\r\n", false),
        ] {
            for pieces in [1, 2, input.len()] {
                let (mut scanner, mut out) = (Scanner::default(), BytesMut::new());
                let ended = |(_, scan)| scan == Scan::End;
                let _ = input.chunks(pieces).any(|piece| ended(scanner.scan(piece, &mut out)));
                assert_eq!(scanner.has_nul(), expected, "{:?} by {pieces}", input.escape_ascii());
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
