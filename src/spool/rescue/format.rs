//! The bytes of sled 0.34.7's log, as this program writes it: no compression, segments of 512 KiB. Pure.
//!
//! ```text
//! db       = segment*                                          at multiples of 512 KiB, in any order
//! segment  = header, message*, (Cap | fewer than 32 bytes)     its number is its log position / 512 KiB
//! header   = CRC-32 u32, position i64, stable i64              20 bytes, little endian, all inverted
//! message  = CRC-32 u32, kind u8, length, segment number, page number, body
//! ```
//!
//! Lengths and numbers are of one to nine bytes ([`Reader::number`]). The position of a message (its *LSN*) is that of its
//! segment and its place in it; positions only grow, places are used again. A message replaces a page (Node, Meta,
//! Counter, Free), changes it (Link), or stands for itself (manifest of a batch, Canceled, Cap).

/// Bytes of a segment.
pub const SEGMENT: usize = 512 << 10;
/// Bytes of its header.
pub const SEGMENT_HEADER: usize = 20;
/// No message begins in the last bytes of a segment.
pub const RED_ZONE: usize = 32;
/// The page that knows where each tree has its root.
pub const META_PAGE: u64 = 0;
/// The name of the tree that the spool uses.
pub const TREE: &[u8] = b"__sled__default";

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which 512 KiB of the log these are.
    pub number: u64,
    /// Up to this position everything was on the disk when the segment was begun.
    pub stable: u64,
}

impl SegmentHeader {
    /// Reads the header that `segment` starts with; `None` when it is damaged.
    pub fn read(segment: &[u8]) -> Option<Self> {
        let (crc, rest) = segment.split_first_chunk::<4>()?;
        let (position, rest) = rest.split_first_chunk::<8>()?;
        let (stable, _) = rest.split_first_chunk::<8>()?;
        if crc32fast::hash(&segment[4..SEGMENT_HEADER]) != !u32::from_le_bytes(*crc) {
            return None;
        }
        let position = u64::try_from(i64::from_le_bytes(*position) ^ i64::MAX).ok()?;
        // -1 before the first byte is on the disk.
        let stable = u64::try_from(i64::from_le_bytes(*stable) ^ i64::MAX).unwrap_or(0);
        let size = SEGMENT as u64;
        position.is_multiple_of(size).then_some(Self { number: position / size, stable })
    }
}

/// What a message is. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was taken back before it was written.
    Canceled = 1,
    /// The rest of the segment is empty.
    Cap = 2,
    /// The batch that begins here ends at the position in the body.
    Manifest = 3,
    /// The page is free.
    Free = 4,
    /// The page of the id generator.
    Counter = 5,
    /// The page of the roots.
    Meta = 6,
    /// A page of a tree.
    Node = 8,
    /// A change of one.
    Link = 10,
    /// A page or change that sled put in a file of its own; the spool's records are too short for that.
    Elsewhere = 11,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Canceled,
            2 => Self::Cap,
            3 => Self::Manifest,
            4 => Self::Free,
            5 => Self::Counter,
            6 => Self::Meta,
            8 => Self::Node,
            10 => Self::Link,
            7 | 9 | 11 => Self::Elsewhere,
            _ => return None,
        })
    }
}

/// A message, as it stands in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: Kind,
    /// The segment that it was written for.
    pub segment: u64,
    /// The page that it is about.
    pub page: u64,
    /// Bytes before the body.
    pub head: usize,
    /// What it says.
    pub body: &'a [u8],
    /// Whether the checksum is right.
    pub sound: bool,
}

impl<'a> Message<'a> {
    /// Reads the message that `bytes` start with; `None` when there can't be one. `bytes` end with the segment.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < RED_ZONE {
            return None;
        }
        let (crc, rest) = bytes.split_first_chunk::<4>()?;
        let mut reader = Reader(rest);
        let kind = Kind::of(reader.byte()?)?;
        let length = usize::try_from(reader.number()?).ok()?;
        let (segment, page) = (reader.number()?, reader.number()?);
        let head = bytes.len() - reader.0.len();
        let body = reader.take(length)?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(body);
        checksum.update(&bytes[4..head]);
        let sound = checksum.finalize() == !u32::from_le_bytes(*crc);
        Some(Self { kind, segment, page, head, body, sound })
    }

    /// The segment that the message names that `bytes` would start with, if they could be one.
    pub fn names_segment(bytes: &[u8]) -> Option<u64> {
        let mut reader = Reader(bytes.get(4..)?);
        Kind::of(reader.byte()?)?;
        reader.number().filter(|length| *length < SEGMENT as u64)?;
        reader.number()
    }

    /// Bytes of it all.
    pub fn len(&self) -> usize {
        self.head + self.body.len()
    }

    /// Whether the body has the shape of its kind: then the length is right even though the checksum is not.
    pub fn is_shaped(&self) -> bool {
        match self.kind {
            Kind::Link => Link::read(self.body).is_some(),
            Kind::Node => Node::read(self.body).is_some(),
            Kind::Meta => root(self.body).is_some(),
            Kind::Manifest => self.body.len() == 8,
            Kind::Free => self.body.is_empty(),
            Kind::Canceled | Kind::Cap | Kind::Counter | Kind::Elsewhere => false,
        }
    }

    /// The last position of the batch that this manifest begins.
    pub fn batch_end(&self) -> Option<u64> {
        let end = <[u8; 8]>::try_from(self.body).ok().filter(|_| self.kind == Kind::Manifest)?;
        u64::try_from(i64::from_le_bytes(end)).ok()
    }
}

/// A change of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link<'a> {
    /// A key, without the page's prefix, has this value now.
    Set(&'a [u8], &'a [u8]),
    /// It is gone.
    Delete(&'a [u8]),
    /// This child of an index page is about to be merged into its left sibling,
    MergeChild(u64),
    /// and was.
    MergeDone,
    /// This page is the child.
    Merging,
}

impl<'a> Link<'a> {
    /// Reads the body of a link, all of it.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let link = match reader.byte()? {
            0 => Self::Set(reader.bytes()?, reader.bytes()?),
            1 => Self::Delete(reader.bytes()?),
            2 => Self::MergeChild(reader.number()?),
            3 => Self::MergeDone,
            4 => Self::Merging,
            _ => return None,
        };
        reader.0.is_empty().then_some(link)
    }
}

/// A page of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// The page with the keys after these.
    pub next: Option<u64>,
    /// The child that is about to be merged into its left sibling.
    pub merging_child: Option<u64>,
    /// Whether this page is.
    pub merging: bool,
    /// So many bytes of `lo` are before each key.
    pub prefix: usize,
    /// Its keys are not below this,
    pub lo: &'a [u8],
    /// and below this; empty: there is no end.
    pub hi: &'a [u8],
    /// What it holds.
    pub data: Data<'a>,
}

/// What a page holds. Keys are without their prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Keys and values.
    Leaf(Vec<(&'a [u8], &'a [u8])>),
    /// The lowest key of each child, and its page.
    Index(Vec<(&'a [u8], u64)>),
}

impl<'a> Node<'a> {
    /// Reads the body of a node, all of it.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let page = |number| (number != 0).then_some(number);
        let (next, merging_child) = (page(reader.number()?), page(reader.number()?));
        let (merging, prefix) = (reader.byte()? != 0, usize::from(reader.byte()?));
        let (lo, hi) = (reader.bytes()?, reader.bytes()?);
        let leaf = match reader.byte()? {
            0 => true,
            1 => false,
            _ => return None,
        };
        let count = usize::try_from(reader.number()?).ok()?;
        // Each key and each value has at least its length.
        if prefix > lo.len() || count > reader.0.len() {
            return None;
        }
        let keys: Vec<&[u8]> = (0..count).map(|_| reader.bytes()).collect::<Option<_>>()?;
        let data = if leaf {
            let pairs = keys.into_iter().map(|key| Some((key, reader.bytes()?)));
            Data::Leaf(pairs.collect::<Option<_>>()?)
        } else {
            let pairs = keys.into_iter().map(|key| Some((key, reader.number()?)));
            Data::Index(pairs.collect::<Option<_>>()?)
        };
        reader.0.is_empty().then_some(Self { next, merging_child, merging, prefix, lo, hi, data })
    }
}

/// The root page of the spool's tree, as the body of a meta page names it; `Some(None)` when it names none.
pub fn root(body: &[u8]) -> Option<Option<u64>> {
    let mut reader = Reader(body);
    let mut root = None;
    while !reader.0.is_empty() {
        let (name, page) = (reader.bytes()?, reader.number()?);
        if name == TREE {
            root = Some(page);
        }
    }
    Some(root)
}

/// Takes values from the front of bytes; `None` when they end too early.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    /// A number: up to 240 in one byte, to 2287 in two, to 67823 in three, else a byte that tells how many follow.
    pub fn number(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            small @ 0..=240 => u64::from(small),
            high @ 241..=248 => 240 + 256 * u64::from(high - 241) + u64::from(self.byte()?),
            249 => 2_288 + 256 * u64::from(self.byte()?) + u64::from(self.byte()?),
            more => {
                let mut bytes = [0; 8];
                let count = usize::from(more - 247);
                bytes[..count].copy_from_slice(self.take(count)?);
                u64::from_le_bytes(bytes)
            }
        })
    }

    /// A number of eight bytes that is not negative.
    pub fn position(&mut self) -> Option<u64> {
        let bytes = self.take(8)?.try_into().ok()?;
        u64::try_from(i64::from_le_bytes(bytes)).ok()
    }

    /// A length and so many bytes.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }
}
