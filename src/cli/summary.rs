//! What runs, in a few lines: for the start of `serve` and for `check`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;

/// What the relay listens on, for whom it relays, where the spool is, what it calls itself, and how to send a first
/// mail. `http` is `None` when no HTTP server runs.
pub fn summary(config: &Config, smtp: &[SocketAddr], http: Option<SocketAddr>) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: String| {
        let _ = writeln!(out, "  {label:<8}{text}");
    };
    line("SMTP", list(smtp, ", "));
    line(
        "Relays",
        match config.relay.networks.as_slice() {
            [] => "for nobody (relay.networks is empty)".to_owned(),
            networks => format!("for clients in {}", list(networks, ", ")),
        },
    );
    if let Some(http) = http {
        line("HTTP", format!("http://{http}/metrics, /livez, /readyz"));
    }
    let spool = std::path::absolute(&config.spool.path).unwrap_or_else(|_| config.spool.path.clone());
    line("Spool", spool.display().to_string());
    line("Name", name(&config.resolved_hostname()));
    line("Routes", routes(config));
    if let Some(address) = smtp.first().copied().map(dialable) {
        let _ = writeln!(out, "\nSend a first mail:\n{}", first_mail(address));
    }
    out.trim_end().to_owned()
}

fn list<T: ToString>(items: &[T], between: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}

fn name(hostname: &str) -> String {
    if hostname.starts_with('[') {
        format!("{hostname}; set server.hostname to a public name before mail goes to other machines")
    } else {
        hostname.to_owned()
    }
}

fn routes(config: &Config) -> String {
    let resolver = match config.dns.servers.as_slice() {
        [] => "the system's name servers".to_owned(),
        servers => format!("name servers {}", list(servers, ", ")),
    };
    let mx = format!("MX, asked of {resolver}, port {}", config.delivery.port);
    match config.routes.len() {
        0 => mx,
        1 => format!("1 static route, then {mx}"),
        number => format!("{number} static routes, then {mx}"),
    }
}

/// The address to dial to reach a listener on this machine: loopback for a wildcard.
fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn first_mail(address: SocketAddr) -> String {
    format!(
        "  swaks --server {} --port {} --to you@example.org\n  \
         printf 'Subject: hello\\n\\nIt works.\\n' | curl -sS --crlf smtp://{address} \\\n    \
         --mail-from me@example.org --mail-rcpt you@example.org -T -",
        address.ip(),
        address.port()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_runs_and_how_to_try_it() {
        let mut config = Config::default();
        config.server.hostname = Some("relay.example.org".to_owned());
        config.spool.path = "/var/spool/posthaste".into();
        let smtp = ["0.0.0.0:2525".parse().expect("address"), "[::1]:25".parse().expect("address")];
        let expected = "  SMTP    0.0.0.0:2525, [::1]:25
  Relays  for clients in 127.0.0.0/8, ::1/128
  HTTP    http://127.0.0.1:9925/metrics, /livez, /readyz
  Spool   /var/spool/posthaste
  Name    relay.example.org
  Routes  MX, asked of the system's name servers, port 25

Send a first mail:
  swaks --server 127.0.0.1 --port 2525 --to you@example.org
  printf 'Subject: hello\\n\\nIt works.\\n' | curl -sS --crlf smtp://127.0.0.1:2525 \\
    --mail-from me@example.org --mail-rcpt you@example.org -T -";
        assert_eq!(summary(&config, &smtp, Some(config.http.address)), expected);
    }

    #[test]
    fn a_relay_for_nobody_and_without_a_name_says_so() {
        let mut config = Config::default();
        config.relay.networks.clear();
        config.server.hostname = Some("[127.0.0.1]".to_owned());
        let text = summary(&config, &[], None);
        assert!(text.contains("for nobody") && text.contains("set server.hostname"), "{text}");
    }
}
