//! What a start works out from the configuration and the machine before the first actor lives.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::{StartError, system};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::route::plan::PlanSettings;
use crate::route::resolver::{HickoryResolver, Resolve};
use crate::route::table::RouteTable;

/// File descriptors for everything that is no connection: spool, content files, log, HTTP, DNS.
const OTHER_FILES: u64 = 256;
/// What a relay without connections has open, and what each thread of actors adds.
const FILES_AT_LEAST: u64 = 48;
const FILES_PER_THREAD: u64 = 8;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Limits and routes.
pub(super) struct Plan {
    pub routes: RouteTable,
    /// Sessions at once.
    pub sessions: usize,
    /// Outbound connections at once.
    pub connections: usize,
}

impl Plan {
    pub fn make(config: &Config) -> Result<Self, StartError> {
        let routes = RouteTable::build(config).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            StartError::Config(lines.join("\n"))
        })?;
        let files = enough_files(config)?;
        let (sessions, connections) =
            share(files, config.limits.sessions as u64, config.delivery.connections as u64);
        if sessions < config.limits.sessions || connections < config.delivery.connections {
            tracing::warn!(
                sessions,
                connections,
                "the limit on open files is too low for limits.sessions and delivery.connections: both are lowered; \
                 raise the limit (ulimit -n, LimitNOFILE=) to get them"
            );
        }
        Ok(Self { routes, sessions, connections })
    }
}

/// The relay's view of DNS.
pub(super) fn resolver(config: &Config, clock: SharedClock) -> Result<Arc<dyn Resolve>, StartError> {
    let resolver = HickoryResolver::new(&config.dns, clock);
    Ok(Arc::new(resolver.map_err(|error| StartError::Config(error.to_string()))?))
}

/// What routing needs to know of the relay; `own` are its listeners.
pub(super) fn targets(config: &Config, own: &[SocketAddr], hostname: &str) -> PlanSettings {
    PlanSettings {
        port: config.delivery.port,
        own: own.to_vec(),
        hostname: hostname.to_owned(),
        addresses: config.delivery.addresses_per_attempt,
    }
}

/// The listening sockets.
pub(super) struct Sockets {
    pub smtp: Vec<TcpListener>,
    pub http: TcpListener,
}

impl Sockets {
    /// Binds before the spool is opened: a second relay fails at the port, and clients wait in the backlog.
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        let all = config.listener_addresses();
        let smtp = all.iter().map(|address| bind(*address, &all)).collect::<Result<_, _>>()?;
        Ok(Self { smtp, http: bind(config.http.address, &[])? })
    }

    pub fn smtp_addresses(&self) -> Result<Vec<SocketAddr>, StartError> {
        let addresses = self.smtp.iter().map(TcpListener::local_addr).collect::<Result<_, _>>();
        addresses.map_err(system("can't tell the listening address"))
    }

    pub fn http_address(&self) -> Result<SocketAddr, StartError> {
        self.http.local_addr().map_err(system("can't tell the listening address"))
    }
}

/// Which addresses could not be listened on now, by key, and why. Each is taken for a moment and let go; nobody can
/// connect meanwhile.
pub fn unavailable(config: &Config) -> Vec<(String, StartError)> {
    let all = config.listener_addresses();
    let listeners =
        all.iter().enumerate().map(|(number, address)| (format!("listener.{number}.address"), *address));
    let http = ("http.address".to_owned(), config.http.address);
    listeners
        .chain([http])
        .filter_map(|(key, address)| {
            let source = reserve(address, &all).err()?;
            Some((key, not_listening(address, source)))
        })
        .collect()
}

fn bind(address: SocketAddr, all: &[SocketAddr]) -> Result<TcpListener, StartError> {
    listen(address, all).map_err(|source| not_listening(address, source))
}

fn not_listening(address: SocketAddr, source: std::io::Error) -> StartError {
    StartError::Listen {
        address,
        remedy: match source.kind() {
            std::io::ErrorKind::AddrInUse => "another program has it: stop that one, or choose another port",
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE or root; choose another port, or redirect one"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "the address is not one of this machine: choose one that is"
            }
            _ => "choose another address",
        },
        source,
    }
}

/// Metrics whose destination labels are the configured patterns and the busiest destinations.
///
/// # Errors
/// A metric can't be registered: a bug.
pub fn metrics(config: &Config) -> Result<Arc<Metrics>, StartError> {
    let patterns = config.routes.iter().flat_map(|route| route.domains.clone());
    Metrics::with_destinations(patterns.collect(), config.http.destination_labels)
        .map_err(|error| StartError::Config(error.to_string()))
}

/// Raises the limit on open files as far as the system lets it, and returns it.
///
/// # Errors
/// It is too low for the relay itself, whatever few connections it serves.
pub fn enough_files(config: &Config) -> Result<u64, StartError> {
    let (files, needed) = (raise_file_limit(), own_files(config.server.workers));
    if files >= needed {
        return Ok(files);
    }
    Err(StartError::Config(format!(
        "the limit on open files is {files}, and the relay needs {needed} for itself and more for connections: \
         raise the limit (ulimit -n, LimitNOFILE=)"
    )))
}

/// Files that the relay has open before its first connection, and a few to spare.
fn own_files(workers: usize) -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if workers == 0 { cores } else { workers };
    FILES_AT_LEAST + FILES_PER_THREAD * threads as u64
}

/// Raises the soft limit on open files to the hard one and returns it.
fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Lowers sessions and connections together until they fit the open files. A session may need a second one, for
/// large content.
fn share(files: u64, sessions: u64, connections: u64) -> (usize, usize) {
    let room = files.saturating_sub(OTHER_FILES).max(16);
    let wanted = sessions * 2 + connections;
    let fit = |count: u64| {
        let part = if wanted <= room { count } else { (count * room / wanted).max(1) };
        usize::try_from(part).unwrap_or(usize::MAX)
    };
    (fit(sessions), fit(connections))
}

fn listen(address: SocketAddr, all: &[SocketAddr]) -> std::io::Result<TcpListener> {
    let socket = reserve(address, all)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds. `SO_REUSEADDR` lets a restart follow at once. `[::]` takes IPv4 clients too, unless `0.0.0.0` is among `all`
/// with the same port.
fn reserve(address: SocketAddr, all: &[SocketAddr]) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        let both = address.ip().is_unspecified()
            && !all.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        socket.set_only_v6(!both)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_lower_sessions_and_connections_together() {
        assert_eq!(share(1 << 20, 1000, 1000), (1000, 1000));
        assert_eq!(share(256 + 1500, 1000, 1000), (500, 500));
        assert_eq!(share(10, 1000, 1000), (5, 5));
        assert_eq!(share(1 << 20, 1, 2), (1, 2));
    }
}
