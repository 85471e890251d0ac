//! Static routes: which hosts a destination's mail goes to before MX is asked. Pure, but for reading password files
//! when the table is built.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::own;
use crate::config::pattern::DomainPattern;
use crate::config::problem::Problem;
use crate::config::{Config, RouteConfig, TlsPolicy, secret};
use crate::smtp::address::Domain;

/// Every `[[route]]`, in the order of the configuration.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<(Vec<DomainPattern>, Arc<StaticRoute>)>,
}

impl RouteTable {
    /// Makes the table of a configuration; reads the password files it names.
    ///
    /// # Errors
    /// Every host that can't be read or is this relay itself, and every password file that can't be used.
    pub fn build(config: &Config) -> Result<Self, Vec<Problem>> {
        let own = own::check_routes(config, own::is_local);
        if !own.is_empty() {
            return Err(own);
        }
        Self::build_with(config, secret::read_password)
    }

    fn build_with(
        config: &Config,
        read_password: impl Fn(&Path) -> Result<String, String>,
    ) -> Result<Self, Vec<Problem>> {
        let (mut routes, mut problems) = (Vec::new(), Vec::new());
        for (index, route) in config.routes.iter().enumerate() {
            match static_route(config, index, route, &read_password) {
                Ok(built) => routes.push((route.domains.clone(), Arc::new(built))),
                Err(more) => problems.extend(more),
            }
        }
        if problems.is_empty() { Ok(Self { routes }) } else { Err(problems) }
    }

    /// Where a destination's mail goes: the first route whose patterns match, else MX.
    pub fn route_for(&self, destination: &Domain) -> Route {
        let matches = |patterns: &[DomainPattern]| patterns.iter().any(|p| p.matches(destination));
        self.routes
            .iter()
            .find(|(patterns, _)| matches(patterns))
            .map_or(Route::Mx, |(_, route)| Route::Static(Arc::clone(route)))
    }

    /// How many static routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether all mail goes to MX hosts.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

fn static_route(
    config: &Config,
    index: usize,
    route: &RouteConfig,
    read_password: impl Fn(&Path) -> Result<String, String>,
) -> Result<StaticRoute, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut hosts = Vec::with_capacity(route.hosts.len());
    for (number, text) in route.hosts.iter().enumerate() {
        match RouteHost::parse(text, config.delivery.port) {
            Ok(host) => hosts.push(host),
            Err(text) => problems.push(Problem::error_at(format!("route.{index}.hosts.{number}"), text)),
        }
    }
    let mut credentials = None;
    if let (Some(username), Some(file)) = (&route.username, &route.password_file) {
        match read_password(file) {
            Ok(password) => credentials = Some(Credentials { username: username.clone(), password }),
            Err(text) => problems.push(Problem::error_at(format!("route.{index}.password_file"), text)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(StaticRoute {
        index,
        hosts,
        tls: route.tls.unwrap_or(config.delivery.tls),
        credentials,
        connections: route.connections.unwrap_or(config.delivery.connections_per_destination),
    })
}

/// Where a destination's mail goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// To its MX hosts.
    Mx,
    /// To the hosts of `[[route]]` number `index`; destinations of one route share its connections.
    Static(Arc<StaticRoute>),
}

impl Route {
    /// The number of the `[[route]]` whose connections are shared; `None` for MX.
    pub fn site(&self) -> Option<usize> {
        match self {
            Self::Mx => None,
            Self::Static(route) => Some(route.index),
        }
    }
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

impl RouteHost {
    /// Reads `name`, `name:port`, `address`, `address:port`, `[ipv6]` or `[ipv6]:port`.
    ///
    /// # Errors
    /// A sentence that shows how to write one.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a host; write mx.example.org, mx.example.org:2525, 192.0.2.1:2525 or \
                 [2001:db8::1]:2525"
            )
        };
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let (target, port) = if let Ok(address) = text.parse::<SocketAddr>() {
            (RouteTarget::Address(address.ip()), address.port())
        } else if let Ok(address) = bare.parse::<IpAddr>() {
            (RouteTarget::Address(address), default_port)
        } else {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, port.parse().map_err(|_| wrong())?),
                None => (text, default_port),
            };
            (RouteTarget::Name(host_name(name).ok_or_else(wrong)?), port)
        };
        if port == 0 { Err(wrong()) } else { Ok(Self { target, port }) }
    }
}

/// A name that can't be taken for an address: no literal, and no digits alone behind the last dot.
fn host_name(text: &str) -> Option<Domain> {
    let domain = Domain::parse(text).ok().filter(|domain| domain.address().is_none())?;
    let last = domain.as_str().rsplit('.').next()?;
    (!last.bytes().all(|byte| byte.is_ascii_digit())).then_some(domain)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn route(domains: &[&str], hosts: &[&str]) -> RouteConfig {
        RouteConfig {
            domains: domains
                .iter()
                .map(|text| DomainPattern::try_from((*text).to_owned()).unwrap())
                .collect(),
            hosts: hosts.iter().map(|text| (*text).to_owned()).collect(),
            ..RouteConfig::default()
        }
    }

    #[test]
    fn the_first_route_that_matches_wins_and_mx_is_the_rest() {
        let config = Config {
            routes: vec![
                route(&["partner.example", "*.partner.example"], &["10.0.0.5"]),
                route(&["*.example"], &["hub.example"]),
                route(&["partner.example"], &["never.example"]),
            ],
            ..Config::default()
        };
        let table = RouteTable::build(&config).unwrap();
        assert_eq!((table.len(), table.is_empty()), (3, false));
        for (destination, site) in [
            ("partner.example", Some(0)),
            ("mail.partner.example", Some(0)),
            ("other.example", Some(1)),
            ("example", None),
            ("example.org", None),
            ("[192.0.2.1]", None),
        ] {
            assert_eq!(table.route_for(&Domain::parse(destination).unwrap()).site(), site, "{destination}");
        }
    }

    #[test]
    fn a_route_takes_what_it_does_not_set_from_delivery() {
        let mut config =
            Config { routes: vec![route(&["*"], &["a.example", "b.example:2525"])], ..Config::default() };
        config.delivery.port = 26;
        config.delivery.tls = TlsPolicy::Off;
        let table = RouteTable::build(&config).unwrap();
        let Route::Static(built) = table.route_for(&Domain::parse("example.org").unwrap()) else {
            panic!("a static route")
        };
        assert_eq!(built.hosts.iter().map(|host| host.port).collect::<Vec<_>>(), [26, 2525]);
        assert_eq!((built.tls, built.connections), (TlsPolicy::Off, 20));
    }

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        let address = |text: &str| RouteTarget::Address(text.parse().unwrap());
        let name = |text: &str| RouteTarget::Name(Domain::parse(text).unwrap());
        for (text, expected) in [
            ("mx.example", Some((name("mx.example"), 25))),
            ("mx.example:2525", Some((name("mx.example"), 2525))),
            ("localhost:2525", Some((name("localhost"), 2525))),
            ("10.0.0.5", Some((address("10.0.0.5"), 25))),
            ("10.0.0.5:2500", Some((address("10.0.0.5"), 2500))),
            ("::1", Some((address("::1"), 25))),
            ("[::1]", Some((address("::1"), 25))),
            ("[::1]:2500", Some((address("::1"), 2500))),
            ("", None),
            ("mx.example:smtp", None),
            ("mx.example:0", None),
            ("mx.example:70000", None),
            ("10.0.0", None),
            ("10.0.0.256:25", None),
            ("a b", None),
            ("smtp://mx.example", None),
        ] {
            let host = RouteHost::parse(text, 25).ok().map(|host| (host.target, host.port));
            assert_eq!(host, expected, "{text}");
        }
    }

    #[test]
    fn every_bad_host_and_password_file_is_told() {
        let mut bad = route(&["*"], &["ok.example", "a b", "1.2.3"]);
        bad.username = Some("relay".to_owned());
        bad.password_file = Some("missing".into());
        let config = Config { routes: vec![bad], ..Config::default() };
        let problems = RouteTable::build_with(&config, |_| Err("no file".to_owned())).unwrap_err();
        assert_eq!(problems.len(), 3);
        let table = RouteTable::build_with(
            &Config {
                routes: vec![RouteConfig { hosts: vec!["a.example".into()], ..config.routes[0].clone() }],
                ..config
            },
            |_| Ok("secret".to_owned()),
        )
        .unwrap();
        let route = table.route_for(&Domain::parse("a.example").unwrap());
        assert!(!format!("{route:?}").contains("secret"), "a password is never shown");
    }
}
