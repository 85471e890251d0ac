//! Which addresses are this relay: a listener's own address *and* port.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Whether a connection to `target` would reach one of the listeners. A wildcard listener stands for each address
/// that `is_local` knows; `[::]` takes IPv4 too.
pub fn is_own(listeners: &[SocketAddr], target: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    let ip = target.ip().to_canonical();
    listeners.iter().filter(|listener| listener.port() == target.port()).any(|listener| {
        let own = listener.ip().to_canonical();
        own == ip || (own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4()) && is_local(ip))
    })
}

/// Whether the address belongs to this machine: only then can a socket be bound to it.
///
/// Machines that take over each other's addresses may allow binding to any (`ip_nonlocal_bind`); there the answer
/// is known for loopback only, and `Received:` lines are counted against loops as ever.
pub fn is_local(ip: IpAddr) -> bool {
    /// Addresses for documentation (RFC 5737, RFC 3849): never a machine's own.
    const NEVER_OURS: [IpAddr; 2] = [
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 255)),
        IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xffff)),
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

    #[test]
    fn loopback_is_local_and_documentation_is_not() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        assert!(is_local("127.1.2.3".parse().unwrap()));
        assert!(!is_local("192.0.2.1".parse().unwrap()));
        assert!(!is_local("2001:db8::1".parse().unwrap()));
    }
}
