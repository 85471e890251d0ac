//! The configuration: one annotated struct. Each field says what it means, its unit and its default.
//!
//! Loading (file, environment, unknown keys) is in `load`, the rules that values must keep are in `rules`. `sample`
//! reads this file: a field's doc comment is also its comment in what `posthaste config` prints.

pub mod hostname;
pub mod load;
pub mod pattern;
pub mod problem;
pub mod rules;
pub mod sample;
pub mod secret;
pub mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use pattern::DomainPattern;

/// Everything an operator can set. The default of every field makes a relay for this machine's own programs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The relay as a whole.
    pub server: ServerConfig,
    /// Where SMTP clients connect; any number.
    #[serde(rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// Who may relay.
    pub relay: RelayConfig,
    /// What one session may do.
    pub limits: LimitsConfig,
    /// The durable queue.
    pub spool: SpoolConfig,
    /// Name servers.
    pub dns: DnsConfig,
    /// Outgoing connections.
    pub delivery: DeliveryConfig,
    /// Static routes and smart hosts; the first match wins, before MX.
    #[serde(rename = "route")]
    pub routes: Vec<RouteConfig>,
    /// When to try again, and when to give up.
    pub retry: RetryConfig,
    /// Metrics, health and the queue API.
    pub http: HttpConfig,
    /// Logs.
    pub log: LogConfig,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The name in greeting, EHLO, `Received:` and DSNs. Default: the machine's FQDN, else an address literal.
    pub hostname: Option<String>,
    /// How long a SIGTERM waits for running transactions and attempts. Default 30 s.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// Threads for sessions and deliveries. Default 0: one per core.
    pub workers: usize,
}

/// `[[listener]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address and port. Default `127.0.0.1:2525`.
    pub address: SocketAddr,
}

/// `[relay]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Networks whose clients may relay without authentication. Default: loopback only.
    pub networks: Vec<IpNet>,
}

/// `[limits]`: what one session may do. RFC 5321 section 4.5.3.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Sessions at once; more get 421. Default 1000; lowered when file descriptors are few.
    pub sessions: usize,
    /// Message size in bytes, announced with SIZE. Default 50 MiB.
    #[serde(with = "units::size")]
    pub message_size: u64,
    /// Recipients of one transaction; more get 452. Default 1000, at least 100.
    pub recipients: usize,
    /// Errors of one session since its last accepted message; then 421 and the end. Default 20.
    pub errors: usize,
    /// Silence of a client until 421. Default 5 min (RFC 5321 section 4.5.3.2.7).
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// The envelope of one message, and then its whole DATA phase: so long each. Default 30 min.
    #[serde(with = "units::duration")]
    pub data_timeout: Duration,
}

/// `[spool]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// The folder. Default `spool`, relative to the working directory.
    pub path: PathBuf,
    /// Space set aside for removals when the disk is full. Default 64 MiB.
    #[serde(with = "units::size")]
    pub reserve: u64,
    /// With less room than this no new mail is taken (`452 4.3.1`); what is queued is delivered. Room is what is free on
    /// the disk and inside the database file. Default 256 MiB.
    #[serde(with = "units::size")]
    pub min_free: u64,
    /// The same for files that can be made on the disk. Default 1000.
    pub min_free_inodes: u64,
    /// sled's page cache, counted as its pages are on disk: in memory small ones take some three times that. Default 6 MiB.
    #[serde(with = "units::size")]
    pub cache: u64,
    /// Content up to this many bytes lives in the database, larger content in a file of its own. Default 32 KiB: smaller
    /// content is up to twice as fast in the database, content of 96 KiB a tenth to a quarter faster in a file.
    #[serde(with = "units::size")]
    pub content_threshold: u64,
}

/// `[dns]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Name servers. Default: those of the system's resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// One query's time. Default 5 s, tried twice.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Whether DNSSEC signatures are validated here. Default false.
    pub validate: bool,
}

/// `[delivery]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// The port that MX hosts are dialled on. Default 25.
    pub port: u16,
    /// Connections over all. Default 1000; lowered when file descriptors are few.
    pub connections: usize,
    /// Connections per destination (or per static route). Default 20.
    pub connections_per_destination: usize,
    /// Connections per remote address. Default 20.
    pub connections_per_address: usize,
    /// New connections per second over all, 10 to 100000. One half is for destinations that have answered before; the other
    /// half ramps up from 50 a second, so that much overdue mail is a queue and not a stampede. Default 1000.
    pub connects_per_second: usize,
    /// Messages over one connection. Default 100.
    pub messages_per_connection: usize,
    /// Recipients of one transaction. Default 100.
    pub recipients_per_transaction: usize,
    /// How long an idle connection is kept for the next message. Default 2 s.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// TCP connect time. Default 30 s.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,
    /// Addresses tried in one attempt. Default 5.
    pub addresses_per_attempt: usize,
    /// TLS to MX hosts. Default `opportunistic`.
    pub tls: TlsPolicy,
}

/// How a remote's STARTTLS is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsPolicy {
    /// Never.
    Off,
    /// When offered, any certificate; after a failed handshake once more in clear text (RFC 7435).
    #[default]
    Opportunistic,
    /// Only with a certificate that the system trusts for the host's name; else the mail waits.
    Required,
}

/// `[[route]]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteConfig {
    /// `example.org`, `*.example.org` (its subdomains) or `*`.
    pub domains: Vec<DomainPattern>,
    /// `name`, `name:port`, `address:port` or `[ipv6]:port`, in order; a missing port is `delivery.port`.
    pub hosts: Vec<String>,
    /// TLS to these hosts. Default: `delivery.tls`.
    pub tls: Option<TlsPolicy>,
    /// User name for AUTH; needs `tls = "required"` and `password_file`.
    pub username: Option<String>,
    /// File with the password in its first line.
    pub password_file: Option<PathBuf>,
    /// Connections to this route. Default: `delivery.connections_per_destination`.
    pub connections: Option<usize>,
}

/// `[retry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Delays after the first, second, … attempt; the last one repeats.
    #[serde(with = "units::durations")]
    pub schedule: Vec<Duration>,
    /// Each delay is drawn from ± this part of it. Default 0.2.
    pub jitter: f64,
    /// When a recipient expires. Default 5 days.
    #[serde(with = "units::duration")]
    pub give_up_after: Duration,
    /// When the sender is told of the delay; 0 is never. Default 4 h.
    #[serde(with = "units::duration")]
    pub delay_notice_after: Duration,
    /// Other values for some destinations; the first match wins.
    #[serde(rename = "for")]
    pub overrides: Vec<RetryOverride>,
}

/// `[[retry.for]]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryOverride {
    /// The destinations.
    pub domains: Vec<DomainPattern>,
    /// As `retry.schedule`; empty keeps it.
    #[serde(with = "units::durations")]
    pub schedule: Vec<Duration>,
    /// As `retry.give_up_after`.
    #[serde(with = "units::optional_duration")]
    pub give_up_after: Option<Duration>,
    /// As `retry.delay_notice_after`.
    #[serde(with = "units::optional_duration")]
    pub delay_notice_after: Option<Duration>,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port. Default `127.0.0.1:9925`.
    pub address: SocketAddr,
    /// Names, besides addresses and `localhost`, that the `Host` header may carry. Default none.
    pub hosts: Vec<String>,
    /// How many destinations get a metric label of their own; the rest is `other`. Default 20.
    pub destination_labels: usize,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Form of the lines. Default `text`.
    pub format: LogFormat,
    /// Lines that may wait for a slow reader before they are dropped and counted. Default 10000.
    pub buffer: usize,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `queue-id event key=value…`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl Default for ServerConfig {
    fn default() -> Self {
        Self { hostname: None, drain_timeout: Duration::from_secs(30), workers: 0 }
    }
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 2525)) }
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self { networks: ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect() }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sessions: 1000,
            message_size: 50 * MIB,
            recipients: 1000,
            errors: 20,
            idle_timeout: 5 * MINUTE,
            data_timeout: 30 * MINUTE,
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            path: "spool".into(),
            reserve: 64 * MIB,
            min_free: 256 * MIB,
            min_free_inodes: 1000,
            cache: 6 * MIB,
            content_threshold: 32 << 10,
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout: Duration::from_secs(5), validate: false }
    }
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            port: 25,
            connections: 1000,
            connections_per_destination: 20,
            connections_per_address: 20,
            connects_per_second: 1000,
            messages_per_connection: 100,
            recipients_per_transaction: 100,
            idle_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(30),
            addresses_per_attempt: 5,
            tls: TlsPolicy::Opportunistic,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            schedule: vec![MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR],
            jitter: 0.2,
            give_up_after: 5 * 24 * HOUR,
            delay_notice_after: 4 * HOUR,
            overrides: Vec::new(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9925)), hosts: Vec::new(), destination_labels: 20 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, buffer: 10_000 }
    }
}
