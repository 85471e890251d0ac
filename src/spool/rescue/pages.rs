//! The pages of sled's tree, put together from the log: for each its newest readable base and the changes after it.
//!
//! Only places are kept, no values. A change names its key without the prefix of the page it was made for. Was a base of
//! the page lost in between, that may be another prefix than the page has here, and the change would give a record to a
//! message that it does not belong to. So a change behind a hole of the log is believed only when enough of the key is its
//! own: see [`Version::load`].

use std::collections::{BTreeMap, HashMap};

use super::super::keys;
use super::format::{self, Data, Kind, Link, META_PAGE, Node};
use super::log::{Entry, Log, Place};

/// Bytes at the end of a queue id that no two messages share by chance.
const OWN_BYTES: usize = 4;

/// A page of keys and values at some position of the log.
#[derive(Clone, Debug)]
pub struct Version {
    /// The page.
    pub page: u64,
    /// Its keys are not below this,
    pub lo: Box<[u8]>,
    /// and below this; empty: there is no end.
    pub hi: Box<[u8]>,
    /// The page with the keys after these.
    pub next: Option<u64>,
    /// False for an index page.
    pub leaf: bool,
    /// Whether its left sibling takes or took its keys.
    pub merging: bool,
    /// The position of its base.
    pub base: u64,
    place: Place,
    /// Changes, by position.
    links: Vec<(u64, Place)>,
}

/// The keys and values of a page.
pub type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What [`Version::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Whole keys and their values.
    pub pairs: Pairs,
    /// Changes that were left out, since a hole makes them doubtful.
    pub doubtful: usize,
}

impl Version {
    fn of(entry: &Entry<'_>, node: &Node<'_>) -> Self {
        Self {
            page: entry.message.page,
            lo: node.lo.into(),
            hi: node.hi.into(),
            next: node.next,
            leaf: matches!(node.data, Data::Leaf(_)),
            merging: node.merging,
            base: entry.position,
            place: entry.place,
            links: Vec::new(),
        }
    }

    /// The position up to which this is what the page held.
    pub fn last(&self) -> u64 {
        self.links.last().map_or(self.base, |(position, _)| *position)
    }

    /// The same without the changes behind a hole of the log: where two leaves claim a key, these prove nothing.
    pub fn certain(&self, doubt: impl Fn(u64, u64) -> bool) -> u64 {
        let links = self.links.iter().map(|(position, _)| *position);
        links.take_while(|position| !doubt(self.base, *position)).last().unwrap_or(self.base)
    }

    fn link(&mut self, entry: &Entry<'_>) {
        if entry.position > self.last() {
            self.merging = self.merging || Link::read(entry.message.body) == Some(Link::Merging);
            self.links.push((entry.position, entry.place));
        }
    }

    /// Whether it has a key at or above `lo` and below `hi`, as far as its bounds tell.
    pub fn overlaps(&self, lo: &[u8], hi: &[u8]) -> bool {
        (hi.is_empty() || *self.lo < *hi) && (self.hi.is_empty() || *lo < *self.hi)
    }

    /// The pages that an index page points to.
    pub fn children(&self, log: &Log) -> Vec<u64> {
        let body = log.bytes(self.place).unwrap_or_default();
        let Some(Node { data: Data::Index(pointers), mut merging_child, .. }) = Node::read(&body) else {
            return Vec::new();
        };
        let mut children: Vec<u64> = pointers.into_iter().map(|(_, page)| page).collect();
        for (_, place) in &self.links {
            match log.bytes(*place).as_deref().and_then(Link::read) {
                Some(Link::MergeChild(page)) => merging_child = Some(page),
                Some(Link::MergeDone) => {
                    let merged = merging_child.take();
                    children.retain(|child| Some(*child) != merged);
                }
                _ => {}
            }
        }
        children
    }

    /// Reads keys and values of a leaf. `doubt` tells whether something between two positions may be missing.
    pub fn load(&self, log: &Log, doubt: impl Fn(u64, u64) -> bool) -> Loaded {
        let body = log.bytes(self.place).unwrap_or_default();
        let Some(Node { data: Data::Leaf(leaf), prefix, lo, .. }) = Node::read(&body) else {
            return Loaded { doubtful: 1, ..Loaded::default() };
        };
        let whole = |key: &[u8]| [&lo[..prefix], key].concat();
        let mut loaded = Loaded::default();
        loaded.pairs.extend(leaf.into_iter().map(|(key, value)| (whole(key), value.to_vec())));
        for (position, place) in &self.links {
            let certain = !doubt(self.base, *position);
            let body = log.bytes(*place).unwrap_or_default();
            match Link::read(&body) {
                Some(Link::Set(key, value)) if certain || self.believes(&whole(key), prefix) => {
                    loaded.pairs.insert(whole(key), value.to_vec());
                }
                Some(Link::Delete(key)) if certain || self.believes(&whole(key), prefix) => {
                    loaded.pairs.remove(&whole(key));
                }
                Some(Link::MergeChild(_) | Link::MergeDone | Link::Merging) => {}
                // The indexes are made anew.
                Some(Link::Set(key, _) | Link::Delete(key)) if is_index(&whole(key)) => {}
                Some(Link::Set(..) | Link::Delete(_)) | None => loaded.doubtful += 1,
            }
        }
        loaded
    }

    /// Whether a key that was put together with this page's prefix can be meant, though the page may have been another one.
    /// A wrong prefix of another length makes a key of a wrong length; one of the same length makes a key of no
    /// message that there is, unless it holds nearly all of the queue id.
    fn believes(&self, key: &[u8], prefix: usize) -> bool {
        let Some(id_end) = id_end(key) else { return false };
        let inside = *key >= *self.lo && (self.hi.is_empty() || *key < *self.hi);
        inside && prefix + OWN_BYTES <= id_end
    }
}

#[cfg(test)]
impl Version {
    /// Where in the file its base and changes are.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        [self.place].into_iter().chain(self.links.iter().map(|(_, place)| *place)).map(|place| place.offset)
    }
}

/// Where the queue id ends in the key of a record; `None` when no record has such a key.
fn id_end(key: &[u8]) -> Option<usize> {
    let (kind, length) = (*key.first()?, key.len());
    let end = 1 + size_of::<crate::mail::id::QueueId>();
    match kind {
        keys::ENVELOPE | keys::CONTENT => (length == end + 4).then_some(end),
        keys::STATE => (length == end + 2).then_some(end),
        keys::REASON => (length == end).then_some(end),
        keys::QUARANTINED if key.get(1) != Some(&keys::QUARANTINED) => id_end(&key[1..]).map(|end| end + 1),
        _ => None,
    }
}

fn is_index(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(keys::DUE | keys::WAKE | keys::DEADLINE)))
}

/// The newest of each page.
#[derive(Debug, Default)]
pub struct Pages {
    pages: HashMap<u64, Version>,
    /// Where the free ones were freed.
    free: HashMap<u64, u64>,
    /// The root page of the tree.
    pub root: Option<u64>,
}

impl Pages {
    /// Reads the whole log.
    pub fn read(log: &mut Log) -> Self {
        let mut pages = Self::default();
        log.read(|entry| pages.apply(&entry));
        pages
    }

    fn apply(&mut self, entry: &Entry<'_>) {
        let page = entry.message.page;
        match entry.message.kind {
            Kind::Node => {
                if let Some(node) = Node::read(entry.message.body) {
                    self.free.remove(&page);
                    self.pages.insert(page, Version::of(entry, &node));
                }
            }
            Kind::Link => {
                if let Some(version) = self.pages.get_mut(&page) {
                    version.link(entry);
                }
            }
            Kind::Free => {
                self.pages.remove(&page);
                self.free.insert(page, entry.position);
            }
            Kind::Meta if page == META_PAGE => {
                self.root = format::root(entry.message.body).flatten().or(self.root);
            }
            Kind::Meta | Kind::Counter | Kind::Canceled | Kind::Cap | Kind::Manifest | Kind::Elsewhere => {}
        }
    }

    /// Whether the log has no page at all.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.free.is_empty()
    }

    /// The newest of a page.
    pub fn get(&self, page: u64) -> Option<&Version> {
        self.pages.get(&page)
    }

    /// All that hold keys and values.
    pub fn into_leaves(self) -> impl Iterator<Item = Version> {
        self.pages.into_values().filter(|version| version.leaf)
    }

    /// Whether a message at this position is older than what is known of the page.
    pub fn knows_newer(&self, page: u64, position: u64) -> bool {
        let base = self.pages.get(&page).map(|version| version.base);
        base.or_else(|| self.free.get(&page).copied()).is_some_and(|newest| newest > position)
    }
}

/// Every version of a leaf that the log still has and that holds keys between some `bounds`, in no order.
pub fn older(log: &mut Log, bounds: &[(Vec<u8>, Vec<u8>)]) -> Vec<Version> {
    let mut found: Vec<Version> = Vec::new();
    let mut newest: HashMap<u64, usize> = HashMap::new();
    log.read(|entry| {
        let page = entry.message.page;
        match entry.message.kind {
            Kind::Node => {
                newest.remove(&page);
                let version = Node::read(entry.message.body).map(|node| Version::of(&entry, &node));
                let wanted = |version: &Version| {
                    version.leaf && bounds.iter().any(|(lo, hi)| version.overlaps(lo, hi))
                };
                if let Some(version) = version.filter(wanted) {
                    newest.insert(page, found.len());
                    found.push(version);
                }
            }
            Kind::Link => {
                if let Some(index) = newest.get(&page) {
                    found[*index].link(&entry);
                }
            }
            Kind::Free => {
                newest.remove(&page);
            }
            _ => {}
        }
    });
    found
}
