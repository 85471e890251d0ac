//! Replies (RFC 5321 section 4.2) and enhanced status codes (RFC 3463).

use std::fmt;

/// A three-digit reply code between 200 and 599.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplyCode(u16);

impl ReplyCode {
    /// 421: the service closes the connection.
    pub const SERVICE_UNAVAILABLE: Self = Self(421);

    /// 451: a local error; try again later.
    pub const LOCAL_ERROR: Self = Self(451);

    /// A code from its number; `None` outside 200–599.
    pub const fn new(code: u16) -> Option<Self> {
        if code >= 200 && code <= 599 { Some(Self(code)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// 2yz: done.
    pub const fn is_positive(self) -> bool {
        self.0 < 300
    }

    /// 3yz: send more.
    pub const fn is_intermediate(self) -> bool {
        self.0 >= 300 && self.0 < 400
    }

    /// 4yz: try again later.
    pub const fn is_transient(self) -> bool {
        self.0 >= 400 && self.0 < 500
    }

    /// 5yz: do not try again.
    pub const fn is_permanent(self) -> bool {
        self.0 >= 500
    }
}

/// An enhanced status code `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedStatus {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0–999.
    pub subject: u16,
    /// 0–999.
    pub detail: u16,
}

impl EnhancedStatus {
    /// A status from its three numbers.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// Reads `class.subject.detail` from the start of a text and returns it with what follows the blank;
    /// `None` when the text does not start with one.
    pub fn split(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some((Self::parse(word)?, rest))
    }

    /// Reads exactly `class.subject.detail`.
    pub fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split('.');
        let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
        let number = |part: &str| {
            (matches!(part.len(), 1..=3) && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse::<u16>().ok())
                .flatten()
        };
        if parts.next().is_some() || !matches!(class, "2" | "4" | "5") {
            return None;
        }
        Some(Self::new(class.as_bytes()[0] - b'0', number(subject)?, number(detail)?))
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Debug for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A reply as a remote sent it: code, enhanced status when given, and its text with lines joined by blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code of its lines.
    pub code: ReplyCode,
    /// The enhanced status of its first line, if it has one of the code's class.
    pub enhanced: Option<EnhancedStatus>,
    /// The text without codes and enhanced status, lines joined by one blank, control characters replaced.
    pub text: String,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.get())?;
        if let Some(status) = self.enhanced {
            write!(f, " {status}")?;
        }
        if !self.text.is_empty() {
            write!(f, " {}", self.text)?;
        }
        Ok(())
    }
}
