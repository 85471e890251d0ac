//! Whether the relay should get mail, and if not, why: what `/readyz` answers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Reasons why it should get no mail now. Shared by whoever can know one; ready when there is none.
#[derive(Debug)]
pub struct Health {
    reasons: Mutex<BTreeMap<&'static str, String>>,
}

impl Health {
    /// Key of the reason that holds until the listeners are open.
    pub const STARTING: &'static str = "starting";
    /// Key of the reason that holds from the first SIGTERM on.
    pub const DRAINING: &'static str = "draining";
    /// Key of the reason that holds while the spool has too little room.
    pub const SPACE: &'static str = "space";
    /// Key of the reason that holds once the spool failed.
    pub const SPOOL: &'static str = "spool";
    /// Key of the reason that holds once a part of the database could not be read. Mail is taken and delivered all the same.
    pub const DAMAGE: &'static str = "damage";

    /// Not ready yet: starting.
    pub fn new() -> Self {
        let health = Self { reasons: Mutex::default() };
        health.set(Self::STARTING, Some("the relay is starting".to_owned()));
        health
    }

    /// Sets the reason under a key, or takes it away.
    pub fn set(&self, key: &'static str, reason: Option<String>) {
        let mut reasons = self.lock();
        match reason {
            Some(reason) => reasons.insert(key, reason),
            None => reasons.remove(key),
        };
    }

    /// Whether there is a reason under a key.
    pub fn has(&self, key: &'static str) -> bool {
        self.lock().contains_key(key)
    }

    /// Whether it should get mail.
    ///
    /// # Errors
    /// The reasons why not, each as `key: sentence`.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let reasons: Vec<_> = self.lock().iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_is_ready_when_no_reason_is_left() {
        let health = Health::new();
        assert!(health.ready().is_err());
        health.set(Health::STARTING, None);
        assert_eq!(health.ready(), Ok(()));
        health.set(Health::SPOOL, Some("the disk is full".to_owned()));
        assert_eq!(health.ready(), Err(vec!["spool: the disk is full".to_owned()]));
    }
}
