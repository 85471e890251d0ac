//! Commands of a client (RFC 5321 section 4.1.1), parsed once into types.

use std::borrow::Cow;

use super::address::{AddressError, DOMAIN_MAX, ForwardPath, ReversePath};
use super::reply::EnhancedStatus;

/// What the content is declared as (RFC 6152).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyParam {
    /// `BODY=7BIT`, or no parameter.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// A command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `HELO name`
    Helo(String),
    /// `EHLO name`
    Ehlo(String),
    /// `MAIL FROM:<path> [SIZE=n] [BODY=…]`
    Mail {
        /// Where failures are reported to.
        path: ReversePath,
        /// SIZE, in bytes (RFC 1870).
        size: Option<u64>,
        /// BODY, when it was given.
        body: Option<BodyParam>,
    },
    /// `RCPT TO:<path>`
    Rcpt(ForwardPath),
    /// `DATA`
    Data,
    /// `RSET`
    Rset,
    /// `NOOP [text]`
    Noop,
    /// `QUIT`
    Quit,
    /// `VRFY text`
    Vrfy,
    /// `HELP [text]`
    Help,
}

/// Why a command line is refused. Becomes the reply `code status text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// The verb, for logs and metrics.
    pub command: &'static str,
    /// Reply code.
    pub code: u16,
    /// Enhanced status.
    pub status: EnhancedStatus,
    /// What to do instead.
    pub text: Cow<'static, str>,
}

/// Verbs that are known, from EXPN on only as not implemented (RFC 5321 section 4.2.4).
const VERBS: [&str; 19] = [
    "HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "HELP", "EXPN", "TURN", "ETRN",
    "SEND", "SOML", "SAML", "STARTTLS", "AUTH", "BDAT",
];
/// Longest parameter keyword that a reply repeats, in octets.
const KEYWORD_MAX: usize = 32;

fn error(
    command: &'static str,
    code: u16,
    detail: (u8, u16, u16),
    text: impl Into<Cow<'static, str>>,
) -> CommandError {
    CommandError {
        command,
        code,
        status: EnhancedStatus::new(detail.0, detail.1, detail.2),
        text: text.into(),
    }
}

impl Command {
    /// Reads a command line without its CRLF. `own_domain` completes `<postmaster>`.
    ///
    /// # Errors
    /// The reply that tells what is wrong with it.
    pub fn parse(line: &str, own_domain: &str) -> Result<Self, CommandError> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let Some(verb) = VERBS.into_iter().find(|verb| verb.eq_ignore_ascii_case(word)) else {
            return Err(error("unknown", 500, (5, 5, 2), "command not recognised; see HELP"));
        };
        let rest = rest.trim();
        match verb {
            "HELO" | "EHLO" if !is_client_name(rest) => {
                Err(error(verb, 501, (5, 5, 4), format!("give one name: {verb} client.example.org")))
            }
            "HELO" => Ok(Self::Helo(rest.to_owned())),
            "EHLO" => Ok(Self::Ehlo(rest.to_owned())),
            "MAIL" => mail(rest),
            "RCPT" => rcpt(rest, own_domain),
            "VRFY" if rest.is_empty() => {
                Err(error(verb, 501, (5, 5, 4), "give an address: VRFY <user@example.org>"))
            }
            "VRFY" => Ok(Self::Vrfy),
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "EXPN" | "TURN" | "ETRN" | "SEND" | "SOML" | "SAML" | "STARTTLS" | "AUTH" | "BDAT" => {
                Err(error(verb, 502, (5, 5, 1), "command not implemented"))
            }
            _ if !rest.is_empty() => Err(error(verb, 501, (5, 5, 4), format!("{verb} takes no parameter"))),
            "DATA" => Ok(Self::Data),
            "RSET" => Ok(Self::Rset),
            _ => Ok(Self::Quit),
        }
    }
}

fn mail(rest: &str) -> Result<Command, CommandError> {
    const HOW: &str = "write MAIL FROM:<user@example.org>";
    let (path, parameters) = bracketed(rest, "FROM:").ok_or_else(|| error("MAIL", 501, (5, 5, 4), HOW))?;
    let path = ReversePath::parse(path).map_err(|wrong| bad_address("MAIL", 7, wrong))?;
    let (mut size, mut body) = (None, None);
    for parameter in parameters.split_ascii_whitespace() {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let repeated = if key.eq_ignore_ascii_case("SIZE") {
            size.replace(parse_size(value)?).is_some()
        } else if key.eq_ignore_ascii_case("BODY") {
            body.replace(parse_body(value)?).is_some()
        } else {
            return Err(unknown_parameter("MAIL", key));
        };
        if repeated {
            let text = format!("{} is given twice", key.to_ascii_uppercase());
            return Err(error("MAIL", 501, (5, 5, 4), text));
        }
    }
    Ok(Command::Mail { path, size, body })
}

fn rcpt(rest: &str, own_domain: &str) -> Result<Command, CommandError> {
    const HOW: &str = "write RCPT TO:<user@example.org>";
    let (path, parameters) = bracketed(rest, "TO:").ok_or_else(|| error("RCPT", 501, (5, 5, 4), HOW))?;
    if let Some(parameter) = parameters.split_ascii_whitespace().next() {
        return Err(unknown_parameter("RCPT", parameter.split('=').next().unwrap_or(parameter)));
    }
    ForwardPath::parse(path, own_domain).map(Command::Rcpt).map_err(|wrong| bad_address("RCPT", 3, wrong))
}

/// 1–20 digits (RFC 1870 section 4); what is more than fits is more than any limit.
fn parse_size(value: &str) -> Result<u64, CommandError> {
    if (1..=20).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(value.parse().unwrap_or(u64::MAX))
    } else {
        Err(error("MAIL", 501, (5, 5, 4), "SIZE takes a number of bytes"))
    }
}

fn parse_body(value: &str) -> Result<BodyParam, CommandError> {
    if value.eq_ignore_ascii_case("7BIT") {
        Ok(BodyParam::SevenBit)
    } else if value.eq_ignore_ascii_case("8BITMIME") {
        Ok(BodyParam::EightBitMime)
    } else {
        Err(error("MAIL", 501, (5, 5, 4), "BODY is 7BIT or 8BITMIME"))
    }
}

/// One word of printable ASCII. Real clients call themselves all kinds of names, and nothing depends on it.
fn is_client_name(name: &str) -> bool {
    (1..=DOMAIN_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The keyword is repeated only when it is one (RFC 5321 section 4.1.2, `esmtp-keyword`): a reply is a short ASCII line
/// whatever the client sends.
fn unknown_parameter(command: &'static str, key: &str) -> CommandError {
    let is_keyword = (1..=KEYWORD_MAX).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let text = if is_keyword {
        Cow::Owned(format!("parameter {} is not offered here", key.to_ascii_uppercase()))
    } else {
        Cow::Borrowed("that parameter is not offered here")
    };
    error(command, 555, (5, 5, 4), text)
}

/// RFC 3463: X.1.3 is a bad destination syntax, X.1.7 a bad sender syntax.
fn bad_address(command: &'static str, detail: u16, wrong: AddressError) -> CommandError {
    match wrong {
        AddressError::NotAscii => error(command, 553, (5, 6, 7), wrong.to_string()),
        other => error(command, 501, (5, 1, detail), other.to_string()),
    }
}

/// Splits `KEYWORD <path> parameters` at the bracket that closes the path; brackets in quotes don't count. A blank
/// after the colon is not allowed by RFC 5321 but common.
fn bracketed<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = rest.get(..keyword.len())?;
    let inner = rest[keyword.len()..].trim_start().strip_prefix('<')?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                let after = &inner[at + 1..];
                return (after.is_empty() || after.starts_with(' ')).then_some((&inner[..at], after));
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<Command, (u16, &str)>) {
        let parsed =
            Command::parse(line, "relay.example").map_err(|error| (error.code, error.status.to_string()));
        assert_eq!(parsed, expected.map_err(|(code, status)| (code, status.to_owned())), "{line}");
    }

    #[test]
    fn good_lines_become_commands() {
        check("ehlo client.example", Ok(Command::Ehlo("client.example".to_owned())));
        check("DATA", Ok(Command::Data));
        check("noop whatever", Ok(Command::Noop));
        check(
            "MAIL FROM:<> SIZE=100 BODY=8BITMIME",
            Ok(Command::Mail {
                path: ReversePath::Null,
                size: Some(100),
                body: Some(BodyParam::EightBitMime),
            }),
        );
        let path = ForwardPath::parse("\"a>b\"@example.org", "").expect("good");
        check("rcpt to: <\"a>b\"@example.org>", Ok(Command::Rcpt(path)));
    }

    #[test]
    fn bad_lines_become_replies() {
        for (line, reply) in [
            ("", (500, "5.5.2")),
            ("EHLO", (501, "5.5.4")),
            ("EHLO a\tb", (501, "5.5.4")),
            ("EHLO ü.example", (501, "5.5.4")),
            ("DATA now", (501, "5.5.4")),
            ("MAIL FROM:user@example.org", (501, "5.5.4")),
            ("MAIL TO:<user@example.org>", (501, "5.5.4")),
            ("MAIL FROM:<user>", (501, "5.1.7")),
            ("MAIL FROM:<a@b.example>SIZE=1", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example> SIZE=x", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example> SIZE=+1", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example> SIZE=", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example> BODY=BINARYMIME", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example> AUTH=<>", (555, "5.5.4")),
            ("RCPT TO:<a@-b.example>", (501, "5.1.3")),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER", (555, "5.5.4")),
            ("EXPN list", (502, "5.5.1")),
        ] {
            check(line, Err(reply));
        }
    }
}
