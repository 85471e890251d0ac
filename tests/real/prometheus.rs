//! `prometheus` scrapes the relay, and gets every question of the dashboard and of the alerts; `promtool` plays the
//! scenarios of the alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::peer::{self, Running};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, http, place, wait_for, wait_until};

/// Panels with a target that rightly has no series here, each with its reason. Keep it short.
const MAY_BE_EMPTY: [(&str, &str); 0] = [];

/// Panels that must show more than zero after the traffic of this test.
const ABOVE_ZERO: [&str; 15] = [
    "Accepted per second",
    "Delivered per second",
    "Messages waiting",
    "Oldest message",
    "In: messages and recipients",
    "In: bytes",
    "Content waiting",
    "Network trouble",
    "Acceptance",
    "Commit",
    "First attempt",
    "Delivery",
    "Attempt",
    "DNS look-up",
    "Reports to senders",
];

/// How often the relay is scraped, and how often the alerts are looked at.
const INTERVAL: &str = "1s";

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn read(file: &str) -> String {
    fs::read_to_string(dashboards().join(file)).unwrap()
}

/// A series of an answer: its labels and its value now.
#[derive(Debug)]
struct Series {
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A running Prometheus with the project's alert rules.
struct Prometheus {
    address: SocketAddr,
    _process: Running,
    _folder: TempDir,
}

impl Prometheus {
    /// Scrapes whoever listens at `target` as the job `posthaste`; returns after the first scrape.
    fn start(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The rules as they are, only looked at as often as the relay is scraped.
        let rules = read("alerts.yml").replace("interval: 15s", &format!("interval: {INTERVAL}"));
        fs::write(folder.path().join("alerts.yml"), rules).unwrap();
        let config = format!(
            "global: {{ scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, evaluation_interval: {INTERVAL} }}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs: [{{ job_name: posthaste, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n"
        );
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let address = place::free_place();
        let log = File::create(folder.path().join("said")).unwrap();
        let process = Command::new(peer::find("prometheus"))
            .current_dir(folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut process = Running(process);
        wait_until("prometheus to be ready", PATIENCE, || {
            if let Some(status) = process.0.try_wait().unwrap() {
                let said = fs::read_to_string(folder.path().join("said")).unwrap();
                panic!("prometheus ended at its start ({status}); it said:\n{said}");
            }
            http::get(address, "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        let made = Self { address, _process: process, _folder: folder };
        wait_until("the first scrape", PATIENCE, || made.number("up") == Some(1.0));
        made
    }

    /// What is under `data` of an answer of its API; panics with its words when it says no.
    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let answer = http::get(self.address, &format!("/api/v1/{path}")).unwrap();
        let mut body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["status"], "success", "{path}\n{}", answer.body);
        body["data"].take()
    }

    /// Evaluates an expression now.
    #[track_caller]
    fn ask(&self, expression: &str) -> Vec<Series> {
        let data = self.get(&format!("query?query={}", encoded(expression)));
        assert_eq!(data["resultType"], "vector", "{expression}");
        let series = |series: &Value| Series {
            labels: serde_json::from_value(series["metric"].clone()).unwrap(),
            value: series["value"][1].as_str().unwrap().parse().unwrap(),
        };
        data["result"].as_array().unwrap().iter().map(series).collect()
    }

    /// The only number of an answer; `None` when there are no series or many.
    #[track_caller]
    fn number(&self, expression: &str) -> Option<f64> {
        match self.ask(expression).as_slice() {
            [one] => Some(one.value),
            _ => None,
        }
    }

    /// Waits until an expression has this one value.
    #[track_caller]
    fn await_number(&self, expression: &str, expected: f64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.number(expression);
            if now == Some(expected) {
                return;
            }
            assert!(Instant::now() < end, "{expression} is {now:?}, not {expected}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All alert rules with their state, once each has been evaluated.
    #[track_caller]
    fn rules(&self) -> Vec<Value> {
        wait_for("each rule to be evaluated", PATIENCE, || {
            let groups = self.get("rules");
            let groups = groups["groups"].as_array().unwrap();
            let rules: Vec<Value> =
                groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect();
            rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
        })
    }
}

/// For a place in a URL.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// What stands for the dashboard's variables `$job` and `$instance`.
struct Chosen(&'static str, String);

impl Chosen {
    /// "All" of both.
    fn all() -> Self {
        Self(".*", ".*".to_owned())
    }

    /// One of each, escaped as Grafana does for a regular expression in a string.
    fn only(instance: SocketAddr) -> Self {
        Self("posthaste", instance.to_string().replace('.', r"\\."))
    }

    /// An expression as Grafana would send it.
    fn put_into(&self, expression: &str) -> String {
        let put = expression
            .replace("$__rate_interval", "5m")
            .replace("$job", self.0)
            .replace("$instance", &self.1);
        assert!(!put.contains('$'), "a variable that this test does not know: {put}");
        put
    }
}

/// What was sent, as Prometheus should come to see it.
struct World {
    relay: Relay,
    prometheus: Prometheus,
    _sink: Sink,
}

impl World {
    /// A relay that is scraped from before its first mail: six recipients are delivered and a seventh bounces, the
    /// report of which is delivered too; three are deferred, each for another cause; a client is refused and its session ended.
    fn start() -> Self {
        let sink = Sink::with(|moment| match moment {
            Moment::Recipient("refused@x.test") => Manner::Say("550 5.1.1 nobody"),
            Moment::Recipient("later@x.test") => Manner::Say("450 4.2.0 later"),
            _ => Manner::Accept,
        });
        let relay = Setup::new()
            .route("x.test", sink.address())
            .route("sender.test", sink.address())
            .route("dead.test", place::free_place())
            .set("dns.servers", &format!("[\"{}\"]", place::free_place()))
            .set("dns.timeout", "\"1s\"")
            .set("retry.schedule", "[\"1h\"]")
            .set("limits.errors", "1")
            .start();
        let prometheus = Prometheus::start(relay.http());
        let letter = b"Subject: counted\r\n\r\nhello\r\n";
        for to in ["a@x.test", "b@x.test", "c@x.test", "d@x.test"] {
            assert_eq!(relay.submit(&[to], letter).code, 250);
        }
        assert_eq!(relay.submit(&["e@x.test", "f@x.test"], letter).code, 250);
        for to in ["refused@x.test", "later@x.test", "you@dead.test", "you@unknown.test"] {
            assert_eq!(relay.submit(&[to], letter).code, 250);
        }
        let mut client = relay.client();
        assert_eq!(client.command("RCPT TO:<too@early.test>").unwrap().code, 503);
        assert_eq!(client.reply().unwrap().code, 421);
        Self { relay, prometheus, _sink: sink }
    }

    /// Counts and gauges are what was sent.
    fn check_numbers(&self) {
        let outcome = |outcome: &str| format!("sum(posthaste_recipients_total{{outcome=\"{outcome}\"}})");
        for (expression, expected) in [
            (outcome("delivered").as_str(), 7.0),
            (&outcome("bounced"), 1.0),
            (&outcome("deferred"), 3.0),
            (&outcome("expired"), 0.0),
            ("posthaste_messages_accepted_total", 9.0),
            ("posthaste_recipients_accepted_total", 10.0),
            ("posthaste_recipients_total{outcome=\"deferred\",class=\"reply_4xx\"}", 1.0),
            ("posthaste_recipients_total{outcome=\"deferred\",class=\"connect\"}", 1.0),
            ("posthaste_recipients_total{outcome=\"deferred\",class=\"dns\"}", 1.0),
            ("posthaste_destination_recipients_total{destination=\"x.test\",outcome=\"delivered\"}", 6.0),
            ("sum(posthaste_dsns_total)", 1.0),
            ("posthaste_queue_messages", 3.0),
            ("posthaste_queue_recipients", 3.0),
            ("posthaste_delivery_seconds_count", 7.0),
            ("posthaste_destination_backing_off{destination=\"dead.test\"}", 1.0),
            ("posthaste_destinations_failing{class=\"dns\"}", 1.0),
            ("posthaste_dns_failures_total", 1.0),
            ("posthaste_connect_failures_total", 1.0),
            ("posthaste_refusals_total{command=\"rcpt\",class=\"5xx\"}", 1.0),
            ("posthaste_refusals_total{command=\"connection\",class=\"4xx\"}", 1.0),
            ("posthaste_spool_failed", 0.0),
            ("posthaste_spool_short", 0.0),
        ] {
            self.prometheus.await_number(expression, expected);
        }
    }

    /// Every target of every panel is valid, has a number, and has the labels that its legend shows; where there was
    /// traffic, the first one is above zero.
    fn check_panels(&self, dashboard: &Value, chosen: &Chosen) {
        let titles =
            dashboard["panels"].as_array().unwrap().iter().map(|panel| panel["title"].as_str().unwrap());
        let titles: BTreeSet<&str> = titles.collect();
        assert!(ABOVE_ZERO.iter().all(|title| titles.contains(title)), "{titles:?}");
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().unwrap();
            let may_be_empty = MAY_BE_EMPTY.iter().any(|(empty, _)| *empty == title);
            for target in panel["targets"].as_array().unwrap() {
                let expression = chosen.put_into(target["expr"].as_str().unwrap());
                let found = self.prometheus.ask(&expression);
                let has_number = found.iter().any(|series| series.value.is_finite());
                assert!(has_number || may_be_empty, "{title} shows nothing: {expression}\n{found:?}");
                let above = found.iter().any(|series| series.value > 0.0);
                let must = target["refId"] == "A" && ABOVE_ZERO.contains(&title);
                assert!(above || !must, "{title} sees no traffic: {expression}\n{found:?}");
                for label in legend_labels(target["legendFormat"].as_str().unwrap()) {
                    let all = found.iter().all(|series| series.labels.contains_key(label));
                    assert!(all, "{title} has no label {label} for its legend: {found:?}");
                }
            }
        }
    }

    /// Every variable that asks Prometheus offers what is there.
    fn check_variables(&self, dashboard: &Value) {
        let expected =
            BTreeMap::from([("job", "posthaste".to_owned()), ("instance", self.relay.http().to_string())]);
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let queries = variables.iter().filter(|variable| variable["type"] == "query");
        let mut seen = BTreeSet::new();
        for variable in queries {
            let name = variable["name"].as_str().unwrap();
            let query = variable["query"]["query"].as_str().unwrap();
            assert_eq!(variable["definition"], query, "{name}");
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (selector, label) = inner.rsplit_once(", ").unwrap();
            let selector = encoded(&Chosen::all().put_into(selector));
            let values = self.prometheus.get(&format!("label/{label}/values?match%5B%5D={selector}"));
            assert_eq!(values, serde_json::json!([expected[name]]), "{name}");
            seen.insert(name);
        }
        assert!(seen.iter().eq(expected.keys()), "{seen:?}");
    }

    /// Every rule is loaded, evaluated without an error, and silent: nothing is wrong for as long as an alert needs.
    fn check_alerts(&self) {
        let text = read("alerts.yml");
        let written: BTreeSet<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        let rules = self.prometheus.rules();
        let names: BTreeSet<&str> = rules.iter().map(|rule| rule["name"].as_str().unwrap()).collect();
        assert_eq!(names, written);
        for rule in &rules {
            assert_eq!(rule["health"], "ok", "{rule:#}");
            assert_ne!(rule["state"], "firing", "{rule:#}");
            self.prometheus.ask(rule["query"].as_str().unwrap());
        }
    }

    /// A relay that is gone shows in the first row, and its alert begins to wait.
    fn check_down(mut self, dashboard: &Value) {
        let panels = dashboard["panels"].as_array().unwrap();
        let panel = panels.iter().find(|panel| panel["title"] == "Failed, stuck or down").unwrap();
        let expression = Chosen::all().put_into(panel["targets"][0]["expr"].as_str().unwrap());
        self.prometheus.await_number(&expression, 0.0);
        self.relay.kill();
        self.prometheus.await_number(&expression, 1.0);
        wait_until("the alert to be pending", PATIENCE, || {
            let rules = self.prometheus.rules();
            rules.iter().any(|rule| rule["name"] == "PosthasteDown" && rule["state"] == "pending")
        });
    }
}

/// The labels that a legend names: `{{class}}`.
fn legend_labels(legend: &str) -> impl Iterator<Item = &str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label)
}

#[test]
fn each_question_of_the_dashboard_gets_an_answer_and_each_alert_is_evaluated() {
    let dashboard: Value = serde_json::from_str(&read("posthaste.json")).unwrap();
    let world = World::start();
    world.check_numbers();
    world.check_panels(&dashboard, &Chosen::all());
    world.check_panels(&dashboard, &Chosen::only(world.relay.http()));
    world.check_variables(&dashboard);
    world.check_alerts();
    world.check_down(&dashboard);
}

#[test]
fn promtool_takes_the_configuration_and_the_rules() {
    let file = dashboards().join("prometheus.yml").display().to_string();
    let said = peer::run("promtool", ["check", "config", &file]);
    said.succeeded().with("is valid prometheus config file syntax").with("rules found");
}

#[test]
fn each_alert_fires_when_it_should_and_is_silent_when_not() {
    let file = dashboards().join("alerts_test.yml").display().to_string();
    peer::run("promtool", ["test", "rules", &file]).succeeded().with("SUCCESS");
}
