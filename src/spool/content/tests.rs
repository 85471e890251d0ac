//! Files that are whole, cut, changed, left behind.

use super::super::memory::MemorySpool;
use super::super::suite::{arrival, envelope, id, recipient};
use super::*;

fn files() -> (tempfile::TempDir, ContentFiles) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = ContentFiles::new(folder.path().to_owned());
    (folder, files)
}

fn names(files: &ContentFiles) -> usize {
    fs::read_dir(files.folder()).expect("a folder").count()
}

#[test]
fn a_finished_file_reads_back_in_pieces() {
    let (_folder, files) = files();
    let before = sync::other_syncs();
    let mut writer = files.create(id(1), "run1").expect("a file");
    writer.write(b"hello ").and_then(|()| writer.write(b"world")).expect("written");
    let (name, size) = writer.finish().expect("finished");
    assert_eq!((name.as_str(), size), (format!("{}.run1", id(1)).as_str(), 11));
    assert!(sync::other_syncs() >= before + 2, "the file and its folder");
    let mut file = files.open(&name, size).expect("opens");
    for piece in [&b"hell"[..], b"o wo", b"rld"] {
        assert_eq!(file.read_piece(4).expect("read").as_deref(), Some(piece));
    }
    assert_eq!(file.read_piece(4).expect("read"), None);
    files.remove(&name).and_then(|()| files.remove(&name)).expect("twice is fine");
    assert_eq!(names(&files), 0);
}

fn finished(files: &ContentFiles, content: &[u8]) -> (String, u64) {
    let mut writer = files.create(id(1), "run1").expect("a file");
    writer.write(content).expect("written");
    writer.finish().expect("finished")
}

#[test]
fn a_file_that_is_missing_or_of_another_length_is_damaged() {
    let (_folder, files) = files();
    let (name, size) = finished(&files, b"hello world");
    for wrong in [0, 10, 12] {
        let refused = files.open(&name, wrong).expect_err("another length").to_string();
        assert!(refused.contains(&format!("it has 23 bytes instead of {wrong}, or ")), "{refused}");
    }
    assert_eq!(files.obstacle(&name, size).expect("readable"), None);
    files.remove(&name).expect("removed");
    assert!(matches!(files.open(&name, size), Err(SpoolError::Damaged { .. })));
    let obstacle = files.obstacle(&name, size).expect("told").expect("one");
    assert!(obstacle.contains(&name) && obstacle.contains("missing"), "{obstacle}");
}

#[test]
fn a_file_that_is_cut_while_it_is_read_does_not_look_whole() {
    let (_folder, files) = files();
    let (name, size) = finished(&files, b"hello world");
    let mut file = files.open(&name, size).expect("opens");
    assert_eq!(file.read_piece(5).expect("read").as_deref(), Some(&b"hello"[..]));
    let cut = OpenOptions::new().write(true).open(files.folder().join(&name)).expect("opens");
    cut.set_len(8).expect("cut");
    let refused = file.read_piece(99).expect_err("cut").to_string();
    assert!(refused.contains("it has 8 bytes instead of 11"), "{refused}");
}

#[test]
fn what_a_file_got_behind_its_size_is_never_read() {
    let (_folder, files) = files();
    let (name, size) = finished(&files, b"hello");
    let mut file = files.open(&name, size).expect("opens");
    let longer = OpenOptions::new().append(true).open(files.folder().join(&name));
    longer.and_then(|mut file| file.write_all(b" world")).expect("written");
    assert_eq!(file.read_piece(99).expect("read").as_deref(), Some(&b"hello"[..]));
    assert_eq!(file.read_piece(99).expect("read"), None);
}

/// Changes one byte of a file.
fn flip(files: &ContentFiles, name: &str, at: usize) {
    let path = files.folder().join(name);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("written");
}

/// Reads in pieces of 4 bytes: how many came, and why it ended, if not at the end.
fn read_in_pieces(files: &ContentFiles, name: &str, size: u64) -> (usize, Option<String>) {
    let mut file = match files.open(name, size) {
        Ok(file) => file,
        Err(error) => return (0, Some(error.to_string())),
    };
    let mut came = 0;
    loop {
        match file.read_piece(4) {
            Ok(Some(piece)) => came += piece.len(),
            Ok(None) => return (came, None),
            Err(error) => {
                assert!(matches!(error, SpoolError::Damaged { .. }), "{error}");
                assert!(file.read_piece(4).is_err(), "it never looks like the end");
                return (came, Some(error.to_string()));
            }
        }
    }
}

#[test]
fn a_changed_byte_anywhere_in_a_file_is_seen_before_its_last_piece() {
    let (_folder, files) = files();
    let (name, size) = finished(&files, b"hello world");
    let length = fs::metadata(files.folder().join(&name)).expect("there").len();
    assert_eq!(length, size + trailer::LEN);
    for at in 0..usize::try_from(length).expect("small") {
        flip(&files, &name, at);
        let (came, why) = read_in_pieces(&files, &name, size);
        let why = why.expect("damaged");
        let expected = match at {
            0..=10 | 19.. => (8, "its checksum is wrong"),
            11..=17 => (0, "what is behind its content is no checksum"),
            _ => (0, "its checksum is of version 17"),
        };
        assert!(came == expected.0 && why.contains(expected.1), "byte {at}: {came}, {why}");
        let obstacle = files.obstacle(&name, size).expect("told").expect("one");
        assert!(obstacle.contains(expected.1), "byte {at}: {obstacle}");
        assert!(matches!(files.verify(&name, size), Err(SpoolError::Damaged { .. })), "byte {at}");
        flip(&files, &name, at);
    }
    assert_eq!(read_in_pieces(&files, &name, size), (11, None));
    files.verify(&name, size).expect("whole");
}

#[test]
fn damaged_content_of_a_single_piece_does_not_come_at_all() {
    let (_folder, files) = files();
    for content in [&b"hello"[..], b""] {
        let (name, size) = finished(&files, content);
        // A byte of the content, or the last one of the checksum.
        let at = if content.is_empty() { usize::try_from(trailer::LEN).expect("small") - 1 } else { 0 };
        flip(&files, &name, at);
        let mut file = files.open(&name, size).expect("opens");
        for _ in 0..2 {
            let refused = file.read_piece(99).expect_err("damaged").to_string();
            assert!(refused.contains("its checksum is wrong"), "{refused}");
        }
        files.remove(&name).expect("removed");
    }
}

#[test]
fn a_file_of_an_older_program_ends_with_its_content_and_is_taken_as_it_is() {
    let (_folder, files) = files();
    let name = format!("{}.run1", id(1));
    // Content may look like a trailer.
    for content in [&b"hello world"[..], b"", &trailer::write(7)] {
        fs::write(files.folder().join(&name), content).expect("written");
        let size = content.len() as u64;
        assert_eq!(read_in_pieces(&files, &name, size), (content.len(), None));
        assert_eq!(files.obstacle(&name, size).expect("readable"), None);
    }
}

#[test]
fn a_cut_trailer_is_damage_and_so_is_anything_behind_a_whole_one() {
    let (_folder, files) = files();
    let (name, size) = finished(&files, b"hello world");
    let whole = fs::read(files.folder().join(&name)).expect("readable");
    for length in (12..23).chain([24, 40]) {
        let mut bytes = whole.clone();
        bytes.resize(length, b'x');
        fs::write(files.folder().join(&name), bytes).expect("written");
        let obstacle = files.obstacle(&name, size).expect("told").expect("one");
        let expected = format!("it has {length} bytes instead of 11, or 23 with its checksum");
        assert!(obstacle.contains(&expected), "{obstacle}");
    }
}

#[test]
fn a_file_is_copied_with_its_damage_and_without_a_new_checksum() {
    let ((_folder, files), (_other, copies)) = (files(), files());
    let (name, size) = finished(&files, b"hello world");
    flip(&files, &name, 3);
    let broken = fs::read(files.folder().join(&name)).expect("readable");
    for (number, bytes) in [(2, &broken[..]), (3, b"of an older program"), (4, b"")] {
        let name = format!("{}.run1", id(number));
        fs::write(files.folder().join(&name), bytes).expect("written");
        copies.copy_from(&files, &name).expect("writable").expect("readable");
        assert_eq!(fs::read(copies.folder().join(&name)).expect("copied"), bytes);
    }
    assert!(copies.verify(&format!("{}.run1", id(2)), size).is_err());
    let missing = copies.copy_from(&files, &format!("{}.run1", id(9))).expect("writable");
    assert!(missing.expect_err("nothing to copy").contains("missing"));
}

#[test]
fn an_abandoned_file_is_removed() {
    let (_folder, files) = files();
    let writer = files.create(id(1), "run1").expect("a file");
    assert_eq!(names(&files), 1);
    drop(writer);
    assert_eq!(names(&files), 0);
}

#[test]
fn a_name_never_leads_out_of_the_folder() {
    let (_folder, files) = files();
    let id = id(1);
    for name in ["../db", "db", "", &format!("{id}."), &format!("{id}./../db"), &format!("{id}.a/b")] {
        let refused = files.open(name, 0).map(drop).expect_err(name);
        assert!(matches!(refused, SpoolError::Damaged { .. }), "{name}");
        assert!(files.remove(name).is_err(), "{name}");
    }
}

#[test]
fn the_sweep_removes_only_files_of_earlier_runs_that_no_message_names() {
    let (_folder, files) = files();
    let spool = MemorySpool::new();
    spool.commit(&arrival(&envelope(1, 1, vec![recipient("x@a.example")]))).expect("committed");
    for (number, instance) in [(1, "old"), (2, "old"), (3, "now")] {
        files.create(id(number), instance).and_then(ContentWriter::finish).expect("a file");
    }
    fs::write(files.folder().join("not.ours"), b"").expect("written");
    assert_eq!(files.sweep(&spool, "now").expect("swept"), 1);
    assert_eq!(names(&files), 3);
    assert!(files.open(&format!("{}.old", id(2)), 0).is_err());
}
