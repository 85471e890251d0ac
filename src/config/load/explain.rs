//! What is wrong with a document, in words that say what to write instead. No sentence of a parser or of serde gets
//! through as it is, unless it is one of ours (those of `units` and `pattern`, which say "write").

use toml::Value;
use toml::de::{DeValue, Error};

use super::super::problem::{Place, Problem};
use super::super::{sample, units};
use super::nearest::nearest;
use super::sources::Sources;
use super::tree::{self, Node, Step};

/// A value that serde objects to.
#[derive(Debug)]
pub struct Objection<'a> {
    /// Where it is in the document.
    pub steps: &'a [Step],
    /// What was written there.
    pub found: String,
    /// Whether it is a table.
    pub is_table: bool,
    /// What serde says.
    pub message: &'a str,
}

impl Objection<'_> {
    /// What is wrong with it, and what to write instead.
    pub fn explain(&self) -> String {
        if self.message.starts_with("unknown field") { self.unknown_key() } else { self.wrong_value() }
    }

    fn unknown_key(&self) -> String {
        let Some((Step::Key(key), parents)) = self.steps.split_last() else {
            return format!("unknown key; {}", self.message);
        };
        let section = tree::key_name(parents);
        let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
        let keys = sample::keys();
        let here: Vec<&str> =
            keys.iter().filter_map(|k| k.strip_prefix(&prefix)).filter(|k| !k.contains('.')).collect();
        let what = match (parents.last(), self.is_table) {
            (None, true) => format!("unknown section [{key}]"),
            (None, false) => format!("unknown key \"{key}\" outside of any section"),
            (Some(Step::Index(_)), _) => format!("unknown key \"{key}\" in [[{section}]]"),
            _ => format!("unknown key \"{key}\" in [{section}]"),
        };
        if let Some(meant) = nearest(key, here.iter().copied()) {
            let (open, close) = if parents.is_empty() { ("[", "]") } else { ("\"", "\"") };
            return format!("{what}; did you mean {open}{meant}{close}?");
        }
        let elsewhere = keys.iter().find_map(|k| k.rsplit_once('.').filter(|(_, last)| last == key));
        match elsewhere {
            Some((home, _)) if is_list(home) => format!("{what}; it belongs in [[{home}]]"),
            Some((home, _)) => format!("{what}; it belongs in [{home}]"),
            None if parents.is_empty() => format!("{what}; the sections are {}", here.join(", ")),
            None => format!("{what}; the keys here are {}", here.join(", ")),
        }
    }

    fn wrong_value(&self) -> String {
        let name = tree::key_name(self.steps);
        if self.message.contains("; write") {
            return format!("{name}: {}", self.message);
        }
        let example = sample::example(&name);
        let example = match (example, self.steps.last()) {
            (Some(Value::Array(list)), Some(Step::Index(_))) => list.into_iter().next(),
            (example, _) => example,
        };
        format!("{name} is {}; write {}", self.found, wanted(self.message, &name, example.as_ref()))
    }
}

/// What should have been written, from what serde expected and from a value that would do.
fn wanted(message: &str, name: &str, example: Option<&Value>) -> String {
    let such_as = example.map_or_else(String::new, |example| format!(", such as {example}"));
    let expected = message.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    match expected {
        _ if message.starts_with("unknown variant") => expected.replace('`', "\""),
        "u16" => format!("a whole number up to 65535{such_as}"),
        "usize" | "u32" | "u64" => format!("a whole number{such_as}"),
        "f64" => format!("a number{such_as}"),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => format!("a list{such_as}"),
        _ if expected.starts_with("struct") && is_list(name) => format!("it as a section: [[{name}]]"),
        _ if expected.starts_with("struct") => format!("it as a section: [{name}]"),
        _ if message.contains("socket address") => format!("an IP address and a port{such_as}"),
        _ if message.contains("IP address") => format!("a network with its prefix length{such_as}"),
        _ if message.contains("untagged") => format!("{}{such_as}", unit_kind(example)),
        _ => format!("text in quotes{such_as}"),
    }
}

fn unit_kind(example: Option<&Value>) -> &'static str {
    match example {
        Some(Value::Array(_)) => "a list of durations",
        Some(Value::String(text)) if units::parse_duration(text).is_err() => "a size",
        _ => "a duration",
    }
}

fn is_list(section: &str) -> bool {
    sample::example(section).is_some_and(|example| example.is_array())
}

/// Sections that should be lists and lists that should be sections; takes them out of the document.
pub fn wrong_shapes(sources: &Sources, root: &mut Node<'_>) -> Vec<(String, Problem)> {
    let keys = sample::keys();
    let is_section = |key: &&String| keys.iter().any(|other| other.starts_with(&format!("{key}.")));
    let mut problems = Vec::new();
    for section in keys.iter().filter(is_section) {
        let steps: Vec<Step> = section.split('.').map(Step::read).collect();
        let Some(node) = tree::find(root, &steps) else { continue };
        let upper = section.to_uppercase().replace('.', "__");
        let text = match (is_list(section), node.get_ref()) {
            (true, DeValue::Array(_)) | (false, DeValue::Table(_)) => continue,
            (true, _) => format!(
                "{section} is a list; write [[{section}]] in the file, POSTHASTE_{upper}__0__… in the environment"
            ),
            (false, _) => format!(
                "{section} is one section; write [{section}] in the file, POSTHASTE_{upper}__… in the environment"
            ),
        };
        problems.push((section.clone(), Problem::error(sources.place(node.span().start), text)));
        tree::remove(root, &steps);
    }
    problems
}

/// Text that is no TOML: the first problem of each line.
pub fn syntax(sources: &Sources, errors: &[Error]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or_default();
            let text = syntax_text(error.message(), &sources.excerpt(span.clone()));
            Problem::error(sources.place(span.start), text)
        })
        .collect();
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    problems.dedup_by_key(|problem| match problem.place {
        Place::Line { line, .. } => line,
        _ => 0,
    });
    problems
}

fn syntax_text(message: &str, found: &str) -> String {
    let what = message.split(", expected").next().unwrap_or(message);
    let bare = found.trim_matches(|c: char| "“”„'\"".contains(c));
    match what {
        "string values must be quoted" if found.is_empty() => {
            "there is no value behind the =; write one, or take the key out".to_owned()
        }
        "string values must be quoted" if ["yes", "no", "on", "off"].contains(&bare) => {
            format!("{found} is no value; write true or false, or \"{bare}\" in quotes")
        }
        "string values must be quoted" => format!("text needs straight quotes; write \"{bare}\""),
        "duplicate key" => format!("{found} stands there twice; keep one"),
        "key with no value" => "a key needs a value; write key = value".to_owned(),
        "invalid unquoted key" => format!(
            "{found} can't be in a key; write key = value, where a key has letters, digits and underscores"
        ),
        "missing comma between array elements" => "put a comma between the entries of the list".to_owned(),
        "unexpected key or value" => "put this on a line of its own, or take it out".to_owned(),
        _ => match message.split_once(", expected ") {
            Some((what, expected)) => {
                format!("this is not TOML: {what}; write {}", expected.replace('`', ""))
            }
            None => format!("this is not TOML: {message}; compare it with what `posthaste config` prints"),
        },
    }
}

/// Variables with one underscore between section and key, which would otherwise be passed over.
pub fn misnamed_variables(sources: &Sources) -> Vec<Problem> {
    let keys = sample::keys();
    let meant = |name: &str| {
        let rest = name.split_once('_')?.1.to_ascii_lowercase();
        let key = keys.iter().find(|key| key.contains('.') && key.replace('.', "_") == rest)?;
        let variable = format!("POSTHASTE_{}", key.to_uppercase().replace('.', "__"));
        let text = format!("two underscores stand between section and key; name it {variable}");
        Some(Problem::error(Place::Variable(name.to_owned()), text))
    };
    sources.others.iter().filter_map(|name| meant(name)).collect()
}
