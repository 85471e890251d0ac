//! Postfix's `smtp-source` in front of the relay and its `smtp-sink` behind.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::peer::{self, Running};
use crate::support::relay::Setup;
use crate::support::{PATIENCE, http, place, wait_until};

/// Postfix's sink; it counts what it got.
struct PostfixSink {
    address: SocketAddr,
    counter: PathBuf,
    _folder: tempfile::TempDir,
    _process: Running,
}

impl PostfixSink {
    fn start() -> Self {
        let address = place::free_place();
        let folder = tempfile::tempdir().unwrap();
        let counter = folder.path().join("counter");
        let mut command = Command::new(peer::find("smtp-sink"));
        if peer::is_root() {
            command.args(["-u", "nobody"]);
        }
        let process = command
            .args(["-c", "-m", "500", &address.to_string(), "200"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&counter).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Running(process);
        wait_until("smtp-sink", PATIENCE, || TcpStream::connect(address).is_ok());
        Self { address, counter, _folder: folder, _process: process }
    }

    /// `-c` writes `sess=1 quit=1 mesg=7` over and over.
    fn messages(&self) -> usize {
        let text = String::from_utf8_lossy(&fs::read(&self.counter).unwrap()).into_owned();
        let last = text.rsplit("mesg=").next().unwrap_or("");
        last.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    }
}

#[track_caller]
fn check_all_arrive(messages: usize, sessions: usize, size: usize, more: &[&str]) {
    let sink = PostfixSink::start();
    let relay = Setup::new().route("*", sink.address).start();
    let (messages_text, sessions, size) = (messages.to_string(), sessions.to_string(), size.to_string());
    let server = relay.smtp().to_string();
    let args =
        ["-m", &messages_text, "-s", &sessions, "-l", &size, "-f", "me@sender.test", "-t", "you@x.test"];
    let said = peer::run("smtp-source", more.iter().chain(&args).copied().chain([server.as_str()]));
    said.succeeded();
    wait_until("every message at smtp-sink", Duration::from_secs(60), || sink.messages() >= messages);
    wait_until("an empty queue", PATIENCE, || {
        http::metric(&relay.metrics(), "posthaste_queue_messages", &[]) == Some(0.0)
    });
    assert_eq!(sink.messages(), messages, "each once");
    let accepted = http::metric(&relay.metrics(), "posthaste_messages_accepted_total", &[]);
    assert_eq!(accepted, Some(messages as f64));
}

#[test]
fn five_hundred_messages_over_kept_connections_arrive() {
    check_all_arrive(500, 20, 4096, &["-d"]);
}

#[test]
fn five_hundred_messages_over_a_connection_each_arrive() {
    check_all_arrive(500, 20, 4096, &[]);
}

#[test]
fn fifty_messages_of_a_megabyte_arrive() {
    check_all_arrive(50, 5, 1 << 20, &["-d"]);
}

#[test]
fn messages_for_ten_recipients_arrive() {
    check_all_arrive(100, 10, 1000, &["-d", "-r", "10"]);
}
