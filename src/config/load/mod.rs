//! From a file and the environment to a [`Config`], or to every problem that is in the way.
//!
//! serde stops at the first error, and an operator wants all of them: so the value that serde objects to is noted
//! and taken out of the document, and serde starts again, until it is content. What it says is put into our words
//! by `explain`. Environment variables are part of the document before serde sees it, so that both are held to the
//! same rules. They are text; where serde wants a number or a list, the text is read as one.

mod explain;
mod nearest;
mod sources;
mod tree;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

pub use sources::Source;

use super::problem::{ConfigErrors, Place, Problem};
use super::{Config, rules};
use crate::route::own;
use sources::Sources;
use tree::{Node, Step};

/// The file that is read when the command line names none.
pub const DEFAULT_FILE: &str = "posthaste.toml";

/// Reads the configuration: the file at `cli_path`, else `posthaste.toml` when the working directory has one, else
/// the defaults; then the variables `POSTHASTE_SECTION__KEY` of `environment`.
///
/// # Errors
/// Every problem, each with its place and a remedy. When the file and the variables can be read, problems of
/// meaning ([`rules::check`]) are among them, but for those that a damaged value may have brought about.
pub fn load(
    cli_path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Config, Source), ConfigErrors> {
    let file = read_file(cli_path).map_err(|problem| ConfigErrors(vec![problem]))?;
    let file = file.as_ref().map(|(path, text)| (path.as_path(), text.clone()));
    parse(&Sources::new(file, environment))
}

/// This process's environment as text; what is not UTF-8 is shown with replacement characters.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

fn read_file(cli_path: Option<&Path>) -> Result<Option<(PathBuf, String)>, Problem> {
    let path = cli_path.unwrap_or(Path::new(DEFAULT_FILE));
    let problem = |text: String| Problem::error(Place::File(path.to_owned()), text);
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((path.to_owned(), text))),
            Err(error) => {
                let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count();
                Err(problem(format!("line {line} is not UTF-8; save the file as UTF-8")))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && cli_path.is_none() => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(problem(
            "there is no such file; name an existing one, or start from `posthaste config > posthaste.toml`"
                .to_owned(),
        )),
        Err(error) => Err(problem(format!(
            "it can't be read: {error}; make it a file that the user who runs posthaste may read"
        ))),
    }
}

fn parse(sources: &Sources) -> Result<(Config, Source), ConfigErrors> {
    let (table, errors) = DeTable::parse_recoverable(&sources.text);
    if !errors.is_empty() {
        return Err(ConfigErrors(explain::syntax(sources, &errors)));
    }
    let mut root = tree::root(table);
    let mut report = Report { damaged: BTreeSet::new(), problems: explain::misnamed_variables(sources) };
    overlay(sources, &mut root, &mut report);
    let source = describe(sources, &root);
    for (section, problem) in explain::wrong_shapes(sources, &mut root) {
        report.note(&section, problem);
    }
    let config = until_content(sources, &mut root, &mut report);
    match config {
        Some(config) if report.problems.is_empty() => Ok((config, source)),
        config => Err(report.finish(config.as_ref(), &source)),
    }
}

/// The problems so far, and the keys they are at.
struct Report {
    damaged: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Report {
    fn note(&mut self, key: &str, problem: Problem) {
        self.damaged.insert(key.to_owned());
        self.problems.push(problem);
    }

    /// Adds what the rules say of what could be read.
    fn finish(mut self, config: Option<&Config>, source: &Source) -> ConfigErrors {
        let is_sound = |broken: &rules::Broken| match &broken.problem.place {
            Place::Key(key) if broken.alone => !self.damaged.iter().any(|damage| touches(damage, key)),
            Place::Key(key) => !self.damaged.iter().any(|damage| section_of(damage) == section_of(key)),
            _ => false,
        };
        let broken = config.map(rules::broken).unwrap_or_default();
        let mut more: Vec<Problem> =
            broken.into_iter().filter(is_sound).map(|broken| broken.problem).collect();
        more.extend(config.map(|config| self.loops(config)).unwrap_or_default());
        source.locate(&mut more);
        self.problems.extend(more);
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        ConfigErrors(self.problems)
    }
}

impl Report {
    /// Routes to the relay itself, as far as they and the listeners could be read.
    fn loops(&self, config: &Config) -> Vec<Problem> {
        let is_read = |key: &str| !self.damaged.iter().any(|damage| touches(damage, key));
        if !is_read("listener") || !is_read("delivery.port") {
            return Vec::new();
        }
        let mut found = own::check_routes(config, own::is_local);
        found.retain(|problem| matches!(&problem.place, Place::Key(key) if is_read(key)));
        found
    }
}

/// Whether what was taken out at `damage` may be what a rule found at `key`: one is inside the other, or both are in
/// the list whose entries have other numbers now.
fn touches(damage: &str, key: &str) -> bool {
    let damage = match damage.rsplit_once('.') {
        Some((list, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => list,
        _ => damage,
    };
    let is_inside = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    is_inside(damage, key) || is_inside(key, damage)
}

fn section_of(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

/// Puts the variables into the document, as text.
fn overlay<'a>(sources: &'a Sources, root: &mut Node<'a>, report: &mut Report) {
    for (number, variable) in sources.variables.iter().enumerate() {
        let value = DeValue::String(variable.value.as_str().into());
        if let Err(text) = tree::put(root, &[], &variable.steps, value, &sources.span(number)) {
            let problem = Problem::error(Place::Variable(variable.name.clone()), text);
            report.note(&tree::dotted(&variable.steps), problem);
        }
    }
}

fn describe(sources: &Sources, root: &Node<'_>) -> Source {
    let mut places = HashMap::new();
    tree::each_place(root, &mut Vec::new(), &mut |key, key_start, value_start| {
        // A variable replaces the value, not the key, of a line in the file.
        let offset = if value_start > sources.text.len() { value_start } else { key_start };
        places.insert(key, sources.place(offset));
    });
    let variables = sources.variables.iter().map(|variable| variable.name.clone()).collect();
    Source { file: sources.file.clone(), variables, places }
}

/// Lets serde read the document again and again, taking out or re-reading what it objects to. `None` when an
/// objection can't be taken out.
fn until_content<'a>(sources: &'a Sources, root: &mut Node<'a>, report: &mut Report) -> Option<Config> {
    loop {
        let mut track = serde_path_to_error::Track::new();
        let reader = ValueDeserializer::from(root.clone());
        let error = match Config::deserialize(serde_path_to_error::Deserializer::new(reader, &mut track)) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let steps = Step::path(&track.path()).unwrap_or_default();
        let span = error.span().unwrap_or_default();
        let (mut found, mut is_table) = (sources.excerpt(span.clone()), false);
        if let Some(node) = tree::find(root, &steps) {
            if read_variable(sources, node, error.message()) {
                continue;
            }
            match node.get_ref() {
                DeValue::String(text) => found = format!("\"{text}\""),
                value => is_table = value.is_table(),
            }
        }
        let place = sources.place(span.start);
        let objection = explain::Objection { steps: &steps, found, is_table, message: error.message() };
        report.note(&tree::dotted(&steps), Problem::error(place, objection.explain()));
        if !tree::remove(root, &steps) {
            return None;
        }
    }
}

/// Reads the text of a variable as what serde expects there instead: a list with commas, a number, true or false.
/// False when it isn't a variable's, or can't be read so.
fn read_variable(sources: &Sources, node: &mut Node<'_>, message: &str) -> bool {
    let span = node.span();
    let DeValue::String(Cow::Borrowed(text)) = *node.get_ref() else { return false };
    if span.start <= sources.text.len() || !message.starts_with("invalid type: string") {
        return false;
    }
    let entry = |value| Spanned::new(span.clone(), value);
    let is_list = message.ends_with("expected a sequence");
    let value = match DeValue::parse(text).map(Spanned::into_inner) {
        Ok(DeValue::Array(list)) if is_list => {
            DeValue::Array(list.into_iter().map(|item| entry(item.into_inner())).collect())
        }
        _ if is_list => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            DeValue::Array(parts.map(|part| entry(DeValue::String(part.into()))).collect())
        }
        Ok(value @ (DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_))) => value,
        _ => return false,
    };
    *node = entry(value);
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
