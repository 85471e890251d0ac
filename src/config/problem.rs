//! What is wrong with a configuration: where, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// Whether the relay can run in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The relay runs, but the operator should know.
    Warning,
    /// The relay doesn't start.
    Error,
}

/// Where a problem is. The order is the one problems are printed in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A whole file: it can't be read.
    File(PathBuf),
    /// A place in the file; line and column count from 1, the column in characters.
    Line {
        /// The file as it was named.
        file: PathBuf,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A key by its name, with dots and list positions: `retry.schedule`, `route.0.hosts`. Displays as
    /// "configuration", because the problem's text names the key.
    Key(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Line { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Key(_) => f.write_str("configuration"),
        }
    }
}

/// One problem. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// What is wrong, and what to do.
    pub text: String,
}

impl Problem {
    /// An error at a place.
    pub fn error(place: Place, text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, text: text.into() }
    }

    /// An error at a key, such as `retry.schedule`; [`super::load::Source::locate`] finds its line.
    pub fn error_at(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self::error(Place::Key(key.into()), text)
    }

    /// A warning at a key.
    pub fn warning_at(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, place: Place::Key(key.into()), text: text.into() }
    }

    /// Whether it keeps the relay from starting.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_error() { "" } else { "warning: " };
        write!(f, "{}: {word}{}", self.place, self.text)
    }
}

/// Everything that keeps a configuration from being used, in the order of the file. Displays one problem a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
