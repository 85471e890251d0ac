//! `posthaste spool rescue`, against the real program and a database that sled can't open.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal::SIGTERM;

use crate::support::relay::{Relay, Setup, command};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::{PATIENCE, wait_until};

/// Overwrites some bytes of sled's snapshot: its checksum is wrong then.
fn damage_snapshot(spool: &Path) {
    let snapshots: Vec<PathBuf> = fs::read_dir(spool)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
        .collect();
    assert!(!snapshots.is_empty(), "sled wrote one at the second start");
    for path in snapshots {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(path, bytes).unwrap();
    }
}

/// Damages each copy of a text in the database.
fn damage_text(spool: &Path, text: &[u8]) {
    let path = spool.join("db");
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}

/// How many mails are queued.
const MAILS: u64 = 30;

/// A stopped relay whose spool holds mail that nobody wanted yet, and where it goes once `open` is set.
struct Queued {
    relay: Relay,
    sink: Sink,
    open: Arc<AtomicBool>,
}

impl Queued {
    fn new() -> Self {
        let open = Arc::new(AtomicBool::new(false));
        let door = Arc::clone(&open);
        let sink = Sink::with(move |moment| match moment {
            Moment::Greeting if !door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
            _ => Manner::Accept,
        });
        let mut relay = Setup::new().route("*", sink.address()).start();
        for number in 0..MAILS {
            assert_eq!(relay.submit(&[&address(number)], mail(number).as_bytes()).code, 250);
        }
        // sled writes a snapshot at the second start.
        for last in [false, true] {
            relay.signal(SIGTERM);
            relay.ended_within(PATIENCE).expect("it stops");
            if !last {
                relay.restart();
                relay.await_ready();
            }
        }
        Self { relay, sink, open }
    }

    fn spool(&self) -> PathBuf {
        self.relay.folder().join("spool")
    }

    fn run(&self, args: &[&str]) -> Output {
        command(self.relay.folder()).args(args).output().unwrap()
    }

    /// What a rescue into `saved` reports; it must end with `code`.
    fn rescue(&self, code: i32) -> serde_json::Value {
        let refused = self.run(&["serve", "--config", "posthaste.toml"]);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("posthaste spool rescue") && said.contains("it is damaged"), "{said}");
        let old = fs::read(self.spool().join("db")).unwrap();
        let rescued = self.run(&["spool", "rescue", "spool", "saved", "--json"]);
        assert_eq!(rescued.status.code(), Some(code), "{rescued:?}");
        assert_eq!(fs::read(self.spool().join("db")).unwrap(), old, "the old one is as it was");
        serde_json::from_slice(&rescued.stdout).unwrap()
    }

    /// Starts the relay on what was saved, and returns the numbers of the mails that come out.
    fn deliver(&mut self) -> Vec<u64> {
        fs::rename(self.spool(), self.relay.folder().join("damaged")).unwrap();
        fs::rename(self.relay.folder().join("saved"), self.spool()).unwrap();
        self.open.store(true, Ordering::SeqCst);
        self.relay.restart();
        self.relay.await_ready();
        wait_until("the queue to be empty", PATIENCE, || {
            String::from_utf8_lossy(&self.relay.verb(&["queue", "list"]).stdout)
                .contains("the queue is empty")
        });
        let is_whole = |number: &u64| match &self.sink.delivered_to(&address(*number))[..] {
            [] => false,
            [once] => {
                assert!(once.content.ends_with(mail(*number).as_bytes()), "mail {number}");
                true
            }
            more => panic!("mail {number} came {} times", more.len()),
        };
        (0..MAILS).filter(is_whole).collect()
    }
}

fn address(number: u64) -> String {
    format!("u{number}@x.test")
}

/// The last one has its content in a file.
fn mail(number: u64) -> String {
    let lines = if number + 1 == MAILS { 10_000 } else { 5 };
    format!("Subject: mail\r\n\r\n{}", format!("This is mail {number}.\r\n").repeat(lines))
}

#[test]
fn mail_in_a_database_that_cannot_be_opened_is_rescued_and_delivered() {
    let mut queued = Queued::new();
    damage_snapshot(&queued.spool());
    let report = queued.rescue(0);
    assert_eq!(report["messages"].as_u64(), Some(MAILS), "{report}");
    let again = queued.run(&["spool", "rescue", "spool", "saved"]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "{again:?}");
    assert_eq!(queued.deliver(), (0..MAILS).collect::<Vec<_>>());
}

#[test]
fn what_the_rescue_saves_from_damaged_pages_is_delivered_and_nothing_else() {
    let mut queued = Queued::new();
    damage_snapshot(&queued.spool());
    damage_text(&queued.spool(), b"This is mail 7.");
    let report = queued.rescue(3);
    assert!(report["records_unreadable"].as_u64() > Some(0), "{report}");
    let delivered = queued.deliver();
    assert_eq!(report["messages"].as_u64(), Some(delivered.len() as u64), "{report}");
    // A page holds sixteen records.
    assert!(delivered.len() as u64 >= MAILS - 16, "{delivered:?}");
    assert!(!delivered.contains(&7), "{delivered:?}");
}

/// Gives a folder with all in it to a user.
fn give(path: &Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
}

#[test]
fn a_content_file_of_another_user_stops_the_rescue_before_it_begins() {
    const NOBODY: u32 = 65_534;
    let queued = Queued::new();
    let file = fs::read_dir(queued.spool().join("content")).unwrap().next().unwrap().unwrap().path();
    let mut rescue = command(queued.relay.folder());
    rescue.args(["spool", "rescue", "spool", "saved"]);
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        give(queued.relay.folder(), NOBODY);
        give(&file, 0);
        rescue.uid(NOBODY).gid(NOBODY);
    } else {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
    }
    let refused = match rescue.output() {
        // That user can't reach the program.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
        other => other.unwrap(),
    };
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let words = ["posthaste: ", path(&file), "run it as the user who owns"];
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    assert!(!queued.relay.folder().join("saved").exists());
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_rescue_from_a_running_relay_names_the_process() {
    let relay = Setup::new().start();
    let refused = command(relay.folder()).args(["spool", "rescue", "spool", "saved"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let words = format!("in use by a running posthaste (process {}): stop that one first", relay.pid());
    assert!(said.starts_with("posthaste: ") && said.contains(&words), "{said}");
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_rescue_that_was_killed_leaves_nothing_to_start_on() {
    let queued = Queued::new();
    let saved = queued.relay.folder().join("saved");
    let end = (0..2_000).find(|round| {
        let _ = fs::remove_dir_all(&saved);
        let mut rescue = command(queued.relay.folder())
            .args(["spool", "rescue", "spool", "saved"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2 + round * 5));
        let ended = rescue.try_wait().unwrap();
        rescue.kill().unwrap();
        rescue.wait().unwrap();
        let marked = saved.join("rescue.unfinished").exists();
        assert!(ended.is_none() || !marked, "the mark goes at the end");
        let made = saved.join("db").exists();
        if made && marked {
            for verb in [&["serve"][..], &["spool", "check"], &["migrate"]] {
                let refused = command(queued.relay.folder())
                    .args(verb)
                    .env("POSTHASTE_SPOOL__PATH", "saved")
                    .env("POSTHASTE_LISTENER__0__ADDRESS", "127.0.0.1:0")
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(!refused.status.success() && said.contains("unfinished rescue"), "{verb:?}: {said}");
            }
        }
        ended.is_some()
    });
    assert!(end.is_some(), "it ends at last");
}

#[test]
fn a_rescue_says_what_it_did_and_what_to_do_next() {
    let mut relay = Setup::new().start();
    relay.signal(SIGTERM);
    relay.ended_within(PATIENCE).expect("it stops");
    let output = command(relay.folder()).args(["spool", "rescue", "spool", "saved"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.starts_with("saved: 0 messages") && said.contains("Everything in the old spool"), "{said}");
    assert!(said.contains("set spool.path to saved and start posthaste"), "{said}");
    let nothing = command(relay.folder()).args(["spool", "rescue", "nowhere", "other"]).output().unwrap();
    assert!(!nothing.status.success());
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("name the folder of a spool"), "{nothing:?}");
}
