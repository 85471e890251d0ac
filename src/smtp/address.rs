//! Addresses: domains, mailboxes and paths (RFC 5321 section 4.1.2), kept as the client wrote them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Longest domain in octets (RFC 5321 section 4.5.3.1.2).
pub const DOMAIN_MAX: usize = 255;
/// Longest path in octets, brackets included (RFC 5321 section 4.5.3.1.3). It bounds the local part too: section
/// 4.5.3.1.1 asks for 64 octets at least, and bounce addresses that carry a recipient are often longer.
pub const PATH_MAX: usize = 256;

/// Why a text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `<local-part@domain>`.
    #[error("the address must have the form <local-part@domain>")]
    Syntax,
    /// The local part has bad characters or dots.
    #[error("the local part has a character that needs quotes, or a misplaced dot")]
    LocalPart,
    /// The domain is no host name and no address literal.
    #[error("the domain is neither a host name nor an address literal")]
    Domain,
    /// Something is longer than RFC 5321 section 4.5.3.1 allows.
    #[error("the address is too long")]
    TooLong,
    /// Letters outside ASCII need SMTPUTF8, which is not offered.
    #[error("addresses outside ASCII need SMTPUTF8, which is not offered here")]
    NotAscii,
}

/// A domain in lower-case A-labels without a final dot, or an address literal in brackets. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Reads a domain name or an address literal; U-labels become A-labels (RFC 5891).
    ///
    /// # Errors
    /// [`AddressError::Domain`] or [`AddressError::TooLong`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if let Some(address) = parse_literal(text) {
            return Ok(Self::literal(address));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > DOMAIN_MAX {
            return Err(AddressError::TooLong);
        }
        if text.is_ascii() {
            return if is_host_name(text) {
                Ok(Self(text.to_ascii_lowercase().into()))
            } else {
                Err(AddressError::Domain)
            };
        }
        let ascii = idna::domain_to_ascii(text).map_err(|_| AddressError::Domain)?;
        if is_host_name(&ascii) { Ok(Self(ascii.into())) } else { Err(AddressError::Domain) }
    }

    /// The literal of an address (RFC 5321 section 4.1.3).
    pub fn literal(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(format!("[{v4}]").into()),
            IpAddr::V6(v6) => Self(format!("[ipv6:{v6}]").into()),
        }
    }

    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address when it is a literal.
    pub fn address(&self) -> Option<IpAddr> {
        parse_literal(&self.0)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `local-part@domain`, verbatim (case, quotes and all). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    text: Arc<str>,
    domain: Domain,
}

impl Mailbox {
    /// Reads `local-part@domain` (RFC 5321 section 4.1.2, `Mailbox`).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if !text.is_ascii() {
            return Err(AddressError::NotAscii);
        }
        if text.len() > PATH_MAX - 2 {
            return Err(AddressError::TooLong);
        }
        let at = text.rfind('@').ok_or(AddressError::Syntax)?;
        check_local_part(&text[..at])?;
        if text.ends_with('.') {
            return Err(AddressError::Domain);
        }
        Ok(Self { text: text.into(), domain: Domain::parse(&text[at + 1..])? })
    }

    /// As the client wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part before the `@`, with quotes when it has them.
    pub fn local_part(&self) -> &str {
        self.text.rsplit_once('@').map_or("", |(local, _)| local)
    }

    /// The domain, normalised.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The argument of MAIL FROM. Displays with brackets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`: a report; never answered with another one.
    Null,
    /// `<mailbox>`.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Reads what stands between the brackets; empty is the null path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            Ok(Self::Null)
        } else {
            Mailbox::parse(strip_source_route(text)).map(Self::Mailbox)
        }
    }

    /// The text between the brackets.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Null => "",
            Self::Mailbox(mailbox) => mailbox.as_str(),
        }
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

impl fmt::Debug for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The argument of RCPT TO. Displays with brackets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ForwardPath(Mailbox);

impl ForwardPath {
    /// Reads what stands between the brackets; `postmaster` alone (RFC 5321 section 4.1.1.3) gets `own_domain`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, own_domain: &str) -> Result<Self, AddressError> {
        if text.eq_ignore_ascii_case("postmaster") {
            return Mailbox::parse(&format!("{text}@{own_domain}")).map(Self);
        }
        Mailbox::parse(strip_source_route(text)).map(Self)
    }

    /// A forward-path to a mailbox.
    pub fn new(mailbox: Mailbox) -> Self {
        Self(mailbox)
    }

    /// The mailbox.
    pub fn mailbox(&self) -> &Mailbox {
        &self.0
    }

    /// The text between the brackets.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The recipient domain, normalised.
    pub fn domain(&self) -> &Domain {
        &self.0.domain
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.0)
    }
}

impl fmt::Debug for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Drops `@one,@two:` in front: source routes are accepted and ignored (RFC 5321 section 3.6.1, appendix C).
fn strip_source_route(text: &str) -> &str {
    if !text.starts_with('@') {
        return text;
    }
    match text.split_once(':') {
        Some((route, mailbox))
            if route.split(',').all(|hop| hop.strip_prefix('@').is_some_and(is_host_name)) =>
        {
            mailbox
        }
        _ => text,
    }
}

fn parse_literal(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => inner.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Labels of letters, digits, hyphens and (seen in the wild) underscores, 63 octets each.
fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= DOMAIN_MAX
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

fn check_local_part(local: &str) -> Result<(), AddressError> {
    let good = match local.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').is_some_and(is_quoted_content),
        None => local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext)),
    };
    if good { Ok(()) } else { Err(AddressError::LocalPart) }
}

/// `QcontentSMTP`: printable, with `"` and `\` only after a backslash.
fn is_quoted_content(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'\\' => bytes.next().is_some_and(|escaped| (32..=126).contains(&escaped)),
            b'"' => false,
            other => (32..=126).contains(&other),
        };
        if !good {
            return false;
        }
    }
    true
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_are_kept_verbatim_and_domains_are_normalised() {
        let mailbox = Mailbox::parse("\"a b\"@Example.ORG").expect("good");
        assert_eq!(mailbox.as_str(), "\"a b\"@Example.ORG");
        assert_eq!(mailbox.domain().as_str(), "example.org");
        assert_eq!(mailbox.local_part(), "\"a b\"");
    }

    #[test]
    fn bad_mailboxes_are_refused_with_their_reason() {
        for (text, why) in [
            ("plain", AddressError::Syntax),
            ("a..b@example.org", AddressError::LocalPart),
            ("a b@example.org", AddressError::LocalPart),
            ("\"a\"b\"@example.org", AddressError::LocalPart),
            ("a@-bad.example", AddressError::Domain),
            ("a@[300.1.1.1]", AddressError::Domain),
            ("a@example.org.", AddressError::Domain),
            ("ü@example.org", AddressError::NotAscii),
        ] {
            assert_eq!(Mailbox::parse(text), Err(why), "{text}");
        }
        assert_eq!(Mailbox::parse(&format!("{}@example.org", "a".repeat(243))), Err(AddressError::TooLong));
        assert!(Mailbox::parse(&format!("{}@example.org", "a".repeat(242))).is_ok());
    }

    #[test]
    fn literals_are_domains() {
        let v6 = Domain::parse("[IPv6:::1]").expect("good");
        assert_eq!(v6.address(), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        assert_eq!(
            Domain::parse("[127.0.0.1]").expect("good").address(),
            Some(IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
        assert_eq!(Domain::parse("example.org").expect("good").address(), None);
    }

    #[test]
    fn u_labels_become_a_labels() {
        assert_eq!(Domain::parse("bücher.example").expect("good").as_str(), "xn--bcher-kva.example");
    }

    #[test]
    fn source_routes_are_ignored_and_postmaster_is_ours() {
        let path =
            ForwardPath::parse("@one.example,@two.example:joe@example.org", "relay.example").expect("good");
        assert_eq!(path.as_str(), "joe@example.org");
        let path = ForwardPath::parse("Postmaster", "relay.example").expect("good");
        assert_eq!(path.to_string(), "<Postmaster@relay.example>");
        assert_eq!(ReversePath::parse(""), Ok(ReversePath::Null));
    }
}
