//! What the relay calls itself and where it listens: settings that are derived from the configuration.

use std::net::{IpAddr, SocketAddr};

use super::{Config, ListenerConfig};
use crate::smtp::address::Domain;

/// Where names of this machine's addresses are kept.
const HOSTS_FILE: &str = "/etc/hosts";

impl Config {
    /// Where SMTP clients connect: the configured listeners, else one on the default address.
    pub fn listener_addresses(&self) -> Vec<SocketAddr> {
        if self.listeners.is_empty() {
            return vec![ListenerConfig::default().address];
        }
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// The name in greeting, EHLO, `Received:` and DSNs: the configured one, else the machine's fully qualified name,
    /// else the address literal of the first listener (RFC 5321 section 4.1.3). Asks the system, not the network.
    pub fn resolved_hostname(&self) -> String {
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let hosts = std::fs::read_to_string(HOSTS_FILE).unwrap_or_default();
        let listener = self.listener_addresses()[0].ip();
        choose(self.server.hostname.as_deref(), &machine.unwrap_or_default(), &hosts, listener)
    }
}

/// The choice behind [`Config::resolved_hostname`]; `hosts` is text in the form of `/etc/hosts`.
fn choose(configured: Option<&str>, machine: &str, hosts: &str, listener: IpAddr) -> String {
    configured
        .map(str::to_owned)
        .or_else(|| qualified(machine))
        .or_else(|| canonical_name(machine, hosts).and_then(qualified))
        .unwrap_or_else(|| literal(listener))
}

/// The name, when it has a domain that can mean anything to others.
fn qualified(name: &str) -> Option<String> {
    let name = name.trim_end_matches('.');
    let is_local = name.starts_with("localhost") || name.ends_with(".localdomain");
    (name.contains('.') && !is_local && Domain::parse(name).is_ok() && name.parse::<IpAddr>().is_err())
        .then(|| name.to_owned())
}

/// The first name of the line that has `machine` among its names.
fn canonical_name<'a>(machine: &str, hosts: &'a str) -> Option<&'a str> {
    hosts.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut names = line.split_ascii_whitespace().skip(1);
        let first = names.clone().next()?;
        names.any(|name| name.eq_ignore_ascii_case(machine)).then_some(first)
    })
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]`; a wildcard listener counts as loopback.
fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => "[127.0.0.1]".to_owned(),
        IpAddr::V4(v4) => format!("[{v4}]"),
        IpAddr::V6(v6) if v6.is_unspecified() => "[IPv6:::1]".to_owned(),
        IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_name_that_is_there_is_chosen() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.1 no.example box\n127.0.1.1\tBox.example.org box # ours\n";
        let local = "127.0.0.1 localhost.localdomain box\n";
        for (configured, machine, hosts, listener, expected) in [
            (Some("relay.example.org"), "box.example.net", hosts, "127.0.0.1", "relay.example.org"),
            (None, "box.example.net", hosts, "127.0.0.1", "box.example.net"),
            (None, "box", hosts, "127.0.0.1", "Box.example.org"),
            (None, "box", local, "127.0.0.1", "[127.0.0.1]"),
            (None, "localhost.localdomain", "", "192.0.2.1", "[192.0.2.1]"),
            (None, "box", "", "0.0.0.0", "[127.0.0.1]"),
            (None, "", "", "2001:db8::1", "[IPv6:2001:db8::1]"),
            (None, "", "", "::", "[IPv6:::1]"),
        ] {
            let listener = listener.parse().expect("an address");
            assert_eq!(choose(configured, machine, hosts, listener), expected);
        }
    }

    #[test]
    fn without_a_listener_the_default_one_listens() {
        let mut config = Config::default();
        assert_eq!(config.listener_addresses(), [SocketAddr::from(([127, 0, 0, 1], 2525))]);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        config.listeners.push(ListenerConfig { address });
        assert_eq!(config.listener_addresses(), [address]);
    }
}
