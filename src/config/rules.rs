//! What values must keep beyond their types: each rule says what is wrong, why when it isn't plain, and the remedy.
//!
//! Pure: files and the network are not looked at (password files are checked by `secret`).

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::problem::Problem;
use super::units::{format_duration, format_size};
use super::{Config, RetryConfig, RouteConfig, TlsPolicy};
use crate::config::pattern::DomainPattern;
use crate::route::table::RouteHost;
use crate::smtp::address::Domain;

/// The least message size to announce: RFC 5321 section 4.5.3.1.7.
const MESSAGE_SIZE_MIN: u64 = 64 << 10;
/// The least number of recipients to take: RFC 5321 section 4.5.3.1.8.
const RECIPIENTS_MIN: usize = 100;
/// The longest duration of any key. Nothing in a relay lasts longer, and sums of times can't overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Content this large belongs in a file: it is the most that one commit takes.
const CONTENT_THRESHOLD_MAX: u64 = 4 << 20;
/// sled needs some room to work in.
const CACHE_MIN: u64 = 1 << 20;
/// Removing mail needs room in the database before it frees any, and deliveries go on while new mail is refused.
const FREE_MIN: u64 = 64 << 20;
/// Below this the reserve can't hold the removals that it is there for.
const RESERVE_MIN: u64 = 8 << 20;
/// New connections per second: with fewer, the halves of the bound are too small to work with.
const CONNECTS: RangeInclusive<usize> = 10..=100_000;
/// Log lines and threads beyond this are a slip of the keyboard.
const WORKERS_MAX: usize = 1024;

/// Every rule that the configuration breaks; an empty list is a good configuration.
pub fn check(config: &Config) -> Vec<Problem> {
    broken(config).into_iter().map(|broken| broken.problem).collect()
}

/// A rule that is broken.
#[derive(Debug)]
pub(super) struct Broken {
    pub problem: Problem,
    /// Whether the rule is about one value alone, whatever other keys are set to.
    pub alone: bool,
}

/// As [`check`], with what each rule is about.
pub(super) fn broken(config: &Config) -> Vec<Broken> {
    let mut rules = Rules::default();
    rules.server(config);
    rules.addresses(config);
    rules.relay(&config.relay.networks);
    rules.limits(config);
    rules.spool(config);
    rules.dns(config);
    rules.delivery(config);
    rules.routes(config);
    rules.retry(&config.retry);
    rules.at_least("log.buffer", config.log.buffer, 1);
    rules.broken
}

#[derive(Default)]
struct Rules {
    broken: Vec<Broken>,
}

impl Rules {
    /// A value that is wrong whatever the others are.
    fn error(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.broken.push(Broken { problem: Problem::error_at(key, text), alone: true });
    }

    fn warning(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.broken.push(Broken { problem: Problem::warning_at(key, text), alone: true });
    }

    /// A value that does not go with others, or is missing.
    fn mismatch(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.broken.push(Broken { problem: Problem::error_at(key, text), alone: false });
    }

    fn at_least(&mut self, key: &str, value: usize, least: usize) {
        if value < least {
            self.error(key, format!("{key} is {value}; write {least} or more"));
        }
    }

    /// A duration that must pass: above zero, at most a year.
    fn lasting(&mut self, key: &str, value: Duration) {
        if value.is_zero() {
            self.error(key, format!("{key} is 0; write a duration above zero"));
        }
        self.bounded(key, value);
    }

    fn bounded(&mut self, key: &str, value: Duration) {
        if value > DURATION_MAX {
            self.error(key, format!("{key} is {}; write at most 365d", format_duration(value)));
        }
    }

    fn server(&mut self, config: &Config) {
        let server = &config.server;
        match server.hostname.as_deref().map(|name| (name, Domain::parse(name))) {
            None => {}
            Some((name, Err(_))) => self.error(
                "server.hostname",
                format!("server.hostname is \"{name}\"; write a host name such as \"relay.example.org\""),
            ),
            Some((name, Ok(domain))) if !domain.as_str().contains(['.', '[']) => self.warning(
                "server.hostname",
                format!(
                    "server.hostname \"{name}\" has no dot, and many remote hosts refuse such a name; add its \
                     domain"
                ),
            ),
            Some(_) => {}
        }
        if server.workers > WORKERS_MAX {
            self.error(
                "server.workers",
                format!(
                    "server.workers is {}; write at most {WORKERS_MAX}, or 0 for one per core",
                    server.workers
                ),
            );
        }
        self.bounded("server.drain_timeout", server.drain_timeout);
    }

    /// Two sockets on one address: the second one could not be opened. Port 0 is a free port each time.
    fn addresses(&mut self, config: &Config) {
        let mut taken: Vec<SocketAddr> = Vec::new();
        let listeners = config.listeners.iter().map(|listener| listener.address).enumerate();
        for (number, address) in listeners {
            self.native(&format!("listener.{number}.address"), address);
            if taken.iter().any(|other| collide(*other, address)) {
                self.mismatch(
                    format!("listener.{number}.address"),
                    format!("another [[listener]] has the address {address} already; remove one, or change its port"),
                );
            }
            taken.push(address);
        }
        let http = config.http.address;
        self.native("http.address", http);
        if config.listener_addresses().iter().any(|other| collide(*other, http)) {
            self.mismatch(
                "http.address",
                format!("http.address {http} is a listener's too; change one of the ports"),
            );
        }
    }

    /// No socket listens on an IPv4 address in IPv6 form.
    fn native(&mut self, key: &str, address: SocketAddr) {
        let canonical = address.ip().to_canonical();
        if canonical != address.ip() {
            let meant = SocketAddr::new(canonical, address.port());
            self.error(key, format!("{address} is an IPv4 address in IPv6 form; write {meant}"));
        }
    }

    fn relay(&mut self, networks: &[IpNet]) {
        if networks.is_empty() {
            self.warning(
                "relay.networks",
                "relay.networks is empty, so nobody may relay; add the networks of your clients, such as \
                 \"127.0.0.0/8\"",
            );
        }
        for (number, network) in networks.iter().enumerate().filter(|(_, network)| is_public(network)) {
            self.warning(
                format!("relay.networks.{number}"),
                format!(
                    "THIS IS AN OPEN RELAY: relay.networks has {network}, so strangers may send through this relay and \
                     it will be blocked by others; name only the networks of your clients"
                ),
            );
        }
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        self.at_least("limits.sessions", limits.sessions, 1);
        self.at_least("limits.errors", limits.errors, 1);
        if limits.message_size < MESSAGE_SIZE_MIN {
            self.error(
                "limits.message_size",
                format!(
                    "limits.message_size is {}; write 64KiB or more (RFC 5321 section 4.5.3.1.7)",
                    format_size(limits.message_size)
                ),
            );
        }
        if limits.recipients < RECIPIENTS_MIN {
            self.error(
                "limits.recipients",
                format!(
                    "limits.recipients is {}; write {RECIPIENTS_MIN} or more (RFC 5321 section 4.5.3.1.8)",
                    limits.recipients
                ),
            );
        }
        self.lasting("limits.idle_timeout", limits.idle_timeout);
        self.lasting("limits.data_timeout", limits.data_timeout);
    }

    fn spool(&mut self, config: &Config) {
        let spool = &config.spool;
        if spool.path.as_os_str().is_empty() {
            self.error("spool.path", "spool.path is empty; write a folder, such as \"spool\"");
        }
        if !(1..=CONTENT_THRESHOLD_MAX).contains(&spool.content_threshold) {
            self.error(
                "spool.content_threshold",
                format!(
                    "spool.content_threshold is {}; write a size from 1 to 4MiB",
                    format_size(spool.content_threshold)
                ),
            );
        }
        if spool.cache < CACHE_MIN {
            self.error(
                "spool.cache",
                format!("spool.cache is {}; write 1MiB or more", format_size(spool.cache)),
            );
        }
        if spool.min_free < FREE_MIN {
            self.warning(
                "spool.min_free",
                format!(
                    "spool.min_free is {}, and removing mail needs room in the database before it frees any; write 64MiB or \
                     more",
                    format_size(spool.min_free)
                ),
            );
        }
        if spool.reserve < RESERVE_MIN {
            self.warning(
                "spool.reserve",
                format!(
                    "spool.reserve is {}, too little to remove mail with when the disk is full; write 8MiB or more",
                    format_size(spool.reserve)
                ),
            );
        }
    }

    fn dns(&mut self, config: &Config) {
        self.lasting("dns.timeout", config.dns.timeout);
        for (number, server) in config.dns.servers.iter().enumerate().filter(|(_, server)| server.port() == 0)
        {
            let text = format!(
                "dns.servers has {server}; write the port name servers answer on, which is mostly 53"
            );
            self.error(format!("dns.servers.{number}"), text);
        }
    }

    fn delivery(&mut self, config: &Config) {
        let delivery = &config.delivery;
        if delivery.port == 0 {
            self.error("delivery.port", "delivery.port is 0; write the port of MX hosts, which is 25");
        }
        for (key, value) in [
            ("delivery.connections", delivery.connections),
            ("delivery.connections_per_destination", delivery.connections_per_destination),
            ("delivery.connections_per_address", delivery.connections_per_address),
            ("delivery.messages_per_connection", delivery.messages_per_connection),
            ("delivery.recipients_per_transaction", delivery.recipients_per_transaction),
            ("delivery.addresses_per_attempt", delivery.addresses_per_attempt),
        ] {
            self.at_least(key, value, 1);
        }
        if !CONNECTS.contains(&delivery.connects_per_second) {
            let (least, most) = (CONNECTS.start(), CONNECTS.end());
            self.error(
                "delivery.connects_per_second",
                format!(
                    "delivery.connects_per_second is {}; write {least} to {most}",
                    delivery.connects_per_second
                ),
            );
        }
        self.lasting("delivery.connect_timeout", delivery.connect_timeout);
        self.bounded("delivery.idle_timeout", delivery.idle_timeout);
    }

    fn routes(&mut self, config: &Config) {
        let mut catch_all = None;
        for (number, route) in config.routes.iter().enumerate() {
            if let Some(before) = catch_all {
                self.warning(
                    format!("route.{number}"),
                    format!("this route is never used: route number {before} is for every domain (*); move it to the \
                         end"),
                );
            } else if route.domains.contains(&DomainPattern::Any) {
                catch_all = Some(number + 1);
            }
            self.route(&format!("route.{number}"), route, config);
        }
    }

    fn route(&mut self, at: &str, route: &RouteConfig, config: &Config) {
        if route.domains.is_empty() {
            self.mismatch(
                format!("{at}.domains"),
                "this route has no domains; add domains = [\"example.org\"], or [\"*\"] for all",
            );
        }
        if route.hosts.is_empty() {
            self.mismatch(
                format!("{at}.hosts"),
                "this route has no hosts; add hosts = [\"mx.example.org:25\"]",
            );
        }
        for (number, host) in route.hosts.iter().enumerate() {
            if let Err(text) = RouteHost::parse(host, 25) {
                self.error(format!("{at}.hosts.{number}"), text);
            }
        }
        if route.connections == Some(0) {
            self.error(
                format!("{at}.connections"),
                "route.connections is 0; write 1 or more, or leave it out",
            );
        }
        self.credentials(at, route, config.delivery.tls);
    }

    /// A password goes over TLS to a host whose certificate was checked, or not at all (RFC 4954 section 4).
    fn credentials(&mut self, at: &str, route: &RouteConfig, default_tls: TlsPolicy) {
        match (&route.username, &route.password_file) {
            (None, None) => return,
            (Some(_), None) => self.mismatch(
                format!("{at}.username"),
                "this route has a username but no password; add password_file = \"FILE\" (its first line is the \
                 password)",
            ),
            (None, Some(_)) => self.mismatch(
                format!("{at}.password_file"),
                "this route has a password_file but no username; add username = \"NAME\"",
            ),
            (Some(name), Some(_)) if name.is_empty() || name.contains(char::is_control) => {
                self.error(format!("{at}.username"), "route.username is empty or has control characters; write a name");
            }
            (Some(_), Some(_)) => {}
        }
        if route.tls.unwrap_or(default_tls) != TlsPolicy::Required {
            let key = if route.tls.is_some() { format!("{at}.tls") } else { format!("{at}.username") };
            self.mismatch(
                key,
                "a password is sent only over checked TLS; add tls = \"required\" to this route",
            );
        }
    }

    fn retry(&mut self, retry: &RetryConfig) {
        if retry.schedule.is_empty() {
            self.error(
                "retry.schedule",
                "retry.schedule is empty; write at least one delay, such as [\"5m\"]",
            );
        }
        self.schedule("retry.schedule", &retry.schedule);
        if !(0.0..=0.9).contains(&retry.jitter) {
            self.error(
                "retry.jitter",
                format!("retry.jitter is {}; write a number from 0 to 0.9", retry.jitter),
            );
        }
        self.lasting("retry.give_up_after", retry.give_up_after);
        // The one of the two that was written, so that the problem has its line.
        let is_default = retry.delay_notice_after == RetryConfig::default().delay_notice_after;
        let key = if is_default { "retry.give_up_after" } else { "retry.delay_notice_after" };
        self.notice(key, retry.delay_notice_after, retry.give_up_after);
        for (number, over) in retry.overrides.iter().enumerate() {
            let at = format!("retry.for.{number}");
            if over.domains.is_empty() {
                self.mismatch(
                    format!("{at}.domains"),
                    "this [[retry.for]] has no domains; add domains = [\"example.org\"]",
                );
            }
            self.schedule(&format!("{at}.schedule"), &over.schedule);
            if let Some(give_up_after) = over.give_up_after {
                self.lasting(&format!("{at}.give_up_after"), give_up_after);
            }
            // What both inherit was checked above.
            let key = match (over.give_up_after, over.delay_notice_after) {
                (None, None) => continue,
                (_, Some(_)) => "delay_notice_after",
                (Some(_), None) => "give_up_after",
            };
            self.notice(
                &format!("{at}.{key}"),
                over.delay_notice_after.unwrap_or(retry.delay_notice_after),
                over.give_up_after.unwrap_or(retry.give_up_after),
            );
        }
    }

    fn schedule(&mut self, key: &str, schedule: &[Duration]) {
        for (number, delay) in schedule.iter().enumerate() {
            let at = format!("{key}.{number}");
            if delay.is_zero() {
                self.error(
                    at,
                    "retry.schedule has a delay of 0, which would try without a pause; write 1s or more",
                );
            } else if *delay > DURATION_MAX {
                self.error(at, format!("retry.schedule has {}; write at most 365d", format_duration(*delay)));
            }
        }
    }

    fn notice(&mut self, key: &str, notice: Duration, give_up: Duration) {
        if !notice.is_zero() && notice >= give_up {
            let (notice, give_up) = (format_duration(notice), format_duration(give_up));
            self.mismatch(
                key,
                format!(
                    "delay_notice_after ({notice}) must be less than give_up_after ({give_up}); change one of them, or \
                     write delay_notice_after = \"0\" for no notice"
                ),
            );
        }
    }
}

/// Whether both can't be listened on at once: the same port, and the same address or one of them a wildcard.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let is_same = a.ip() == b.ip()
        || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() != 0 && a.port() == b.port() && is_same
}

/// Whether a network is so wide that most of it can't be the operator's: more than 10.0.0.0/8 and fc00::/7 are.
fn is_public(network: &IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < 8,
        IpNet::V6(v6) => {
            v6.prefix_len() < 16
                && v6.network().segments()[0] & 0xfe00 != 0xfc00
                && v6.network().segments()[0] & 0xffc0 != 0xfe80
        }
    }
}

#[cfg(test)]
mod tests;
