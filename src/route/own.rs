//! Which addresses are this relay: a listener's own address *and* port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::table::{RouteHost, RouteTarget};
use crate::config::Config;
use crate::config::problem::Problem;

/// Whether a connection to `target` would reach one of the listeners. A wildcard listener stands for each address
/// that `is_local` knows; `[::]` takes IPv4 too.
pub fn is_own(listeners: &[SocketAddr], target: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    let ip = target.ip().to_canonical();
    listeners.iter().filter(|listener| listener.port() == target.port()).any(|listener| {
        let own = listener.ip().to_canonical();
        own == ip || (own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4()) && is_local(ip))
    })
}

/// An error for each host of a static route that is this relay itself: its mail would wait until it expires. Names are
/// not looked up, but for `localhost`; what others lead to is found when mail is sent.
pub fn check_routes(config: &Config, is_local: impl Fn(IpAddr) -> bool) -> Vec<Problem> {
    let listeners = config.listener_addresses();
    let mut problems = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        for (number, text) in route.hosts.iter().enumerate() {
            let Ok(host) = RouteHost::parse(text, config.delivery.port) else { continue };
            let own = |ip: IpAddr| is_own(&listeners, SocketAddr::new(ip, host.port), &is_local);
            if addresses_of(&host.target).into_iter().any(own) {
                let text = format!(
                    "route number {} leads to this relay itself: a listener has {text} with port {}, so the mail would \
                     never leave; name another host or port, or change that [[listener]]",
                    index + 1,
                    host.port
                );
                problems.push(Problem::error_at(format!("route.{index}.hosts.{number}"), text));
            }
        }
    }
    problems
}

/// What is known without a look-up.
fn addresses_of(target: &RouteTarget) -> Vec<IpAddr> {
    match target {
        RouteTarget::Address(address) => vec![*address],
        // RFC 6761 section 6.3.
        RouteTarget::Name(name) if name.as_str().eq_ignore_ascii_case("localhost") => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
        RouteTarget::Name(_) => Vec::new(),
    }
}

/// Whether the address belongs to this machine: only then can a socket be bound to it.
///
/// Machines that take over each other's addresses may allow binding to any (`ip_nonlocal_bind`); there the answer
/// is known for loopback only, and `Received:` lines are counted against loops as ever.
pub fn is_local(ip: IpAddr) -> bool {
    /// Addresses for documentation (RFC 5737, RFC 3849): never a machine's own.
    const NEVER_OURS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 255)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xffff)),
    ];
    let can_bind = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    ip.is_loopback() || (can_bind(ip) && !can_bind(NEVER_OURS[usize::from(ip.is_ipv6())]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_own_addresses() {
        let local = |ip: IpAddr| ip.is_loopback() || ip == "198.51.100.7".parse::<IpAddr>().unwrap();
        for (listener, target, expected) in [
            ("198.51.100.7:25", "198.51.100.7:25", true),
            ("198.51.100.7:25", "198.51.100.7:26", false),
            ("198.51.100.7:25", "198.51.100.8:25", false),
            ("198.51.100.7:25", "[::ffff:198.51.100.7]:25", true),
            ("0.0.0.0:25", "198.51.100.7:25", true),
            ("0.0.0.0:25", "127.0.0.9:25", true),
            ("0.0.0.0:25", "192.0.2.1:25", false),
            ("0.0.0.0:25", "[::1]:25", false),
            ("[::]:25", "[::1]:25", true),
            ("[::]:25", "198.51.100.7:25", true),
            ("[::]:2525", "198.51.100.7:25", false),
        ] {
            let own = [listener.parse().unwrap()];
            assert_eq!(is_own(&own, target.parse().unwrap(), local), expected, "{listener} {target}");
        }
    }

    /// The keys of the hosts that are refused.
    fn refused(text: &str) -> Vec<String> {
        let config = toml::from_str(text).unwrap();
        let local = |ip: IpAddr| ip.is_loopback() || ip == "198.51.100.7".parse::<IpAddr>().unwrap();
        let problems = check_routes(&config, local);
        assert!(
            problems.iter().all(|problem| problem.is_error() && problem.text.contains("; name another host"))
        );
        problems.into_iter().map(|problem| problem.place).map(|place| format!("{place:?}")).collect()
    }

    fn check_host(listener: &str, host: &str, expected: bool) {
        let text = format!(
            "listener = [{{ address = \"{listener}\" }}]\n[[route]]\ndomains = [\"*\"]\nhosts = [\"{host}\"]\n"
        );
        assert_eq!(!refused(&text).is_empty(), expected, "{listener} {host}");
    }

    #[test]
    fn a_route_to_a_listener_s_own_address_and_port_is_refused() {
        check_host("127.0.0.1:2525", "127.0.0.1:2525", true);
        check_host("127.0.0.1:2525", "127.0.0.1:2526", false);
        check_host("127.0.0.1:25", "127.0.0.1", true);
        check_host("127.0.0.1:2525", "127.0.0.1", false);
        check_host("127.0.0.1:2525", "127.0.0.2:2525", false);
        check_host("[::1]:2525", "[::1]:2525", true);
    }

    #[test]
    fn a_route_to_any_local_address_of_a_wildcard_listener_is_refused() {
        check_host("0.0.0.0:2525", "198.51.100.7:2525", true);
        check_host("0.0.0.0:2525", "127.9.9.9:2525", true);
        check_host("[::]:2525", "198.51.100.7:2525", true);
        check_host("0.0.0.0:2525", "192.0.2.1:2525", false);
    }

    #[test]
    fn a_route_to_localhost_is_one_to_loopback_and_other_names_are_not_looked_up() {
        check_host("127.0.0.1:2525", "LocalHost:2525", true);
        check_host("127.0.0.1:2525", "localhost:25", false);
        check_host("127.0.0.1:2525", "relay.example:2525", false);
    }

    #[test]
    fn each_own_host_of_each_route_is_named() {
        let text = "[[route]]\ndomains = [\"a.example\"]\nhosts = [\"b.example\", \"127.0.0.1:2525\"]\n\
                    [[route]]\ndomains = [\"*\"]\nhosts = [\"127.0.0.1:2525\", \"a b\"]\n";
        assert_eq!(refused(text), ["Key(\"route.0.hosts.1\")", "Key(\"route.1.hosts.0\")"]);
    }

    #[test]
    fn loopback_is_local_and_documentation_is_not() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        assert!(is_local("127.1.2.3".parse().unwrap()));
        assert!(!is_local("192.0.2.1".parse().unwrap()));
        assert!(!is_local("2001:db8::1".parse().unwrap()));
    }
}
