//! The annotated sample that `posthaste config` prints, and the examples that messages show.
//!
//! Nothing in it is written twice, so nothing can drift: the comments are the doc comments of the structs in
//! `config/mod.rs`, read from its source, and the values are those of `Config::default()`. Only keys without a
//! default need an example; they stand here, and are commented out in the sample.

use std::fmt::Write;

use toml::{Table, Value};

use super::Config;

/// The structs with their doc comments.
const SOURCE: &str = include_str!("mod.rs");

/// What a key without a default may look like.
const EXAMPLES: &str = r#"
server.hostname = "relay.example.org"
listener = [{ address = "127.0.0.1:2525" }]
dns.servers = ["127.0.0.1:5353"]
http.hosts = ["relay.example.org"]

[[route]]
domains = ["*.internal.example", "partner.example"]
hosts = ["10.0.0.5:2500"]
tls = "required"
username = "relay"
password_file = "partner.password"
connections = 10

[[retry.for]]
domains = ["slow.example"]
schedule = ["10m", "1h"]
give_up_after = "2d"
delay_notice_after = "12h"
"#;

const HEAD: &str = "\
# Posthaste reads this file from --config FILE, else from posthaste.toml in the working directory, else runs with
# the defaults, which are the values shown here. Keys without a default are commented out and show an example.
# Every key is also an environment variable: POSTHASTE_SPOOL__PATH, POSTHASTE_RETRY__SCHEDULE=\"1m,5m\",
# POSTHASTE_LISTENER__0__ADDRESS. `posthaste check` says whether all is well.
";

/// A struct of the configuration as its source shows it.
#[derive(Debug, Default)]
struct Section {
    name: String,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    key: String,
    docs: Vec<String>,
    type_name: String,
}

/// The annotated sample: TOML that reads back as the defaults.
pub fn sample() -> String {
    let sections = sections();
    let mut out = HEAD.to_owned();
    let root = sections.iter().find(|section| section.name == "Config");
    for field in root.iter().flat_map(|section| &section.fields) {
        write_section(&mut out, &sections, field, &field.key, &default_values(), &example_values());
    }
    out
}

/// A value that the key `name` (`retry.schedule`, `route.hosts`) may have: its default, else an example.
pub fn example(name: &str) -> Option<Value> {
    let lookup = |table: &Table| {
        let mut value = Value::Table(table.clone());
        for key in name.split('.') {
            if let Value::Array(list) = value {
                value = list.into_iter().next()?;
            }
            value = value.as_table()?.get(key)?.clone();
        }
        Some(value).filter(|value| !value.as_array().is_some_and(Vec::is_empty))
    };
    lookup(&default_values()).or_else(|| lookup(&example_values()))
}

/// Every key there is, as `section.key`; entries of lists without their position; a section before its keys.
pub fn keys() -> Vec<String> {
    fn walk(sections: &[Section], name: &str, prefix: &str, keys: &mut Vec<String>) {
        for field in sections.iter().filter(|section| section.name == name).flat_map(|s| &s.fields) {
            let key = format!("{prefix}{}", field.key);
            keys.push(key.clone());
            walk(sections, inner_type(&field.type_name), &format!("{key}."), keys);
        }
    }
    let mut keys = Vec::new();
    walk(&sections(), "Config", "", &mut keys);
    keys
}

fn default_values() -> Table {
    Table::try_from(Config::default()).unwrap_or_default()
}

fn example_values() -> Table {
    EXAMPLES.parse().unwrap_or_default()
}

fn write_section(
    out: &mut String,
    sections: &[Section],
    field: &Field,
    path: &str,
    defaults: &Table,
    examples: &Table,
) {
    let Some(section) = sections.iter().find(|section| section.name == inner_type(&field.type_name)) else {
        return;
    };
    let is_list = field.type_name.starts_with("Vec<");
    out.push('\n');
    comment(out, &field.docs);
    let (open, close) = if is_list { ("#[[", "]]") } else { ("[", "]") };
    let _ = writeln!(out, "{open}{path}{close}");
    let example = examples.get(&field.key);
    let example = if is_list { example.and_then(|list| list.get(0)) } else { example };
    let example = example.and_then(Value::as_table).cloned().unwrap_or_default();
    let default = defaults.get(&field.key).and_then(Value::as_table).cloned().unwrap_or_default();
    let is_section = |field: &&Field| sections.iter().any(|s| s.name == inner_type(&field.type_name));
    for field in section.fields.iter().filter(|field| !is_section(field)) {
        comment(out, &field.docs);
        write_key(out, &field.key, default.get(&field.key), example.get(&field.key));
    }
    for field in section.fields.iter().filter(is_section) {
        write_section(out, sections, field, &format!("{path}.{}", field.key), &default, &example);
    }
}

/// `key = default`; an example, commented out, when there is no default or an empty one.
fn write_key(out: &mut String, key: &str, default: Option<&Value>, example: Option<&Value>) {
    if let Some(value) = default {
        let _ = writeln!(out, "{key} = {value}");
    }
    if let Some(value) = example {
        let _ = writeln!(out, "#{key} = {value}");
    }
}

fn comment(out: &mut String, docs: &[String]) {
    for line in docs {
        let _ = writeln!(out, "# {line}");
    }
}

/// Reads the structs of `config/mod.rs` with their fields and doc comments.
fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut docs = Vec::new();
    let mut rename = None;
    for line in SOURCE.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("/// ") {
            docs.push(doc.to_owned());
        } else if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            rename = rest.split('"').next().map(str::to_owned);
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.trim_end_matches([' ', '{']).to_owned();
            sections.push(Section { name, fields: Vec::new() });
            docs.clear();
        } else if let Some((name, type_name)) =
            line.strip_prefix("pub ").and_then(|rest| rest.split_once(": "))
            && let Some(section) = sections.last_mut()
        {
            let key = rename.take().unwrap_or_else(|| name.to_owned());
            let type_name = type_name.trim_end_matches(',').to_owned();
            section.fields.push(Field { key, docs: std::mem::take(&mut docs), type_name });
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    sections
}

/// `RouteConfig` for `Vec<RouteConfig>`.
fn inner_type(type_name: &str) -> &str {
    type_name.strip_prefix("Vec<").and_then(|rest| rest.strip_suffix('>')).unwrap_or(type_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        toml::from_str(text).expect("the sample is a configuration")
    }

    /// The sample with its examples in force: a `#` without a space behind it goes.
    fn uncommented() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        };
        // A key whose default is an empty list stands there twice then; the example counts.
        let lines: Vec<String> = sample().lines().map(line).filter(|line| !line.ends_with("= []")).collect();
        lines.join("\n")
    }

    #[test]
    fn the_sample_reads_back_as_the_defaults() {
        let (sample, default) = (read(&sample()), Config::default());
        assert_eq!(Table::try_from(sample).expect("table"), Table::try_from(default).expect("table"));
    }

    #[test]
    fn the_sample_with_its_examples_has_every_key_and_keeps_every_rule() {
        let text = uncommented();
        for key in keys() {
            assert!(example(&key).is_some(), "{key} needs an example");
            let last = key.rsplit('.').next().expect("a name");
            let is_there = text.contains(&format!("\n{last} = ")) || text.contains(&format!("[{key}]"));
            assert!(is_there, "{key} is missing");
        }
        assert_eq!(crate::config::rules::check(&read(&text)), []);
    }

    /// The source is read by a few string rules; this notices when they stop fitting it.
    #[test]
    fn every_field_that_serde_knows_is_found_in_the_source() {
        fn check(prefix: &str, value: &Value, keys: &[String]) {
            let Value::Table(table) = value else { return };
            for (key, value) in table {
                let name = format!("{prefix}{key}");
                assert!(keys.contains(&name), "{name} is not found in config/mod.rs");
                let inner = value.as_array().and_then(|list| list.first()).unwrap_or(value);
                check(&format!("{name}."), inner, keys);
            }
        }
        let keys = keys();
        check("", &Value::Table(default_values()), &keys);
        check("", &Value::try_from(read(&uncommented())).expect("value"), &keys);
        let documented = sections().into_iter().flat_map(|section| section.fields);
        assert!(documented.into_iter().all(|field| !field.docs.is_empty()));
    }
}
