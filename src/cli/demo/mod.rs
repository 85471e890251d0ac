//! `posthaste demo`: a relay, a host that takes its mail and a name server that points there, all in this process and
//! on loopback. A few messages go through it, and the relay's own log and metrics tell what became of them.
//!
//! Nothing is staged: the mail is submitted over SMTP, passes the same actors, spool and resolver as in production, and
//! only the configuration differs (a schedule of seconds, ports that the system picks, a spool that is removed).

mod observe;
mod submit;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use self::observe::{Progress, fetch_metrics, metrics_table};
use self::submit::{Letter, submit};
use crate::clock::{Clock, SystemClock};
use crate::config::pattern::DomainPattern;
use crate::config::{Config, ListenerConfig};
use crate::embed::{Extras, Server, StartError};
use crate::sink::nameserver::{Nameserver, Zone};
use crate::sink::{Answer, Rules, Sink, Stage};
use crate::smtp::address::Domain;
use crate::smtp::server::Refusal;

/// Everything must be over by then; it takes about three seconds.
const TIME_LIMIT: Duration = Duration::from_secs(14);
/// When a deferred recipient is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// The made-up domains: takes everything, defers each first try, knows nobody.
const DOMAINS: [&str; 3] = ["demo.example", "later.example", "nowhere.example"];
const SENDER: &str = "you@demo.example";
const LETTERS: [Letter; 4] = [
    Letter { what: "A letter that arrives at once", sender: SENDER, recipients: &["ann@demo.example"] },
    Letter {
        what: "One letter to two people of one domain: one transaction",
        sender: SENDER,
        recipients: &["ann@demo.example", "carl@demo.example"],
    },
    Letter {
        what: "A host that says \"come back later\": deferred, then tried again",
        sender: SENDER,
        recipients: &["bob@later.example"],
    },
    Letter {
        what: "A user whom the host does not know: bounced, and the sender gets a report",
        sender: SENDER,
        recipients: &["nobody@nowhere.example"],
    },
];
/// What the log must tell in the end: four letters' recipients and the report to the sender, and one bounce.
const EXPECTED: Progress = Progress { delivered: 5, bounced: 1 };

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The relay did not start.
    #[error("the relay did not start: {0}")]
    Start(#[from] StartError),
    /// A socket, the terminal or the temporary folder failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The relay's answer to the submitting client was not the one that was expected.
    #[error("the relay answered \"{answer}\" to \"{command}\"")]
    Answer {
        /// What the client said.
        command: String,
        /// What it heard.
        answer: String,
    },
    /// The mail is not where it should be after the time limit.
    #[error("not all mail arrived within {} s; this is a bug, please report it with the lines above", TIME_LIMIT.as_secs())]
    Late,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// Runs the demo on the terminal. Exit code 0 when all went as it should.
pub fn run() -> ExitCode {
    let mut out = io::stdout();
    let result = actix_rt::System::new().block_on(async {
        tokio::select! {
            result = timeout(TIME_LIMIT, demo(&mut out)) => result.unwrap_or(Err(DemoError::Late)),
            _ = tokio::signal::ctrl_c() => Err(DemoError::Interrupted),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "posthaste demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts everything, sends the letters, and shows on `out` what becomes of them. Leaves nothing behind.
///
/// # Errors
/// See [`DemoError`].
pub async fn demo(out: &mut dyn Write) -> Result<(), DemoError> {
    let spool = TemporaryFolder::new()?;
    let sink = Sink::bind(ANY_PORT, Arc::new(behaviour()))?;
    let names = Nameserver::bind(ANY_PORT, zone()).await?;
    let config = configuration(&spool, &sink, names.address());
    // The log is shown here line by line, not by the relay itself.
    let relay = Server::start_with(config, Extras { log: Box::new(io::sink()), ..Extras::default() }).await?;
    let address =
        relay.smtp_addresses().first().copied().ok_or(io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    introduce(out, &relay, address, &sink, &spool)?;

    let mut lines = relay.log_lines();
    let mut progress = Progress::default();
    let start = SystemClock.instant();
    for (number, letter) in LETTERS.iter().enumerate() {
        writeln!(out, "\n{}. {}", number + 1, letter.what)?;
        let id = submit(out, address, letter).await?;
        let mut waiting = letter.recipients.len();
        let all_told = |line: &str, _: &Progress| {
            waiting -= usize::from(observe::is_outcome_of(line, &id));
            waiting == 0
        };
        progress.follow(out, &mut lines, start, all_told).await?;
    }
    writeln!(out, "\n{}. The second try, and the report to the sender", LETTERS.len() + 1)?;
    progress.follow(out, &mut lines, start, |_, progress| *progress == EXPECTED).await?;

    conclude(out, &sink, &fetch_metrics(relay.http_address()).await?)?;
    relay.stop().await;
    Ok(())
}

/// What the receiving host does.
fn behaviour() -> Rules {
    let only = |domain: &str| Domain::parse(domain).map_or(DomainPattern::Any, DomainPattern::Exact);
    let [_, later, nowhere] = DOMAINS;
    let greylisted = Answer::Refuse(Refusal::new(451, (4, 7, 1), "greylisted, come back later"));
    let unknown = Answer::Refuse(Refusal::new(550, (5, 1, 1), "no such user here"));
    Rules::new().first(1, Stage::Recipient, only(later), greylisted).always(
        Stage::Recipient,
        only(nowhere),
        unknown,
    )
}

/// All of the domains have their mail taken by one host.
fn zone() -> Zone {
    let host = "mx.demo.example";
    let zone = Zone::new().a(host, std::net::Ipv4Addr::LOCALHOST);
    DOMAINS.into_iter().fold(zone, |zone, domain| zone.mx(domain, 10, host))
}

fn configuration(spool: &TemporaryFolder, sink: &Sink, name_server: SocketAddr) -> Config {
    let mut config = Config::default();
    config.server.hostname = Some("relay.demo.example".to_owned());
    config.listeners = vec![ListenerConfig { address: ANY_PORT }];
    config.http.address = ANY_PORT;
    config.spool.path.clone_from(&spool.0);
    config.spool.reserve = 1 << 20;
    config.dns.servers = vec![name_server];
    config.delivery.port = sink.address().port();
    config.retry.schedule = vec![RETRY_AFTER];
    config
}

fn introduce(
    out: &mut dyn Write,
    relay: &Server,
    address: SocketAddr,
    sink: &Sink,
    spool: &TemporaryFolder,
) -> io::Result<()> {
    writeln!(out, "A relay, a receiving host and a name server on this machine; nothing leaves it.\n")?;
    writeln!(out, "  relay           {address} (SMTP), http://{}/metrics", relay.http_address())?;
    writeln!(out, "  receiving host  {} for {}", sink.address(), DOMAINS.join(", "))?;
    writeln!(out, "  spool           {} (removed at the end)\n", spool.0.display())?;
    writeln!(
        out,
        "  > what an application says    < what the relay answers    0.001s what the relay's mail log tells"
    )?;
    writeln!(out, "  \"accepted\" and the last 250 mean: on disk; from there on the relay is responsible.")
}

fn conclude(out: &mut dyn Write, sink: &Sink, metrics: &str) -> io::Result<()> {
    writeln!(
        out,
        "\nThe receiving host has {} messages, over {} connections:\n",
        sink.count(),
        sink.connections()
    )?;
    for message in sink.received() {
        let recipients: Vec<_> = message.recipients.iter().map(ToString::to_string).collect();
        let size = message.content.len();
        writeln!(out, "  {size:>6} bytes  from {} to {}", message.reverse_path, recipients.join(", "))?;
    }
    writeln!(out, "\nWhat /metrics says:\n")?;
    for (series, value) in metrics_table(metrics) {
        writeln!(out, "  {value:>8}  {series}")?;
    }
    writeln!(out, "\nDone. Start the relay itself with `posthaste`.")
}

/// A folder of its own, removed with all that is in it.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("posthaste-demo-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Whatever can't be removed is in a temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_comes_to_its_end_and_leaves_nothing_behind() {
        let mut out = Vec::new();
        let result = actix_rt::System::new().block_on(async { timeout(TIME_LIMIT, demo(&mut out)).await });
        let out = String::from_utf8(out).expect("text");
        assert!(matches!(result, Ok(Ok(()))), "{result:?} after:\n{out}");
        for told in [
            " accepted ",
            " deferred ",
            " bounced ",
            " delivered ",
            " dsn ",
            "from <> to <you@demo.example>",
            "1  posthaste_dsns_total{kind=\"failed\"}",
            "0  posthaste_queue_messages",
        ] {
            assert!(out.contains(told), "{told:?} is missing in:\n{out}");
        }
        let spool = out.split_whitespace().find(|word| word.contains("posthaste-demo-")).expect("a spool");
        assert!(!std::path::Path::new(spool).exists(), "{spool} is still there");
    }
}
