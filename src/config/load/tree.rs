//! The parsed document as a tree of values that know where they were written, and the ways to walk and change it.

use std::borrow::Cow;
use std::ops::Range;

use serde_path_to_error::Segment;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// A value and where it was written.
pub type Node<'a> = Spanned<DeValue<'a>>;

/// A step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into a list; counts from 0.
    Index(usize),
    /// Into a table.
    Key(String),
}

impl Step {
    /// The step that a text stands for: digits are a position in a list.
    pub fn read(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Key(text.to_owned()), Self::Index)
    }

    /// The steps of a serde path; `None` when serde lost the way.
    pub fn path(path: &serde_path_to_error::Path) -> Option<Vec<Self>> {
        let step = |segment: &Segment| match segment {
            Segment::Seq { index } => Some(Self::Index(*index)),
            Segment::Map { key } => Some(Self::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        path.iter().map(step).collect()
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Index(index) => index.to_string().into(),
            Self::Key(key) => key.into(),
        }
    }
}

/// Steps with dots between them: `route.0.hosts`.
pub fn dotted(steps: &[Step]) -> String {
    steps.iter().map(Step::text).collect::<Vec<_>>().join(".")
}

/// Steps without the positions in lists: `route.hosts`, the name of a key in the documentation.
pub fn key_name(steps: &[Step]) -> String {
    let keys = steps.iter().filter(|step| matches!(step, Step::Key(_)));
    keys.map(Step::text).collect::<Vec<_>>().join(".")
}

/// A document's root as a node.
pub fn root(table: Spanned<DeTable<'_>>) -> Node<'_> {
    Spanned::new(table.span(), DeValue::Table(table.into_inner()))
}

/// The node at the end of the steps.
pub fn find<'t, 'a>(node: &'t mut Node<'a>, steps: &[Step]) -> Option<&'t mut Node<'a>> {
    let Some((step, rest)) = steps.split_first() else { return Some(node) };
    let child = match (node.get_mut(), step) {
        (DeValue::Table(table), Step::Key(key)) => table.get_mut(key.as_str())?,
        (DeValue::Array(list), Step::Index(index)) => list.get_mut(*index)?,
        _ => return None,
    };
    find(child, rest)
}

/// Takes the node at the end of the steps out of the tree. False when there is none.
pub fn remove(root: &mut Node<'_>, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let Some(parent) = find(root, parents) else { return false };
    match (parent.get_mut(), last) {
        (DeValue::Table(table), Step::Key(key)) => table.remove(key.as_str()).is_some(),
        (DeValue::Array(list), Step::Index(index)) if *index < list.len() => {
            let whole = std::mem::replace(list, DeArray::new());
            *list = whole.into_iter().enumerate().filter(|(i, _)| i != index).map(|(_, item)| item).collect();
            true
        }
        _ => false,
    }
}

/// Puts a value at the end of the steps, making tables and lists on the way; what stood there is replaced.
///
/// # Errors
/// A sentence that says which step can't be taken.
pub fn put<'a>(
    node: &mut Node<'a>,
    done: &[Step],
    steps: &[Step],
    value: DeValue<'a>,
    span: &Range<usize>,
) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else {
        *node = Spanned::new(span.clone(), value);
        return Ok(());
    };
    let fresh = || match rest.first() {
        Some(Step::Index(_)) => DeValue::Array(DeArray::new()),
        _ => DeValue::Table(DeTable::new()),
    };
    let name = dotted(done);
    let child = match (node.get_mut(), step) {
        (DeValue::Table(table), step) => {
            let key = Spanned::new(span.clone(), Cow::Owned(step.text().into_owned()));
            table.entry(key).or_insert_with(|| Spanned::new(span.clone(), fresh()))
        }
        (DeValue::Array(list), Step::Index(index)) => {
            let entries = list.len();
            if *index > entries {
                return Err(format!("{name} has {entries} entries so far; the next one is number {entries}"));
            }
            if *index == entries {
                list.push(Spanned::new(span.clone(), fresh()));
            }
            list.get_mut(*index).ok_or(name)?
        }
        (DeValue::Array(_), Step::Key(key)) => {
            return Err(format!("{name} is a list; put a number (from 0) between {name} and {key}"));
        }
        _ => return Err(format!("{name} is a single value, nothing can stand under it")),
    };
    let done = [done, std::slice::from_ref(step)].concat();
    put(child, &done, rest, value, span)
}

/// Tells of every key and list entry where it was written and where its value was.
pub fn each_place(node: &Node<'_>, at: &mut Vec<Step>, tell: &mut impl FnMut(String, usize, usize)) {
    match node.get_ref() {
        DeValue::Table(table) => {
            for (key, child) in table {
                at.push(Step::Key(key.get_ref().to_string()));
                tell(dotted(at), key.span().start, child.span().start);
                each_place(child, at, tell);
                at.pop();
            }
        }
        DeValue::Array(list) => {
            for (index, child) in list.iter().enumerate() {
                at.push(Step::Index(index));
                tell(dotted(at), child.span().start, child.span().start);
                each_place(child, at, tell);
                at.pop();
            }
        }
        _ => {}
    }
}
