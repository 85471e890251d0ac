//! The records of a spool, read from its log instead of through sled.
//!
//! In a sound log the leaves that the root leads to share all keys between them. In a damaged one the way from the root may
//! be an old one. So each part of the keys is read from the newest leaf that claims it, and what then has no leaf, from
//! the newest version of any leaf that the log still has.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use sled::IVec;

use super::super::content::ContentFiles;
use super::super::database::{Change, Tree, Visit};
use super::super::{Counters, SpoolError, Tally, read};
use super::log::{Damage, Log};
use super::pages::{self, Pages, Pairs, Version};
use crate::mail::id::QueueId;

/// Leaves that are kept in memory, of some 100 KiB at most each.
const CACHED: usize = 64;

/// Messages that are counted at once.
const PATROLLED_AT_ONCE: usize = 1_000;

/// The records that could be read.
#[derive(Debug)]
pub struct Salvaged {
    log: Log,
    leaves: Vec<Version>,
    claims: Claims,
    /// Where what is not found there may be.
    others: Claims,
    /// Whether something may be missing that left no hole of known place.
    incomplete: bool,
    older: u64,
    missing: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cached: VecDeque<(usize, Arc<Pairs>)>,
    /// The changes that were left out, by leaf.
    doubtful: HashMap<usize, usize>,
}

/// How the pages stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFacts {
    /// Pages that are not as they were last: a newer version or change of them could not be read.
    pub older: u64,
    /// Ranges of keys of which nothing was found.
    pub missing: u64,
}

impl Salvaged {
    /// Reads the log, all of it, and again when it is damaged. What is behind its end is left out, unless what is before it
    /// does not fit together: then the end itself was lost.
    pub fn read(log: Log) -> Self {
        let salvaged = Self::arrange(log);
        if !salvaged.log.is_torn() || salvaged.fits_together() {
            return salvaged;
        }
        let mut log = salvaged.log;
        log.read_on();
        Self::arrange(log)
    }

    /// Whether the messages are those that the counters of the last commit count.
    fn fits_together(&self) -> bool {
        if !self.damage().is_none() || self.pages() != PageFacts::default() {
            return false;
        }
        let Ok(counters) = read::counters(self) else { return false };
        let mut counted = Counters::default();
        let mut from = Some(QueueId::from_bytes([0; 16]));
        while let Some(id) = from {
            let Ok(found) = read::survey(self, id, PATROLLED_AT_ONCE) else { return false };
            if !found.damaged.is_empty() {
                return false;
            }
            for stored in &found.messages {
                counted.add(Tally::of(&stored.envelope, &stored.states));
            }
            from = found.next;
        }
        (counted.messages, counted.recipients, counted.bytes)
            == (counters.messages, counters.recipients, counters.bytes)
    }

    fn arrange(mut log: Log) -> Self {
        let pages = Pages::read(&mut log);
        let older = stale(&pages, log.damage());
        let nothing = pages.is_empty();
        let (reached, dangling) = reach(&pages, &log);
        let mut salvaged = Self {
            log,
            leaves: pages.into_leaves().collect(),
            claims: Claims::default(),
            others: Claims::default(),
            incomplete: false,
            older,
            missing: 0,
            state: Mutex::default(),
        };
        salvaged.share_out();
        if nothing {
            return salvaged;
        }
        let unfit = dangling || !salvaged.claims.gaps().is_empty() || salvaged.overlaps(&reached);
        if salvaged.damage().is_none() && !unfit {
            salvaged.keep_others(&reached);
            return salvaged;
        }
        salvaged.incomplete = unfit || salvaged.damage().segments > 0;
        salvaged.share_out();
        let gaps = salvaged.claims.gaps();
        if !gaps.is_empty() {
            salvaged.fill(&gaps);
        }
        salvaged
    }

    /// Gives each leaf what newer ones have left; the keys of a leaf that is being merged are in another one, unless a
    /// crash came before that.
    fn share_out(&mut self) {
        let mut leaves = std::mem::take(&mut self.leaves);
        leaves.sort_by_cached_key(|leaf| (leaf.merging, Reverse(self.certain(leaf))));
        self.leaves = leaves;
        self.claims = Claims::default();
        for (source, leaf) in self.leaves.iter().enumerate() {
            self.claims.claim(&leaf.lo, &leaf.hi, source);
        }
    }

    /// Whether two leaves that the root leads to have keys in common: then the one gave them up, and what says so is not
    /// there. Its segment may be all zeros, or behind the end of a file that was cut.
    fn overlaps(&self, reached: &HashSet<u64>) -> bool {
        let in_use = |leaf: &&Version| reached.contains(&leaf.page) && !leaf.merging;
        let mut bounds: Vec<_> =
            self.leaves.iter().filter(in_use).map(|leaf| (&*leaf.lo, &*leaf.hi)).collect();
        bounds.sort_unstable();
        bounds.windows(2).any(|pair| pair[0].1.is_empty() || pair[0].1 > pair[1].0)
    }

    /// A leaf that the root does not lead to although nothing is damaged: a crash left it, or segments that are all zeros
    /// were not free but lost. So what the root leads to instead counts too.
    fn keep_others(&mut self, reached: &HashSet<u64>) {
        let is_reached = |source: &usize| reached.contains(&self.leaves[*source].page);
        let strays = self.claims.0.values().filter(|(_, source)| !is_reached(source)).count();
        if strays > 0 {
            self.older += strays as u64;
            for source in (0..self.leaves.len()).filter(is_reached) {
                self.others.claim(&self.leaves[source].lo, &self.leaves[source].hi, source);
            }
        }
    }

    /// Fills gaps with what the log still has of older times.
    fn fill(&mut self, gaps: &[(Vec<u8>, Vec<u8>)]) {
        let mut older = pages::older(&mut self.log, gaps);
        older.sort_by_cached_key(|leaf| Reverse(self.certain(leaf)));
        for leaf in older {
            if self.claims.claim(&leaf.lo, &leaf.hi, self.leaves.len()) {
                self.leaves.push(leaf);
                self.older += 1;
            }
        }
        self.missing = self.claims.gaps().len() as u64;
    }

    /// What other leaves have between two keys.
    fn more(&self, from: &[u8], to: &[u8]) -> Pairs {
        let mut more = Pairs::new();
        for (first, end, source) in self.others.between(from, to) {
            let leaf = self.leaf(source);
            more.extend(within(&leaf, first, end).map(|(key, value)| (key.clone(), value.clone())));
        }
        more
    }

    /// Whether something may be missing between two positions.
    fn doubt(&self, after: u64, before: u64) -> bool {
        self.log.may_miss(after, before) || (self.incomplete && self.log.skips(after, before))
    }

    fn certain(&self, leaf: &Version) -> u64 {
        leaf.certain(|after, before| self.doubt(after, before))
    }

    /// What could not be read of the log.
    pub fn damage(&self) -> &Damage {
        self.log.damage()
    }

    /// How the pages stand; leaves that were not read yet count as whole.
    pub fn pages(&self) -> PageFacts {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        PageFacts { older: self.older + state.doubtful.len() as u64, missing: self.missing }
    }

    fn leaf(&self, source: usize) -> Arc<Pairs> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pairs)) = state.cached.iter().find(|(cached, _)| *cached == source) {
            return pairs.clone();
        }
        let loaded = self.leaves[source].load(&self.log, |after, before| self.doubt(after, before));
        if loaded.doubtful > 0 {
            state.doubtful.insert(source, loaded.doubtful);
        }
        let pairs = Arc::new(loaded.pairs);
        state.cached.push_back((source, pairs.clone()));
        if state.cached.len() > CACHED {
            state.cached.pop_front();
        }
        pairs
    }
}

fn within<'a>(
    pairs: &'a Pairs,
    from: &'a [u8],
    to: &'a [u8],
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> {
    pairs.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
}

/// How many pages have a damaged message that is newer than all that is known of them.
fn stale(pages: &Pages, damage: &Damage) -> u64 {
    let mut lost: HashMap<u64, u64> = HashMap::new();
    for (page, position) in damage.pages() {
        let newest = lost.entry(*page).or_default();
        *newest = (*newest).max(*position);
    }
    lost.iter().filter(|(page, position)| !pages.knows_newer(**page, **position)).count() as u64
}

/// The pages that the root leads to, and whether one that it leads to is not there.
fn reach(pages: &Pages, log: &Log) -> (HashSet<u64>, bool) {
    let (mut reached, mut dangling) = (HashSet::new(), false);
    let mut ahead: Vec<u64> = pages.root.into_iter().collect();
    while let Some(page) = ahead.pop() {
        if !reached.insert(page) {
            continue;
        }
        match pages.get(page) {
            Some(version) => {
                ahead.extend(version.next);
                if !version.leaf {
                    ahead.extend(version.children(log));
                }
            }
            None => dangling = true,
        }
    }
    (reached, dangling)
}

impl Tree for Salvaged {
    fn files(&self) -> Option<ContentFiles> {
        None
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, SpoolError> {
        let mut found = [&self.claims, &self.others].into_iter().filter_map(|claims| {
            let (lo, _, source) = claims.at_or_after(key).next()?;
            if lo <= key { self.leaf(source).get(key).map(|value| IVec::from(&value[..])) } else { None }
        });
        Ok(found.next())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), SpoolError> {
        for (first, end, source) in self.claims.between(from, to) {
            let leaf = self.leaf(source);
            let more = self.more(first, end);
            let whole = if more.is_empty() {
                leaf
            } else {
                Arc::new(more.into_iter().chain((*leaf).clone()).collect())
            };
            if !within(&whole, first, end).all(|(key, value)| visit(key, value)) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, _: Vec<Change>) -> Result<(), SpoolError> {
        Err(SpoolError::Closed("a spool that is being rescued is only read".to_owned()))
    }

    fn syncs(&self) -> u64 {
        0
    }
}

/// Which leaf each part of the keys is read from. The parts do not overlap; an empty upper end is that of all keys.
#[derive(Debug, Default)]
struct Claims(BTreeMap<Vec<u8>, (Vec<u8>, usize)>);

impl Claims {
    /// Gives a leaf what nobody else has of its keys; false when that is nothing.
    fn claim(&mut self, lo: &[u8], hi: &[u8], source: usize) -> bool {
        let mut at = lo.to_vec();
        let mut claimed = false;
        while hi.is_empty() || *at < *hi {
            if let Some((_, (end, _))) =
                self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(&at[..]))).next_back()
                && (end.is_empty() || *end > at)
            {
                if end.is_empty() {
                    break;
                }
                at.clone_from(end);
                continue;
            }
            let next = self.0.range::<[u8], _>((Bound::Excluded(&at[..]), Bound::Unbounded)).next();
            let end = match next.map(|(next, _)| next) {
                Some(next) if hi.is_empty() || **next < *hi => next.clone(),
                _ => hi.to_vec(),
            };
            self.0.insert(at, (end.clone(), source));
            claimed = true;
            if end.is_empty() {
                break;
            }
            at = end;
        }
        claimed
    }

    /// The parts that nobody has.
    fn gaps(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut gaps = Vec::new();
        let mut at = Some(Vec::new());
        for (lo, (hi, _)) in &self.0 {
            if let Some(at) = at.filter(|at| at < lo) {
                gaps.push((at, lo.clone()));
            }
            at = (!hi.is_empty()).then(|| hi.clone());
        }
        gaps.extend(at.map(|at| (at, Vec::new())));
        gaps
    }

    /// The parts from one key up to another, cut to these.
    fn between<'a>(
        &'a self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8], usize)> {
        let parts = self.at_or_after(from).take_while(move |(lo, _, _)| *lo < to);
        let cut = parts
            .map(move |(lo, hi, source)| (lo.max(from), if hi.is_empty() { to } else { hi.min(to) }, source));
        cut.filter(|(first, end, _)| first < end)
    }

    /// Lower end, upper end and leaf of the parts that end after `key`, in order.
    fn at_or_after(&self, key: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], usize)> {
        let holding = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let first = match holding {
            Some((lo, (hi, _))) if hi.is_empty() || **hi > *key => Bound::Included(&lo[..]),
            _ => Bound::Excluded(key),
        };
        let parts = self.0.range::<[u8], _>((first, Bound::Unbounded));
        parts.map(|(lo, (hi, source))| (&lo[..], &hi[..], *source))
    }
}

#[cfg(test)]
impl Salvaged {
    /// Where in the file the page is that holds a key.
    pub fn places(&self, key: &[u8]) -> Vec<u64> {
        let claim = self.claims.at_or_after(key).next();
        claim.map(|(_, _, source)| self.leaves[source].places().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(claims: &Claims) -> Vec<(&str, &str, usize)> {
        let text = |bytes| str::from_utf8(bytes).expect("letters");
        claims.0.iter().map(|(lo, (hi, source))| (text(&lo[..]), text(&hi[..]), *source)).collect()
    }

    #[test]
    fn who_claims_first_keeps_its_part_and_the_rest_goes_to_the_next() {
        let mut claims = Claims::default();
        assert!(claims.claim(b"f", b"k", 0));
        assert!(claims.claim(b"b", b"z", 1));
        assert!(!claims.claim(b"c", b"y", 2));
        assert_eq!(parts(&claims), [("b", "f", 1), ("f", "k", 0), ("k", "z", 1)]);
        let gaps = claims.gaps();
        assert_eq!(gaps, [(Vec::new(), b"b".to_vec()), (b"z".to_vec(), Vec::new())]);
        assert!(claims.claim(b"", b"", 3));
        assert!(claims.gaps().is_empty());
        assert_eq!(parts(&claims).last(), Some(&("z", "", 3)));
    }

    #[test]
    fn parts_are_found_by_a_key_inside_or_before_them() {
        let mut claims = Claims::default();
        claims.claim(b"b", b"d", 0);
        claims.claim(b"f", b"", 1);
        let first = |key: &[u8]| claims.at_or_after(key).next().map(|(_, _, source)| source);
        let cases = [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("f", 1), ("zz", 1)];
        for (key, source) in cases {
            assert_eq!(first(key.as_bytes()), Some(source), "{key}");
        }
    }
}
