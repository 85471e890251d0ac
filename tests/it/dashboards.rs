//! The dashboards and the metrics know the same names, and Grafana can draw what is there. `tests/real/prometheus.rs` asks
//! a real Prometheus the same questions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use posthaste::metrics::Metrics;
use serde_json::Value;

/// Metrics that no panel and no alert needs, each with its reason. Keep it short.
const UNUSED: [(&str, &str); 0] = [];

/// The names of all metrics, and of those that are histograms.
fn metrics() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = Metrics::new().expect("made once").encode();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let (mut all, mut histograms) = (BTreeSet::new(), BTreeSet::new());
    for (name, kind) in types.filter_map(|line| line.split_once(' ')) {
        all.insert(name.to_owned());
        if kind == "histogram" {
            histograms.insert(name.to_owned());
        }
    }
    (all, histograms)
}

/// Each word of a text that begins with `posthaste_`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_')
        .filter(|word| word.starts_with("posthaste_"))
}

/// The metrics that a file names; a histogram's series count as the histogram.
fn named_in(file: &str, histograms: &BTreeSet<String>) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let family = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|stem| histograms.contains(*stem))
            .unwrap_or(name)
            .to_owned()
    };
    names(&text).map(family).collect()
}

#[test]
fn each_metric_named_in_a_dashboard_exists_and_each_metric_is_used() {
    let (all, histograms) = metrics();
    let mut used: BTreeSet<String> = UNUSED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for file in ["posthaste.json", "alerts.yml"] {
        let named = named_in(file, &histograms);
        assert!(named.len() > 10, "{file} names hardly a metric: {named:?}");
        let unknown: Vec<_> = named.difference(&all).collect();
        assert!(unknown.is_empty(), "dashboards/{file} names metrics that do not exist: {unknown:?}");
        used.extend(named);
    }
    let unused: Vec<_> = all.difference(&used).collect();
    assert!(unused.is_empty(), "give these a panel, an alert, or a reason in UNUSED: {unused:?}");
}

#[test]
fn each_panel_asks_its_question_and_the_readme_has_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let readme = fs::read_to_string(folder.join("README.md")).expect("readable");
    let text = fs::read_to_string(folder.join("posthaste.json")).expect("readable");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    assert!(panels.len() > 20);
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        let question = panel["description"].as_str().unwrap_or_default();
        assert!(question.len() > 15, "{title} has no question as its description");
        let line = format!("| {title} | {question} |");
        assert!(readme.contains(&line), "dashboards/README.md lacks: {line}");
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}: use the variable");
        }
    }
}

/// The units of Grafana that the panels may have (`packages/grafana-data/src/valueFormats/categories.ts`); a misspelt one
/// would show as a suffix of the number.
const UNITS: [&str; 6] = ["short", "s", "bytes", "Bps", "cps", "mps"];
/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/posthaste.json");
    serde_json::from_str(&fs::read_to_string(path).expect("readable")).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The cells of the grid that a panel covers.
fn cells(panel: &Value) -> impl Iterator<Item = (u64, u64)> {
    let place =
        |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {panel:#}"));
    let (x, y, width, height) = (place("x"), place("y"), place("w"), place("h"));
    assert!(width > 0 && height > 0 && x + width <= COLUMNS, "outside of the grid: {panel:#}");
    (y..y + height).flat_map(move |row| (x..x + width).map(move |column| (column, row)))
}

#[test]
fn panels_have_ids_and_places_of_their_own() {
    let dashboard = dashboard();
    let version = dashboard["schemaVersion"].as_u64().expect("a schemaVersion");
    assert!(
        (36..=42).contains(&version),
        "{version}: Grafana 10 migrates what is older, and has no newer one"
    );
    assert!(dashboard.get("id").is_none_or(Value::is_null), "an id belongs to one Grafana; the uid is ours");
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "two panels have this id: {panel:#}");
        for cell in cells(panel) {
            assert!(taken.insert(cell), "{} lies on another panel at {cell:?}", panel["title"]);
        }
    }
}

#[test]
fn panels_have_units_that_grafana_knows_and_lines_that_show() {
    for panel in list(&dashboard()["panels"]).iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        assert!(
            ["stat", "timeseries"].map(Value::from).contains(&panel["type"]),
            "{title}: {}",
            panel["type"]
        );
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(UNITS.map(Value::from).contains(&defaults["unit"]), "{title}: {}", defaults["unit"]);
        // A series that is filtered with "> 0" may be a single point, which is invisible without this.
        if panel["type"] == "timeseries" {
            assert_eq!(defaults["custom"]["showPoints"], "auto", "{title}");
        }
    }
}

#[test]
fn targets_ask_for_the_chosen_relays_and_know_each_variable() {
    let dashboard = dashboard();
    let variables: BTreeSet<&str> = list(&dashboard["templating"]["list"])
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    let known = |name: &str| variables.contains(name) || name == "__rate_interval";
    for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let mut letters = BTreeSet::new();
        for target in list(&panel["targets"]) {
            assert!(letters.insert(target["refId"].as_str().expect("a refId")), "{title} has a refId twice");
            let expression = target["expr"].as_str().expect("an expression");
            for used in expression.split('$').skip(1) {
                let name = used.split(|char: char| !char.is_alphanumeric() && char != '_').next();
                assert!(name.is_some_and(known), "{title} uses ${name:?}, which nobody sets");
            }
            let asked = names(expression).count();
            let chosen = expression.matches(r#"{job=~"$job",instance=~"$instance""#).count();
            assert!(asked > 0 && chosen >= asked, "{title} asks for all relays: {expression}");
        }
    }
}

/// A scenario's line names an alert as a label only where it is expected to fire.
#[test]
fn each_alert_has_a_scenario_in_which_it_fires() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let read = |file: &str| fs::read_to_string(folder.join(file)).expect("readable");
    let (rules, scenarios) = (read("alerts.yml"), read("alerts_test.yml"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 20, "{alerts:?}");
    for alert in alerts {
        assert!(
            scenarios.contains(&format!("alertname=\"{alert}\"")),
            "{alert} never fires in alerts_test.yml"
        );
    }
}
