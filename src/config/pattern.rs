//! Patterns over destinations: `example.org`, `*.example.org`, `*`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::smtp::address::Domain;

/// Which destinations a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DomainPattern {
    /// `*`: every destination.
    Any,
    /// `example.org`: this one.
    Exact(Domain),
    /// `*.example.org`: its subdomains, not itself.
    Subdomains(Domain),
}

impl DomainPattern {
    /// Whether the rule is for this destination.
    pub fn matches(&self, destination: &Domain) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(domain) => domain == destination,
            Self::Subdomains(parent) => destination
                .as_str()
                .strip_suffix(parent.as_str())
                .is_some_and(|head| head.len() > 1 && head.ends_with('.')),
        }
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let domain = |text: &str| {
            Domain::parse(text).map_err(|_| {
                format!("\"{text}\" is not a domain; write example.org, *.example.org (its subdomains) or *")
            })
        };
        match text.as_str() {
            "*" => Ok(Self::Any),
            text => match text.strip_prefix("*.") {
                Some(parent) => domain(parent).map(Self::Subdomains),
                None => domain(text).map(Self::Exact),
            },
        }
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(domain) => write!(f, "{domain}"),
            Self::Subdomains(parent) => write!(f, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_their_text_says() {
        for (pattern, domain, expected) in [
            ("*", "a.example", true),
            ("example.org", "example.org", true),
            ("example.org", "mx.example.org", false),
            ("*.example.org", "mx.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "badexample.org", false),
        ] {
            let pattern = DomainPattern::try_from(pattern.to_owned()).expect("good");
            assert_eq!(
                pattern.matches(&Domain::parse(domain).expect("good")),
                expected,
                "{pattern} {domain}"
            );
        }
    }
}
