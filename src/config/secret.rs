//! Password files of routes: the first line is the password.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Config;
use super::problem::Problem;

/// The longest first line in bytes. RFC 4616 passwords are short; this bounds what a wrong file name can cost.
const LINE_MAX: u64 = 4096;

/// Reads the password from the file's first line.
///
/// # Errors
/// A sentence that names the file and says what to do.
pub fn read_password(path: &Path) -> Result<String, String> {
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|error| {
        format!("the password file {name} can't be opened ({error}); make it, readable by the user who runs posthaste")
    })?;
    let mut line = String::new();
    BufReader::new(file.take(LINE_MAX)).read_line(&mut line).map_err(|error| {
        format!("the password file {name} can't be read ({error}); put the password in its first line")
    })?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(format!("the first line of the password file {name} is empty; put the password there"));
    }
    if password.contains('\0') {
        return Err(format!(
            "the password file {name} has a zero byte in its first line; save it as plain text"
        ));
    }
    Ok(password.to_owned())
}

/// What is wrong with the password files that the routes name: unusable ones, and those that every user may read.
pub fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, route) in config.routes.iter().enumerate() {
        let Some(path) = &route.password_file else { continue };
        let key = format!("route.{number}.password_file");
        if let Err(text) = read_password(path) {
            problems.push(Problem::error_at(key, text));
        } else if std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0) {
            let name = path.display();
            let text = format!("every user may read the password file {name}; run chmod 600 on it");
            problems.push(Problem::warning_at(key, text));
        }
    }
    problems
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;

    fn check_file(content: Option<&str>, mode: u32) -> (Result<String, String>, Vec<bool>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let route = RouteConfig { password_file: Some(path.clone()), ..RouteConfig::default() };
        let config = Config { routes: vec![route], ..Config::default() };
        (read_password(&path), check(&config).iter().map(Problem::is_error).collect())
    }

    #[test]
    fn a_password_is_the_first_line_without_its_end() {
        for (content, password) in
            [("secret", "secret"), ("secret\n", "secret"), ("se cret \r\nrest", "se cret ")]
        {
            assert_eq!(check_file(Some(content), 0o600), (Ok(password.to_owned()), vec![]));
        }
    }

    #[test]
    fn unusable_password_files_are_errors_and_readable_ones_a_warning() {
        for (content, reason) in [
            (None, "can't be opened"),
            (Some(""), "is empty"),
            (Some("\nx"), "is empty"),
            (Some("a\0b"), "zero byte"),
        ] {
            let (password, problems) = check_file(content, 0o600);
            assert!(password.unwrap_err().contains(reason));
            assert_eq!(problems, [true]);
        }
        assert_eq!(check_file(Some("secret"), 0o644).1, [false]);
    }
}
