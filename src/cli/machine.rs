//! What stands in the way of a start on this machine, now: addresses that can't be listened on, a spool folder that
//! can't be written to. Nothing is made or changed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use super::client::Client;
use crate::admin::view::HealthView;
use crate::config::Config;
use crate::config::problem::Problem;
use crate::embed::{StartError, unavailable};

/// How long whoever has the HTTP address may take to say that it is a relay.
const PATIENCE: Duration = Duration::from_secs(2);

/// Every problem that a start would meet here.
pub fn check(config: &Config) -> Vec<Problem> {
    let taken = unavailable(config);
    let runs = !taken.is_empty() && is_relay(config.http.address);
    let mut problems: Vec<Problem> =
        taken.into_iter().map(|(key, error)| address_problem(key, &error, runs)).collect();
    problems.extend(spool_problem(&config.spool.path, may_write));
    problems
}

fn is_relay(http: SocketAddr) -> bool {
    Client::new(http).with_patience(PATIENCE).json::<HealthView>("GET", "/livez").is_ok()
}

/// An address in use is no mistake when a relay `runs`, and a port that this user may not open may be another's.
fn address_problem(key: String, error: &StartError, runs: bool) -> Problem {
    let StartError::Listen { address, source, .. } = error else {
        return Problem::error_at(key, error.to_string());
    };
    match source.kind() {
        io::ErrorKind::AddrInUse if runs => Problem::warning_at(
            key,
            format!(
                "{address} is in use, by the posthaste that is running as it seems: stop it before you start another"
            ),
        ),
        io::ErrorKind::PermissionDenied => {
            Problem::warning_at(key, format!("{error}; this was tried as the user who runs this check"))
        }
        _ => Problem::error_at(key, error.to_string()),
    }
}

/// Looks at the folder, or at what it would be made in.
fn spool_problem(spool: &Path, may_write: impl Fn(&Path) -> io::Result<()>) -> Option<Problem> {
    let is_missing =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let found = spool
        .ancestors()
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .map(|folder| (folder, folder.metadata()))
        .find(|(_, found)| !found.as_ref().is_err_and(is_missing));
    let (folder, found) = found?;
    let name = if folder == Path::new(".") {
        "the working directory".to_owned()
    } else {
        folder.display().to_string()
    };
    let text = match found
        .and_then(|found| if found.is_dir() { may_write(folder).map(|()| true) } else { Ok(false) })
    {
        Ok(true) => return None,
        Ok(false) => format!("{name} is no folder: move it away, or set spool.path to another name"),
        Err(error) => format!(
            "{name} can't be written to ({error}): give it to the user that runs posthaste and run this check as that \
             user, or set spool.path to another folder"
        ),
    };
    Some(Problem::error_at("spool.path", text))
}

fn may_write(folder: &Path) -> io::Result<()> {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(kind: io::ErrorKind, runs: bool) -> (bool, String) {
        let address = "127.0.0.1:25".parse().unwrap();
        let error = StartError::Listen { address, source: kind.into(), remedy: "do something" };
        let problem = address_problem("http.address".to_owned(), &error, runs);
        (problem.is_error(), problem.text)
    }

    #[test]
    fn an_address_in_use_is_an_error_unless_a_relay_runs() {
        let (is_error, text) = refused(io::ErrorKind::AddrInUse, false);
        assert!(is_error && text.contains("127.0.0.1:25") && text.contains("do something"), "{text}");
        let (is_error, text) = refused(io::ErrorKind::AddrInUse, true);
        assert!(!is_error && text.contains("the posthaste that is running"), "{text}");
    }

    #[test]
    fn a_port_that_only_this_user_may_not_open_is_a_warning_and_a_strange_address_an_error() {
        assert!(!refused(io::ErrorKind::PermissionDenied, false).0);
        assert!(refused(io::ErrorKind::AddrNotAvailable, true).0);
    }

    #[test]
    fn a_spool_that_can_not_be_written_is_told_before_the_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "in the way").unwrap();
        let told = |spool: &str, answer: fn(&Path) -> io::Result<()>| {
            spool_problem(&folder.path().join(spool), answer).map(|problem| problem.text)
        };
        let yes = |_: &Path| Ok(());
        let no = |_: &Path| Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(told("new/spool", yes), None);
        assert_eq!(told("", yes), None);
        for spool in ["file", "file/spool"] {
            let text = told(spool, yes).unwrap();
            assert!(
                text.starts_with(&format!("{} is no folder", folder.path().join("file").display())),
                "{text}"
            );
        }
        let text = told("new/spool", no).unwrap();
        assert!(text.starts_with(&format!("{} can't be written to", folder.path().display())), "{text}");
        assert!(!folder.path().join("new").exists(), "a check makes nothing");
        assert!(
            spool_problem(Path::new("spool"), no).unwrap().text.starts_with("the working directory can't be")
        );
    }

    #[test]
    fn a_folder_of_ours_may_be_written() {
        let folder = tempfile::tempdir().unwrap();
        may_write(folder.path()).unwrap();
        assert!(may_write(&folder.path().join("missing")).is_err());
    }
}
