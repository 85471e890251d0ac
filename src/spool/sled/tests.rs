//! The database on a real disk: durability, its known traps, and what a crash may leave.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::super::record::{self, Format};
use super::super::suite::{
    arrival, bytes, copy, copy_at_each_sync, deferred, departure, envelope, id, recipient, sled_in,
};
use super::super::{Counters, Op, Spool, keys};
use super::*;
use crate::config::SpoolConfig;
use crate::migrations;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn what_was_committed_is_there_after_a_clean_stop() {
    let home = folder();
    let envelope = envelope(1, 20_000, vec![recipient("x@a.example")]);
    for round in 0..3 {
        let spool = sled_in(home.path()).expect("opens");
        if round == 0 {
            spool.commit(&arrival(&envelope)).expect("committed");
        }
        assert_eq!(spool.message(id(1)).expect("readable").expect("there").envelope, envelope);
        assert_eq!(spool.content(id(1)).expect("readable"), bytes(20_000));
    }
}

#[test]
fn at_each_sync_point_a_copy_of_the_folder_opens_with_all_that_was_answered() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let cuts = copy_at_each_sync(&spool, home.path());
    for number in 1..=20 {
        let envelope = envelope(number, 7_000, vec![recipient("x@a.example")]);
        let mut ops = arrival(&envelope);
        ops.push(Op::Counters(Counters { messages: u64::from(number), ..Counters::default() }));
        spool.commit(&ops).expect("committed");
        cuts.answered.store(u64::from(number), Ordering::SeqCst);
    }
    let copies = cuts.end(&spool);
    assert!(copies.len() >= 20, "one sync for each commit");
    for (answered, copy) in &copies {
        let killed = sled_in(copy).expect("opens");
        let there = killed.counters().expect("readable").messages;
        assert!(there >= *answered, "{there} messages, but {answered} were answered");
        assert_eq!(
            killed.list(None, 99).expect("readable").len() as u64,
            there,
            "all of a commit or nothing"
        );
        for number in 1..=u8::try_from(there).expect("few") {
            assert_eq!(killed.content(id(number)).expect("readable"), bytes(7_000));
        }
    }
}

#[test]
fn a_commit_is_at_least_one_sync_and_not_many() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let before = spool.tree.store.watch.syncs();
    for number in 1..=20 {
        spool.commit(&arrival(&envelope(number, 4_096, vec![recipient("x@a.example")]))).expect("committed");
    }
    let syncs = spool.tree.store.watch.syncs() - before;
    assert!(
        (20..=50).contains(&syncs),
        "{syncs} syncs for 20 commits: manifest and rest of each, and a few of sled's own"
    );
}

#[test]
fn after_a_failed_sync_every_commit_is_refused() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    spool.tree.store.watch.hook(Box::new(|| Err(io::Error::from_raw_os_error(libc::EIO))));
    let ops = arrival(&envelope(1, 10, vec![recipient("x@a.example")]));
    assert!(spool.commit(&ops).is_err());
    spool.tree.store.watch.hook(Box::new(|| Ok(())));
    assert!(matches!(spool.commit(&ops), Err(SpoolError::Closed(_))));
    assert!(matches!(spool.commit(&[]), Err(SpoolError::Closed(_))));
}

/// sled forgets now and then to wake a flush whose write has failed: see `alarm`.
#[test]
fn a_commit_whose_write_fails_comes_back() {
    for _ in 0..20 {
        let home = folder();
        let spool = sled_in(home.path()).expect("opens");
        spool.tree.store.watch.hook(Box::new(|| Err(io::Error::from_raw_os_error(libc::EIO))));
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            done.send(spool.commit(&arrival(&envelope(1, 20_000, vec![recipient("x@a.example")]))))
        });
        let result = result.recv_timeout(std::time::Duration::from_secs(30)).expect("it does not hang");
        assert!(result.is_err());
    }
}

fn snapshots(home: &Path) -> Vec<std::ffi::OsString> {
    let names =
        fs::read_dir(home.join("spool")).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.filter(|name| name.to_string_lossy().starts_with("snap.")).collect()
}

#[test]
fn a_snapshot_between_two_commits_is_taken_for_what_was_written_and_loses_nothing() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let mut seen = snapshots(home.path());
    for number in 1..=20 {
        spool.commit(&arrival(&envelope(number, 20_000, vec![recipient("x@a.example")]))).expect("committed");
        let written = spool.tree.store.watch.written();
        spool.tree.store.take_snapshot_from(written + 1);
        assert_eq!(snapshots(home.path()), seen, "too little was written");
        spool.tree.store.take_snapshot_from(written);
        let now = snapshots(home.path());
        assert!(now.len() == 1 && now != seen, "a new one instead of the last: {now:?}");
        seen = now;
        assert!(spool.tree.store.watch.written() < 20_000, "the next one counts from here");
    }
    // As `kill -9` would leave it.
    let killed = home.path().join("copy");
    copy(&home.path().join("spool"), &killed.join("spool"));
    for spool in [spool, sled_in(&killed).expect("opens")] {
        assert_eq!(spool.list(None, 99).expect("readable").len(), 20);
        (1..=20).for_each(|number| assert_eq!(spool.content(id(number)).expect("readable"), bytes(20_000)));
    }
}

#[test]
fn readers_wait_while_a_snapshot_is_taken() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    spool.commit(&arrival(&envelope(1, 20_000, vec![recipient("x@a.example")]))).expect("committed");
    let (reads, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(spool.content(id(1)).expect("readable"), bytes(20_000));
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..10 {
            let before = reads.load(Ordering::SeqCst);
            spool.tree.store.take_snapshot_from(0);
            // Whoever wants to write goes first: the next snapshot would keep the reader out.
            while !reader.is_finished() && reads.load(Ordering::SeqCst) < before + 2 {
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        reader.join().expect("every read found it");
    });
}

#[test]
fn a_database_that_does_not_open_again_takes_no_more_commits() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    spool.commit(&arrival(&envelope(1, 10, vec![recipient("x@a.example")]))).expect("committed");
    let conf = home.path().join("spool/conf");
    let good = fs::read(&conf).expect("readable");
    fs::write(&conf, b"not what sled wrote here").expect("written");
    spool.tree.store.take_snapshot_from(0);
    assert!(matches!(spool.commit(&[]), Err(SpoolError::Closed(_))));
    assert!(matches!(spool.message(id(1)), Err(SpoolError::Closed(_))));
    drop(spool);
    fs::write(&conf, good).expect("written");
    assert!(sled_in(home.path()).expect("opens").message(id(1)).expect("readable").is_some());
}

#[test]
fn a_first_start_that_ended_half_way_does_not_prevent_the_next() {
    let home = folder();
    let spool = home.path().join("spool");
    fs::create_dir(&spool).expect("a folder");
    let half_of_it = b"segment_size: 524288\nuse_compr";
    for (name, bytes) in [("db", &b""[..]), ("conf", half_of_it), ("api-token.new", b"")] {
        fs::write(spool.join(name), bytes).expect("written");
    }
    sled_in(home.path()).expect("opens");
    // With records in the database the same is damage, and nothing is thrown away.
    fs::write(spool.join("conf"), half_of_it).expect("written");
    assert!(sled_in(home.path()).is_err());
    assert_eq!(fs::read(spool.join("conf")).expect("readable"), half_of_it);
}

#[test]
fn a_full_disk_has_its_own_error() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    spool.tree.store.watch.hook(Box::new(|| Err(io::Error::from_raw_os_error(libc::ENOSPC))));
    let full = spool.commit(&arrival(&envelope(1, 10, vec![recipient("x@a.example")])));
    assert!(matches!(full, Err(SpoolError::Full(_))), "{full:?}");
}

#[test]
fn a_start_whose_flushes_reach_no_device_is_refused() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    // A watch of another file: sled's syncs are not seen there.
    let other = File::create(home.path().join("other")).expect("a file");
    let tree = SledTree { watch: Watch::new(other).expect("watched"), ..spool.tree.store };
    let refused = open::prove_durable(&tree, 7);
    assert!(matches!(refused, Err(SpoolError::NotDurable(..))), "{refused:?}");
}

#[test]
fn blobs_stay_empty_under_the_longest_values() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let crowd: Vec<_> = (0..1_000).map(|n| recipient(&format!("a.rather.long.name.{n}@a.example"))).collect();
    for round in 0..4 {
        let mut ops = Vec::new();
        for number in 0..40 {
            let envelope = envelope(number, 17_970, vec![recipient("x@a.example")]);
            ops.extend(if round % 2 == 0 { arrival(&envelope) } else { departure(&envelope, false) });
        }
        ops.extend(arrival(&envelope(100 + round, 1, crowd.clone())));
        let long = Some(super::super::suite::last(&"x".repeat(600)));
        for number in 0..1_000 {
            let state = crate::mail::envelope::RecipientState { last: long.clone(), ..deferred(1) };
            ops.push(Op::PutRecipient(id(100 + round), number, state));
        }
        spool.commit(&ops).expect("committed");
    }
    let blobs = fs::read_dir(home.path().join("spool/blobs")).expect("a folder").count();
    assert_eq!(blobs, 0);
}

#[test]
fn an_unfinished_snapshot_does_not_stop_the_next_start() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    spool.commit(&arrival(&envelope(1, 10, vec![recipient("x@a.example")]))).expect("committed");
    drop(spool);
    let left_over = home.path().join("spool/snap.FFFFFFFFFFFFFFFF.generating");
    fs::write(&left_over, b"half a snap").expect("written");
    let spool = sled_in(home.path()).expect("opens");
    assert!(spool.message(id(1)).expect("readable").is_some());
    assert!(!left_over.exists());
}

#[test]
fn a_spool_in_use_is_refused_and_left_alone() {
    let home = folder();
    let first = sled_in(home.path()).expect("opens");
    let left_over = home.path().join("spool/snap.00.generating");
    fs::write(&left_over, b"the other one is writing this").expect("written");
    let refused = sled_in(home.path()).map(drop).expect_err("locked");
    assert!(refused.to_string().contains("in use by another posthaste"), "{refused}");
    assert!(left_over.exists());
    drop(first);
    sled_in(home.path()).expect("free again");
}

#[test]
fn a_newer_spool_is_refused_with_the_program_that_can_read_it() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let format = Format { version: migrations::CURRENT + 1, writer: "9.9.9".into() };
    let newer = (keys::META_FORMAT.into(), Some(record::write_format(&format)));
    spool.tree.apply(vec![newer]).expect("applied");
    drop(spool);
    let refused = sled_in(home.path()).map(drop).expect_err("newer").to_string();
    assert!(refused.contains("use posthaste 9.9.9 or newer"), "{refused}");
}

#[test]
fn a_folder_that_is_a_file_is_refused_with_a_remedy() {
    let home = folder();
    fs::write(home.path().join("spool"), b"").expect("written");
    let refused = sled_in(home.path()).map(drop).expect_err("no folder").to_string();
    assert!(refused.contains("move it away"), "{refused}");
}

#[test]
fn a_file_that_is_no_database_is_refused_without_ending_the_program() {
    let home = folder();
    drop(sled_in(home.path()).expect("opens"));
    fs::write(home.path().join("spool/conf"), b"not what sled wrote here").expect("written");
    assert!(matches!(
        sled_in(home.path()).map(drop),
        Err(SpoolError::Database { .. } | SpoolError::Io { .. })
    ));
}

#[test]
fn a_damaged_database_is_refused_with_the_command_that_saves_its_mail() {
    let snapshot = |spool: &Path| {
        let entries = fs::read_dir(spool).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut snapshots = entries.filter(|path| path.to_string_lossy().contains("/snap."));
        let path = snapshots.next().expect("sled wrote one");
        let mut bytes = fs::read(&path).expect("readable");
        bytes[5] ^= 1;
        fs::write(path, bytes).expect("written");
    };
    // sled panics on this one.
    let two_of_a_segment = |spool: &Path| {
        let mut bytes = fs::read(spool.join("db")).expect("readable");
        bytes.resize(512 << 10, 0);
        fs::write(spool.join("db"), bytes.repeat(2)).expect("written");
    };
    for damage in [&snapshot as &dyn Fn(&Path), &two_of_a_segment] {
        let home = folder();
        let spool = home.path().join("spool");
        for _ in 0..2 {
            sled_in(home.path()).expect("opens").commit(&[]).expect("committed");
        }
        damage(&spool);
        let refused = sled_in(home.path()).map(drop).expect_err("damaged").to_string();
        let spool = spool.canonicalize().expect("there");
        let command = format!("posthaste spool rescue {} TO", spool.display());
        assert!(refused.contains(&command) && refused.contains("it is damaged"), "{refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn only_the_owner_may_look_inside() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(spool.folder()), 0o700);
    for entry in fs::read_dir(spool.folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

#[test]
fn the_reserve_is_really_allocated_and_follows_the_configuration() {
    use std::os::unix::fs::MetadataExt;
    let home = folder();
    let open = |reserve| {
        let config = SpoolConfig { path: home.path().join("spool"), reserve, ..SpoolConfig::default() };
        drop(SledSpool::open(&config, Uuid::from_u128(1)).expect("opens"));
        fs::metadata(home.path().join("spool/reserve")).ok().map(|file| (file.len(), file.blocks() * 512))
    };
    for bytes in [1 << 20, 3 << 20, 1 << 20] {
        let (length, allocated) = open(bytes).expect("there");
        assert_eq!(length, bytes);
        assert!(allocated >= bytes, "{allocated} of {bytes}");
    }
    assert_eq!(open(0), None);
}

#[test]
fn each_start_is_counted_and_has_its_instance() {
    let home = folder();
    for number in 1..=3 {
        let spool = sled_in(home.path()).expect("opens");
        let start = spool.tree.get(keys::META_START).expect("readable").expect("there");
        assert_eq!(record::read_start(&start).expect("good").number, number);
        assert_eq!(spool.instance(), format!("{:032x}", 7));
    }
}

#[test]
fn a_damaged_record_of_the_last_start_stops_nothing_and_a_damaged_format_is_told() {
    for how in record::Damage::ALL {
        let home = folder();
        let spoil = |key: &[u8]| {
            let spool = sled_in(home.path()).expect("opens");
            let good = spool.tree.get(key).expect("readable").expect("there");
            spool.tree.apply(vec![(key.into(), Some(how.of(&good)))]).expect("applied");
        };
        spoil(keys::META_START);
        let spool = sled_in(home.path()).expect("opens all the same");
        let start = spool.tree.get(keys::META_START).expect("readable").expect("there");
        assert_eq!(record::read_start(&start).expect("good").number, 1);
        drop(spool);
        spoil(keys::META_FORMAT);
        let refused = sled_in(home.path()).map(drop).expect_err("what format is it?").to_string();
        assert!(
            refused.contains("its description can't be read") && refused.contains("keep the folder"),
            "{refused}"
        );
    }
}

#[test]
fn a_database_in_which_sled_finds_nothing_is_no_new_spool() {
    let home = folder();
    drop(sled_in(home.path()).expect("opens"));
    let database = home.path().join("spool/db");
    for entry in fs::read_dir(home.path().join("spool")).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("snap.") || name == "closed" {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
    fs::write(&database, vec![0; 3 << 20]).expect("written");
    let refused = sled_in(home.path()).map(drop).expect_err("refused").to_string();
    assert!(refused.contains("sled finds nothing in its 3145728 bytes"), "{refused}");
    fs::write(&database, vec![0; 512 << 10]).expect("written");
    assert!(sled_in(home.path()).is_ok(), "as a first start leaves it");
}

#[test]
fn what_can_not_be_read_of_the_database_is_told() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    assert_eq!(spool.damage(), None);
    let read = spool.tree.store.with(|_| Err::<(), _>(sled::Error::Corruption { at: None, bt: () }));
    assert!(matches!(read, Err(SpoolError::Database { .. })), "{read:?}");
    let told = spool.damage().expect("told");
    assert!(told.contains("posthaste spool rescue"), "{told}");
}
