//! The name servers, behind a trait of two questions. The only file of the relay that names hickory
//! (beside the name server for demos and tests).
//!
//! Hickory starts its I/O tasks on the runtime that happens to ask, and keeps its connections for whoever asks next.
//! The relay has many runtimes, one per arbiter: a connection that was opened on one of them would stop when that
//! arbiter is busy, and die when it ends. So the look-ups run on a thread of their own, with one cache for everybody;
//! any runtime may ask, and a clone is the same resolver. The thread ends with the last clone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::clock::SharedClock;
use crate::config::DnsConfig;
use crate::smtp::address::Domain;

use super::cache::{Failures, Last};
use super::mx::MxRecord;

/// Look-ups under way at once. Each holds up to four sockets per server when the servers are silent.
const LOOKUPS: usize = 128;
/// Those of them that may be for names whose last look-up failed, so that dead zones leave room for the others (P5).
const SUSPECT_LOOKUPS: usize = 32;
/// How long a failed look-up is not tried again.
const FAILURE_LASTS: Duration = Duration::from_secs(20);
/// Failed look-ups that are remembered.
const FAILURES_MAX: usize = 8192;
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
pub struct HickoryResolver(Arc<Shared>);

struct Shared {
    client: TokioResolver,
    home: Home,
    whole_timeout: Duration,
    lookups: Arc<Semaphore>,
    suspects: Arc<Semaphore>,
    failures: Mutex<Failures>,
    clock: SharedClock,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HickoryResolver").finish_non_exhaustive()
    }
}

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
        Ok(Self(Arc::new(Shared {
            client: builder.build().map_err(ResolverError::Build)?,
            home: Home::start().map_err(ResolverError::Thread)?,
            whole_timeout: config.timeout * WHOLE_TIMEOUTS,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            suspects: Arc::new(Semaphore::new(SUSPECT_LOOKUPS)),
            failures: Mutex::new(Failures::new(FAILURE_LASTS, FAILURES_MAX)),
            clock,
        })))
    }
}

impl Resolve for HickoryResolver {
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>> {
        Box::pin(async move {
            let found = self.0.ask(domain.as_str(), RecordType::MX).await?;
            Ok(found.iter().flat_map(Lookup::answers).filter_map(|record| mx_record(&record.data)).collect())
        })
    }

    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>> {
        Box::pin(async move {
            let (a, aaaa) = tokio::join!(self.0.ask(host, RecordType::A), self.0.ask(host, RecordType::AAAA));
            merge(a.map(|found| addresses_of(found.as_ref())), aaaa.map(|found| addresses_of(found.as_ref())))
        })
    }
}

impl Shared {
    /// One question. `None`: the name exists, but not with this type.
    async fn ask(&self, name: &str, kind: RecordType) -> Result<Option<Lookup>, DnsFailure> {
        let Some(fqdn) = complete_name(name) else { return Err(DnsFailure::NoSuchDomain) };
        let question = format!("{kind} {name}");
        let permits = self.admit(&question).await?;
        // Others may have asked the same while this waited.
        self.check(&question)?;
        let client = self.client.clone();
        let limit = self.whole_timeout;
        let lookup = self.home.handle.spawn(async move {
            let found = tokio::time::timeout(limit, Box::pin(client.lookup(fqdn, kind))).await;
            drop(permits);
            found
        });
        let found = match lookup.await {
            Ok(Ok(found)) => read(found),
            Ok(Err(_)) => Err(Some("no answer in time".to_owned())),
            Err(_) => Err(Some("the DNS thread has ended".to_owned())),
        };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Err(Some(why)) => {
                let text = format!("{question}: {why}");
                failures.failed(question, text.clone(), self.clock.instant());
                Err(DnsFailure::Temporary(text))
            }
            Err(None) => {
                failures.answered(&question);
                Err(DnsFailure::NoSuchDomain)
            }
            Ok(found) => {
                failures.answered(&question);
                Ok(found)
            }
        }
    }

    /// Waits for a place; a name that failed lately is refused at once, one that failed before waits for its lane too.
    async fn admit(
        &self,
        question: &str,
    ) -> Result<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>), DnsFailure> {
        let closed = |_| DnsFailure::Temporary("the resolver is closed".to_owned());
        let lane = if self.check(question)? {
            Some(self.suspects.clone().acquire_owned().await.map_err(closed)?)
        } else {
            None
        };
        Ok((self.lookups.clone().acquire_owned().await.map_err(closed)?, lane))
    }

    /// Whether the question is suspect; an error when it failed lately.
    fn check(&self, question: &str) -> Result<bool, DnsFailure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.last(question, self.clock.instant()) {
            Last::Good => Ok(false),
            Last::Suspect => Ok(true),
            Last::Failed(text) => Err(DnsFailure::Temporary(text)),
        }
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

/// What an answer of hickory means: `Err(None)` is NXDOMAIN, `Err(Some(_))` a failure and its reason.
fn read(found: Result<Lookup, NetError>) -> Result<Option<Lookup>, Option<String>> {
    let (code, referral) = match found {
        Ok(lookup) => return Ok(Some(lookup)),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            (none.response_code, none.ns.is_some() && none.soa.is_none())
        }
        // With validation a proved denial comes in this form.
        Err(NetError::Dns(DnsError::Nsec { response, .. })) => (response.response_code, false),
        Err(error) => return Err(Some(reason(&error))),
    };
    match code {
        ResponseCode::NXDomain => Err(None),
        // An empty answer that points elsewhere says nothing about the name: it must not bounce mail.
        ResponseCode::NoError if referral => {
            Err(Some("a referral, the name server does not recurse".to_owned()))
        }
        ResponseCode::NoError => Ok(None),
        other => Err(Some(code_word(other))),
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

fn mx_record(data: &RData) -> Option<MxRecord> {
    let RData::MX(mx) = data else { return None };
    let mut exchange = mx.exchange.to_ascii();
    exchange.make_ascii_lowercase();
    if exchange.len() > 1 && exchange.ends_with('.') {
        exchange.pop();
    }
    Some(MxRecord { preference: mx.preference, exchange })
}

/// The addresses among the answers; hickory leaves the CNAMEs that led there in.
fn addresses_of(found: Option<&Lookup>) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    found.into_iter().flat_map(Lookup::answers).filter_map(|record| address(&record.data)).collect()
}

/// A and AAAA together: what was found counts; without any, a failure of one hides what it might have held.
fn merge(
    a: Result<Vec<IpAddr>, DnsFailure>,
    aaaa: Result<Vec<IpAddr>, DnsFailure>,
) -> Result<Vec<IpAddr>, DnsFailure> {
    match (a, aaaa) {
        (Ok(mut all), Ok(more)) => {
            all.extend(more);
            Ok(all)
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
        (Err(DnsFailure::Temporary(why)), _) | (_, Err(DnsFailure::Temporary(why))) => {
            Err(DnsFailure::Temporary(why))
        }
        (Err(DnsFailure::NoSuchDomain), Err(DnsFailure::NoSuchDomain)) => Err(DnsFailure::NoSuchDomain),
        (Ok(found), Err(DnsFailure::NoSuchDomain)) | (Err(DnsFailure::NoSuchDomain), Ok(found)) => Ok(found),
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

    #[test]
    fn one_family_is_enough() {
        let found = || Ok(vec!["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let none = || Ok(vec![]);
        let gone = || Err(DnsFailure::NoSuchDomain);
        let broken = || Err(DnsFailure::Temporary("SERVFAIL".to_owned()));
        for (a, aaaa, expected) in [
            (found(), broken(), found()),
            (broken(), found(), found()),
            (found(), gone(), found()),
            (none(), broken(), broken()),
            (gone(), broken(), broken()),
            (none(), gone(), none()),
            (gone(), gone(), gone()),
            (none(), none(), none()),
        ] {
            assert_eq!(merge(a, aaaa), expected);
        }
    }
}
