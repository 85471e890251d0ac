//! The reading of a damaged log: what lies elsewhere is all there, and nothing is made up.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::format::{SEGMENT, SegmentHeader};
use super::super::walk::{Step, Walk};
use super::*;

/// A spool that is damaged in many ways, and how many messages went through it.
struct Patient {
    spool: Stopped,
    messages: u64,
}

impl Patient {
    fn new(messages: u64, stay: u64) -> Self {
        Self { spool: Stopped::new(messages, stay), messages }
    }

    fn damage(&self, damage: impl FnOnce(&mut Vec<u8>)) -> Salvaged {
        let mut bytes = self.spool.sound.clone();
        damage(&mut bytes);
        fs::write(self.spool.home.path().join("spool/db"), bytes).expect("written");
        salvaged(&self.spool.home.path().join("spool"))
    }

    fn segments(&self) -> usize {
        self.spool.sound.len().div_ceil(SEGMENT)
    }

    /// The number of a segment in which a batch begins.
    fn begins_batch(&self, segment: usize) -> Option<u64> {
        let bytes = self.spool.sound.chunks(SEGMENT).nth(segment)?;
        let number = SegmentHeader::read(bytes)?.number;
        let begins = |step| matches!(step, Step::Message(_, message) if message.batch_end().is_some());
        Walk::new(bytes, number).any(begins).then_some(number)
    }

    /// Messages of which no page has a base or a change in these segments. Those of the last commit count only when the
    /// end of the log is sound: of a torn commit nothing is taken.
    fn elsewhere(&self, segments: &HashSet<usize>) -> Vec<u64> {
        let sound = self.damage(|_| {});
        let number =
            |segment: &usize| SegmentHeader::read(&self.spool.sound[segment * SEGMENT..]).map(|it| it.number);
        let last_batch = (0..self.segments()).filter_map(|segment| self.begins_batch(segment)).max();
        let torn = segments.iter().filter_map(number).any(|number| Some(number) >= last_batch);
        let last = self.messages - AT_ONCE as u64;
        let is_elsewhere = |number: &u64| {
            let settled = !torn || *number < last;
            settled
                && record_keys(*number).iter().all(|key| {
                    let mut places = sound.places(key).into_iter();
                    places.all(|offset| {
                        !segments.contains(&(usize::try_from(offset).expect("small") / SEGMENT))
                    })
                })
        };
        self.spool.live.iter().copied().filter(is_elsewhere).collect()
    }
}

fn missing(expected: &[u64], found: &[u64]) -> Vec<u64> {
    expected.iter().copied().filter(|number| !found.contains(number)).collect()
}

/// A message that comes back is one that was there once, with its own content.
fn assert_nothing_made_up(salvaged: &Salvaged, messages: u64) {
    let known: HashSet<QueueId> = (0..messages).map(id).collect();
    let all = all_of(salvaged);
    for key in all.keys().filter(|key| [keys::ENVELOPE, keys::CONTENT].contains(&key[0])) {
        let id = keys::read_id(key).expect("a whole id");
        assert!(known.contains(&id), "{id} never was");
        assert_eq!(key.len(), 21);
    }
    for number in 0..messages {
        let (envelope, content) = message(number);
        if let Ok(found) = crate::spool::read::content(salvaged, envelope.id) {
            assert_eq!(found, content, "the content of another message, or a part of one");
        }
    }
}

const MESSAGES: u64 = 800;

/// A way to damage a file.
type Way<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn a_lost_segment_costs_only_what_is_in_it() {
    let patient = Patient::new(MESSAGES, 150);
    for lost in 0..patient.segments() {
        let expected = patient.elsewhere(&HashSet::from([lost]));
        let start = lost * SEGMENT;
        let end = patient.spool.sound.len().min(start + SEGMENT);
        let ways: [Way<'_>; 3] = [
            &|bytes| bytes[start..end].fill(0xa5),
            &|bytes| bytes[start..end].fill(0),
            // The first message names the segment, too.
            &|bytes| bytes[start..start + 20].fill(0x5a),
        ];
        for (way, damage) in ways.into_iter().enumerate() {
            let salvaged = patient.damage(damage);
            let found = whole(&salvaged, &patient.spool.live);
            assert_eq!(
                missing(&expected, &found),
                [0; 0],
                "segment {lost} of {}, way {way}",
                patient.segments()
            );
            assert_nothing_made_up(&salvaged, MESSAGES);
        }
    }
}

/// The places of all readable messages of a segment, and the place behind the batch that each belongs to (of those that are
/// between batches, and of a batch that goes on in the next segment, the end of the segment).
fn places(segment: &[u8], number: u64) -> Vec<(usize, usize)> {
    let base = number * SEGMENT as u64;
    let mut behind = 0;
    let place = |step| match step {
        Step::Message(at, message) => {
            let end = message.batch_end().and_then(|end| usize::try_from(end + 1 - base).ok());
            let outside = at >= behind;
            behind = end.unwrap_or(behind);
            let known = !outside && behind < SEGMENT;
            Some((at, if known { behind } else { SEGMENT }))
        }
        _ => None,
    };
    Walk::new(segment, number).filter_map(place).collect()
}

#[test]
fn a_lost_length_costs_what_follows_in_its_batch() {
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    // Short batches: several in a segment.
    (0..60).for_each(|number| spool.commit(&[arrival(number)]).expect("committed"));
    drop(spool);
    let sound = fs::read(home.path().join("spool/db")).expect("readable");
    let mut batches = 0;
    for segment in sound.chunks(SEGMENT) {
        let Some(SegmentHeader { number, .. }) = SegmentHeader::read(segment) else { continue };
        let places = places(segment, number);
        for (at, behind) in &places {
            let mut damaged = segment.to_vec();
            damaged[*at..at + 12].fill(0xff);
            let found: Vec<usize> = Walk::new(&damaged, number)
                .filter_map(|step| match step {
                    Step::Message(at, _) => Some(at),
                    _ => None,
                })
                .collect();
            let left: Vec<usize> =
                places.iter().map(|(at, _)| *at).filter(|it| it < at || it >= behind).collect();
            assert_eq!(found, left, "segment {number}, place {at}");
            batches += usize::from(*behind < SEGMENT && left.last() > Some(at));
        }
    }
    assert!(batches > 100, "{batches}");
}

/// A snapshot knows where each page is, so sled finds what is behind damage of no use; a rescue does too.
#[test]
fn with_a_snapshot_all_that_sled_can_still_read_is_saved() {
    let stopped = Stopped::new(400, 120);
    drop(sled_in(stopped.home.path()).expect("opens"));
    let spool = stopped.home.path().join("spool");
    let sound = fs::read(spool.join("db")).expect("readable");
    let expected = all_of(&salvaged(&spool));
    let mut dice = Dice(21);
    let (mut unhurt, mut lost) = (0, 0);
    for round in 0..60 {
        let at = dice.below(sound.len() / 512) * 512;
        let mut bytes = sound.clone();
        let end = bytes.len().min(at + 512);
        bytes[at..end].fill(0);
        fs::write(spool.join("db"), &bytes).expect("written");
        let found = salvaged(&spool);
        assert_nothing_made_up(&found, 400);
        let readable = std::panic::catch_unwind(|| by_sled(&spool)).ok().filter(|map| *map == expected);
        if readable.is_some() {
            unhurt += 1;
            assert_same(&all_of(&found), &expected);
            // Without the header of a segment nobody can say that it was not used again.
            let headless = at.is_multiple_of(SEGMENT);
            assert!(headless || found.damage().is_none(), "round {round}, byte {at}: {:?}", found.damage());
        } else {
            lost += 1;
            // A page has no more than 16 keys, and each message several.
            let missing = missing(&stopped.live, &whole(&found, &stopped.live));
            assert!(missing.len() <= 20, "round {round}, byte {at}: {missing:?}");
        }
    }
    assert!(unhurt > 5 && lost > 5, "{unhurt} and {lost}");
}

#[test]
fn without_its_header_a_segment_is_read_all_the_same() {
    let patient = Patient::new(400, 200);
    for segment in 0..patient.segments() {
        let salvaged = patient.damage(|bytes| bytes[segment * SEGMENT + 3] ^= 1);
        assert_eq!(whole(&salvaged, &patient.spool.live), patient.spool.live, "segment {segment}");
    }
}

#[test]
fn a_flipped_byte_in_a_mail_costs_that_page_and_is_counted() {
    let patient = Patient::new(300, 300);
    let text = message(patient.spool.live[100]).1.slice(0..200);
    let places: Vec<usize> =
        memchr::memmem::find_iter(&patient.spool.sound, &text[..]).map(|at| at + 150).collect();
    assert!(!places.is_empty());
    let salvaged = patient.damage(|bytes| places.iter().for_each(|at| bytes[*at] ^= 0x10));
    // Some may lie behind the last message of a segment that is used again: nobody reads what is there.
    let counted = salvaged.damage().messages;
    assert!((1..=places.len() as u64).contains(&counted), "{counted} of {}", places.len());
    let found = whole(&salvaged, &patient.spool.live);
    assert!(!found.contains(&patient.spool.live[100]));
    assert!(
        missing(&patient.spool.live, &found).len() <= 16,
        "a page at most: {:?}",
        missing(&patient.spool.live, &found)
    );
}

/// Mail may contain anything: bytes that look like a message of the log are never taken for one.
#[test]
fn a_mail_that_imitates_the_log_is_never_read_as_the_log() {
    let forged = |segment: u64| {
        let mut body = vec![0, 3];
        body.extend_from_slice(b"evl");
        body.extend_from_slice(&[4]);
        body.extend_from_slice(b"evil");
        let page = 4;
        let mut head = vec![0, 0, 0, 0, 10, u8::try_from(body.len()).expect("short")];
        head.extend_from_slice(&[u8::try_from(segment).expect("few"), page]);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&body);
        crc.update(&head[4..]);
        head[..4].copy_from_slice(&(!crc.finalize()).to_le_bytes());
        [head, body].concat()
    };
    let imitation = forged(0);
    let read =
        super::super::format::Message::read(&[imitation.clone(), vec![0; 64]].concat()).map(|it| it.sound);
    assert_eq!(read, Some(true), "it would pass for one");
    let home = folder();
    let spool = sled_in(home.path()).expect("opens");
    for number in 1..=20 {
        let (envelope, _) = message(number);
        let content: Vec<u8> = (0..5).flat_map(&forged).cycle().take(4_000).collect();
        let envelope = Envelope { size: 4_000, ..(*envelope).clone() };
        spool
            .commit(&[Op::PutMessage(Arc::new(envelope), Content::Memory(content.into()))])
            .expect("committed");
    }
    drop(spool);
    let path = home.path().join("spool/db");
    let sound = fs::read(&path).expect("readable");
    let places: Vec<usize> = memchr::memmem::find_iter(&sound, &imitation).step_by(7).collect();
    assert!(places.len() > 100);
    for at in places {
        // Everything before it in its block is gone: the head of the message that it is in, too.
        let mut bytes = sound.clone();
        bytes[(at / 4_096 * 4_096).max(20)..at].fill(0);
        fs::write(&path, bytes).expect("written");
        let all = all_of(&salvaged(&home.path().join("spool")));
        assert!(all.values().all(|value| value != b"evil"), "at {at}");
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(f64),
    Block(f64),
    Truncate(f64),
    Header(f64),
    Noise(f64, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = 0.0..1.0_f64;
    prop_oneof![
        place.clone().prop_map(Damage::Flip),
        place.clone().prop_map(Damage::Block),
        place.clone().prop_map(Damage::Truncate),
        place.clone().prop_map(Damage::Header),
        (place, 1..60_000_usize).prop_map(|(at, count)| Damage::Noise(at, count)),
    ]
}

impl Damage {
    /// Damages the bytes, and returns the segments that it touched.
    fn apply(&self, bytes: &mut Vec<u8>) -> HashSet<usize> {
        let length = bytes.len();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = |part: f64| ((length as f64 * part) as usize).min(length - 1);
        let range = match *self {
            Self::Flip(part) => {
                bytes[at(part)] ^= 0x40;
                at(part)..at(part) + 1
            }
            Self::Block(part) => {
                let start = at(part) / 4_096 * 4_096;
                let range = start..(start + 4_096).min(length);
                bytes[range.clone()].fill(0);
                range
            }
            Self::Truncate(part) => {
                bytes.truncate(at(part));
                at(part)..length
            }
            Self::Header(part) => {
                let start = at(part) / SEGMENT * SEGMENT;
                bytes[start..start + 12].fill(0x77);
                start..start + 12
            }
            Self::Noise(part, count) => {
                let range = at(part)..(at(part) + count).min(length);
                let mut dice = Dice(count as u64 + 1);
                bytes[range.clone()].iter_mut().for_each(|byte| *byte = dice.below(256) as u8);
                range
            }
        };
        (range.start / SEGMENT..=(range.end - 1) / SEGMENT).collect()
    }
}

#[test]
fn any_damage_costs_only_the_segments_that_it_touches() {
    let patient = Patient::new(MESSAGES, 150);
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 40, ..ProptestConfig::default() });
    runner
        .run(&proptest::collection::vec(damage(), 1..3), |damages| {
            let mut touched = HashSet::new();
            let salvaged = patient.damage(|bytes| {
                for damage in &damages {
                    if !bytes.is_empty() {
                        touched.extend(damage.apply(bytes));
                    }
                }
            });
            let found = whole(&salvaged, &patient.spool.live);
            assert_nothing_made_up(&salvaged, MESSAGES);
            let expected = patient.elsewhere(&touched);
            prop_assert_eq!(missing(&expected, &found), Vec::<u64>::new());
            Ok(())
        })
        .expect("all that is elsewhere is found");
}
