//! From a destination and its route to the addresses to dial, in order (RFC 5321 section 5.1).
//!
//! What it decides, and where mail bounces (a status of class 5) or waits (class 4):
//!
//! | found | then |
//! |---|---|
//! | MX hosts with addresses | dial them |
//! | no MX, but addresses | dial them (implicit MX) |
//! | the domain does not exist, or has neither MX nor address | bounce 5.1.2 |
//! | a null MX | bounce 5.1.10 (RFC 7505 section 4.2) |
//! | MX hosts, and surely none has an address | bounce 5.4.4, as Postfix does (`smtp_defer_if_no_mx_address_found = no`) |
//! | the relay itself is the best host | bounce 5.4.6 |
//! | better hosts than the relay itself, and surely none has an address | wait 4.4.4, as Postfix does |
//! | a name server failed, and what the others say does not help | wait 4.4.3 |
//! | a static route without any usable host, whatever the reason | wait: a mistake in a configuration bounces nothing |

use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;

use crate::mail::outcome::{Cause, CauseClass};
use crate::smtp::address::Domain;
use crate::smtp::reply::EnhancedStatus;

use super::mx::{self, MxPlan, MxRecord};
use super::own::{is_local, is_own};
use super::resolver::{DnsFailure, Resolve};
use super::table::{Route, RouteHost, RouteTarget, StaticRoute};

/// What planning needs to know of the relay.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// The port that MX hosts are dialled on.
    pub port: u16,
    /// The listeners' addresses; a wildcard stands for each local address.
    pub own: Vec<SocketAddr>,
    /// The relay's own name. An MX host of this name is the relay itself when a listener has the port `port`;
    /// else another server of this machine may well answer there.
    pub hostname: String,
    /// Most addresses to return (`delivery.addresses_per_attempt`); at least one is returned.
    pub addresses: usize,
}

impl PlanSettings {
    fn is_own_name(&self, host: &str) -> bool {
        host.eq_ignore_ascii_case(&self.hostname) && self.own.iter().any(|own| own.port() == self.port)
    }
}

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host's name as the MX record or the route gives it: the name that TLS checks. The text of the address
    /// where there is no name.
    pub name: String,
    /// Where to dial it.
    pub address: SocketAddr,
}

/// The addresses to dial for a destination, best first; never empty, at most `settings.addresses`.
///
/// `shuffle` picks the order among equals; a new number for each attempt spreads the load.
///
/// # Errors
/// Why there is none: a status of class 5 means bounce, of class 4 wait. There is never a reply in it.
pub async fn plan(
    resolver: &dyn Resolve,
    destination: &Domain,
    route: &Route,
    settings: &PlanSettings,
    shuffle: u64,
) -> Result<Vec<Target>, Cause> {
    match (route, destination.address()) {
        (Route::Static(route), _) => plan_static(resolver, route, settings, shuffle).await,
        (Route::Mx, Some(address)) => plan_literal(address, destination, settings),
        (Route::Mx, None) => plan_mx(resolver, destination, settings, shuffle).await,
    }
}

fn plan_literal(
    address: IpAddr,
    destination: &Domain,
    settings: &PlanSettings,
) -> Result<Vec<Target>, Cause> {
    let target = SocketAddr::new(address, settings.port);
    if mx::interleave(&[address], false, 0).is_empty() {
        return Err(no_host(5, 1, 2, format!("{destination} is no address of a host")));
    }
    if is_own(&settings.own, target, is_local) {
        return Err(loop_back(5, format!("{destination} is this relay itself")));
    }
    Ok(vec![Target { name: address.to_string(), address: target }])
}

async fn plan_mx(
    resolver: &dyn Resolve,
    domain: &Domain,
    settings: &PlanSettings,
    shuffle: u64,
) -> Result<Vec<Target>, Cause> {
    let records = match resolver.mx(domain).await {
        Ok(records) => records,
        Err(DnsFailure::NoSuchDomain) => {
            return Err(no_host(5, 1, 2, format!("the domain {domain} does not exist")));
        }
        Err(DnsFailure::Temporary(why)) => return Err(dns(why)),
    };
    let own_listed = records.iter().any(|record| settings.is_own_name(&record.exchange));
    match mx::order(records, |host| settings.is_own_name(host), shuffle) {
        MxPlan::NullMx => Err(no_host(5, 1, 10, format!("{domain} accepts no mail (null MX)"))),
        MxPlan::SelfIsBest => Err(best_is_own(domain)),
        MxPlan::Implicit => plan_implicit(resolver, domain, settings, shuffle).await,
        MxPlan::Hosts(hosts) => {
            let mut gathering = Gathering::new(resolver, settings, shuffle);
            gathering.own_listed = own_listed;
            let tiers: Vec<&[MxRecord]> = hosts.chunk_by(|a, b| a.preference == b.preference).collect();
            for (number, tier) in tiers.iter().enumerate() {
                let hosts: Vec<Host<'_>> =
                    tier.iter().map(|record| Host::named(&record.exchange, settings.port)).collect();
                let more = number + 1 < tiers.len();
                if gathering.tier(&hosts, more).await != Next::Worse {
                    break;
                }
            }
            gathering.finish_mx(domain)
        }
    }
}

async fn plan_implicit(
    resolver: &dyn Resolve,
    domain: &Domain,
    settings: &PlanSettings,
    shuffle: u64,
) -> Result<Vec<Target>, Cause> {
    let mut gathering = Gathering::new(resolver, settings, shuffle);
    gathering.tier(&[Host::named(domain.as_str(), settings.port)], false).await;
    if gathering.own_listed {
        return Err(loop_back(5, format!("{domain} has no MX and its address is this relay itself")));
    }
    if let Some(why) = gathering.failure.take() {
        return Err(dns(why));
    }
    let targets = gathering.into_targets();
    if targets.is_empty() {
        return Err(no_host(5, 1, 2, format!("{domain} has neither MX nor address records")));
    }
    Ok(targets)
}

/// The hosts of a route are tried in their order; one of them being this relay does not cut the others.
async fn plan_static(
    resolver: &dyn Resolve,
    route: &StaticRoute,
    settings: &PlanSettings,
    shuffle: u64,
) -> Result<Vec<Target>, Cause> {
    let mut gathering = Gathering::new(resolver, settings, shuffle);
    for (number, host) in route.hosts.iter().enumerate() {
        let more = number + 1 < route.hosts.len();
        if gathering.tier(&[Host::routed(host)], more).await == Next::Enough {
            break;
        }
    }
    gathering.finish_static(route)
}

/// A host to look up, unless its address is known.
struct Host<'a> {
    name: &'a str,
    address: Option<IpAddr>,
    port: u16,
}

impl<'a> Host<'a> {
    fn named(name: &'a str, port: u16) -> Self {
        Self { name, address: None, port }
    }

    fn routed(host: &'a RouteHost) -> Self {
        match &host.target {
            RouteTarget::Address(address) => Self { name: "", address: Some(*address), port: host.port },
            RouteTarget::Name(name) => Self { name: name.as_str(), address: name.address(), port: host.port },
        }
    }

    fn target(&self, ip: IpAddr) -> Target {
        let name = if self.address.is_some() { ip.to_string() } else { self.name.to_owned() };
        Target { name, address: SocketAddr::new(ip, self.port) }
    }
}

/// What a tier came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is room for worse hosts.
    Worse,
    /// There are targets enough.
    Enough,
    /// This relay is among its hosts: none of them counts.
    Own,
}

/// The targets found so far, tier by tier (hosts that are equally good), and what went wrong on the way.
struct Gathering<'a> {
    resolver: &'a dyn Resolve,
    settings: &'a PlanSettings,
    shuffle: u64,
    limit: usize,
    targets: Vec<Target>,
    /// What the best tier had to leave out so that the next one has a place.
    spare: Vec<Target>,
    /// The first look-up that failed for a while.
    failure: Option<String>,
    /// Whether a host turned out to be this relay.
    own_listed: bool,
    /// Whether a tier without this relay was looked at.
    looked: bool,
}

impl<'a> Gathering<'a> {
    fn new(resolver: &'a dyn Resolve, settings: &'a PlanSettings, shuffle: u64) -> Self {
        Self {
            resolver,
            settings,
            shuffle,
            limit: settings.addresses.max(1),
            targets: Vec::new(),
            spare: Vec::new(),
            failure: None,
            own_listed: false,
            looked: false,
        }
    }

    /// Looks up the hosts of one tier, all at once, and takes their addresses in turns.
    async fn tier(&mut self, hosts: &[Host<'_>], more: bool) -> Next {
        let answers = join_all(hosts.iter().map(|host| self.look_up(host))).await;
        let mut lists = Vec::with_capacity(hosts.len());
        let mut failure = None;
        for (number, (host, answer)) in hosts.iter().zip(answers).enumerate() {
            match answer {
                Ok(addresses) => lists.push(self.targets_of(host, &addresses, number)),
                Err(DnsFailure::NoSuchDomain) => {}
                Err(DnsFailure::Temporary(why)) => failure = failure.or(Some(why)),
            }
        }
        let found = mx::take_turns(lists);
        if found.iter().any(|target| is_own(&self.settings.own, target.address, is_local)) {
            self.own_listed = true;
            return Next::Own;
        }
        self.looked = true;
        if self.failure.is_none() {
            self.failure = failure;
        }
        self.take(found, more);
        if self.targets.len() < self.limit { Next::Worse } else { Next::Enough }
    }

    async fn look_up(&self, host: &Host<'_>) -> Result<Vec<IpAddr>, DnsFailure> {
        match host.address {
            Some(address) => Ok(vec![address]),
            None => self.resolver.addresses(host.name).await,
        }
    }

    /// Neighbouring hosts start with different families.
    fn targets_of(&self, host: &Host<'_>, addresses: &[IpAddr], number: usize) -> Vec<Target> {
        let v6_first = (self.shuffle ^ number as u64) & 1 == 1;
        mx::interleave(addresses, v6_first, self.shuffle).into_iter().map(|ip| host.target(ip)).collect()
    }

    /// Fills up. The best tier leaves one place when there is a worse one: many dead addresses of a primary must not
    /// hide its backup for ever.
    fn take(&mut self, mut found: Vec<Target>, more: bool) {
        found.retain(|target| !self.targets.iter().any(|known| known.address == target.address));
        let reserved = usize::from(more && self.targets.is_empty() && self.limit > 1);
        let room = (self.limit - self.targets.len()) - reserved;
        let rest = found.split_off(found.len().min(room));
        self.targets.extend(found);
        self.spare.extend(rest);
    }

    fn into_targets(mut self) -> Vec<Target> {
        let room = self.limit - self.targets.len();
        self.targets.extend(self.spare.into_iter().take(room));
        self.targets
    }

    fn finish_mx(mut self, domain: &Domain) -> Result<Vec<Target>, Cause> {
        let (failure, own_listed, looked) = (self.failure.take(), self.own_listed, self.looked);
        let targets = self.into_targets();
        match (failure, own_listed) {
            _ if !targets.is_empty() => Ok(targets),
            (Some(why), _) => Err(dns(why)),
            (None, true) if !looked => Err(best_is_own(domain)),
            (None, true) => Err(no_host(4, 4, 4, format!("no better MX host of {domain} has an address"))),
            (None, false) => Err(no_host(5, 4, 4, format!("no MX host of {domain} has an address"))),
        }
    }

    fn finish_static(mut self, route: &StaticRoute) -> Result<Vec<Target>, Cause> {
        let (failure, own_listed) = (self.failure.take(), self.own_listed);
        let targets = self.into_targets();
        if !targets.is_empty() {
            return Ok(targets);
        }
        let number = route.index + 1;
        Err(match failure {
            Some(why) => dns(why),
            None if own_listed => loop_back(4, format!("route {number} leads to this relay itself")),
            None => no_host(4, 4, 4, format!("no host of route {number} has an address")),
        })
    }
}

fn best_is_own(domain: &Domain) -> Cause {
    loop_back(5, format!("the best MX host of {domain} is this relay itself"))
}

fn dns(text: String) -> Cause {
    cause(CauseClass::Dns, EnhancedStatus::new(4, 4, 3), text)
}

fn no_host(class: u8, subject: u16, detail: u16, text: String) -> Cause {
    cause(CauseClass::NoHost, EnhancedStatus::new(class, subject, detail), text)
}

fn loop_back(class: u8, text: String) -> Cause {
    cause(CauseClass::Loop, EnhancedStatus::new(class, 4, 6), text)
}

fn cause(class: CauseClass, status: EnhancedStatus, text: String) -> Cause {
    Cause { class, status, reply: None, text }
}

#[cfg(test)]
mod tests;
