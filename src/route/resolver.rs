//! The name servers, behind a trait of two questions. The only file of the relay that names hickory
//! (beside the name server for demos and tests).
//!
//! Hickory starts its I/O tasks on the runtime that happens to ask, and keeps its connections for whoever asks next.
//! The relay has many runtimes, one per arbiter: a connection that was opened on one of them would stop when that
//! arbiter is busy, and die when it ends. So the look-ups run on a thread of their own, with one cache for everybody;
//! any runtime may ask, and a clone is the same resolver. The thread ends with the last clone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::SharedClock;
use crate::config::DnsConfig;
use crate::smtp::address::Domain;

use super::bounded::{Ask, Bounded, Kind, LOOKUPS, NoAnswer, Place, Record};
use super::mx::MxRecord;

/// Answers that are cached.
const CACHE_SIZE: u64 = 16_384;
/// An answer without records is believed at least this long, whatever its zone says.
const NEGATIVE_MIN_TTL: Duration = Duration::from_secs(5);
/// And at most this long: mail for a domain that has just been set up should not bounce for a day.
const NEGATIVE_MAX_TTL: Duration = Duration::from_secs(15 * 60);
/// A look-up with its second try and its chain of CNAMEs ends after this many times `dns.timeout`.
const WHOLE_TIMEOUTS: u32 = 4;

/// Answers the two questions that routing asks.
pub trait Resolve: Send + Sync + fmt::Debug + 'static {
    /// The MX records of a domain, in no order; empty when the domain exists and has none.
    ///
    /// # Errors
    /// [`DnsFailure`].
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>>;

    /// The A and AAAA records of a host; empty when the name exists and has neither.
    ///
    /// # Errors
    /// [`DnsFailure`]; not when one of the two look-ups fails and the other finds something.
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsFailure {
    /// The name does not exist (NXDOMAIN), or can't exist.
    #[error("no such domain")]
    NoSuchDomain,
    /// The name servers failed, refused, or were silent; the text says what was asked and what happened.
    #[error("{0}")]
    Temporary(String),
}

/// Why the resolver can't be built.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's list of name servers can't be read.
    #[error("the system's resolv.conf can't be used ({0}): correct it, or set dns.servers")]
    System(NetError),
    /// Hickory refuses the options.
    #[error("the DNS resolver can't be built: {0}")]
    Build(NetError),
    /// No thread or no runtime for it.
    #[error("the DNS thread can't be started: {0}")]
    Thread(std::io::Error),
}

/// The name servers of the configuration or of the system. Cheap to clone; clones share caches and limits.
///
/// Names are always taken as complete: search domains and `ndots` of resolv.conf don't apply, nor does the hosts file.
#[derive(Clone, Debug)]
pub struct HickoryResolver(Bounded<Hickory>);

impl HickoryResolver {
    /// A resolver of the configured servers, or of the system's when there are none.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub fn new(config: &DnsConfig, clock: SharedClock) -> Result<Self, ResolverError> {
        let servers = name_servers(config)?;
        let remote = servers.iter().any(|server| !server.ip.is_loopback());
        let mut builder = TokioResolver::builder_with_config(
            ResolverConfig::from_name_servers(servers),
            TokioRuntimeProvider::default(),
        );
        set_options(builder.options_mut(), config, remote);
        let hickory = Hickory {
            client: builder.build().map_err(ResolverError::Build)?,
            home: Home::start().map_err(ResolverError::Thread)?,
            whole_timeout: config.timeout * WHOLE_TIMEOUTS,
        };
        Ok(Self(Bounded::new(hickory, clock)))
    }
}

impl Resolve for HickoryResolver {
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>> {
        self.0.mx(domain)
    }

    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>> {
        self.0.addresses(host)
    }
}

/// Asks by hickory, on the thread that is its home.
struct Hickory {
    client: TokioResolver,
    home: Home,
    whole_timeout: Duration,
}

impl fmt::Debug for Hickory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hickory").finish_non_exhaustive()
    }
}

impl Ask for Hickory {
    fn ask<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<Record>, NoAnswer>> {
        Box::pin(async move {
            let Some(fqdn) = complete_name(name) else { return Err(NoAnswer::NoSuchDomain) };
            let (client, limit) = (self.client.clone(), self.whole_timeout);
            let lookup = self.home.handle.spawn(async move {
                let found =
                    tokio::time::timeout(limit, Box::pin(client.lookup(fqdn, record_type(kind)))).await;
                // It goes on though nobody waits for it any more, and so it keeps its place.
                drop(place);
                found
            });
            match lookup.await {
                Ok(Ok(found)) => read(found),
                Ok(Err(_)) => Err(NoAnswer::Failed("no answer in time".to_owned())),
                Err(_) => Err(NoAnswer::Failed("the DNS thread has ended".to_owned())),
            }
        })
    }
}

fn record_type(kind: Kind) -> RecordType {
    match kind {
        Kind::Mx => RecordType::MX,
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::AAAA,
    }
}

/// The thread that looks up, and its end.
struct Home {
    handle: Handle,
    /// Dropped with the last clone of the resolver: the thread sees it and ends.
    _open: oneshot::Sender<()>,
}

impl Home {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel();
        // The runtime is dropped by its own thread: dropping it inside another runtime would panic.
        std::thread::Builder::new().name("dns".to_owned()).spawn(move || runtime.block_on(closed).ok())?;
        Ok(Self { handle, _open: open })
    }
}

fn name_servers(config: &DnsConfig) -> Result<Vec<NameServerConfig>, ResolverError> {
    if config.servers.is_empty() {
        let (system, _) = hickory_resolver::system_conf::read_system_conf().map_err(ResolverError::System)?;
        return Ok(system.name_servers().to_vec());
    }
    Ok(config.servers.iter().copied().map(name_server).collect())
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.to_vec())
}

fn set_options(options: &mut ResolverOpts, config: &DnsConfig, remote: bool) {
    options.timeout = config.timeout;
    // Hickory counts what follows the first try.
    options.attempts = 1;
    options.validate = config.validate;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE_SIZE;
    options.negative_min_ttl = Some(NEGATIVE_MIN_TTL);
    options.negative_max_ttl = Some(NEGATIVE_MAX_TTL);
    options.max_active_requests = 2 * LOOKUPS;
    // 0x20 makes answers hard to forge. Over loopback there is nobody to forge them, and stub resolvers may not echo.
    options.case_randomization = remote;
}

/// The name with its final dot, so that no search domain is ever appended; `None` when DNS can't hold it.
fn complete_name(name: &str) -> Option<Name> {
    if name.is_empty() {
        return None;
    }
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// What an answer of hickory means; no records: the name exists, but not with this type.
fn read(found: Result<Lookup, NetError>) -> Result<Vec<Record>, NoAnswer> {
    let (code, referral) = match found {
        Ok(lookup) => return Ok(lookup.answers().iter().filter_map(|answer| record(&answer.data)).collect()),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            (none.response_code, none.ns.is_some() && none.soa.is_none())
        }
        // With validation a proved denial comes in this form.
        Err(NetError::Dns(DnsError::Nsec { response, .. })) => (response.response_code, false),
        Err(error) => return Err(NoAnswer::Failed(reason(&error))),
    };
    match code {
        ResponseCode::NXDomain => Err(NoAnswer::NoSuchDomain),
        // An empty answer that points elsewhere says nothing about the name: it must not bounce mail.
        ResponseCode::NoError if referral => {
            Err(NoAnswer::Failed("a referral, the name server does not recurse".to_owned()))
        }
        ResponseCode::NoError => Ok(Vec::new()),
        other => Err(NoAnswer::Failed(code_word(other))),
    }
}

fn reason(error: &NetError) -> String {
    match error {
        NetError::Timeout => "no answer in time".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => code_word(*code),
        NetError::Dns(DnsError::DnssecBogus) => "the DNSSEC signatures are wrong".to_owned(),
        other => other.to_string(),
    }
}

fn code_word(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "the name server failed (SERVFAIL)".to_owned(),
        ResponseCode::Refused => "the name server refused (REFUSED)".to_owned(),
        other => format!("the name server answered {other:?}"),
    }
}

/// One record of an answer; hickory leaves the CNAMEs that led there in.
fn record(data: &RData) -> Option<Record> {
    match data {
        RData::MX(mx) => {
            let mut exchange = mx.exchange.to_ascii();
            exchange.make_ascii_lowercase();
            if exchange.len() > 1 && exchange.ends_with('.') {
                exchange.pop();
            }
            Some(Record::Mx(MxRecord { preference: mx.preference, exchange }))
        }
        RData::A(a) => Some(Record::Address(IpAddr::V4(a.0))),
        RData::AAAA(aaaa) => Some(Record::Address(IpAddr::V6(aaaa.0))),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_dns_cannot_hold_do_not_exist() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = vec!["abcdefg"; 40].join(".");
        for bad in ["", "a..b", long_label.as_str(), long_name.as_str(), "bücher.example"] {
            assert_eq!(complete_name(bad), None, "{bad}");
        }
        assert!(complete_name("_dmarc.example.org").unwrap().is_fqdn());
    }
}
