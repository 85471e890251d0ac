//! What a server offers in its answer to EHLO (RFC 5321 section 4.1.1.1).

/// The extensions that this client makes use of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 1870: offered, with the limit in bytes; 0 is "no fixed limit".
    pub size: Option<u64>,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 4954 with RFC 4616.
    pub auth_plain: bool,
    /// The older mechanism that many servers still prefer.
    pub auth_login: bool,
}

impl Extensions {
    /// Reads the lines of an EHLO reply, without codes; the first line, the greeting, is skipped.
    pub fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut offered = Self::default();
        for line in lines.skip(1) {
            offered.add(line);
        }
        offered
    }

    fn add(&mut self, line: &str) {
        // "AUTH=LOGIN PLAIN" is how servers of the last century write it, beside the right line or instead of it.
        let mut words = line.split([' ', '=']).filter(|word| !word.is_empty());
        let Some(keyword) = words.next() else { return };
        let is = |name: &str| keyword.eq_ignore_ascii_case(name);
        if is("PIPELINING") {
            self.pipelining = true;
        } else if is("8BITMIME") {
            self.eight_bit_mime = true;
        } else if is("STARTTLS") {
            self.starttls = true;
        } else if is("SIZE") {
            self.size = Some(words.next().and_then(|number| number.parse().ok()).unwrap_or(0));
        } else if is("AUTH") {
            for mechanism in words {
                self.auth_plain |= mechanism.eq_ignore_ascii_case("PLAIN");
                self.auth_login |= mechanism.eq_ignore_ascii_case("LOGIN");
            }
        }
    }

    /// The announced limit when a message of `size` bytes is above it.
    pub fn size_exceeded(&self, size: u64) -> Option<u64> {
        self.size.filter(|limit| *limit > 0 && size > *limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], expected: Extensions) {
        assert_eq!(Extensions::parse(lines.iter().copied()), expected, "{lines:?}");
    }

    #[test]
    fn an_ehlo_reply_is_read_line_by_line() {
        let none = Extensions::default();
        check(&["mx.example greets you"], none);
        check(&["PIPELINING"], none);
        check(
            &["mx", "pipelining", "8BitMime"],
            Extensions { pipelining: true, eight_bit_mime: true, ..none },
        );
        check(&["mx", "SIZE 1000", "STARTTLS"], Extensions { size: Some(1000), starttls: true, ..none });
        check(&["mx", "SIZE"], Extensions { size: Some(0), ..none });
        check(&["mx", "SIZE many"], Extensions { size: Some(0), ..none });
        check(&["mx", "AUTH LOGIN plain"], Extensions { auth_plain: true, auth_login: true, ..none });
        check(&["mx", "AUTH=LOGIN"], Extensions { auth_login: true, ..none });
        check(&["mx", "XPIPELINING", "", "HELP"], none);
    }

    #[test]
    fn a_limit_of_zero_is_no_limit() {
        for (size, message, expected) in
            [(None, 10, None), (Some(0), 10, None), (Some(10), 10, None), (Some(9), 10, Some(9))]
        {
            assert_eq!(Extensions { size, ..Extensions::default() }.size_exceeded(message), expected);
        }
    }
}
