//! The dashboards and the metrics know the same names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use posthaste::metrics::Metrics;

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
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
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
