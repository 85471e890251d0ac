//! One log line, as text or JSON, written straight into a string. What comes from outside is escaped.

use std::fmt::{self, Display, Write};

use crate::config::LogFormat;
use crate::mail::id::QueueId;

/// Longest value that comes from outside, in bytes; the rest is cut.
const VALUE_MAX: usize = 512;

/// Wall time in milliseconds since the Unix epoch as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub u64);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        write!(f, "{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
    }
}

/// A line that is being written: `id event key=value…`, or a JSON object.
///
/// Writing to a string can't fail, so the results of `write!` are dropped here, and only here.
pub(super) struct Line<'a> {
    out: &'a mut String,
    json: bool,
}

impl<'a> Line<'a> {
    /// Begins a line; without an id (nothing was accepted) it starts with `-`.
    pub(super) fn begin(
        out: &'a mut String,
        format: LogFormat,
        id: Option<QueueId>,
        event: &str,
        now_ms: u64,
    ) -> Self {
        out.clear();
        let json = format == LogFormat::Json;
        let _ = match (json, id) {
            (false, Some(id)) => write!(out, "{id} {event}"),
            (false, None) => write!(out, "- {event}"),
            (true, Some(id)) => write!(out, "{{\"id\":\"{id}\",\"event\":\"{event}\""),
            (true, None) => write!(out, "{{\"id\":null,\"event\":\"{event}\""),
        };
        let mut line = Self { out, json };
        line.word("time", Rfc3339(now_ms));
        line
    }

    /// Ends it.
    pub(super) fn end(self) {
        if self.json {
            self.out.push('}');
        }
    }

    /// A number or boolean of ours.
    pub(super) fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    /// A word of ours: no blank, quote or control character.
    pub(super) fn word(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let _ = if self.json { write!(self.out, "\"{value}\"") } else { write!(self.out, "{value}") };
    }

    /// Seconds, from milliseconds.
    pub(super) fn seconds(&mut self, key: &str, ms: u64) {
        self.key(key);
        let unit = if self.json { "" } else { "s" };
        let _ = write!(self.out, "{}.{:03}{unit}", ms / 1000, ms % 1000);
    }

    /// Something from outside that usually is one plain word; in text it gets quotes only when it needs them.
    pub(super) fn value(&mut self, key: &str, value: impl Display) {
        if self.json {
            return self.quoted(key, value);
        }
        self.key(key);
        let start = self.out.len();
        let _ = write!(self.out, "{value}");
        let written = &self.out[start..];
        if written.is_empty() || written.len() > VALUE_MAX || !written.bytes().all(is_plain) {
            let raw = self.out.split_off(start);
            self.quote(raw);
        }
    }

    /// Something from outside, always in quotes.
    pub(super) fn quoted(&mut self, key: &str, value: impl Display) {
        self.key(key);
        self.quote(value);
    }

    /// An address: in brackets as text, bare in JSON.
    pub(super) fn path(&mut self, key: &str, address: &str) {
        if self.json { self.quoted(key, address) } else { self.value(key, format_args!("<{address}>")) }
    }

    /// A few addresses: a list in JSON, joined by commas as text.
    pub(super) fn paths<'p>(&mut self, key: &str, addresses: impl Iterator<Item = &'p str> + Clone) {
        if !self.json {
            return self.value(key, Joined(addresses));
        }
        self.key(key);
        for (index, address) in addresses.enumerate() {
            self.out.push(if index == 0 { '[' } else { ',' });
            self.quote(address);
        }
        self.out.push(']');
    }

    fn key(&mut self, key: &str) {
        let _ = if self.json { write!(self.out, ",\"{key}\":") } else { write!(self.out, " {key}=") };
    }

    fn quote(&mut self, value: impl Display) {
        self.out.push('"');
        // An error only means that the value was cut.
        if write!(Escaped { out: self.out, left: VALUE_MAX }, "{value}").is_err() {
            self.out.push('…');
        }
        self.out.push('"');
    }
}

struct Joined<I>(I);

impl<'p, I: Iterator<Item = &'p str> + Clone> Display for Joined<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.0.clone().enumerate() {
            write!(f, "{}<{address}>", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Printable ASCII without blank, quote and backslash.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'
}

/// Escapes what goes between quotes so that it is valid in JSON, can't end the line or the quotes, and can't steer a
/// terminal. Fails when more than `left` bytes come.
struct Escaped<'a> {
    out: &'a mut String,
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            self.left = self.left.checked_sub(char.len_utf8()).ok_or(fmt::Error)?;
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                char if char.is_control() || is_deceptive(char) => {
                    write!(self.out, "\\u{:04x}", u32::from(char))?;
                }
                char => self.out.push(char),
            }
        }
        Ok(())
    }
}

/// Line separators and marks that turn the direction of what follows: they make a line read as another one.
fn is_deceptive(char: char) -> bool {
    matches!(char, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(value: &str, text: &str, json: &str) {
        let mut out = String::new();
        for (format, expected) in [(LogFormat::Text, text), (LogFormat::Json, json)] {
            let mut line = Line::begin(&mut out, format, None, "refused", 0);
            line.value("helo", value);
            line.end();
            assert!(out.ends_with(expected), "{out} should end with {expected}");
            if format == LogFormat::Json {
                let parsed: serde_json::Value = serde_json::from_str(&out).unwrap();
                assert_eq!(parsed["helo"], value);
            }
        }
    }

    #[test]
    fn nothing_from_outside_breaks_a_line_or_forges_a_field() {
        check("plain.example", " helo=plain.example", ",\"helo\":\"plain.example\"}");
        check("", " helo=\"\"", ",\"helo\":\"\"}");
        check("a status=2.0.0", " helo=\"a status=2.0.0\"", "\"a status=2.0.0\"}");
        check("a\r\nfake", r#" helo="a\r\nfake""#, r#""a\r\nfake"}"#);
        check("\"\\", r#" helo="\"\\""#, r#""\"\\"}"#);
        check("\x1b[31m", r#" helo="\u001b[31m""#, r#""\u001b[31m"}"#);
        check("a\u{202e}b\u{85}", r#" helo="a\u202eb\u0085""#, r#""a\u202eb\u0085"}"#);
        check("grüße", " helo=\"grüße\"", "\"grüße\"}");
    }

    #[test]
    fn long_values_are_cut() {
        let mut out = String::new();
        let mut line = Line::begin(&mut out, LogFormat::Text, None, "refused", 0);
        line.quoted("reply", "x".repeat(10_000));
        line.end();
        assert!(out.len() < 600 && out.ends_with("x…\""), "{out}");
    }

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        assert_eq!(Rfc3339(1_700_000_000_042).to_string(), "2023-11-14T22:13:20.042Z");
        assert_eq!(Rfc3339(0).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
