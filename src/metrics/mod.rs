//! Every metric, in one struct that is made once and handed in; there are no globals.
//!
//! The doc of a field is its Prometheus help: what it counts, and when to worry. All series start at zero, all
//! label sets are bounded, and what the hot path touches is resolved before: counting never looks up a label.

mod destinations;
mod families;
mod process;

use std::sync::Arc;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::config::pattern::DomainPattern;
use crate::mail::dsn::ReportKind;
use crate::mail::outcome::CauseClass;
use crate::smtp::address::Domain;

pub use destinations::DestinationLabels;
use families::{Dsns, Outcomes, Panics, Refusals};
pub use families::{Outcome, Place};
use process::Process;

/// How many destinations get a label of their own when nothing else is said (`http.destination_labels`).
pub const DESTINATION_LABELS: usize = 20;

/// Seconds: from half a millisecond to half a minute.
const LATENCY: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds: from ten milliseconds to the ten minutes that RFC 5321 section 4.5.3.2.6 gives the final dot.
const ATTEMPT: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
/// Seconds: from a hundredth to the five days after which mail expires.
const AGE: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1_800.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0,
    259_200.0, 432_000.0,
];
/// Entries of a commit.
const ENTRIES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0];

/// Makes and registers one metric.
trait Instrument: Sized {
    fn make(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! instrument {
    ($($kind:ty),+) => {$(
        impl Instrument for $kind {
            fn make(registry: &Registry, name: &str, help: &str, _: &[f64]) -> prometheus::Result<Self> {
                let made = Self::new(name, help)?;
                registry.register(Box::new(made.clone()))?;
                Ok(made)
            }
        }
    )+};
}
instrument!(IntCounter, IntGauge, Gauge);

impl Instrument for Histogram {
    fn make(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Self> {
        let made = Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    }
}

/// Declares `Metrics`: the doc comment of a field is its help text.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ident $(($buckets:ident))? = $name:literal;)+) => {
        /// What the relay counts and measures. See the module's doc.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $field: $kind,)+
            /// Per destination: a bounded set of labels.
            pub destinations: DestinationLabels,
            registry: Registry,
            refusals: Refusals,
            outcomes: Outcomes,
            dsns: Dsns,
            panics: Panics,
            failing: Vec<IntGauge>,
            process: Process,
        }

        impl Metrics {
            /// All metrics at zero, with a destination label of its own for each of `patterns` and for the
            /// `busiest` other destinations.
            ///
            /// # Errors
            /// A name or label that Prometheus forbids, or one used twice: a bug that every test would show.
            pub fn with_destinations(
                patterns: Vec<DomainPattern>,
                busiest: usize,
            ) -> Result<Arc<Self>, prometheus::Error> {
                let registry = Registry::new();
                build_info(&registry)?;
                Ok(Arc::new(Self {
                    $($field: $kind::make(
                        &registry, $name, concat!($($doc),+).trim(), metrics!(@ $($buckets)?),
                    )?,)+
                    destinations: DestinationLabels::new(&registry, patterns, busiest)?,
                    refusals: Refusals::new(&registry)?,
                    outcomes: Outcomes::new(&registry)?,
                    dsns: Dsns::new(&registry)?,
                    panics: Panics::new(&registry)?,
                    failing: failing(&registry)?,
                    process: Process::new(&registry)?,
                    registry,
                }))
            }
        }
    };
    (@ $buckets:ident) => { $buckets };
    (@) => { &[] };
}

metrics! {
    /// Inbound sessions open now. Worry when it stays near limits.sessions: more clients get 421.
    sessions_open: IntGauge = "posthaste_sessions_open";
    /// Inbound sessions since the start.
    sessions_total: IntCounter = "posthaste_sessions_total";
    /// Connections answered 421 because limits.sessions was reached. Worry when it grows: clients wait or give up.
    sessions_rejected: IntCounter = "posthaste_sessions_rejected_total";
    /// Messages answered 250: each is on stable storage. Worry when it stops growing while clients send.
    messages_accepted: IntCounter = "posthaste_messages_accepted_total";
    /// Recipients of accepted messages.
    recipients_accepted: IntCounter = "posthaste_recipients_accepted_total";
    /// Content bytes of accepted messages.
    bytes_accepted: IntCounter = "posthaste_accepted_bytes_total";
    /// From the final dot (or last BDAT) to our 250, in seconds. Worry above 1 s: the disk is slow or busy.
    acceptance_seconds: Histogram(LATENCY) = "posthaste_acceptance_seconds";
    /// Times a session had to wait for a commit credit or for memory. Worry when it grows all the time: the disk
    /// is slower than the clients.
    credit_waits: IntCounter = "posthaste_credit_waits_total";
    /// Waits for a credit that ended in 452. Worry when it grows: clients are turned away.
    credit_timeouts: IntCounter = "posthaste_credit_timeouts_total";
    /// One group commit with its sync, in seconds. Worry above 0.1 s: every acceptance waits for it.
    commit_seconds: Histogram(LATENCY) = "posthaste_commit_seconds";
    /// Changes to the spool in one group commit.
    commit_operations: Histogram(ENTRIES) = "posthaste_commit_operations";
    /// New messages in one group commit; more under load is right: they share one sync.
    commit_messages: Histogram(ENTRIES) = "posthaste_commit_messages";
    /// Group commits since the start.
    commits_total: IntCounter = "posthaste_commits_total";
    /// Times data was synced to the device since the start, files included. Worry when mail is accepted and it
    /// does not grow.
    syncs: IntCounter = "posthaste_spool_syncs_total";
    /// 1 when the spool failed and no mail is accepted any more. Worry at once: free the disk or look at it, then
    /// start the relay again.
    spool_failed: IntGauge = "posthaste_spool_failed";
    /// Records that could not be read; their messages are in quarantine. Worry when above 0: the disk lies.
    damaged_records: IntCounter = "posthaste_damaged_records_total";
    /// What the patrol found and put right: messages without due or deadline keys, keys that led to nothing, wrong
    /// counters. Worry when above 0: a bug, or a disk that lies.
    patrol_repairs: IntCounter = "posthaste_patrol_repairs_total";
    /// Free bytes of the file system that holds the spool, as of the last look. Worry below a few times the daily
    /// volume of mail.
    spool_free_bytes: Gauge = "posthaste_spool_free_bytes";
    /// Bytes that new mail may use: free on the disk, and left by removed mail inside the database file. Worry near
    /// spool.min_free.
    spool_usable_bytes: Gauge = "posthaste_spool_usable_bytes";
    /// 1 while the spool has too little room and new mail is answered 452. Worry at once: free some.
    spool_short: IntGauge = "posthaste_spool_short";
    /// Messages that wait for a commit to be answered 250. Worry when it stays above 1000.
    enqueue_waiting: IntGauge = "posthaste_enqueue_waiting";

    /// Transactions with a remote host begun.
    attempts_started: IntCounter = "posthaste_attempts_started_total";
    /// One attempt from its start to its end, in seconds. Worry when most last minutes: the remotes tarpit.
    attempt_seconds: Histogram(ATTEMPT) = "posthaste_attempt_seconds";
    /// From acceptance to the first attempt, in seconds, per recipient. Worry above 1 s: slots are full or a
    /// destination backs off.
    first_attempt_seconds: Histogram(AGE) = "posthaste_first_attempt_seconds";
    /// From acceptance to the remote's 250, in seconds, per recipient.
    delivery_seconds: Histogram(AGE) = "posthaste_delivery_seconds";
    /// Connections to remote hosts opened.
    connections_opened: IntCounter = "posthaste_connections_opened_total";
    /// Connections to remote hosts open now.
    connections_open: IntGauge = "posthaste_connections_open";
    /// Transactions that went over a connection that was already open.
    connections_reused: IntCounter = "posthaste_connections_reused_total";
    /// Connections that could not be opened: refused, unreachable or timed out. Worry when it grows with
    /// connections_opened at rest: the network is down.
    connect_failures: IntCounter = "posthaste_connect_failures_total";
    /// TLS handshakes with remote hosts that succeeded.
    tls_handshakes_ok: IntCounter = "posthaste_tls_handshakes_total";
    /// TLS handshakes with remote hosts that failed. Worry when a smart host needs TLS.
    tls_handshakes_failed: IntCounter = "posthaste_tls_handshake_failures_total";
    /// One look-up of a destination's hosts, cache included, in seconds. Worry above 1 s: give faster dns.servers.
    dns_lookup_seconds: Histogram(LATENCY) = "posthaste_dns_lookup_seconds";
    /// Look-ups that failed or timed out (a proved "no such domain" is no failure). Worry when it grows fast: the
    /// name server is down and no mail leaves.
    dns_failures: IntCounter = "posthaste_dns_failures_total";

    /// Messages in the queue: accepted and not settled for each recipient. Worry when it only grows.
    queue_messages: IntGauge = "posthaste_queue_messages";
    /// Recipients in the queue that have not met their fate.
    queue_recipients: IntGauge = "posthaste_queue_recipients";
    /// Recipients that an operator holds. Worry when they are forgotten: they expire as all others do.
    held_recipients: IntGauge = "posthaste_held_recipients";
    /// Content bytes of queued messages.
    queue_bytes: IntGauge = "posthaste_queue_bytes";
    /// Messages put aside because they can't be read or crash the delivery. Worry when above 0: look at them.
    quarantined_messages: IntGauge = "posthaste_quarantined_messages";
    /// Age of the oldest queued message in seconds, 0 when there is none. Worry near retry.give_up_after.
    queue_oldest_seconds: Gauge = "posthaste_queue_oldest_seconds";
    /// Seconds until the queue next wakes a destination by itself; negative when that is overdue, 0 when nothing
    /// waits. Worry below -60: the queue is stuck.
    next_wake_seconds: Gauge = "posthaste_next_wake_seconds";
    /// Destinations with mail in memory or a connection slot.
    destinations_active: IntGauge = "posthaste_destinations_active";
    /// Destinations that failed as a whole and wait for their next try. Worry when it jumps: the network or DNS.
    destinations_backing_off: IntGauge = "posthaste_destinations_backing_off";
    /// Destinations that an operator suspended. Worry when one is forgotten: its mail expires.
    destinations_suspended: IntGauge = "posthaste_destinations_suspended";
    /// Destinations that hold their slots long; with the failing ones they get at most half of all slots.
    destinations_slow: IntGauge = "posthaste_destinations_slow";
    /// Recipients in memory that wait for a connection slot. Worry when it stays high while slots are free.
    recipients_ready: IntGauge = "posthaste_recipients_ready";
    /// Recipients being attempted now, up to the commit of their reports.
    recipients_in_flight: IntGauge = "posthaste_recipients_in_flight";
    /// Connection slots granted now.
    slots_used: IntGauge = "posthaste_slots_used";
    /// Connection slots there are (delivery.connections). Worry when slots_used stays at it.
    slots_limit: IntGauge = "posthaste_slots_limit";
    /// Attempts that hold a slot and have not connected yet, of destinations that have not answered before. High after a start
    /// or an outage: they connect one after the other (delivery.connects_per_second). Worry when it stays high: slow DNS.
    connects_expected: IntGauge = "posthaste_connects_expected";
    /// 1 when the queue did not answer within a second to the last scrape. Worry at once: no mail moves; restart the
    /// relay and report it.
    queue_unresponsive: IntGauge = "posthaste_queue_unresponsive";
    /// Content bytes that the queue holds in memory for fresh messages.
    memory_content_bytes: IntGauge = "posthaste_memory_content_bytes";
    /// Pages of due mail read back from the spool.
    pages_read: IntCounter = "posthaste_pages_read_total";

    /// Log lines dropped because their reader was too slow. Worry when it grows: the log has gaps, mail has not.
    log_lines_dropped: IntCounter = "posthaste_log_lines_dropped_total";
}

impl Metrics {
    /// All metrics at zero, without configured destination labels.
    ///
    /// # Errors
    /// See [`Metrics::with_destinations`].
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        Self::with_destinations(Vec::new(), DESTINATION_LABELS)
    }

    /// Counts a refusal: our 4yz or 5yz reply to a client's command (any case; `connection` for
    /// a session that the relay ends).
    pub fn refused(&self, command: &'static str, code: u16) {
        self.refusals.count(command, code);
    }

    /// Counts what came of one recipient's attempt, or of its stay in the queue.
    pub fn outcome(&self, outcome: Outcome, class: CauseClass) {
        self.outcomes.count(outcome, class);
    }

    /// Counts a DSN that was queued.
    pub fn dsn(&self, kind: ReportKind) {
        self.dsns.count(kind);
    }

    /// Counts a panic that ended one session or one delivery.
    pub fn panicked(&self, place: Place) {
        self.panics.count(place);
    }

    /// Brings the sync counter to the spool's own count since the start; never lowers it.
    pub fn set_syncs(&self, total: u64) {
        self.syncs.inc_by(total.saturating_sub(self.syncs.get()));
    }

    /// Shows which destinations back off, with the class of their last failure; for the answer to `Observe`.
    pub fn set_backing_off<'a>(&self, failing: impl Iterator<Item = (&'a Domain, CauseClass)>) {
        let mut counts = [0_i64; CauseClass::ALL.len()];
        self.destinations.set_backing_off(failing.map(|(destination, class)| {
            counts[class as usize] += 1;
            destination
        }));
        self.failing.iter().zip(counts).for_each(|(gauge, count)| gauge.set(count));
        self.destinations_backing_off.set(counts.iter().sum());
    }

    /// The metrics in Prometheus' text format. Destinations that became busy get their labels here.
    pub fn encode(&self) -> String {
        self.destinations.settle_labels();
        self.process.observe();
        let mut text = Vec::with_capacity(32 << 10);
        // Writing to a Vec can't fail; a family without samples would be a bug of this file.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics can't be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let opts = Opts::new("posthaste_build_info", "Always 1; the label tells the version.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let gauge = IntGauge::with_opts(opts)?;
    gauge.set(1);
    registry.register(Box::new(gauge))
}

fn failing(registry: &Registry) -> prometheus::Result<Vec<IntGauge>> {
    let family = IntGaugeVec::new(
        Opts::new(
            "posthaste_destinations_failing",
            "Destinations that back off, by the class of their last failure: tells why mail waits.",
        ),
        &["class"],
    )?;
    registry.register(Box::new(family.clone()))?;
    Ok(CauseClass::ALL.iter().map(|class| family.with_label_values(&[class.word()])).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_series_starts_at_zero_and_has_help() {
        let metrics = Metrics::new().unwrap();
        let text = metrics.encode();
        for line in text.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(line.splitn(4, ' ').nth(3).is_some_and(|help| help.len() > 10), "{line}");
        }
        let not_zero: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"))
            .filter(|line| !line.contains("build_info") && !line.contains("posthaste_process_"))
            .collect();
        assert!(not_zero.is_empty(), "{not_zero:?}");
    }

    #[test]
    fn counts_show_under_their_names() {
        let metrics = Metrics::new().unwrap();
        metrics.refused("RCPT", 550);
        metrics.refused("nonsense", 500);
        metrics.refused("connection", 421);
        metrics.outcome(Outcome::Deferred, CauseClass::Reply4xx);
        metrics.dsn(ReportKind::Delayed);
        metrics.panicked(Place::Session);
        metrics.set_syncs(7);
        metrics.set_syncs(5);
        let domain = Domain::parse("example.org").unwrap();
        let failing = [CauseClass::Connect, CauseClass::Connect, CauseClass::Dns];
        metrics.set_backing_off(failing.into_iter().map(|class| (&domain, class)));
        metrics.commit_seconds.observe(0.004);
        let text = metrics.encode();
        for expected in [
            "posthaste_refusals_total{class=\"5xx\",command=\"rcpt\"} 1",
            "posthaste_refusals_total{class=\"5xx\",command=\"other\"} 1",
            "posthaste_refusals_total{class=\"4xx\",command=\"connection\"} 1",
            "posthaste_recipients_total{class=\"reply_4xx\",outcome=\"deferred\"} 1",
            "posthaste_dsns_total{kind=\"delayed\"} 1",
            "posthaste_panics_total{place=\"session\"} 1",
            "posthaste_spool_syncs_total 7",
            "posthaste_destinations_failing{class=\"connect\"} 2",
            "posthaste_destinations_backing_off 3",
            "posthaste_destination_backing_off{destination=\"other\"} 3",
            "posthaste_commit_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn a_name_begins_with_posthaste_and_ends_with_its_unit() {
        let metrics = Metrics::new().unwrap();
        for family in metrics.registry.gather() {
            let name = family.name();
            assert!(name.starts_with("posthaste_"), "{name}");
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(counter, name.ends_with("_total"), "{name}: counters, and only they, end with _total");
        }
    }
}
