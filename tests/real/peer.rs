//! Real programs as child processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that a program may need for a dialogue.
const PATIENCE: Duration = Duration::from_secs(90);

/// Finds a program, also where only root looks.
///
/// # Panics
/// When it is not installed, with the Debian package that has it.
#[track_caller]
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let found = folders.map(|folder| Path::new(folder).join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        let package = match program {
            "smtp-source" | "smtp-sink" => "postfix",
            "dnsmasq" => "dnsmasq-base",
            "promtool" => "prometheus",
            other => other,
        };
        panic!(
            "{program} is not installed: install the Debian package {package}, or leave it out with make test"
        )
    })
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Standard output and standard error.
    pub text: String,
}

impl Said {
    /// Fails unless the program succeeded.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert_eq!(self.code, 0, "{}", self.text);
        self
    }

    /// Fails unless it said this.
    #[track_caller]
    pub fn with(&self, words: &str) -> &Self {
        assert!(self.text.contains(words), "\"{words}\" is not in:\n{}", self.text);
        self
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(folder.path().join("said")).unwrap();
    let mut child = Command::new(find(program))
        .args(args)
        .env("HOME", folder.path()) // no .swaksrc, no .curlrc
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > end => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(folder.path().join("said")).unwrap()).into_owned();
    let Some(status) = status else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{program} still runs after {PATIENCE:?}; it said:\n{text}");
    };
    Said { code: status.code().unwrap_or(-1), text }
}

/// A program that runs until it is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
