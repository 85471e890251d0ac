//! `posthaste check`: every problem with its place and a remedy, those that a start would meet on this machine
//! included; else what would run.

use std::process::ExitCode;

use super::{EXIT_CONFIG, complain, machine, say, summary};
use crate::config::load::Source;
use crate::config::problem::{ConfigErrors, Problem};
use crate::config::{Config, rules, secret};
use crate::route::own;
use crate::route::table::RouteTable;

/// Prints every problem. The code is that of a start: [`EXIT_CONFIG`] when the configuration is wrong, 1 when something on this
/// machine is in the way.
pub fn run(read: Result<(Config, Source), ConfigErrors>) -> ExitCode {
    let (config, source) = match read {
        Ok(good) => good,
        Err(errors) => {
            complain(&errors);
            complain(verdict(&errors.0));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let mut problems = examine(&config, &source);
    let is_wrong = problems.iter().any(Problem::is_error);
    let mut here = machine::check(&config);
    source.locate(&mut here);
    problems.extend(here);
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    for problem in &problems {
        complain(problem);
    }
    if !problems.is_empty() {
        complain(verdict(&problems));
    }
    if is_wrong {
        return ExitCode::from(EXIT_CONFIG);
    }
    if problems.iter().any(Problem::is_error) {
        return ExitCode::FAILURE;
    }
    say(format_args!("The configuration is good: {source}."));
    say("");
    say(summary::summary(&config, &config.listener_addresses(), Some(config.http.address)));
    ExitCode::SUCCESS
}

/// What is wrong with a configuration that could be read, with places, in the order of the file.
pub fn examine(config: &Config, source: &Source) -> Vec<Problem> {
    let mut problems = rules::check(config);
    problems.extend(secret::check(config));
    problems.extend(own::check_routes(config, own::is_local));
    // What the rules can't see, building shows.
    if problems.iter().all(|problem| !problem.is_error()) {
        problems.extend(RouteTable::build(config).err().unwrap_or_default());
    }
    source.locate(&mut problems);
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    problems
}

fn verdict(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        number => format!("{number} {word}s"),
    };
    format!("{}, {}", count(errors, "error"), count(problems.len() - errors, "warning"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;

    #[test]
    fn rules_and_files_are_both_examined() {
        let mut config = Config::default();
        config.retry.schedule.clear();
        config.relay.networks.clear();
        let file = Some("no-such-folder/password".into());
        config.routes.push(RouteConfig { password_file: file, ..RouteConfig::default() });
        let problems = examine(&config, &Source::default());
        let texts: Vec<&str> = problems.iter().map(|problem| problem.text.as_str()).collect();
        assert!(texts.iter().any(|text| text.starts_with("retry.schedule is empty")), "{texts:?}");
        assert!(
            texts.iter().any(|text| text.contains("no-such-folder/password can't be opened")),
            "{texts:?}"
        );
        assert!(verdict(&problems).ends_with("errors, 1 warning"), "{}", verdict(&problems));
    }

    #[test]
    fn the_defaults_pass() {
        assert_eq!(examine(&Config::default(), &Source::default()), []);
    }
}
