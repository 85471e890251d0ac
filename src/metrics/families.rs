//! Families with labels, their children resolved at the start.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::mail::dsn::ReportKind;
use crate::mail::outcome::CauseClass;

/// What came of a recipient: the words of the mail log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The remote took responsibility.
    Delivered,
    /// Tried; tried again later.
    Deferred,
    /// Refused for good.
    Bounced,
    /// Given up after `retry.give_up_after`.
    Expired,
    /// Removed by an operator.
    Removed,
    /// The drain time ended while the remote owed its answer.
    Interrupted,
    /// Sent in the next transaction at once; no attempt was counted.
    Again,
    /// No slot at the remote address; no attempt was counted.
    Busy,
    /// The delivery code panicked.
    Crashed,
    /// The stored content is damaged or gone; the message goes to quarantine.
    Damaged,
}

impl Outcome {
    /// Every outcome, in the order of declaration.
    pub const ALL: [Self; 10] = [
        Self::Delivered,
        Self::Deferred,
        Self::Bounced,
        Self::Expired,
        Self::Removed,
        Self::Interrupted,
        Self::Again,
        Self::Busy,
        Self::Crashed,
        Self::Damaged,
    ];

    /// The word for labels and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Deferred => "deferred",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Removed => "removed",
            Self::Interrupted => "interrupted",
            Self::Again => "again",
            Self::Busy => "busy",
            Self::Crashed => "crashed",
            Self::Damaged => "damaged",
        }
    }

    /// Whether a recipient with this outcome and class is to be expected: such series exist from the start.
    fn is_usual(self, class: CauseClass) -> bool {
        use CauseClass as C;
        match self {
            Self::Delivered => class == C::Accepted,
            Self::Deferred => !matches!(class, C::Accepted | C::NoHost | C::Expired | C::Operator),
            Self::Bounced => matches!(class, C::Reply5xx | C::NoHost | C::Loop | C::Protocol),
            Self::Expired => class == C::Expired,
            Self::Removed => class == C::Operator,
            Self::Crashed => class == C::Crashed,
            Self::Damaged => class == C::Local,
            Self::Interrupted | Self::Again | Self::Busy => false,
        }
    }
}

/// Where a panic was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In an inbound session.
    Session,
    /// In a delivery.
    Delivery,
}

impl Place {
    /// Every place, in the order of declaration.
    pub const ALL: [Self; 2] = [Self::Session, Self::Delivery];

    /// The word for labels and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Delivery => "delivery",
        }
    }
}

/// A counter family registered under a name.
pub(super) fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

/// The values of the label `command`; the last one stands for everything else.
const COMMANDS: [&str; 11] =
    ["connection", "helo", "ehlo", "mail", "rcpt", "data", "bdat", "auth", "starttls", "vrfy", "other"];

/// `posthaste_refusals_total{command,class}`
#[derive(Debug)]
pub(super) struct Refusals(Vec<[IntCounter; 2]>);

impl Refusals {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = counters(
            registry,
            "posthaste_refusals_total",
            "Our 4yz and 5yz replies to clients, by command (connection: a session that the relay ends). Worry when \
             4xx of mail or data grows: the relay turns mail away for a reason of its own.",
            &["command", "class"],
        )?;
        Ok(Self(
            COMMANDS
                .iter()
                .map(|command| ["4xx", "5xx"].map(|class| family.with_label_values(&[*command, class])))
                .collect(),
        ))
    }

    pub(super) fn count(&self, command: &str, code: u16) {
        let index = COMMANDS
            .iter()
            .position(|known| known.eq_ignore_ascii_case(command))
            .unwrap_or(COMMANDS.len() - 1);
        self.0[index][usize::from(code >= 500)].inc();
    }
}

/// `posthaste_recipients_total{outcome,class}`
#[derive(Debug)]
pub(super) struct Outcomes {
    family: IntCounterVec,
    children: [[OnceLock<IntCounter>; CauseClass::ALL.len()]; Outcome::ALL.len()],
}

impl Outcomes {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = counters(
            registry,
            "posthaste_recipients_total",
            "What came of recipients, by outcome and the class of its cause. Worry when deferred or bounced grows \
             faster than delivered; expired means mail that never got through.",
            &["outcome", "class"],
        )?;
        let made = Self { family, children: Default::default() };
        for outcome in Outcome::ALL {
            for class in CauseClass::ALL.into_iter().filter(|class| outcome.is_usual(*class)) {
                made.child(outcome, class);
            }
        }
        Ok(made)
    }

    fn child(&self, outcome: Outcome, class: CauseClass) -> &IntCounter {
        self.children[outcome as usize][class as usize]
            .get_or_init(|| self.family.with_label_values(&[outcome.word(), class.word()]))
    }

    pub(super) fn count(&self, outcome: Outcome, class: CauseClass) {
        self.child(outcome, class).inc();
    }
}

/// `posthaste_dsns_total{kind}`
#[derive(Debug)]
pub(super) struct Dsns([IntCounter; 3]);

impl Dsns {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = counters(
            registry,
            "posthaste_dsns_total",
            "Reports to senders that were queued, by kind. Worry when it grows fast: someone sends to bad addresses.",
            &["kind"],
        )?;
        Ok(Self(ReportKind::ALL.map(|kind| family.with_label_values(&[kind.word()]))))
    }

    pub(super) fn count(&self, kind: ReportKind) {
        self.0[kind as usize].inc();
    }
}

/// `posthaste_panics_total{place}`
#[derive(Debug)]
pub(super) struct Panics([IntCounter; 2]);

impl Panics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = counters(
            registry,
            "posthaste_panics_total",
            "Panics that ended one session or one delivery. Worry when above 0: a bug; please report it.",
            &["place"],
        )?;
        Ok(Self(Place::ALL.map(|place| family.with_label_values(&[place.word()]))))
    }

    pub(super) fn count(&self, place: Place) {
        self.0[place as usize].inc();
    }
}
