//! Blocks beside a plain set of keys.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::super::memory::MemoryTree;
use super::super::suite::sled_in;
use super::*;

type Set = BTreeSet<Vec<u8>>;

/// Few keys, so that they meet; some of them long, so that blocks are divided.
fn key(number: u16) -> Vec<u8> {
    let prefix = if number.is_multiple_of(3) { keys::DEADLINE } else { keys::DUE };
    let name = "x".repeat(usize::from(number % 7) * 40);
    [&[prefix][..], format!("{:03}{name}", number / 2).as_bytes(), &number.to_be_bytes()].concat()
}

fn change(key: &[u8], there: bool) -> Change {
    (key.into(), there.then(IVec::default))
}

fn all(tree: &impl Tree, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        all.push(key.to_vec());
        true
    };
    tree.scan(from, to, &mut visit).expect("readable");
    all
}

fn names(blocks: &Blocks<impl Store>) -> Vec<Vec<u8>> {
    all(&blocks.store, &[], &[u8::MAX])
}

fn put(blocks: &Blocks<impl Store>, keys: &[Vec<u8>]) {
    blocks.apply(keys.iter().map(|key| change(key, true)).collect()).expect("applied");
}

/// A due key with a time: they come in order.
fn timed(number: u64) -> Vec<u8> {
    [&[keys::DUE][..], &number.to_be_bytes(), &[7; 16]].concat()
}

/// Does the same to blocks and to a plain set, and compares all that a tree can be asked.
fn behaves_as_a_set(blocks: &Blocks<impl Store>, commits: &[Vec<(u16, bool)>]) {
    let mut set = Set::new();
    for commit in commits {
        let changes = commit.iter().map(|(number, there)| change(&key(*number), *there));
        blocks.apply(changes.collect()).expect("applied");
        for (number, there) in commit {
            if *there {
                set.insert(key(*number))
            } else {
                set.remove(&key(*number))
            };
        }
        assert_eq!(all(blocks, &[], &[u8::MAX]), Vec::from_iter(set.iter().cloned()));
        for (number, _) in commit {
            let key = key(*number);
            assert_eq!(blocks.get(&key).expect("readable").is_some(), set.contains(&key));
            let end = [keys::DEADLINE + 1];
            let behind = set.iter().filter(|one| **one >= key && one[..] < end[..]).cloned();
            assert_eq!(all(blocks, &key, &end), behind.collect::<Vec<_>>());
            let before = set.iter().filter(|one| **one < key && one[0] >= keys::DUE).cloned();
            assert_eq!(all(blocks, &[keys::DUE], &key), before.collect::<Vec<_>>());
        }
    }
    let every = set.iter().map(|key| change(key, false));
    blocks.apply(every.collect()).expect("applied");
    assert_eq!(names(blocks), Vec::<Vec<u8>>::new(), "no block is left of nothing");
}

fn commits() -> impl Strategy<Value = Vec<Vec<(u16, bool)>>> {
    let change = (0..200_u16, prop::bool::weighted(0.7));
    prop::collection::vec(prop::collection::vec(change, 0..60), 0..20)
}

proptest! {
    #[test]
    fn keys_in_blocks_behave_as_a_plain_set(commits in commits()) {
        behaves_as_a_set(&Blocks::<MemoryTree>::default(), &commits);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn keys_in_blocks_on_disk_behave_as_a_plain_set(commits in commits()) {
        let home = tempfile::tempdir().expect("a folder");
        let spool = sled_in(home.path()).expect("opens");
        let meta: Vec<Change> = all(&spool.tree, b"m", b"n").iter().map(|key| change(key, false)).collect();
        spool.tree.apply(meta).expect("removed");
        behaves_as_a_set(&spool.tree, &commits);
    }
}

#[test]
fn keys_that_come_in_order_fill_their_blocks() {
    let blocks = Blocks::<MemoryTree>::default();
    (0..100)
        .for_each(|commit| put(&blocks, &Vec::from_iter((0..20).map(|number| timed(commit * 20 + number)))));
    let names = names(&blocks);
    assert_eq!(names[0], [keys::DUE]);
    assert!((50..100).contains(&names.len()), "{} blocks for 2,000 keys", names.len());
    assert_eq!(all(&blocks, &[keys::DUE], &[keys::DUE + 1]).len(), 2_000);
}

#[test]
fn a_key_of_format_2_is_a_block_that_others_may_join() {
    let blocks = Blocks::<MemoryTree>::default();
    let old = [timed(10), timed(20)];
    blocks.store.apply(old.iter().map(|key| change(key, true)).collect()).expect("applied");
    assert_eq!(all(&blocks, &[keys::DUE], &[keys::DUE + 1]), old);
    put(&blocks, &[timed(5), timed(15)]);
    let all_of = |expected: &[u64]| {
        let expected: Vec<_> = expected.iter().map(|number| timed(*number)).collect();
        assert_eq!(all(&blocks, &[keys::DUE], &[keys::DUE + 1]), expected);
    };
    all_of(&[5, 10, 15, 20]);
    blocks.apply(vec![change(&timed(10), false)]).expect("applied");
    all_of(&[5, 15, 20]);
    blocks.apply(vec![change(&timed(20), false)]).expect("applied");
    all_of(&[5, 15]);
    assert_eq!(names(&blocks), [vec![keys::DUE], timed(10)]);
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let blocks = Blocks::<MemoryTree>::default();
    put(&blocks, &[timed(1)]);
    let mut changes = Vec::new();
    let wanted = Wanted::from([(timed(1)[..].into(), true), (timed(2)[..].into(), false)]);
    blocks.changes(wanted, &mut changes).expect("readable");
    assert_eq!(changes, []);
}

#[test]
fn a_block_that_cannot_be_read_is_empty_until_a_key_comes_to_it() {
    let blocks = Blocks::<MemoryTree>::default();
    let many: Vec<_> = (0..100).map(timed).collect();
    put(&blocks, &many);
    let damaged = names(&blocks)[1].clone();
    blocks.store.apply(vec![(damaged[..].into(), Some(b"?"[..].into()))]).expect("applied");
    let mut told = Vec::new();
    blocks.unreadable(&mut |name, error| told.push((name.to_vec(), error.to_string()))).expect("readable");
    assert_eq!(told, [(damaged.clone(), "it is cut short".to_owned())]);
    let left = all(&blocks, &[keys::DUE], &[keys::DUE + 1]);
    assert!(left.len() < 100 && left.iter().all(|key| blocks.get(key).expect("readable").is_some()));
    assert_eq!(blocks.get(&damaged).expect("readable"), None);
    put(&blocks, &many);
    assert_eq!(all(&blocks, &[keys::DUE], &[keys::DUE + 1]), many);
    blocks.unreadable(&mut |_, _| panic!("nothing is")).expect("readable");
}

#[test]
fn a_removal_that_meets_a_block_that_cannot_be_read_removes_it() {
    let blocks = Blocks::<MemoryTree>::default();
    put(&blocks, &Vec::from_iter((0..100).map(timed)));
    let damaged = names(&blocks)[1].clone();
    blocks.store.apply(vec![(damaged[..].into(), Some(b"?"[..].into()))]).expect("applied");
    blocks.apply(vec![change(&damaged, false)]).expect("applied");
    assert!(!names(&blocks).contains(&damaged));
    blocks.unreadable(&mut |_, _| panic!("nothing is")).expect("readable");
}

/// A store that does something else between two pairs of a scan, which it reads some at a time, as sled reads leaves.
struct Interrupted<'a> {
    store: &'a MemoryTree,
    at_once: usize,
    meanwhile: &'a (dyn Fn(&MemoryTree) + Sync),
}

impl Tree for Interrupted<'_> {
    fn files(&self) -> Option<ContentFiles> {
        None
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        self.store.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        let mut from = from.to_vec();
        loop {
            let mut pairs = Vec::new();
            self.store.scan(&from, to, &mut |key, value| {
                pairs.push((key.to_vec(), value.to_vec()));
                pairs.len() < self.at_once
            })?;
            let Some((last, _)) = pairs.last() else { return Ok(()) };
            from = keys::after(last.clone());
            for (key, value) in &pairs {
                if !visit(key, value) {
                    return Ok(());
                }
                (self.meanwhile)(self.store);
            }
        }
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), SpoolError> {
        self.store.apply(changes)
    }

    fn syncs(&self) -> u64 {
        0
    }
}

impl Store for Interrupted<'_> {
    fn at_or_before(&self, from: &[u8], to: &[u8]) -> Result<Option<(IVec, IVec)>, SpoolError> {
        self.store.at_or_before(from, to)
    }
}

#[test]
fn a_scan_beside_commits_sees_each_key_that_stays_once() {
    let stay: Vec<_> = (0..200).map(|number| timed(number * 1_000)).collect();
    let round = AtomicUsize::new(0);
    // Between two blocks, keys come and go everywhere, so that blocks are divided and removed before and behind the scan.
    let meanwhile = |store: &MemoryTree| {
        let round = round.fetch_add(1, Ordering::Relaxed) as u64;
        let blocks = Blocks::new(Interrupted { store, at_once: usize::MAX, meanwhile: &|_| () });
        let others = (0..200).map(|number| timed(number * 1_000 + 1 + (round + number) % 900));
        blocks.apply(others.map(|key| change(&key, !round.is_multiple_of(3))).collect()).expect("applied");
        if round % 3 == 2 {
            let all = all(&blocks, &[keys::DUE], &[keys::DUE + 1]);
            let gone = all.iter().filter(|key| !stay.contains(key)).map(|key| change(key, false));
            blocks.apply(gone.collect()).expect("applied");
        }
    };
    let store = MemoryTree::default();
    put(&Blocks::new(Interrupted { store: &store, at_once: 1, meanwhile: &|_| () }), &stay);
    for (from, at_once) in [(0, 1), (0, 3), (0, 8), (50, 1), (50, 5), (199, 1)] {
        let blocks = Blocks::new(Interrupted { store: &store, at_once, meanwhile: &meanwhile });
        let mut seen = all(&blocks, &timed(from * 1_000), &[keys::DUE + 1]);
        assert!(seen.is_sorted_by(|one, next| one < next), "in order, none twice");
        seen.retain(|key| stay.contains(key));
        assert_eq!(seen, stay[usize::try_from(from).expect("small")..]);
    }
    assert!(round.into_inner() > 20, "there was something between");
}
