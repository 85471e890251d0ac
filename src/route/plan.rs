//! From a destination and its route to the addresses to dial, in order.

use std::net::SocketAddr;

use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::Domain;
use crate::smtp::reply::EnhancedStatus;

use super::resolver::Resolve;
use super::table::Route;

/// What planning needs to know of the relay.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// The port that MX hosts are dialled on.
    pub port: u16,
    /// The listeners' addresses; a wildcard stands for each local address.
    pub own: Vec<SocketAddr>,
    /// The relay's own name.
    pub hostname: String,
    /// Most addresses to return.
    pub addresses: usize,
}

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host's name as the MX record or the route gives it (the name that TLS checks); an address's text for one.
    pub name: String,
    /// Where to dial it.
    pub address: SocketAddr,
}

/// The addresses to dial for a destination, best first; never empty.
///
/// # Errors
/// Why there is none; a status of class 5 bounces, of class 4 defers.
pub async fn plan(
    _resolver: &dyn Resolve,
    _destination: &Domain,
    _route: &Route,
    _settings: &PlanSettings,
    _shuffle: u64,
) -> Result<Vec<Target>, Cause> {
    Err(Cause {
        class: CauseClass::Dns,
        status: EnhancedStatus::new(4, 4, 3),
        reply: None,
        text: "in work".to_owned(),
    })
}
