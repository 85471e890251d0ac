//! A bound on the look-ups in flight, and care with names whose name servers fail.
//!
//! Between those who ask ([`Resolve`]) and whatever looks up ([`Ask`]): however many destinations are due at once, the name
//! servers see a bounded number of questions, and dead zones leave room for the others (promise P5).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::{Failures, Last};
use super::mx::MxRecord;
use super::resolver::{DnsFailure, Resolve};
use crate::clock::SharedClock;
use crate::smtp::address::Domain;

/// Look-ups under way at once. Each holds up to four sockets per server when the servers are silent.
pub const LOOKUPS: usize = 128;
/// Those of them that may be for names whose last look-up failed.
const SUSPECT_LOOKUPS: usize = 32;
/// How long a failed look-up is not tried again.
const FAILURE_LASTS: Duration = Duration::from_secs(20);
/// Failed look-ups that are remembered.
const FAILURES_MAX: usize = 8192;

/// Puts one question to the name servers.
pub trait Ask: Send + Sync + fmt::Debug + 'static {
    /// The records of this name and kind; none when the name exists without any. `place` is to be dropped when the
    /// question is over, even if whoever asked has stopped waiting.
    ///
    /// # Errors
    /// [`NoAnswer`].
    fn ask<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<Record>, NoAnswer>>;
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The mail exchangers of a domain.
    Mx,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mx => "MX",
            Self::A => "A",
            Self::Aaaa => "AAAA",
        })
    }
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A mail exchanger.
    Mx(MxRecord),
    /// An address.
    Address(IpAddr),
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The name does not exist, or can't exist.
    NoSuchDomain,
    /// The name servers failed, refused, or were silent: what happened.
    Failed(String),
}

/// A place among the look-ups under way.
#[derive(Debug)]
pub struct Place {
    _place: OwnedSemaphorePermit,
    _lane: Option<OwnedSemaphorePermit>,
}

/// At most [`LOOKUPS`] questions at once; what failed is not asked again for a while, and then with care. Cheap to clone;
/// clones share the bound.
#[derive(Debug)]
pub struct Bounded<A>(Arc<Shared<A>>);

#[derive(Debug)]
struct Shared<A> {
    asker: A,
    lookups: Arc<Semaphore>,
    suspects: Arc<Semaphore>,
    failures: Mutex<Failures>,
    clock: SharedClock,
}

impl<A> Clone for Bounded<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Ask> Bounded<A> {
    /// Bounds what this one is asked.
    pub fn new(asker: A, clock: SharedClock) -> Self {
        Self(Arc::new(Shared {
            asker,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            suspects: Arc::new(Semaphore::new(SUSPECT_LOOKUPS)),
            failures: Mutex::new(Failures::new(FAILURE_LASTS, FAILURES_MAX)),
            clock,
        }))
    }
}

impl<A: Ask> Resolve for Bounded<A> {
    fn mx<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Vec<MxRecord>, DnsFailure>> {
        Box::pin(async move {
            let found = self.0.ask(domain.as_str(), Kind::Mx).await?;
            let mx = |record| if let Record::Mx(mx) = record { Some(mx) } else { None };
            Ok(found.into_iter().filter_map(mx).collect())
        })
    }

    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsFailure>> {
        Box::pin(async move {
            let (a, aaaa) = tokio::join!(self.0.ask(host, Kind::A), self.0.ask(host, Kind::Aaaa));
            merge(a.map(addresses_of), aaaa.map(addresses_of))
        })
    }
}

impl<A: Ask> Shared<A> {
    /// One question.
    async fn ask(&self, name: &str, kind: Kind) -> Result<Vec<Record>, DnsFailure> {
        let question = format!("{kind} {name}");
        let place = self.admit(&question).await?;
        // Others may have asked the same while this waited.
        self.check(&question)?;
        let found = self.asker.ask(name, kind, place).await;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Err(NoAnswer::Failed(why)) => {
                let text = format!("{question}: {why}");
                failures.failed(question, text.clone(), self.clock.instant());
                Err(DnsFailure::Temporary(text))
            }
            Err(NoAnswer::NoSuchDomain) => {
                failures.answered(&question);
                Err(DnsFailure::NoSuchDomain)
            }
            Ok(found) => {
                failures.answered(&question);
                Ok(found)
            }
        }
    }

    /// Waits for a place; a name that failed lately is refused at once, one that failed before waits for its lane too.
    async fn admit(&self, question: &str) -> Result<Place, DnsFailure> {
        let closed = |_| DnsFailure::Temporary("the resolver is closed".to_owned());
        let lane = if self.check(question)? {
            Some(self.suspects.clone().acquire_owned().await.map_err(closed)?)
        } else {
            None
        };
        Ok(Place { _place: self.lookups.clone().acquire_owned().await.map_err(closed)?, _lane: lane })
    }

    /// Whether the question is suspect; an error when it failed lately.
    fn check(&self, question: &str) -> Result<bool, DnsFailure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.last(question, self.clock.instant()) {
            Last::Good => Ok(false),
            Last::Suspect => Ok(true),
            Last::Failed(text) => Err(DnsFailure::Temporary(text)),
        }
    }
}

fn addresses_of(found: Vec<Record>) -> Vec<IpAddr> {
    let address = |record| if let Record::Address(address) = record { Some(address) } else { None };
    found.into_iter().filter_map(address).collect()
}

/// A and AAAA together: what was found counts; without any, a failure of one hides what it might have held.
fn merge(
    a: Result<Vec<IpAddr>, DnsFailure>,
    aaaa: Result<Vec<IpAddr>, DnsFailure>,
) -> Result<Vec<IpAddr>, DnsFailure> {
    match (a, aaaa) {
        (Ok(mut all), Ok(more)) => {
            all.extend(more);
            Ok(all)
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
        (Err(DnsFailure::Temporary(why)), _) | (_, Err(DnsFailure::Temporary(why))) => {
            Err(DnsFailure::Temporary(why))
        }
        (Err(DnsFailure::NoSuchDomain), Err(DnsFailure::NoSuchDomain)) => Err(DnsFailure::NoSuchDomain),
        (Ok(found), Err(DnsFailure::NoSuchDomain)) | (Err(DnsFailure::NoSuchDomain), Ok(found)) => Ok(found),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn one_family_is_enough() {
        let found = || Ok(vec!["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let none = || Ok(vec![]);
        let gone = || Err(DnsFailure::NoSuchDomain);
        let broken = || Err(DnsFailure::Temporary("SERVFAIL".to_owned()));
        for (a, aaaa, expected) in [
            (found(), broken(), found()),
            (broken(), found(), found()),
            (found(), gone(), found()),
            (none(), broken(), broken()),
            (gone(), broken(), broken()),
            (none(), gone(), none()),
            (gone(), gone(), gone()),
            (none(), none(), none()),
        ] {
            assert_eq!(merge(a, aaaa), expected);
        }
    }

    /// Takes a second for each answer, but names of `dead.` fail after a minute.
    #[derive(Debug, Default)]
    struct Slow {
        open: AtomicUsize,
        most: AtomicUsize,
        asked: AtomicUsize,
    }

    impl Ask for Arc<Slow> {
        fn ask<'a>(
            &'a self,
            name: &'a str,
            _: Kind,
            place: Place,
        ) -> BoxFuture<'a, Result<Vec<Record>, NoAnswer>> {
            Box::pin(async move {
                let dead = name.starts_with("dead");
                self.asked.fetch_add(1, Ordering::Relaxed);
                let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
                self.most.fetch_max(open, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(if dead { 60 } else { 1 })).await;
                self.open.fetch_sub(1, Ordering::Relaxed);
                drop(place);
                if dead { Err(NoAnswer::Failed("SERVFAIL".to_owned())) } else { Ok(Vec::new()) }
            })
        }
    }

    fn ask_all(
        resolver: &Bounded<Arc<Slow>>,
        stem: &str,
        count: usize,
    ) -> Vec<tokio::task::JoinHandle<bool>> {
        let ask = |number| {
            let (resolver, host) = (resolver.clone(), format!("{stem}{number}.example"));
            tokio::spawn(async move { resolver.addresses(&host).await.is_ok() })
        };
        (0..count).map(ask).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_questions_are_in_flight_and_no_more() {
        let slow = Arc::new(Slow::default());
        let resolver = Bounded::new(slow.clone(), Arc::new(SystemClock));
        for asked in ask_all(&resolver, "mx", 1000) {
            assert!(asked.await.unwrap());
        }
        assert_eq!(slow.most.load(Ordering::Relaxed), LOOKUPS);
        assert_eq!(slow.asked.load(Ordering::Relaxed), 2000);
    }

    #[tokio::test(start_paused = true)]
    async fn zones_that_failed_before_leave_room_for_the_others() {
        let slow = Arc::new(Slow::default());
        let resolver = Bounded::new(slow.clone(), Arc::new(SystemClock));
        for asked in ask_all(&resolver, "dead", 200) {
            assert!(!asked.await.unwrap());
        }
        let asked_before = slow.asked.load(Ordering::Relaxed);
        tokio::time::sleep(FAILURE_LASTS).await;
        let _again = ask_all(&resolver, "dead", 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(slow.asked.load(Ordering::Relaxed) - asked_before, SUSPECT_LOOKUPS);
        let start = tokio::time::Instant::now();
        for asked in ask_all(&resolver, "mx", 40) {
            assert!(asked.await.unwrap());
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
