//! Export and import: the same mail, with the same schedule, however often an import is begun.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::spool::content::ContentWriter;
use crate::spool::record::{self, Kind};
use crate::spool::{UNTIL_RESUMED, keys};

/// The pairs of a spool, with names of content files and wake hints made alike.
fn alike(spool: &SledSpool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = all(spool);
    pairs.retain(|(key, _)| key[0] != keys::WAKE);
    for (key, value) in &mut pairs {
        if key[0] != keys::ENVELOPE {
            continue;
        }
        let at = keys::read_id(key).expect("an id");
        let mut envelope = Envelope::clone(&spool.message(at).expect("readable").expect("there").envelope);
        if let ContentPlace::File(name) = &envelope.place {
            assert_eq!(read_file(&spool.files(), name), bytes(LARGE));
            envelope.place = ContentPlace::File("alike".to_owned());
        }
        let (_, chunk) =
            record::write_chunks(Kind::Envelope, &record::write_envelope(&envelope)).next().expect("one");
        *value = chunk.to_vec();
    }
    pairs
}

/// What [`filled`] is like in a spool that it was imported into: message 4 has its keys.
fn expected(spool: &SledSpool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let fresh = spool.message(id(4)).expect("readable").expect("there").envelope;
    put(spool, &keys::due(&due_of(&fresh, 0, ARRIVED)), b"");
    put(spool, &keys::wake(ARRIVED, &domain("d.example")), b"");
    put(spool, &keys::deadline(ARRIVED + 1_000, id(4)), b"");
    alike(spool)
}

#[test]
fn what_is_exported_and_imported_is_the_same_mail_with_the_same_schedule() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    let (text, told) = exported(&spool);
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(text.lines().count(), 1 + 1 + 3 + 2 + 1, "{text}");
    let done = imported(&copy, &text).expect("imported");
    assert_eq!(done, Imported { messages: 3, quarantined: 2, destinations: 1, ..Imported::default() });

    assert_eq!(alike(&copy), expected(&spool));
    assert_eq!(copy.content(id(1)).expect("readable"), bytes(20_000));
    assert_eq!(
        read_file(&copy.files(), &format!("{}.run0", id(5))),
        bytes(LARGE),
        "of the one in quarantine"
    );
    let told = spool.counters().expect("readable");
    assert_eq!(copy.counters().expect("readable"), Counters { unindexed_from: None, ..told });
    let wakes = copy.wakes(None, 99).expect("readable");
    let names = [(ARRIVED, "d.example"), (DUE, "a.example"), (RETRY, "c.example")];
    assert_eq!(wakes, names.map(|(at, name)| (at, domain(name))), "back-off is kept");
    assert_eq!(checked(&copy).0, Vec::<String>::new());
}

#[test]
fn an_import_that_is_run_again_takes_in_nothing_twice() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    let (text, _) = exported(&spool);
    imported(&copy, &text).expect("imported");
    let (before, counters) = (all(&copy), copy.counters().expect("readable"));
    let done = imported(&copy, &text).expect("imported");
    assert_eq!(done, Imported { already: 6, ..Imported::default() });
    assert_eq!((all(&copy), copy.counters().expect("readable")), (before, counters));
}

#[test]
fn an_import_goes_into_a_spool_with_mail_in_it() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), filled(other.path()));
    let newer = envelope(8, 10, vec![recipient("x@a.example")]);
    spool.commit(&[Op::PutMessage(newer, Content::Memory(bytes(10)))]).expect("committed");
    let before = copy.counters().expect("readable");
    let done = imported(&copy, &exported(&spool).0).expect("imported");
    assert_eq!(done, Imported { messages: 1, already: 6, ..Imported::default() });
    let after = copy.counters().expect("readable");
    assert_eq!((after.messages, after.recipients), (before.messages + 1, before.recipients + 1));
    assert_eq!(
        after.unindexed_from, before.unindexed_from,
        "its own mail of the last run is still without keys"
    );
    assert_eq!(checked(&copy).0, Vec::<String>::new());
}

#[test]
fn an_export_that_was_cut_anywhere_says_so_and_the_rest_can_follow() {
    let home = folder();
    let spool = filled(home.path());
    let (text, _) = exported(&spool);
    let expected = expected(&spool);
    let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let ends = lines.iter().flat_map(|end| [end - 40, end - 2, *end]).filter(|end| *end < text.len() - 2);
    for end in ends {
        let other = folder();
        let copy = sled_in(other.path()).expect("opens");
        let error = imported(&copy, &text[..end]).expect_err("cut short").to_string();
        let cut_short = error.contains("cut short") || error.contains("this is no export");
        assert!(cut_short, "at {end}: {error}");
        let (found, _) = checked(&copy);
        assert_eq!(found, Vec::<String>::new(), "at {end}: whole messages only");
        imported(&copy, &text).expect("imported");
        assert_eq!(alike(&copy), expected, "at {end}");
    }
}

#[test]
fn a_large_content_that_an_import_left_behind_is_swept_by_the_next_one() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    // As after a kill between the file and the commit: once with the name that the export brings.
    for (number, instance) in [(2, "run1"), (5, "run0")] {
        copy.files().create(id(number), instance).and_then(ContentWriter::finish).expect("a file");
    }
    imported(&copy, &exported(&spool).0).expect("imported");
    let (found, summary) = checked(&copy);
    assert_eq!((found, summary.content_files), (Vec::new(), 2));
}

#[test]
fn what_can_not_be_read_is_exported_for_quarantine() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    let envelope_key = keys::chunk(keys::ENVELOPE, id(1), 0);
    put(&spool, &envelope_key, b"not an envelope");
    spool.files().remove(&format!("{}.run0", id(2))).expect("removed");
    let beginning = keys::chunk(keys::ENVELOPE, id(4), 0);
    remove(&spool, &beginning);
    let (text, told) = exported(&spool);
    assert_eq!(told.len(), 3, "{told:#?}");
    for (told, words) in told.iter().zip(["it is cut short", "content file", "its envelope is missing"]) {
        assert!(told.contains(words) || told.contains("checksum"), "{told}");
    }
    let done = imported(&copy, &text).expect("imported");
    assert_eq!(done, Imported { quarantined: 5, destinations: 1, ..Imported::default() });
    let kept = copy.tree.get(&keys::quarantined(&envelope_key)).expect("readable").expect("there");
    assert_eq!(&kept[..], b"not an envelope", "every byte of it");
    let content = keys::quarantined(&keys::chunk(keys::CONTENT, id(4), 0));
    assert!(copy.tree.get(&content).expect("readable").is_some());
    assert_eq!(copy.counters().expect("readable").quarantined, 5);
    assert_eq!(checked(&copy).0, Vec::<String>::new());
}

#[test]
fn content_that_was_changed_in_its_file_travels_as_it_is_and_stays_damaged() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    let changed = change_file(&spool, 2, |bytes| bytes[LARGE - 1] ^= 1);
    let whole = change_file(&spool, 5, |_| ());
    let (text, told) = exported(&spool);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(&id(2).to_string()) && told[0].contains("its checksum is wrong"), "{told:?}");
    let done = imported(&copy, &text).expect("imported");
    assert_eq!((done.messages, done.quarantined), (2, 3));
    for (number, bytes) in [(2, changed), (5, whole)] {
        assert!(std::fs::read(copy.files().folder().join(name(number))).expect("there") == bytes);
    }
    let obstacle = |number| copy.in_quarantine(id(number)).expect("readable").expect("there").obstacle;
    assert!(obstacle(2).expect("damaged").contains("its checksum is wrong"));
    assert_eq!(obstacle(5), None, "it can be released");
    assert_eq!(checked(&copy).0, Vec::<String>::new());
}

#[test]
fn content_of_an_older_program_gets_its_checksum_by_an_import() {
    let (home, other) = (folder(), folder());
    let (spool, copy) = (filled(home.path()), sled_in(other.path()).expect("opens"));
    for number in [2, 5] {
        change_file(&spool, number, |bytes| bytes.truncate(LARGE));
    }
    let (text, told) = exported(&spool);
    assert_eq!(told, Vec::<String>::new());
    imported(&copy, &text).expect("imported");
    let length = |number, instance: &str| {
        std::fs::metadata(copy.files().folder().join(format!("{}.{instance}", id(number))))
            .expect("there")
            .len()
    };
    assert!(length(2, copy.instance()) > LARGE as u64);
    assert_eq!(length(5, "run0"), LARGE as u64, "what is in quarantine is left as it was");
    assert_eq!(copy.in_quarantine(id(5)).expect("readable").expect("there").obstacle, None);
    assert_eq!(checked(&copy).0, Vec::<String>::new());
}

#[test]
fn a_line_that_can_not_be_used_is_named_and_those_before_it_are_in() {
    let home = folder();
    let (text, _) = exported(&filled(home.path()));
    let lines: Vec<&str> = text.lines().collect();
    let message = lines[2];
    let change = |from: &str, to: &str| {
        assert!(message.contains(from), "{from} is in {}", &message[..300]);
        message.replacen(from, to, 1)
    };
    let with_content = |content: &[u8]| {
        let (before, _) = message.split_once("\"content\":\"").expect("it has content");
        let before = before.replacen("20000", &content.len().to_string(), 1);
        format!("{before}\"content\":\"{}\"}}}}", STANDARD.encode(content))
    };
    for (bad, words) in [
        ("{}".to_owned(), "it can't be read"),
        ("not JSON".to_owned(), "expected value, at character 1"),
        (change("\"size\"", "\"hold\":1,\"size\""), "unknown field `hold`"),
        (change("20000", "20001"), "its content has 20000 bytes instead of 20001"),
        (change("\"content\":\"", "\"content\":\"!"), "its base64 does not decode"),
        (change("joe@sender.example", "joe"), "\"joe\" is not a valid reverse_path"),
        (change("\"queued\"", "\"lost\""), "\"lost\" is not a valid status"),
        (change("4.2.2", "9.2.2"), "\"9.2.2\" is not a valid enhanced status"),
        (change("0101", "01x1"), "is not a valid queue id"),
        (lines[0].to_owned(), "it can't be read"),
        (with_content(b"a\0b"), "has a NUL character"),
        (with_content(b"a\nb\r\n"), "its content has a CR or LF that is no end of line"),
        (
            with_content(&[&bytes(LARGE)[..], b"\r"].concat()),
            "its content has a CR or LF that is no end of line",
        ),
        (
            change(&format!("\"due_ms\":{DUE}"), "\"due_ms\":18446744073709551615"),
            "its due_ms is 184467440737",
        ),
        (change("\"arrived_ms\":", "\"arrived_ms\":99"), "and 253402300799999 (the year 9999) at most"),
    ] {
        let other = folder();
        let copy = sled_in(other.path()).expect("opens");
        let text = [lines[0], lines[1], lines[3], &bad, lines[7]].join("\n");
        let error = imported(&copy, &text).expect_err("a bad line");
        assert!(
            error.to_string().starts_with("line 4: ") && error.to_string().contains(words),
            "{words}: {error}"
        );
        assert_eq!(error.done, Imported { messages: 1, destinations: 1, ..Imported::default() }, "{words}");
        assert!(copy.message(id(2)).expect("readable").is_some());
        assert_eq!(checked(&copy).0, Vec::<String>::new(), "{words}");
    }
}

#[test]
fn what_is_no_export_or_not_all_of_one_is_refused() {
    let home = folder();
    let (text, _) = exported(&filled(home.path()));
    let lines: Vec<&str> = text.lines().collect();
    let newer = lines[0].replacen("\"version\":1", "\"version\":2", 1);
    for (text, words) in [
        (String::new(), "line 1: this is no export"),
        ("\0".repeat(100_000), "line 1: this is no export"),
        (
            "{\"kind\":\"something else\",\"version\":1,\"writer\":\"1\"}\n".to_owned(),
            "line 1: this is no export",
        ),
        (newer, "use posthaste 0.1.0 or newer"),
        (
            [lines[0], lines[1], lines[7]].join("\n"),
            "fewer lines: 0 messages, 0 in quarantine and 1 destination; get the whole of it, or",
        ),
        ([&text, lines[1]].concat(), "it comes after the end"),
    ] {
        let other = folder();
        let error = imported(&sled_in(other.path()).expect("opens"), &text).expect_err("refused").to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn the_rest_of_an_export_is_taken_once_a_line_was_taken_out() {
    let home = folder();
    let (text, _) = exported(&filled(home.path()));
    let lines: Vec<&str> = text.lines().collect();
    let without = [&lines[..3], &lines[4..]].concat().join("\n");
    let doubled = [&lines[..3], &lines[2..]].concat().join("\n");
    let counted = "counts 3 messages, 2 in quarantine and 1 destination, but here are";
    for (text, words, messages) in [
        (&without, "fewer lines: 2 messages, 2 in quarantine and 1 destination; get the whole of it", 2),
        (&doubled, "more lines: 4 messages, 2 in quarantine and 1 destination; take out what was added", 3),
    ] {
        let other = folder();
        let copy = sled_in(other.path()).expect("opens");
        let error = imported(&copy, text).expect_err("not what was written");
        let told = error.to_string();
        assert!(told.contains(counted) && told.contains(words) && told.contains("--partial"), "{told}");
        assert_eq!(error.done.messages, messages, "what is there is in");
        let done = imported_in_part(&copy, text).expect("taken");
        assert_eq!((done.messages, copy.counters().expect("readable").messages), (0, messages));
    }
    let cut = lines[..7].join("\n");
    let other = folder();
    let copy = sled_in(other.path()).expect("opens");
    assert!(imported_in_part(&copy, &cut).expect_err("cut").to_string().contains("cut short"));
}

/// What programs that read all numbers as floating-point do to an export.
#[test]
fn a_suspension_without_end_survives_other_programs() {
    let (home, other) = (folder(), folder());
    let spool = sled_in(home.path()).expect("opens");
    let forever = DestinationRecord { suspended_until_ms: UNTIL_RESUMED, ..DestinationRecord::default() };
    spool.commit(&[Op::PutDestination(domain("a.example"), forever.clone())]).expect("committed");
    let (text, _) = exported(&spool);
    assert!(text.contains("\"suspended_until_ms\":null"), "{text}");
    let copy = sled_in(other.path()).expect("opens");
    let change = |until: &str| text.replace("\"suspended_until_ms\":null", until);
    for (until, expected) in [
        ("\"suspended_until_ms\":null", Ok(UNTIL_RESUMED)),
        ("\"suspended_until_ms\":18446744073709551615", Ok(UNTIL_RESUMED)),
        ("\"suspended_until_ms\":18446744073709552000", Ok(UNTIL_RESUMED)),
        ("\"suspended_until_ms\":1.8446744073709552e19", Ok(UNTIL_RESUMED)),
        ("\"suspended_until_ms\":5", Ok(5)),
        ("\"suspended_until_ms\":0", Ok(0)),
        (
            "\"suspended_until_ms\":18446744073709551614",
            Err("its suspended_until_ms is 18446744073709551614"),
        ),
        ("\"suspended_until_ms\":-1", Err("-1 is no time")),
        ("\"suspended_until_ms\":1.5", Err("1.5 is no time")),
    ] {
        copy.commit(&[Op::DeleteDestination(domain("a.example"))]).expect("committed");
        let done = imported(&copy, &change(until)).map_err(|error| error.to_string());
        match expected {
            Ok(until_ms) => {
                assert!(done.is_ok(), "{until}: {done:?}");
                let record = copy.destination(&domain("a.example")).expect("readable").expect("there");
                assert_eq!(record.suspended_until_ms, until_ms, "{until}");
            }
            Err(words) => assert!(done.as_ref().is_err_and(|told| told.contains(words)), "{until}: {done:?}"),
        }
    }
}

#[test]
fn records_of_another_message_are_not_taken_for_quarantine() {
    let home = folder();
    let (text, _) = exported(&filled(home.path()));
    let lines: Vec<&str> = text.lines().collect();
    let other = lines[5].replacen(&id(3).to_string(), &id(9).to_string(), 1);
    let file = lines[6].replacen(&format!("{}.run0", id(5)), "../../api-token", 1);
    for (line, words) in
        [(other, "a record that is none of this message"), (file, "is no content file of this message")]
    {
        let folder = folder();
        let copy = sled_in(folder.path()).expect("opens");
        let error =
            imported(&copy, &[lines[0], &line, lines[7]].join("\n")).expect_err("refused").to_string();
        assert!(error.starts_with("line 2: ") && error.contains(words), "{error}");
        assert_eq!(all(&copy), []);
    }
}

#[test]
fn a_message_that_needs_nothing_more_is_left_out() {
    let home = folder();
    let (text, _) = exported(&filled(home.path()));
    let other = folder();
    let copy = sled_in(other.path()).expect("opens");
    let done = imported(&copy, &text.replace("\"queued\"", "\"removed\"")).expect("imported");
    assert_eq!((done.messages, done.finished), (0, 3));
    assert_eq!(copy.counters().expect("readable").messages, 0);
}

#[test]
fn an_import_of_many_is_several_commits_and_counts_all() {
    let (home, other) = (folder(), folder());
    let spool = sled_in(home.path()).expect("opens");
    let mut counters = Counters::default();
    for number in 1..=200 {
        let envelope = envelope(number, 30_000, vec![recipient("x@a.example"), recipient("x@b.example")]);
        counters.messages += 1;
        counters.recipients += 2;
        counters.bytes += envelope.size;
        counters.tree_bytes += envelope.size;
        spool.commit(&[Op::PutMessage(envelope, Content::Memory(bytes(30_000)))]).expect("committed");
    }
    let copy = sled_in(other.path()).expect("opens");
    let before = copy.tree.store.watch.syncs();
    let (text, _) = exported(&spool);
    assert_eq!(imported(&copy, &text).expect("imported").messages, 200);
    assert_eq!(copy.counters().expect("readable"), counters);
    let syncs = copy.tree.store.watch.syncs() - before;
    assert!((2..=150).contains(&syncs), "{syncs} syncs for 200 messages: one for each 512 KiB, and commits");
    let (found, summary) = checked(&copy);
    assert_eq!((found, summary.due_keys, summary.wake_keys), (Vec::new(), 400, 2));
}
