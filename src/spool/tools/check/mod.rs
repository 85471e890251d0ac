//! `posthaste spool check`: whether everything in a spool fits together. It reads every record and
//! the content file of every message that waits, and changes none of them; sled writes when it opens its database.
//!
//! Damage is what the relay would stumble over, or mail that would wait for ever. What a crash leaves by design (see the
//! table in [`crate::spool`]) and what only costs room or a look is harmless.

mod files;
mod indexes;
mod messages;

use std::fmt;

use serde::Serialize;

use super::{END, each_id, each_pair};
use crate::mail::id::QueueId;
use crate::spool::blocks::Blocks;
use crate::spool::content::ContentFiles;
use crate::spool::database::Tree;
use crate::spool::sled::{SledSpool, SledTree};
use crate::spool::{Counters, Spool, SpoolError, keys, quarantine, record};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// Something is lost, or waits for ever, until somebody does something.
    Damage,
    /// A crash leaves this by design, or the relay removes it when it meets it.
    Harmless,
}

/// Something that should not be there, or is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub gravity: Gravity,
    /// What is wrong, and what comes of it.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.gravity == Gravity::Damage { "damage" } else { "harmless" };
        write!(f, "{word}: {}", self.text)
    }
}

/// What was gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Messages with a recipient that waits.
    pub messages: u64,
    /// Recipients that wait.
    pub recipients: u64,
    /// Those of them that are on hold.
    pub held: u64,
    /// Content bytes of these messages.
    pub bytes: u64,
    /// Those of them that lie in the database.
    pub tree_bytes: u64,
    /// Messages that can't be read.
    pub unreadable: u64,
    /// Messages without keys, as a crash leaves them: the next start gives them theirs.
    pub unindexed: u64,
    /// Messages in quarantine.
    pub quarantined: u64,
    /// Back-off records of destinations.
    pub destinations: u64,
    /// Due keys.
    pub due_keys: u64,
    /// Deadline keys.
    pub deadline_keys: u64,
    /// Wake keys.
    pub wake_keys: u64,
    /// Files in the content folder.
    pub content_files: u64,
    /// Findings that are damage.
    pub damage: u64,
    /// Findings that are harmless.
    pub harmless: u64,
}

/// Goes through the spool; `tell` hears of each finding at once.
///
/// # Errors
/// The spool can't be read at all.
pub fn check(spool: &SledSpool, tell: &mut dyn FnMut(&Finding)) -> Result<Checked, SpoolError> {
    let mut check = Check {
        tree: &spool.tree,
        files: spool.files(),
        spool,
        tell,
        counters: None,
        checked: Checked::default(),
    };
    check.description()?;
    check.messages()?;
    check.strays()?;
    check.wakes()?;
    check.blocks()?;
    check.destinations()?;
    check.quarantine()?;
    check.content_folder()?;
    check.unknown_keys()?;
    check.counters();
    Ok(check.checked)
}

struct Check<'a> {
    spool: &'a SledSpool,
    tree: &'a Blocks<SledTree>,
    files: ContentFiles,
    tell: &'a mut dyn FnMut(&Finding),
    /// What the spool says of itself, if that can be read.
    counters: Option<Counters>,
    checked: Checked,
}

impl Check<'_> {
    fn damage(&mut self, text: String) {
        self.checked.damage += 1;
        (self.tell)(&Finding { gravity: Gravity::Damage, text });
    }

    fn harmless(&mut self, text: String) {
        self.checked.harmless += 1;
        (self.tell)(&Finding { gravity: Gravity::Harmless, text });
    }

    /// What the spool says of itself. Its format was read when it was opened.
    fn description(&mut self) -> Result<(), SpoolError> {
        match self.spool.counters() {
            Ok(counters) => self.counters = Some(counters),
            Err(error @ SpoolError::Damaged { .. }) => {
                self.damage(format!("{error}: the relay can't start; {ANEW}"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether a message may be without keys: the last run had it in memory.
    fn may_be_unindexed(&self, id: QueueId) -> bool {
        self.counters.and_then(|counters| counters.unindexed_from).is_some_and(|from| id >= from)
    }

    fn destinations(&mut self) -> Result<(), SpoolError> {
        each_pair(self.tree, &[keys::DESTINATION], &[keys::DESTINATION + 1], |key, value| {
            self.checked.destinations += 1;
            let name = keys::read_destination(key);
            let why = match (&name, record::read_destination(value)) {
                (Some(_), Ok(_)) => return Ok(()),
                (None, Ok(_)) => "its key is not valid".to_owned(),
                (_, Err(error)) => error.to_string(),
            };
            let name = name.map_or_else(|| shown(key), |name| name.to_string());
            self.damage(format!(
                "the back-off of destination {name} can't be read ({why}): the relay tries it as if it had never failed"
            ));
            Ok(())
        })
    }

    fn quarantine(&mut self) -> Result<(), SpoolError> {
        each_id(self.tree, &[keys::REASON], |id| {
            self.checked.quarantined += 1;
            let reason = self.tree.get(&keys::of_message(keys::REASON, id))?.unwrap_or_default();
            if let Err(error) = record::read_reason(&reason) {
                self.damage(format!("why message {id} is in quarantine can't be read: {error}"));
            }
            if quarantine::records(self.tree, id)?.0 == 0 {
                self.harmless(format!("message {id} is in quarantine without any record: discard it"));
            }
            Ok::<(), SpoolError>(())
        })?;
        each_pair(self.tree, &[keys::QUARANTINED], &[keys::QUARANTINED + 1], |key, _| {
            let known = match keys::read_id(&key[1..]) {
                Some(id) => self.tree.get(&keys::of_message(keys::REASON, id))?.is_some(),
                None => false,
            };
            if !known {
                let key = shown(&key[1..]);
                self.damage(format!(
                    "a record in quarantine ({key}) has no reason, and no command shows it; {ANEW}"
                ));
            }
            Ok(())
        })
    }

    /// Blocks of index keys.
    fn blocks(&mut self) -> Result<(), SpoolError> {
        let mut texts = Vec::new();
        self.tree.unreadable(&mut |name, error| {
            texts.push(format!(
                "the block {} of index keys can't be read ({error}): its keys are missing",
                shown(name)
            ));
        })?;
        texts.into_iter().for_each(|text| self.damage(text));
        Ok(())
    }

    /// Keys that no program of this format writes.
    fn unknown_keys(&mut self) -> Result<(), SpoolError> {
        let mut from = Vec::new();
        for known in KNOWN.iter().map(std::slice::from_ref).chain([&END[..]]) {
            each_pair(self.tree, &from, known, |key, _| {
                let key = shown(key);
                self.harmless(format!("key {key} is none that this program knows, and nothing reads it"));
                Ok::<(), SpoolError>(())
            })?;
            from = keys::end_of(known);
        }
        Ok(())
    }

    /// What the spool says it holds, against what was found.
    fn counters(&mut self) {
        let Some(told) = self.counters else { return };
        let found = self.checked;
        let mut wrong = Vec::new();
        let mut compare = |name: &str, told: u64, found: u64| {
            if told != found {
                wrong.push(format!("{told} {name}, there are {found}"));
            }
        };
        compare("messages", told.messages, found.messages + found.unreadable);
        compare("messages in quarantine", told.quarantined, found.quarantined);
        // Of what can't be read nobody knows how much it was.
        if found.unreadable == 0 {
            compare("recipients", told.recipients, found.recipients);
            compare("content bytes", told.bytes, found.bytes);
            compare("content bytes in the database", told.tree_bytes, found.tree_bytes);
        }
        if !wrong.is_empty() {
            let wrong = wrong.join("; ");
            self.damage(format!(
                "the counters are wrong ({wrong}): metrics and spool.min_free are off until the relay has counted anew, an \
                 hour or more after its start"
            ));
        }
    }
}

/// The first bytes of keys, in order.
const KNOWN: &[u8] = b"cdemnqstwx";

/// What makes every key and counter anew.
const ANEW: &str =
    "`posthaste spool export` and `import` into another folder bring the mail and make the rest anew";

/// A key, for people.
fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
