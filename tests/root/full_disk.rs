//! A disk that fills up while mail comes in. With `spool.min_free` the relay stays up and takes no more until there is
//! room again; without it, it ends. What was answered 250 is delivered either way.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::message::{self, Chance, Made};
use crate::support::place;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::smtp::{self, Client};
use crate::support::{PATIENCE, http};

/// A file system in memory of a few MiB, mounted as long as this lives.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self { folder };
        disk.run(&format!("size={size},mode=0755"));
        disk
    }

    fn grow(&self, size: &str) {
        self.run(&format!("remount,size={size}"));
    }

    fn run(&self, options: &str) {
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(self.folder.path())
            .output()
            .expect("the program mount is there");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "a tmpfs can't be mounted, this test needs root: {said}");
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

/// How the relay met the full disk.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    /// With this reply.
    Refused(u16),
    /// By ending.
    Ended,
}

/// Sends until the relay takes no more: what it took, and how it refused. Each round has messages of its own.
fn fill(relay: &mut Relay, round: u32, size: usize) -> (Vec<Made>, Met) {
    let mut chance = Chance::new(11);
    let mut taken = Vec::new();
    for number in 0..20_000 {
        let Ok(mut client) = Client::greet(relay.smtp()) else { return (taken, Met::Ended) };
        for part in 0..20 {
            let made = message::make(&format!("m{round}-{number}-{part}"), size, &mut chance);
            let to = [format!("{}@x.test", made.id)];
            match client.mail("a@sender.test", &to, &smtp::stuffed(&made.content)) {
                Ok(reply) if reply.code == 250 => taken.push(made),
                Ok(reply) => return (taken, Met::Refused(reply.code)),
                Err(_) if relay.ended_within(Duration::from_secs(5)).is_some() => return (taken, Met::Ended),
                Err(error) => panic!("the session broke, but the relay still runs: {error}"),
            }
        }
    }
    panic!("the disk did not fill up");
}

/// A sink that takes nothing until its door is opened.
fn closed_sink() -> (Sink, Arc<AtomicBool>) {
    let closed = Arc::new(AtomicBool::new(true));
    let door = Arc::clone(&closed);
    let sink = Sink::start((place::own_address(), 0).into(), false, move |moment| match moment {
        Moment::Greeting if door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
        _ => Manner::Accept,
    });
    (sink, closed)
}

/// A relay whose spool is on this disk, with all mail for this sink.
fn on(disk: &SmallDisk, sink: &Sink) -> Setup {
    let spool = format!("\"{}\"", disk.spool().display());
    Setup::new().route("*", sink.address()).set("spool.path", &spool)
}

/// Fills the disk with messages of this size, gives it room, and counts.
fn check_full_disk(size: usize) {
    let disk = SmallDisk::mount("24m");
    let (sink, closed) = closed_sink();
    let mut relay =
        on(&disk, &sink).set("spool.min_free", "\"0B\"").set("spool.min_free_inodes", "0").start();
    let (taken, met) = fill(&mut relay, 1, size);
    println!("{size} bytes: {} messages taken, then {met:?}", taken.len());
    assert!(taken.len() > 10, "only {} messages fit", taken.len());
    // The line passes the log's buffer first.
    crate::support::wait_until("a line that says that the disk is full", PATIENCE, || {
        let said = relay.output().to_lowercase();
        ["no space", "full", "enospc"].iter().any(|word| said.contains(word))
    });
    if let Met::Refused(code) = met {
        assert!([431, 451, 452].contains(&code), "a full disk is a matter of time, not {code}");
    }
    if met == Met::Refused(452) {
        // The file system's own figures are not asked here (`spool.min_free` is 0): what content met counts.
        crate::support::wait_until("/readyz to name the full disk, or the end", PATIENCE, || {
            relay.has_ended() || is_named(&relay, "disk was full")
        });
    }
    let status = relay.ended_within(Duration::from_secs(5));
    assert!(status.is_none_or(|status| !status.success()), "a relay that gave up must not report success");

    disk.grow("512m");
    closed.store(false, Ordering::SeqCst);
    if status.is_some() {
        relay.restart();
    }
    relay.await_ready();
    await_all(&sink, &taken);
}

/// Waits until every message that was answered 250 is at the sink, intact.
fn await_all(sink: &Sink, taken: &[Made]) {
    let missing = || {
        sink.read(|ledger| {
            let arrived: HashSet<_> = ledger.iter().filter_map(|line| line.seen.clone()).collect();
            taken.iter().filter(|made| !arrived.contains(&(made.id.clone(), made.crc))).count()
        })
    };
    crate::support::wait_until("every answered message at the sink", Duration::from_secs(60), || {
        missing() == 0
    });
}

/// Fills the disk up to `spool.min_free`; `killed` adds a `kill -9` and a start on the full disk. Then the mail leaves, and
/// new mail is taken again though the disk is no larger.
fn check_short_of_space(size: usize, killed: bool) {
    let disk = SmallDisk::mount("96m");
    let (sink, closed) = closed_sink();
    let mut relay = on(&disk, &sink).set("spool.min_free", "\"24MiB\"").start();
    let (taken, met) = fill(&mut relay, 1, size);
    println!("{size} bytes: {} messages taken, then {met:?}", taken.len());
    assert!(taken.len() > 50, "only {} messages fit", taken.len());
    assert_eq!(met, Met::Refused(452));
    await_reason(&relay, "spool.min_free");
    assert!(!relay.has_ended(), "it stays up");
    if killed {
        relay.kill();
        relay.restart();
        await_reason(&relay, "spool.min_free");
        let refused = Client::greet(relay.smtp()).unwrap().command("HELO c.test");
        assert_eq!(refused.unwrap().code, 250, "a session is taken, mail is not");
    }

    closed.store(false, Ordering::SeqCst);
    await_all(&sink, &taken);
    relay.await_ready();
    assert_eq!(relay.submit(&["again@x.test"], b"Subject: again\r\n\r\nhello\r\n").code, 250);
}

/// The database's file keeps the room that mail took once; when something else takes what is left of the disk, new mail needs
/// some of that again.
#[test]
fn room_that_mail_left_in_the_database_is_given_back_when_the_disk_has_none() {
    let disk = SmallDisk::mount("128m");
    let (sink, closed) = closed_sink();
    let mut relay =
        on(&disk, &sink).set("spool.min_free", "\"48MiB\"").set("spool.reserve", "\"16MiB\"").start();
    let database = || std::fs::metadata(disk.spool().join("db")).unwrap().len() >> 20;
    let (first, met) = fill(&mut relay, 1, 4 << 10);
    assert_eq!(met, Met::Refused(452));
    closed.store(false, Ordering::SeqCst);
    await_all(&sink, &first);
    relay.await_ready();
    let grown = database();
    println!("{} messages taken; the database has {grown} MiB", first.len());
    assert!(grown > 40);

    // Less than an eighth of `spool.min_free` is left.
    let other = disk.folder.path().join("other");
    let left = nix::sys::statvfs::statvfs(disk.folder.path()).unwrap();
    let left = left.blocks_available() * left.fragment_size();
    std::fs::write(&other, vec![7; usize::try_from(left).unwrap() - (5 << 20)]).unwrap();
    crate::support::wait_until("the database to be compacted", PATIENCE, || database() < 8);
    relay.await_ready();
    closed.store(true, Ordering::SeqCst);
    std::fs::remove_file(&other).unwrap();
    let (second, met) = fill(&mut relay, 2, 4 << 10);
    println!("{} more; the database has {} MiB", second.len(), database());
    assert_eq!(met, Met::Refused(452));
    assert!(second.len() * 10 > first.len() * 9, "all of the room is there again");
    relay.kill();
    relay.restart();
    closed.store(false, Ordering::SeqCst);
    await_all(&sink, &second);
}

/// Waits until `/readyz` tells why no mail is taken.
fn await_reason(relay: &Relay, reason: &str) {
    crate::support::wait_until(&format!("/readyz to name {reason}"), PATIENCE, || is_named(relay, reason));
}

fn is_named(relay: &Relay, reason: &str) -> bool {
    let answer = http::get(relay.http(), "/readyz");
    answer.is_ok_and(|answer| answer.status == 503 && answer.body.contains(reason))
}

#[test]
fn the_relay_stays_up_on_a_disk_nearly_full_of_small_messages() {
    check_short_of_space(4 << 10, false);
}

#[test]
fn the_relay_stays_up_on_a_disk_nearly_full_of_large_messages() {
    check_short_of_space(200 << 10, true);
}

#[test]
fn a_disk_full_of_small_messages_loses_nothing() {
    check_full_disk(4 << 10);
}

#[test]
fn a_disk_full_of_large_messages_loses_nothing() {
    check_full_disk(200 << 10);
}
