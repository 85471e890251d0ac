//! A database that lost something of its log is not opened by sled, which would cut it off there.

use super::super::format::{SEGMENT, SEGMENT_HEADER, SegmentHeader};
use super::super::proof::first_damage;
use super::*;
use crate::config::SpoolConfig;
use crate::spool::SpoolError;
use crate::spool::sled::SledSpool;
use crate::spool::sled::swap::snapshots;

impl Stopped {
    /// A copy of it whose database has other bytes.
    fn with(&self, bytes: &[u8]) -> tempfile::TempDir {
        let home = folder();
        copy(&self.home.path().join("spool"), &home.path().join("spool"));
        fs::write(home.path().join("spool/db"), bytes).expect("written");
        home
    }

    /// As `kill -9` would have left it: nobody knows where it ended.
    fn killed(self) -> Self {
        fs::remove_file(self.home.path().join("spool/closed")).expect("it was closed");
        self
    }

    /// The numbers of its segments in the order of the file.
    fn numbers(&self) -> Vec<Option<u64>> {
        self.sound.chunks(SEGMENT).map(|chunk| Some(SegmentHeader::read(chunk)?.number)).collect()
    }
}

fn damage_in(bytes: &[u8]) -> Option<u64> {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    first_damage(&file, 0, 0).expect("readable")
}

/// Flips single bytes: each is refused, and nothing changed, or costs no message but of the last two commits.
fn flip(stopped: &Stopped, settled: &[u64], seed: u64, flips: usize) {
    let mut dice = Dice(seed);
    let mut refused = 0;
    for _ in 0..flips {
        let at = dice.below(stopped.sound.len());
        let mut bytes = stopped.sound.clone();
        bytes[at] ^= 0xff;
        let home = stopped.with(&bytes);
        match sled_in(home.path()) {
            Err(SpoolError::Database { reason, .. }) => {
                refused += 1;
                assert!(reason.contains("damaged"), "{reason}");
                let left = fs::read(home.path().join("spool/db")).expect("readable");
                assert!(left == bytes, "byte {at}: the refused database was changed");
            }
            Err(other) => panic!("byte {at}: {other}"),
            Ok(spool) => assert_eq!(whole(&spool.tree, settled), settled, "byte {at}"),
        }
    }
    assert!(refused > flips / 10, "{refused} of {flips} were refused");
}

#[test]
fn a_flipped_byte_of_a_long_log_costs_nothing_unseen() {
    let stopped = Stopped::new(400, 120);
    flip(&stopped, &stopped.live, 98, 60);
    let stopped = stopped.killed();
    let last = 400 - 2 * AT_ONCE as u64;
    let settled: Vec<u64> = stopped.live.iter().copied().filter(|number| *number < last).collect();
    flip(&stopped, &settled, 99, 60);
    for segment in (0..stopped.sound.len()).step_by(SEGMENT) {
        for at in [0, 5, 19] {
            let mut bytes = stopped.sound.clone();
            bytes[segment + at] ^= 1;
            let home = stopped.with(&bytes);
            if let Ok(spool) = sled_in(home.path()) {
                assert_eq!(whole(&spool.tree, &settled), settled, "header of the segment at {segment}");
            } else {
                let left = fs::read(home.path().join("spool/db")).expect("readable");
                assert!(left == bytes, "the segment at {segment}: the refused database was changed");
            }
        }
    }
}

#[test]
fn a_flipped_byte_of_a_short_log_costs_nothing_unseen() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    let numbers: Vec<u64> = (0..40).collect();
    numbers.iter().for_each(|number| spool.commit(&[arrival(*number)]).expect("committed"));
    drop(spool);
    let sound = fs::read(home.path().join("spool/db")).expect("readable");
    let stopped = Stopped { home, live: numbers.clone(), sound };
    flip(&stopped, &numbers, 6, 80);
    flip(&stopped.killed(), &numbers[..37], 7, 80);
}

#[test]
fn a_database_that_was_closed_and_lost_its_end_is_refused() {
    let stopped = Stopped::new(200, 60);
    let mut dice = Dice(8);
    for _ in 0..20 {
        let cut = &stopped.sound[..dice.below(stopped.sound.len())];
        let home = stopped.with(cut);
        for _ in 0..2 {
            let refused = sled_in(home.path()).map(drop).expect_err("it was longer").to_string();
            let told = if cut.is_empty() { "is missing or has nothing in it" } else { "it was cut short" };
            assert!(refused.contains(told), "{refused}");
        }
        assert!(fs::read(home.path().join("spool/db")).expect("readable") == cut);
        if !cut.is_empty() {
            let new = home.path().join("new");
            let report = super::super::rescue(&home.path().join("spool"), &new).expect("rescued");
            assert!(!report.is_whole(), "{report:?}");
        }
        // Whoever puts an older database back on purpose can say so.
        fs::remove_file(home.path().join("spool/closed")).expect("removed");
    }
}

#[test]
fn a_last_segment_of_zeros_is_refused_and_missed_in_a_rescue() {
    let stopped = Stopped::new(200, 60);
    let numbers = stopped.numbers();
    let newest = numbers.iter().flatten().max().copied();
    let offset = numbers.iter().position(|number| *number == newest).expect("there is one") * SEGMENT;
    let mut bytes = stopped.sound.clone();
    let end = bytes.len().min(offset + SEGMENT);
    bytes[offset..end].fill(0);
    let home = stopped.with(&bytes);
    assert!(sled_in(home.path()).is_err());
    let report = super::super::rescue(&home.path().join("spool"), &home.path().join("new")).expect("rescued");
    assert!(!report.is_whole() && report.segments_unreadable == 1, "{report:?}");
}

#[test]
fn a_database_that_was_closed_and_lost_its_snapshot_is_refused() {
    let stopped = Stopped::new(200, 60);
    drop(sled_in(stopped.home.path()).expect("opens"));
    let spool = stopped.home.path().join("spool");
    for name in snapshots(&spool).expect("readable") {
        let moved = stopped.home.path().join(&name);
        fs::rename(spool.join(&name), &moved).expect("moved");
        let refused = sled_in(stopped.home.path()).map(drop).expect_err("refused").to_string();
        assert!(refused.contains(&format!("{name}\", which is missing; put it back")), "{refused}");
        fs::rename(moved, spool.join(&name)).expect("moved back");
    }
    assert_eq!(whole(&sled_in(stopped.home.path()).expect("opens").tree, &stopped.live), stopped.live);
}

#[test]
fn a_flipped_byte_of_a_log_with_a_snapshot_costs_nothing_unseen() {
    let mut stopped = Stopped::new(200, 60);
    drop(sled_in(stopped.home.path()).expect("opens"));
    stopped.sound = fs::read(stopped.home.path().join("spool/db")).expect("readable");
    let mut dice = Dice(3);
    let mut changed = 0;
    for _ in 0..60 {
        let mut bytes = stopped.sound.clone();
        let at = dice.below(bytes.len());
        bytes[at] ^= 0xff;
        let home = stopped.with(&bytes);
        let Err(error) = sled_in(home.path()).map(drop) else { continue };
        let left = fs::read(home.path().join("spool/db")).expect("readable");
        changed += usize::from(left != bytes);
        assert!(matches!(error, SpoolError::Database { .. }), "{error}");
    }
    assert_eq!(changed, 0, "refused databases that were changed");
}

#[test]
fn a_sound_log_has_no_damage_wherever_its_end_is() {
    let stopped = Stopped::new(300, 60);
    assert_eq!(damage_in(&stopped.sound), None);
    let numbers = stopped.numbers();
    let newest = numbers.iter().flatten().max().copied();
    let offset = numbers.iter().position(|number| *number == newest).expect("there is one") * SEGMENT;
    let mut dice = Dice(5);
    for _ in 0..40 {
        // A crash: the newest segment was written up to there.
        let cut = SEGMENT_HEADER + dice.below(SEGMENT - SEGMENT_HEADER);
        let mut bytes = stopped.sound.clone();
        let end = bytes.len().min(offset + SEGMENT);
        bytes[end.min(offset + cut)..end].fill(0);
        assert_eq!(damage_in(&bytes), None, "cut at {cut}");
    }
}

#[test]
fn a_free_segment_that_was_being_written_anew_is_no_damage() {
    let stopped = Stopped::new(400, 60);
    let numbers = stopped.numbers();
    let place = |wanted: fn(&[u64]) -> u64| {
        let known: Vec<u64> = numbers.iter().flatten().copied().collect();
        numbers.iter().position(|number| *number == Some(wanted(&known))).expect("there is one") * SEGMENT
    };
    let oldest = place(|known| *known.iter().min().expect("some"));
    let later = place(|known| {
        let newest = *known.iter().max().expect("some");
        *known.iter().filter(|number| **number < newest).max().expect("more than one")
    });
    let mut bytes = stopped.sound.clone();
    let half = SEGMENT / 2;
    bytes.copy_within(later + half..later + SEGMENT, oldest + half);
    assert_eq!(damage_in(&bytes), None, "the header is old, what follows is of a later segment");
    bytes[oldest + half..oldest + SEGMENT].fill(0x55);
    assert!(damage_in(&bytes).is_some(), "what follows is nothing");
}

#[test]
fn content_of_mail_without_its_database_is_kept() {
    for lost in [&["db"][..], &["db", "conf"]] {
        let stopped = Stopped::new(20, 20);
        let spool = stopped.home.path().join("spool");
        let content = spool.join("content").join(format!("{}.run0", id(1)));
        fs::write(&content, "content").expect("written");
        for name in lost {
            fs::remove_file(spool.join(name)).expect("removed");
        }
        for _ in 0..2 {
            let refused = sled_in(stopped.home.path()).map(drop).expect_err("mail would be lost").to_string();
            assert!(refused.contains("\"db\" is missing or has nothing in it"), "{refused}");
        }
        let config = SpoolConfig { path: spool.clone(), ..SpoolConfig::default() };
        let refused =
            SledSpool::open_existing(&config).map(drop).expect_err("nothing to look at").to_string();
        assert!(refused.contains("\"db\" is missing or has nothing in it"), "{refused}");
        assert!(content.exists());
    }
}

#[test]
fn a_content_folder_with_other_things_in_it_is_no_content_of_mail() {
    let home = folder();
    fs::create_dir_all(home.path().join("spool/content/lost+found")).expect("made");
    assert!(sled_in(home.path()).is_ok(), "a file system of its own has this");
}
