//! Words that several verbs use.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::spool::SpoolError;

/// `1 message`, `2 messages`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// The spool's error; of a spool in use, with who uses it.
pub(super) fn spool_trouble(error: &SpoolError) -> String {
    let SpoolError::Locked(folder) = error else { return error.to_tool() };
    let who = holder(folder).map(|pid| format!(" (process {pid})")).unwrap_or_default();
    format!(
        "the spool {} is in use by a running posthaste{who}: stop that one first, then run this again",
        folder.display()
    )
}

/// The process that has the spool's lock, if the system tells.
fn holder(folder: &Path) -> Option<u32> {
    let inode = fs::metadata(folder.join("lock")).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = words[..] else { return None };
        if file.rsplit(':').next() == Some(inode.as_str()) { pid.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let told = [0, 1, 2].map(|number| count(number, "message", "messages"));
        assert_eq!(told, ["0 messages", "1 message", "2 messages"]);
    }
}
