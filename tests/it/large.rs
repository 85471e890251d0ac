//! Large content streams to files of its own: memory stays bounded while it arrives, and a sweep takes only what is left over.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use posthaste::mail::id::QueueId;

use crate::support::message::{self, Chance};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};
use crate::support::smtp::{self, Client};
use crate::support::{PATIENCE, wait_until};

const MIB: usize = 1 << 20;

/// The most memory that the relay ever had, in MiB.
fn most_memory(relay: &Relay) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

fn content(relay: &Relay) -> PathBuf {
    relay.folder().join("spool/content")
}

fn files(relay: &Relay) -> usize {
    fs::read_dir(content(relay)).unwrap().count()
}

#[test]
fn large_messages_that_arrive_at_once_are_not_in_memory() {
    const SESSIONS: usize = 40;
    const SIZE: usize = 10 * MIB;
    // Nothing is delivered: only what arrives takes memory.
    let sink = Sink::with(|_| Manner::Say("421 4.3.2 never"));
    let relay = Setup::new().route("*", sink.address()).start();
    let body: Arc<Vec<u8>> =
        Arc::new(b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(SIZE / 64));
    let all_sent = Arc::new(Barrier::new(SESSIONS + 1));
    let (smtp, measured) = (relay.smtp(), Arc::clone(&all_sent));
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let (body, all_sent) = (Arc::clone(&body), Arc::clone(&all_sent));
            thread::spawn(move || {
                let mut client = Client::greet(smtp).unwrap();
                assert_eq!(client.begin("a@sender.test", &[format!("u{number}@x.test")]).unwrap(), None);
                client.send(b"Subject: large\r\n\r\n").and_then(|()| client.send(&body)).unwrap();
                all_sent.wait();
                all_sent.wait();
                client.send(b".\r\n").unwrap();
                assert_eq!(client.reply().unwrap().code, 250);
            })
        })
        .collect();
    measured.wait();
    assert_eq!(files(&relay), SESSIONS, "each has its file while it arrives");
    measured.wait();
    sessions.into_iter().for_each(|session| session.join().unwrap());
    let most = most_memory(&relay);
    assert!(most < 120, "{most} MiB of memory for {} MiB of content", SESSIONS * SIZE / MIB);
}

#[test]
fn left_over_files_are_swept_while_large_messages_arrive_and_nothing_else() {
    let open = Arc::new(AtomicBool::new(false));
    let door = Arc::clone(&open);
    let sink = Sink::with(move |moment| match moment {
        Moment::Greeting if !door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
        _ => Manner::Accept,
    });
    let mut relay = Setup::new().route("*", sink.address()).start();
    let mut sent = vec![submit(&relay, "before-0", 1), submit(&relay, "before-1", 2)];
    // One that never came to its end, and what many crashes may have left.
    let mut broken = relay.client();
    assert_eq!(broken.begin("a@sender.test", &["never@x.test".to_owned()]).unwrap(), None);
    broken.send(&b"0123456789\r\n".repeat(100_000)).unwrap();
    wait_until("its file", PATIENCE, || files(&relay) == 3);
    relay.kill();
    for number in 0..2_000_u32 {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let name = format!("{}.{:032x}", QueueId::from_bytes(id), 4711);
        fs::write(content(&relay).join(name), b"left over").unwrap();
    }
    fs::write(content(&relay).join("README"), b"not ours").unwrap();

    relay.restart();
    relay.await_ready();
    let clients: Vec<_> = (0..6_u64)
        .map(|number| {
            let smtp = relay.smtp();
            thread::spawn(move || {
                let send = |part| submit_to(smtp, &format!("during-{number}-{part}"), number * 10 + part + 3);
                (0..5).map(send).collect::<Vec<_>>()
            })
        })
        .collect();
    sent.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
    wait_until("the left-over files to be gone", PATIENCE, || files(&relay) == sent.len() + 1);
    open.store(true, Ordering::SeqCst);
    wait_until("each message at the sink, whole", PATIENCE, || {
        sink.read(|ledger| sent.iter().all(|made| ledger.iter().any(|line| line.seen.as_ref() == Some(made))))
    });
    wait_until("all files but the foreign one to be gone", PATIENCE, || files(&relay) == 1);
    assert!(content(&relay).join("README").exists());
}

/// Sends a message of 1 MiB; its name and checksum.
fn submit(relay: &Relay, id: &str, seed: u64) -> (String, u32) {
    submit_to(relay.smtp(), id, seed)
}

fn submit_to(relay: std::net::SocketAddr, id: &str, seed: u64) -> (String, u32) {
    let made = message::make(id, MIB, &mut Chance::new(seed));
    let mut client = Client::greet(relay).unwrap();
    let reply =
        client.mail("a@sender.test", &[format!("{id}@x.test")], &smtp::stuffed(&made.content)).unwrap();
    assert_eq!(reply.code, 250);
    (made.id, made.crc)
}
