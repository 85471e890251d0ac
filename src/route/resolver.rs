//! The name servers, behind a trait of two questions. The only file that names hickory.

use std::net::IpAddr;

use futures_util::future::BoxFuture;

use crate::clock::SharedClock;
use crate::config::DnsConfig;
use crate::smtp::address::Domain;

use super::mx::MxRecord;

/// Answers the two questions that routing asks.
pub trait Resolve: Send + Sync + std::fmt::Debug + 'static {
    /// The MX records of a domain, in no order; empty when the domain exists and has none.
    ///
    /// # Errors
    /// [`DnsFailure`].
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>>;

    /// The A and AAAA records of a host; empty when the name exists and has neither.
    ///
    /// # Errors
    /// [`DnsFailure`].
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsFailure {
    /// The name does not exist (NXDOMAIN), or can't: no answer will ever differ.
    #[error("no such domain")]
    NoSuchDomain,
    /// The name servers failed, refused, or were silent; the text says which.
    #[error("{0}")]
    Temporary(String),
}

/// Why the resolver can't be built.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's list of name servers can't be read.
    #[error("the system's resolv.conf can't be used ({0}): correct it, or set dns.servers")]
    System(String),
    /// Hickory refuses the options.
    #[error("the DNS resolver can't be built: {0}")]
    Build(String),
}

/// The name servers of the configuration or of the system.
#[derive(Clone, Debug)]
pub struct HickoryResolver;

impl HickoryResolver {
    /// A resolver of the configured servers, or of the system's when there are none.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub fn new(_config: &DnsConfig, _clock: SharedClock) -> Result<Self, ResolverError> {
        Err(ResolverError::Build("in work".to_owned()))
    }
}
