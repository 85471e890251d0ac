//! The whole rescue, from a folder to a folder.

use std::collections::HashMap;

use super::super::{Report, RescueError, rescue, whole};
use super::*;
use crate::mail::envelope::{ContentPlace, RecipientState, Status};
use crate::spool::content::ContentFiles;
use crate::spool::suite::{deferred, domain, last};
use crate::spool::{DestinationRecord, SpoolError, Tally};

/// A spool, and where the rescue puts its own.
struct Setting {
    home: tempfile::TempDir,
}

impl Setting {
    fn new(ops: &[Op]) -> Self {
        let home = folder();
        sled_in(home.path()).expect("opens").commit(ops).expect("committed");
        Self { home }
    }

    fn old(&self) -> std::path::PathBuf {
        self.home.path().join("spool")
    }

    fn new_home(&self) -> std::path::PathBuf {
        self.home.path().join("rescued")
    }

    /// Rescues into `rescued/spool`.
    fn rescue(&self) -> Result<Report, RescueError> {
        fs::create_dir_all(self.new_home()).expect("a folder");
        rescue(&self.old(), &self.new_home().join("spool"))
    }

    fn opened(&self) -> super::super::SledSpool {
        sled_in(&self.new_home()).expect("a normal start")
    }

    /// Writes records as they are.
    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let spool = sled_in(self.home.path()).expect("opens");
        let changes = changes.into_iter().map(|(key, value)| (key.into(), value.map(Into::into)));
        spool.tree.apply(changes.collect()).expect("applied");
    }
}

/// Every file below a folder, and its bytes.
fn files(folder: &Path) -> HashMap<std::path::PathBuf, Vec<u8>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).expect("readable"));
        }
    }
    found
}

fn in_file(number: u64, name: &str, size: u64) -> Op {
    let envelope =
        Envelope { size, place: ContentPlace::File(name.to_owned()), ..(*message(number).0).clone() };
    Op::PutMessage(Arc::new(envelope), Content::File { name: name.to_owned(), size, whole: None })
}

#[test]
fn a_sound_spool_is_copied_whole_and_left_as_it_is() {
    let large = format!("{}.0123", id(3));
    let states = RecipientState { status: Status::Delivered, ..deferred(9) };
    let record =
        DestinationRecord { failures: 3, retry_at_ms: 77, last: Some(last("busy")), suspended_until_ms: 78 };
    let setting = Setting::new(&[
        arrival(1),
        arrival(2),
        Op::PutRecipient(id(2), 0, deferred(5_000)),
        in_file(3, &large, 100_000),
        arrival(4),
        Op::Quarantine(id(4), "set aside by a test".to_owned()),
        arrival(5),
        Op::PutRecipient(id(5), 0, states),
        Op::PutDestination(domain("slow.example"), record.clone()),
    ]);
    fs::write(setting.old().join("content").join(&large), vec![7; 100_000]).expect("written");
    fs::write(setting.old().join("content").join(format!("{}.0123", id(99))), b"left over").expect("written");
    let before = files(&setting.old());
    let report = setting.rescue().expect("rescued");
    assert_eq!(files(&setting.old()), before, "only read");

    let numbers = [1, 2, 3].into_iter().chain((message(5).0.recipients.len() > 1).then_some(5));
    let numbers: Vec<u64> = numbers.collect();
    let whole = Report {
        messages: numbers.len() as u64,
        quarantined_before: 1,
        finished: 4 - numbers.len() as u64,
        files_left: 1,
        recipients: report.recipients,
        bytes: report.bytes,
        ..Report::default()
    };
    assert_eq!(report, whole);
    let new = setting.opened();
    for number in [1, 2] {
        let (envelope, content) = message(number);
        let stored = new.message(envelope.id).expect("readable").expect("there");
        assert_eq!(stored.envelope, envelope);
        assert_eq!(new.content(envelope.id).expect("readable"), content);
    }
    assert_eq!(new.message(id(2)).expect("readable").expect("there").states[0], deferred(5_000));
    assert_eq!(fs::read(new.files().folder().join(&large)).expect("copied"), vec![7; 100_000]);
    assert_eq!(new.destination(&domain("slow.example")).expect("readable"), Some(record));
    let aside = new.quarantined(None, 9).expect("readable");
    assert_eq!(aside, [(id(4), "set aside by a test".to_owned())]);
    assert!(new.in_quarantine(id(4)).expect("readable").expect("there").message.is_ok());
    let mut counted = Counters::default();
    for stored in new.list(None, 99).expect("readable") {
        counted.add(Tally::of(&stored.envelope, &stored.states));
    }
    let lowest = numbers.iter().map(|number| id(*number)).min();
    assert_eq!(
        new.counters().expect("readable"),
        Counters { quarantined: 1, unindexed_from: lowest, ..counted }
    );
}

#[test]
fn what_is_there_in_part_goes_to_quarantine_byte_by_byte() {
    let missing = format!("{}.0123", id(1));
    let short = format!("{}.0123", id(2));
    let setting = Setting::new(&[
        in_file(1, &missing, 10),
        in_file(2, &short, 10),
        arrival(3),
        arrival(4),
        arrival(5),
        Op::PutRecipient(id(5), 0, deferred(1)),
        arrival(6),
    ]);
    fs::write(setting.old().join("content").join(&short), b"123").expect("written");
    let chunk = |kind, number| keys::chunk(kind, id(number), 0).to_vec();
    setting.write(vec![
        (chunk(keys::ENVELOPE, 3), None),
        (chunk(keys::CONTENT, 4), None),
        (keys::state(id(5), 0).to_vec(), Some(b"not a state".to_vec())),
    ]);
    let report = setting.rescue().expect("rescued");
    assert_eq!((report.messages, report.quarantined, report.files_missing), (1, 5, 2), "{report:?}");
    let new = setting.opened();
    assert_eq!(new.list(None, 9).expect("readable").len(), 1);
    let reasons: HashMap<QueueId, String> = new.quarantined(None, 9).expect("readable").into_iter().collect();
    let expected = [
        (1, "its content file"),
        (2, "0123: it has 3 bytes instead of 10"),
        (3, "its envelope is missing"),
        (4, "the content of message"),
        (5, "a recipient of message"),
    ];
    for (number, part) in expected {
        let reason = &reasons[&id(number)];
        assert!(reason.starts_with("rescued from a damaged spool: ") && reason.contains(part), "{reason}");
    }
    let state = new.tree.get(&keys::quarantined(&keys::state(id(5), 0))).expect("readable");
    assert_eq!(state.as_deref(), Some(&b"not a state"[..]));
    assert!(new.tree.get(&keys::quarantined(&chunk(keys::CONTENT, 3))).expect("readable").is_some());
    assert_eq!(fs::read(new.files().folder().join(&short)).expect("copied"), b"123");
    // The relay's own clean-up leaves that file alone.
    assert_eq!(new.files().sweep(&new, "another run").expect("swept"), 0);
}

#[test]
fn a_content_file_is_copied_with_its_checksum_and_one_that_was_changed_goes_to_quarantine() {
    let names = [1, 2].map(|number| format!("{}.0123", id(number)));
    let size = 5_000;
    let setting = Setting::new(&[in_file(1, &names[0], size), in_file(2, &names[1], size)]);
    let files = ContentFiles::new(setting.old().join("content"));
    for number in [1, 2] {
        files.create(id(number), "0123").expect("a file").finish_with(&bytes(5_000)).expect("written");
    }
    let mut changed = fs::read(files.folder().join(&names[1])).expect("readable");
    changed[2_500] ^= 1;
    fs::write(files.folder().join(&names[1]), &changed).expect("written");
    let report = setting.rescue().expect("rescued");
    assert_eq!((report.messages, report.quarantined, report.files_missing), (1, 1, 1), "{report:?}");
    assert!(!report.is_whole());
    let new = setting.opened();
    let aside = new.quarantined(None, 9).expect("readable");
    assert!(aside[0].0 == id(2) && aside[0].1.contains("its checksum is wrong"), "{aside:?}");
    assert_eq!(new.files().obstacle(&names[0], size).expect("readable"), None);
    assert_eq!(fs::read(new.files().folder().join(&names[1])).expect("copied"), changed, "as it was");
    let obstacle = new.in_quarantine(id(2)).expect("readable").expect("there").obstacle;
    assert!(obstacle.expect("damaged").contains("its checksum is wrong"));
}

#[test]
fn a_message_that_is_whole_and_in_quarantine_too_is_saved_once() {
    let setting = Setting::new(&[arrival(1), Op::Quarantine(id(1), "once".to_owned())]);
    let spool = sled_in(setting.home.path()).expect("opens");
    spool.commit(&[arrival(1)]).expect("committed");
    drop(spool);
    let report = setting.rescue().expect("rescued");
    assert_eq!((report.messages, report.quarantined, report.quarantined_before), (1, 0, 0));
    assert_eq!(setting.opened().quarantined(None, 9).expect("readable"), []);
}

#[test]
fn an_empty_spool_is_rescued_as_an_empty_one() {
    let setting = Setting::new(&[]);
    let report = setting.rescue().expect("rescued");
    assert_eq!(report, Report::default());
    assert!(!report.is_in_vain());
    assert_eq!(setting.opened().counters().expect("readable"), Counters::default());
}

#[test]
fn many_messages_take_several_commits() {
    let home = folder();
    let live = churned(home.path(), 1_200, 700);
    let setting = Setting { home };
    let report = setting.rescue().expect("rescued");
    assert_eq!(report.messages, live.len() as u64);
    assert!(report.bytes > 4 << 20 && report.is_whole(), "{report:?}");
    assert_eq!(whole(&setting.opened().tree, &live), live);
}

#[test]
fn a_spool_in_use_is_refused() {
    let setting = Setting::new(&[arrival(1)]);
    let relay = sled_in(setting.home.path()).expect("opens");
    let refused = setting.rescue().expect_err("refused");
    assert!(matches!(refused, RescueError::Spool(SpoolError::Locked(_))), "{refused}");
    assert!(!setting.new_home().join("spool").exists(), "nothing was begun");
    drop(relay);
    // Without our lock file sled's own lock counts.
    fs::remove_file(setting.old().join("lock")).expect("removed");
    let other = File::open(setting.old().join("db")).expect("opens");
    // sled's threads let go of it some time after it was closed.
    other.lock().expect("free soon");
    assert!(matches!(setting.rescue(), Err(RescueError::Spool(SpoolError::Locked(_)))));
    drop(other);
    assert_eq!(setting.rescue().expect("rescued").messages, 1);
}

#[test]
fn only_a_new_folder_elsewhere_is_filled() {
    let setting = Setting::new(&[arrival(1)]);
    let full = setting.home.path().join("full");
    fs::create_dir(&full).and_then(|()| fs::write(full.join("mine"), b"")).expect("written");
    let refused = rescue(&setting.old(), &full).expect_err("refused").to_string();
    assert!(refused.contains("is not empty"), "{refused}");
    for inside in [setting.old(), setting.old().join("new/folder"), setting.old().join("../spool/x")] {
        let refused = rescue(&setting.old(), &inside).expect_err("refused").to_string();
        assert!(refused.contains("inside the spool"), "{refused}");
    }
    let nowhere = rescue(&setting.home.path().join("nowhere"), &full).expect_err("refused").to_string();
    assert!(nowhere.contains("name the folder of a spool"), "{nowhere}");
    assert!(!setting.old().join("new").exists());
}

#[test]
fn a_file_in_the_way_of_the_new_spool_is_called_a_file() {
    let setting = Setting::new(&[arrival(1)]);
    let file = setting.home.path().join("file");
    fs::write(&file, b"").expect("written");
    for to in [file.clone(), file.join("below")] {
        let refused = rescue(&setting.old(), &to).expect_err("refused").to_string();
        assert!(refused.contains("is a file; name a folder"), "{refused}");
    }
}

#[test]
fn a_rescue_that_ended_half_way_is_no_spool() {
    let setting = Setting::new(&[arrival(1)]);
    assert_eq!(setting.rescue().expect("rescued").messages, 1);
    let new = setting.new_home().join("spool");
    assert!(!new.join("rescue.unfinished").exists(), "it is removed at the end");
    // As after a kill: all that a rescue does lies between these two.
    let killed = setting.home.path().join("killed/spool");
    whole::begin(&killed, uuid::Uuid::new_v4()).expect("begun");
    for name in ["db", "conf"] {
        fs::copy(new.join(name), killed.join(name)).expect("copied");
    }
    let config = crate::config::SpoolConfig { path: killed.clone(), ..Default::default() };
    let opened = [
        sled_in(&setting.home.path().join("killed")).map(drop),
        super::super::SledSpool::open_existing(&config).map(drop),
    ];
    for refused in opened {
        let refused = refused.expect_err("refused").to_string();
        assert!(refused.contains("unfinished rescue") && refused.contains("remove it and run"), "{refused}");
    }
    for (from, to) in [(&killed, setting.home.path().join("x")), (&setting.old(), killed.clone())] {
        let refused = rescue(from, &to).expect_err("refused");
        assert!(matches!(refused, RescueError::Spool(SpoolError::Unfinished(_))), "{refused}");
    }
}

#[test]
fn a_database_without_anything_is_not_called_whole() {
    let setting = Setting::new(&[]);
    fs::write(setting.old().join("content").join(format!("{}.0123", id(99))), b"mail").expect("written");
    let report = setting.rescue().expect("it goes through");
    assert!(report.is_hollow() && report.is_in_vain() && !report.database_empty, "{report:?}");
    fs::remove_dir_all(setting.new_home()).expect("removed");
    fs::write(setting.old().join("db"), b"").expect("emptied");
    let report = setting.rescue().expect("it goes through");
    assert!(report.is_in_vain() && report.database_empty, "{report:?}");
}

#[test]
fn a_spool_of_a_newer_program_is_refused() {
    let setting = Setting::new(&[arrival(1)]);
    let format =
        super::super::record::Format { version: crate::migrations::CURRENT + 1, writer: "9.9.9".into() };
    let record = super::super::record::write_format(&format).to_vec();
    setting.write(vec![(keys::META_FORMAT.to_vec(), Some(record))]);
    let refused = setting.rescue().expect_err("refused").to_string();
    assert!(refused.contains("use posthaste 9.9.9 or newer"), "{refused}");
}

#[test]
fn nothing_saved_from_noise_is_told_as_such() {
    let setting = Setting::new(&[arrival(1)]);
    let length = fs::metadata(setting.old().join("db")).expect("there").len();
    let noise: Vec<u8> = (0..length).map(|at| (at % 253) as u8 | 1).collect();
    fs::write(setting.old().join("db"), noise).expect("written");
    let report = setting.rescue().expect("it goes through");
    assert!(report.is_in_vain(), "{report:?}");
    assert!(report.segments_unreadable > 0);
}
