//! Where the text of a configuration comes from: a file and the environment, laid end to end, so that one offset
//! (which is all that a parser's span holds) names a place in either.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::super::problem::{Place, Problem};
use super::tree::Step;

/// Before every variable that sets a key.
const PREFIX: &str = "POSTHASTE_";
/// Between section and key. One underscore would not do: keys have them.
const SEPARATOR: &str = "__";

/// One environment variable that sets a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// As it stands in the environment.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The key it sets.
    pub steps: Vec<Step>,
}

/// The texts of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's name, when there is one.
    pub file: Option<PathBuf>,
    /// The file's text.
    pub text: String,
    /// The variables, in the order they are applied.
    pub variables: Vec<Variable>,
    /// Names of variables with our prefix that set no key.
    pub others: Vec<String>,
}

impl Sources {
    /// Keeps the variables that are ours, in the order of their keys.
    ///
    /// Ours are those with a double underscore: container systems set others, such as `POSTHASTE_PORT`, by themselves.
    pub fn new(file: Option<(&Path, String)>, environment: impl Iterator<Item = (String, String)>) -> Self {
        let (mut variables, mut others) = (Vec::new(), Vec::new());
        for (name, value) in environment {
            let Some((head, rest)) = name.split_at_checked(PREFIX.len()) else { continue };
            if !head.eq_ignore_ascii_case(PREFIX) {
                continue;
            }
            let rest = rest.to_ascii_lowercase();
            if rest.contains(SEPARATOR) {
                let steps = rest.split(SEPARATOR).map(Step::read).collect();
                variables.push(Variable { name, value, steps });
            } else {
                others.push(name);
            }
        }
        variables.sort_by(|a: &Variable, b| a.steps.cmp(&b.steps).then_with(|| a.name.cmp(&b.name)));
        let (file, text) = file.map(|(path, text)| (path.to_owned(), text)).unzip();
        Self { file, text: text.unwrap_or_default(), variables, others }
    }

    /// Where the environment begins.
    pub fn environment_start(&self) -> usize {
        self.text.len() + 1
    }

    /// The offsets that stand for a variable. Each is one longer than its value, so that none is empty.
    pub fn span(&self, number: usize) -> Range<usize> {
        let before: usize = self.variables[..number].iter().map(|v| v.value.len() + 1).sum();
        let start = self.environment_start() + before;
        start..start + self.variables[number].value.len()
    }

    /// The place that an offset stands for.
    pub fn place(&self, offset: usize) -> Place {
        if offset < self.environment_start() {
            return self.line(offset);
        }
        let number = (0..self.variables.len()).rev().find(|number| self.span(*number).start <= offset);
        Place::Variable(number.map_or_else(String::new, |number| self.variables[number].name.clone()))
    }

    /// What was written there, as far as it is of one line, cut to what a message can carry.
    pub fn excerpt(&self, span: Range<usize>) -> String {
        let start = self.environment_start();
        let text = if span.start < start {
            self.text.get(span).unwrap_or_default().to_owned()
        } else {
            let number = (0..self.variables.len()).find(|number| self.span(*number) == span);
            number.map_or_else(String::new, |number| format!("\"{}\"", self.variables[number].value))
        };
        let line = text.lines().next().unwrap_or_default();
        match line.char_indices().nth(60) {
            Some((cut, _)) => format!("{}…", &line[..cut]),
            None => line.to_owned(),
        }
    }

    fn line(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::Line {
            file: self.file.clone().unwrap_or_default(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// What a configuration was made of, and where each key was set: for messages.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file, when there is one.
    pub file: Option<PathBuf>,
    /// The environment variables that set a key.
    pub variables: Vec<String>,
    pub(super) places: HashMap<String, Place>,
}

impl Source {
    /// Gives problems that name a key the line or variable where the key, or what it stands in, was set.
    pub fn locate(&self, problems: &mut [Problem]) {
        for problem in problems {
            if let Place::Key(key) = &problem.place
                && let Some(place) = self.place_of(key)
            {
                problem.place = place.clone();
            }
        }
    }

    fn place_of(&self, key: &str) -> Option<&Place> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return Some(place);
            }
            // What is absent from a route is a problem of the route, what is absent from a section is only its own.
            let (parent, last) = key.rsplit_once('.')?;
            if !is_number(last) && !parent.rsplit('.').next().is_some_and(is_number) {
                return None;
            }
            key = parent;
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("defaults (no file)")?,
        }
        match self.variables.len() {
            0 => Ok(()),
            1 => write!(f, " and {}", self.variables[0]),
            number => write!(f, " and {number} environment variables"),
        }
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}
