//! The real program as a child process, with a folder and addresses of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::smtp::{Client, Reply};
use super::{PATIENCE, http, place, wait_for};

/// The program under test: what cargo built, or what `POSTHASTE` names.
pub fn program() -> PathBuf {
    std::env::var_os("POSTHASTE").map_or_else(|| env!("CARGO_BIN_EXE_posthaste").into(), PathBuf::from)
}

/// A command for the program without any setting from the tester's environment.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POSTHASTE") {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// A folder with a configuration, before and between runs.
pub struct Setup {
    folder: TempDir,
    /// Where SMTP will be served.
    pub smtp: SocketAddr,
    /// Where HTTP will be served.
    pub http: SocketAddr,
    keys: BTreeMap<String, String>,
    routes: Vec<(String, String)>,
    variables: Vec<(&'static str, OsString)>,
}

impl Setup {
    /// Everything at its default, but the addresses.
    pub fn plain() -> Self {
        let folder = tempfile::Builder::new().prefix("posthaste-").tempdir().expect("a temporary folder");
        let http = place::free_place();
        let setup = Self {
            folder,
            smtp: place::free_place(),
            http,
            keys: BTreeMap::new(),
            routes: Vec::new(),
            variables: Vec::new(),
        };
        setup.set("http.address", &format!("\"{http}\""))
    }

    /// For tests: a name of its own, a short retry without jitter, and content with a small disk.
    pub fn new() -> Self {
        Self::plain()
            .set("server.hostname", "\"relay.test\"")
            .set("retry.schedule", "[\"1s\", \"2s\"]")
            .set("retry.jitter", "0.0")
            .set("spool.reserve", "\"8MiB\"")
            .set("spool.min_free", "\"4MiB\"")
    }

    /// Sets a dotted key to a TOML value.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sends the mail of these domains to a host.
    pub fn route(mut self, domains: &str, host: SocketAddr) -> Self {
        self.routes.push((domains.to_owned(), host.to_string()));
        self
    }

    /// Sends all mail to this host, whatever the routes were.
    pub fn reroute(mut self, host: SocketAddr) -> Self {
        self.routes = vec![("*".to_owned(), host.to_string())];
        self
    }

    /// Sets variables of the relay's environment.
    pub fn variables(mut self, variables: Vec<(&'static str, OsString)>) -> Self {
        self.variables = variables;
        self
    }

    /// The folder that the relay runs in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration as a file's text.
    pub fn toml(&self) -> String {
        let keys = self.keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
        let listener = format!("[[listener]]\naddress = \"{}\"\n", self.smtp);
        let routes = self
            .routes
            .iter()
            .map(|(domains, host)| format!("[[route]]\ndomains = [\"{domains}\"]\nhosts = [\"{host}\"]\n"));
        keys.chain([listener]).chain(routes).collect()
    }

    fn write(&self) {
        fs::write(self.folder().join("posthaste.toml"), self.toml()).expect("the configuration is written");
    }

    /// Starts the relay and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Relay {
        let mut relay = self.launch();
        relay.await_ready();
        relay
    }

    /// Starts the relay; not yet waited for.
    pub fn launch(self) -> Relay {
        let child = self.spawn();
        Relay { setup: self, child }
    }

    /// Runs `serve` to its end, for set-ups that can't work.
    ///
    /// # Panics
    /// As [`Setup::run`].
    #[track_caller]
    pub fn run_to_end(&self) -> Ended {
        self.run(&["serve", "--config", "posthaste.toml"])
    }

    /// Runs the program with these arguments to its end; the configuration is written before.
    ///
    /// # Panics
    /// When it still runs after [`PATIENCE`].
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ended {
        let mut child = self.spawn_with(args);
        let status = await_exit(&mut child, PATIENCE);
        let output = self.output();
        let status = status.unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{args:?} still runs; it said:\n{output}")
        });
        Ended { status, output }
    }

    fn spawn(&self) -> Child {
        self.spawn_with(&["serve", "--config", "posthaste.toml"])
    }

    fn spawn_with(&self, args: &[&str]) -> Child {
        self.write();
        let log = self.log();
        command(self.folder())
            .args(args)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the program starts")
    }

    fn log(&self) -> File {
        let path = self.folder().join("output");
        OpenOptions::new().create(true).append(true).open(path).expect("the output file opens")
    }

    /// What the relay has printed, over all runs.
    pub fn output(&self) -> String {
        let bytes = fs::read(self.folder().join("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output and standard error.
    pub output: String,
}

/// The running relay. Dropping it kills it; when the test has failed, its last lines are shown.
pub struct Relay {
    setup: Setup,
    child: Child,
}

impl Relay {
    /// Wraps a child that was started otherwise.
    pub fn adopt(setup: Setup, child: Child) -> Self {
        Self { setup, child }
    }

    /// Where SMTP is served.
    pub fn smtp(&self) -> SocketAddr {
        self.setup.smtp
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.setup.http
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        self.setup.output()
    }

    /// The end of what it has printed.
    pub fn last_lines(&self, count: usize) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Waits until `/readyz` says yes.
    #[track_caller]
    pub fn await_ready(&mut self) {
        let what = format!("the relay to serve on {}", self.smtp());
        wait_for(&what, PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the relay ended at its start ({status}); it said:\n{}", self.last_lines(40));
            }
            self.is_ready().then_some(())
        });
    }

    /// A session that has been greeted.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::greet(self.smtp()).unwrap_or_else(|error| panic!("no session with the relay: {error}"))
    }

    /// Sends one message over a session of its own; the last reply.
    #[track_caller]
    pub fn submit(&self, to: &[&str], content: &[u8]) -> Reply {
        let to: Vec<String> = to.iter().map(|path| (*path).to_owned()).collect();
        self.client()
            .mail("ledger@sender.test", &to, &super::smtp::stuffed(content))
            .unwrap_or_else(|error| panic!("the session broke: {error}"))
    }

    /// The text of `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let answer = http::get(self.http(), "/metrics").expect("metrics are served");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The token of the queue API.
    #[track_caller]
    pub fn token(&self) -> String {
        let path = self.folder().join("spool/api-token");
        let token = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        token.trim().to_owned()
    }

    /// Runs a verb of the program beside the running relay, with its configuration.
    #[track_caller]
    pub fn verb(&self, args: &[&str]) -> Output {
        let mut command = command(self.folder());
        command.args(args).args(["--config", "posthaste.toml"]).output().expect("the program starts")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("the relay takes signals");
    }

    /// `kill -9`, waited for.
    pub fn kill(&mut self) {
        self.child.kill().expect("the relay can be killed");
        let status = self.child.wait().expect("the relay can be waited for");
        assert_eq!(status.signal(), Some(9), "the relay had ended by itself:\n{}", self.last_lines(40));
    }

    /// Starts it again over the same folder and addresses; not yet waited for.
    pub fn restart(&mut self) {
        self.child = self.setup.spawn();
    }

    /// What its environment has beside the tester's from its next start on.
    pub fn set_variables(&mut self, variables: Vec<(&'static str, OsString)>) {
        self.setup.variables = variables;
    }

    /// Whether `/readyz` says yes.
    pub fn is_ready(&self) -> bool {
        http::get(self.http(), "/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// Whether it serves, but takes no mail because its spool has too little room.
    pub fn is_short_of_space(&self) -> bool {
        let answer = http::get(self.http(), "/readyz");
        answer.is_ok_and(|answer| answer.status == 503 && answer.body.contains("\"space: "))
    }

    /// The exit status, if it ends within this time.
    pub fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        await_exit(&mut self.child, patience)
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Stops it, changes the set-up and starts it again over the same folder.
    #[track_caller]
    pub fn with_setup(mut self, change: impl FnOnce(Setup) -> Setup) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let setup = std::mem::replace(&mut self.setup, Setup::new());
        change(setup).start()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the relay's last lines:\n{}\n---", self.last_lines(40));
        }
    }
}

fn await_exit(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
