//! The queue id: the name of one accepted message in the spool, the log, the API and the final `250`.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Identifies one accepted message (a UUID version 7, RFC 9562 section 5.7).
///
/// Ids made later usually sort later, but nothing may rely on that for correctness: the clock they are made
/// from can jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId([u8; 16]);

impl QueueId {
    /// Makes an id from wall time in milliseconds since the Unix epoch and ten bytes of randomness.
    pub fn from_parts(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self(*uuid::Builder::from_unix_timestamp_millis(unix_ms, random).as_uuid().as_bytes())
    }

    /// The id from its 16 bytes as they stand in spool keys (big endian).
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes for spool keys (big endian).
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; uuid::fmt::Simple::LENGTH];
        f.write_str(Uuid::from_bytes(self.0).simple().encode_lower(&mut text))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a queue id: 32 hexadecimal digits are needed, with or without hyphens.
#[derive(Debug, thiserror::Error)]
#[error("not a queue id: give the 32 hexadecimal digits that `posthaste queue list` shows")]
pub struct NotAQueueId;

impl FromStr for QueueId {
    type Err = NotAQueueId;

    fn from_str(text: &str) -> Result<Self, NotAQueueId> {
        Uuid::try_parse(text.trim()).map(|uuid| Self(*uuid.as_bytes())).map_err(|_| NotAQueueId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_bytes() {
        let id = QueueId::from_parts(1_700_000_000_000, &[7; 10]);
        assert_eq!(id.to_string().parse::<QueueId>().expect("parses"), id);
        assert_eq!(QueueId::from_bytes(*id.as_bytes()), id);
        assert!("nonsense".parse::<QueueId>().is_err());
    }

    #[test]
    fn later_ids_sort_later() {
        assert!(QueueId::from_parts(1, &[255; 10]) < QueueId::from_parts(2, &[0; 10]));
    }
}
