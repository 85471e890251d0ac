//! Which of a domain's MX hosts to dial, in which order (RFC 5321 section 5.1, RFC 7505). Pure.

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxRecord {
    /// Lower is better.
    pub preference: u16,
    /// The host in lower case without a final dot; `.` alone is a null MX (RFC 7505).
    pub exchange: String,
}
