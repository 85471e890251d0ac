//! What the server says.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::BytesMut;

use super::super::reply::{EnhancedStatus, ReplyCode};

/// A reply that a verdict carries: `code status text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 4yz or 5yz.
    pub code: ReplyCode,
    /// Of the code's class.
    pub status: EnhancedStatus,
    /// Plain words for the client's operator: what to do.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal from its parts; a code outside 400–599 becomes 451.
    pub fn new(
        code: u16,
        (class, subject, detail): (u8, u16, u16),
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        let code = ReplyCode::new(code).filter(|code| code.get() >= 400).unwrap_or(ReplyCode::LOCAL_ERROR);
        Self { code, status: EnhancedStatus::new(class, subject, detail), text: text.into() }
    }
}

/// Writes one reply line. The text may come from a hook or repeat what the client said, so it is made safe: nothing in
/// it can begin a line of its own.
pub(super) fn line(out: &mut BytesMut, code: u16, status: Option<EnhancedStatus>, text: &str) {
    let text = printable(text);
    // Writing to a BytesMut can't fail.
    let _ = match status {
        Some(status) => write!(out, "{code} {status} {text}\r\n"),
        None => write!(out, "{code} {text}\r\n"),
    };
}

fn printable(text: &str) -> Cow<'_, str> {
    let good = |char: char| matches!(char, ' '..='~');
    if text.chars().all(good) { text.into() } else { text.replace(|char| !good(char), "?").into() }
}

/// Writes a reply of several lines of printable ASCII.
pub(super) fn lines(out: &mut BytesMut, code: u16, texts: &[&str]) {
    for (index, text) in texts.iter().enumerate() {
        let separator = if index + 1 == texts.len() { ' ' } else { '-' };
        let _ = write!(out, "{code}{separator}{text}\r\n");
    }
}
