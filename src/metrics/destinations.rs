//! Metrics per destination with a bounded number of labels.
//!
//! A label goes to each configured pattern, and to the busiest other destinations up to a fixed number; all the
//! rest is `other`. Who is busy is estimated with SpaceSaving (Metwally et al. 2005): a fixed number of candidates
//! whose least one is replaced by a newcomer that inherits its count. A label once given stays until the end, and its
//! series begins at zero, so that every series only grows.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::families::{Outcome, counters};
use crate::config::pattern::DomainPattern;
use crate::smtp::address::Domain;

/// The outcomes that are shown per destination.
const SHOWN: [Outcome; 4] = [Outcome::Delivered, Outcome::Deferred, Outcome::Bounced, Outcome::Expired];
/// Candidates kept for each label that can be given.
const CANDIDATES_PER_LABEL: usize = 4;

/// `posthaste_destination_recipients_total{destination,outcome}` and
/// `posthaste_destination_backing_off{destination}`.
#[derive(Debug)]
pub struct DestinationLabels {
    recipients: IntCounterVec,
    backing_off: IntGaugeVec,
    configured: Vec<(DomainPattern, Series)>,
    other: Series,
    busiest: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Destinations with a label of their own.
    named: HashMap<Domain, Series>,
    /// Estimated counts of those that might get one.
    candidates: HashMap<Domain, u64>,
    /// Recipients counted for candidates since the start.
    seen: u64,
}

/// The series of one label.
#[derive(Debug)]
struct Series {
    outcomes: [IntCounter; SHOWN.len()],
    backing_off: IntGauge,
}

impl Series {
    fn count(&self, outcome: Outcome) {
        if let Some(index) = SHOWN.iter().position(|shown| *shown == outcome) {
            self.outcomes[index].inc();
        }
    }
}

impl DestinationLabels {
    /// Labels for each of `patterns` and for at most `busiest` other destinations.
    pub(super) fn new(
        registry: &Registry,
        patterns: Vec<DomainPattern>,
        busiest: usize,
    ) -> prometheus::Result<Self> {
        let recipients = counters(
            registry,
            "posthaste_destination_recipients_total",
            "What came of recipients, by destination (configured ones, the busiest, and other). Worry when one is \
             deferred and never delivered.",
            &["destination", "outcome"],
        )?;
        let backing_off = IntGaugeVec::new(
            Opts::new(
                "posthaste_destination_backing_off",
                "Destinations under this label that failed as a whole and wait for their next try. Worry when one \
                 you need stays above 0.",
            ),
            &["destination"],
        )?;
        registry.register(Box::new(backing_off.clone()))?;
        let configured = patterns
            .into_iter()
            .map(|pattern| {
                let label = pattern.to_string();
                (pattern, series(&recipients, &backing_off, &label))
            })
            .collect();
        let other = series(&recipients, &backing_off, "other");
        Ok(Self { recipients, backing_off, configured, other, busiest, state: Mutex::default() })
    }

    /// Counts what came of one recipient.
    pub fn count(&self, destination: &Domain, outcome: Outcome) {
        if let Some(series) = self.configured_for(destination) {
            return series.count(outcome);
        }
        let mut state = self.lock();
        match state.named.get(destination) {
            Some(series) => series.count(outcome),
            None => {
                self.other.count(outcome);
                state.add_candidate(destination, self.busiest * CANDIDATES_PER_LABEL);
            }
        }
    }

    /// Shows which destinations back off now.
    pub(super) fn set_backing_off<'a>(&self, destinations: impl Iterator<Item = &'a Domain>) {
        let state = self.lock();
        self.configured.iter().map(|(_, series)| series).for_each(|series| series.backing_off.set(0));
        state.named.values().chain([&self.other]).for_each(|series| series.backing_off.set(0));
        for destination in destinations {
            let series = self.configured_for(destination).or_else(|| state.named.get(destination));
            series.unwrap_or(&self.other).backing_off.inc();
        }
    }

    /// Gives free labels to the busiest candidates that have at least their share of what was counted.
    pub(super) fn settle_labels(&self) {
        let mut state = self.lock();
        let free = self.busiest.saturating_sub(state.named.len());
        if free == 0 || state.candidates.is_empty() {
            return;
        }
        let share = state.seen / (2 * self.busiest as u64);
        let mut busy: Vec<(u64, Domain)> = state
            .candidates
            .iter()
            .filter(|(_, count)| **count >= share.max(1))
            .map(|(domain, count)| (*count, domain.clone()))
            .collect();
        busy.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (_, domain) in busy.into_iter().take(free) {
            state.candidates.remove(&domain);
            let series = series(&self.recipients, &self.backing_off, domain.as_str());
            state.named.insert(domain, series);
        }
    }

    fn configured_for(&self, destination: &Domain) -> Option<&Series> {
        self.configured.iter().find(|(pattern, _)| pattern.matches(destination)).map(|(_, series)| series)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// SpaceSaving: when there is no room, the newcomer takes the place and the count of the least candidate.
    fn add_candidate(&mut self, destination: &Domain, room: usize) {
        self.seen += 1;
        if let Some(count) = self.candidates.get_mut(destination) {
            *count += 1;
            return;
        }
        let mut inherited = 0;
        if self.candidates.len() >= room {
            let Some((least, count)) = self.candidates.iter().min_by_key(|(_, count)| **count) else {
                return;
            };
            inherited = *count;
            let least = least.clone();
            self.candidates.remove(&least);
        }
        self.candidates.insert(destination.clone(), inherited + 1);
    }
}

fn series(recipients: &IntCounterVec, backing_off: &IntGaugeVec, label: &str) -> Series {
    Series {
        outcomes: SHOWN.map(|outcome| recipients.with_label_values(&[label, outcome.word()])),
        backing_off: backing_off.with_label_values(&[label]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn labels(patterns: &[&str], busiest: usize) -> (Registry, DestinationLabels) {
        let registry = Registry::new();
        let patterns =
            patterns.iter().map(|text| DomainPattern::try_from((*text).to_owned()).unwrap()).collect();
        let labels = DestinationLabels::new(&registry, patterns, busiest).unwrap();
        (registry, labels)
    }

    fn delivered(registry: &Registry) -> Vec<(String, f64)> {
        let families = registry.gather();
        let family =
            families.iter().find(|family| family.name() == "posthaste_destination_recipients_total").unwrap();
        family
            .get_metric()
            .iter()
            .filter(|metric| metric.get_label().iter().any(|label| label.value() == "delivered"))
            .map(|metric| {
                let label = metric.get_label().iter().find(|label| label.name() == "destination").unwrap();
                (label.value().to_owned(), metric.get_counter().get_value())
            })
            .collect()
    }

    #[test]
    fn configured_patterns_have_a_label_from_the_start() {
        let (registry, labels) = labels(&["*.internal.example"], 1);
        labels.count(&domain("a.internal.example"), Outcome::Delivered);
        assert_eq!(delivered(&registry), [("*.internal.example".into(), 1.0), ("other".into(), 0.0)]);
    }

    #[test]
    fn the_busiest_get_labels_and_the_rest_is_other() {
        let (registry, labels) = labels(&[], 2);
        for round in 0..1000 {
            labels.count(&domain("big.example"), Outcome::Delivered);
            labels.count(&domain("large.example"), Outcome::Delivered);
            labels.count(&domain(&format!("small-{round}.example")), Outcome::Delivered);
        }
        labels.settle_labels();
        labels.count(&domain("big.example"), Outcome::Delivered);
        labels.count(&domain("small-1.example"), Outcome::Delivered);
        labels.settle_labels();
        assert_eq!(
            delivered(&registry),
            [("big.example".into(), 1.0), ("large.example".into(), 0.0), ("other".into(), 3001.0)]
        );
        assert!(labels.lock().candidates.len() <= 8, "candidates are bounded");
    }

    #[test]
    fn back_off_shows_under_the_same_labels() {
        let (_, labels) = labels(&["known.example"], 0);
        labels.set_backing_off([domain("known.example"), domain("a.example"), domain("b.example")].iter());
        assert_eq!((labels.configured[0].1.backing_off.get(), labels.other.backing_off.get()), (1, 2));
        labels.set_backing_off(std::iter::empty());
        assert_eq!(labels.other.backing_off.get(), 0);
    }
}
