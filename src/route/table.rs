//! Static routes: which hosts a destination's mail goes to before MX is asked. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::TlsPolicy;
use crate::smtp::address::Domain;

/// Where a destination's mail goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// To its MX hosts.
    Mx,
    /// To the hosts of `[[route]]` number `index`; destinations of one route share its connections.
    Static(Arc<StaticRoute>),
}

/// One `[[route]]`, ready to use.
#[derive(Debug)]
pub struct StaticRoute {
    /// Its position in the configuration; names the shared connections.
    pub index: usize,
    /// The hosts, in order.
    pub hosts: Vec<RouteHost>,
    /// TLS to them.
    pub tls: TlsPolicy,
    /// AUTH, under TLS only.
    pub credentials: Option<Credentials>,
    /// Connections at once.
    pub connections: usize,
}

/// A host as a route names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteHost {
    /// By address or by name.
    pub target: RouteTarget,
    /// Port.
    pub port: u16,
}

/// How a route names a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// An IP address: no look-up.
    Address(IpAddr),
    /// A host name: A and AAAA are looked up, MX is not.
    Name(Domain),
}

/// User name and password for a smart host. Debug never shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}
