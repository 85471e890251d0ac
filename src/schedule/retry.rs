//! When to try again, when to tell the sender of the delay, and when to give up. Pure: time and chance are arguments.
//!
//! The two scales of back-off (a recipient's and a destination's) take their delays from the same schedule.

use std::time::Duration;

use crate::config::RetryConfig;
use crate::config::pattern::DomainPattern;
use crate::smtp::address::Domain;

/// What an empty schedule waits: the configuration's rules refuse one, but a delay of zero would be a busy loop.
const WITHOUT_SCHEDULE: Duration = Duration::from_secs(3600);

/// The delay after attempt number `attempt` (1 is the first): the schedule's entry of that number, the last one for
/// all later attempts, drawn from ± `jitter` of it.
///
/// `draw` is 0 to 1: 0 gives the shortest delay, 0.5 the schedule's own, 1 the longest.
pub fn delay(schedule: &[Duration], jitter: f64, attempt: u32, draw: f64) -> Duration {
    let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let base = schedule.get(index).or(schedule.last()).copied().unwrap_or(WITHOUT_SCHEDULE);
    let factor = jitter.clamp(0.0, 1.0).mul_add(2.0 * draw.clamp(0.0, 1.0) - 1.0, 1.0);
    base.mul_f64(factor.max(0.0))
}

/// A number from 0 (included) to 1 (excluded) that is always the same for one message, destination and attempt.
///
/// Recipients of a message that were tried together are thereby tried together again, and a restart changes nothing.
/// `id` is the queue id's bytes; for the back-off of a destination as a whole use any fixed bytes.
pub fn draw(id: &[u8; 16], destination: &str, attempt: u32) -> f64 {
    let bytes = id.iter().chain(destination.as_bytes()).copied().chain(attempt.to_be_bytes());
    // FNV-1a gathers, SplitMix64's finaliser spreads: ids that differ in one bit get draws that are far apart.
    let gathered = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (gathered ^ (gathered >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let mixed = mixed ^ (mixed >> 31);
    // 53 bits are what an f64 holds exactly.
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// How mail to some destinations is retried.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Delays after the first, second, … attempt; the last one repeats.
    pub schedule: Vec<Duration>,
    /// Each delay is drawn from ± this part of it; 0 to 1.
    pub jitter: f64,
    /// Age at which a recipient expires.
    pub give_up_after: Duration,
    /// Age at which the sender is told of the delay; zero is never.
    pub delay_notice_after: Duration,
}

impl RetryPolicy {
    /// The delay after attempt number `attempt` (1 is the first); `draw` is 0 to 1.
    pub fn delay(&self, attempt: u32, draw: f64) -> Duration {
        delay(&self.schedule, self.jitter, attempt, draw)
    }

    /// When a message that arrived at `arrived_ms` expires (wall time, milliseconds since the Unix epoch).
    pub fn expires_ms(&self, arrived_ms: u64) -> u64 {
        after(arrived_ms, self.give_up_after)
    }

    /// Whether the time to give up has come.
    pub fn is_expired(&self, arrived_ms: u64, now_ms: u64) -> bool {
        now_ms >= self.expires_ms(arrived_ms)
    }
}

/// What comes next in the life of a recipient that isn't settled, besides attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Tell the sender that delivery is delayed, at this wall time in milliseconds.
    Notice(u64),
    /// Give up, at this wall time in milliseconds.
    Expiry(u64),
}

impl Deadline {
    /// The wall time in milliseconds, for the spool's key.
    pub fn at_ms(self) -> u64 {
        match self {
            Self::Notice(at_ms) | Self::Expiry(at_ms) => at_ms,
        }
    }
}

/// The next deadline of a recipient. It may lie in the past: then it is due now.
///
/// Whoever needs no notice any more (`delay_notified`, or a null reverse-path) has only the expiry left; so has one
/// that is expired already, since a notice of delay just before the report of failure tells nothing.
pub fn next_deadline(policy: &RetryPolicy, arrived_ms: u64, now_ms: u64, delay_notified: bool) -> Deadline {
    let wants_notice = !delay_notified
        && !policy.delay_notice_after.is_zero()
        && policy.delay_notice_after < policy.give_up_after
        && !policy.is_expired(arrived_ms, now_ms);
    if wants_notice {
        Deadline::Notice(after(arrived_ms, policy.delay_notice_after))
    } else {
        Deadline::Expiry(policy.expires_ms(arrived_ms))
    }
}

fn after(start_ms: u64, age: Duration) -> u64 {
    start_ms.saturating_add(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// The policies of all destinations: `[retry]` and its `[[retry.for]]`.
#[derive(Clone, Debug)]
pub struct RetryRules {
    overrides: Vec<(Vec<DomainPattern>, RetryPolicy)>,
    general: RetryPolicy,
}

impl RetryRules {
    /// The policies that a configuration gives; what an override leaves out it takes from `[retry]`.
    pub fn new(config: &RetryConfig) -> Self {
        let general = RetryPolicy {
            schedule: config.schedule.clone(),
            jitter: config.jitter,
            give_up_after: config.give_up_after,
            delay_notice_after: config.delay_notice_after,
        };
        let overrides = config.overrides.iter().map(|rule| {
            let schedule = if rule.schedule.is_empty() { &general.schedule } else { &rule.schedule };
            let policy = RetryPolicy {
                schedule: schedule.clone(),
                jitter: general.jitter,
                give_up_after: rule.give_up_after.unwrap_or(general.give_up_after),
                delay_notice_after: rule.delay_notice_after.unwrap_or(general.delay_notice_after),
            };
            (rule.domains.clone(), policy)
        });
        Self { overrides: overrides.collect(), general }
    }

    /// The longest delay that any of them gives.
    pub fn longest(&self) -> Duration {
        let policies = self.overrides.iter().map(|(_, policy)| policy).chain([&self.general]);
        let attempts =
            policies.flat_map(|policy| (1..).zip(&policy.schedule).map(move |(number, _)| (policy, number)));
        attempts.map(|(policy, number)| policy.delay(number, 1.0)).max().unwrap_or(WITHOUT_SCHEDULE)
    }

    /// The policy for a destination: the first override that matches, else the general one.
    pub fn policy_for(&self, destination: &Domain) -> &RetryPolicy {
        self.overrides
            .iter()
            .find(|(patterns, _)| patterns.iter().any(|pattern| pattern.matches(destination)))
            .map_or(&self.general, |(_, policy)| policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RetryOverride;
    use crate::config::units::{format_duration, parse_duration};

    const HOUR_MS: u64 = 3_600_000;
    const DAY_MS: u64 = 24 * HOUR_MS;

    fn durations(words: &str) -> Vec<Duration> {
        words.split_whitespace().map(|word| parse_duration(word).expect("good")).collect()
    }

    fn general() -> RetryPolicy {
        RetryRules::new(&RetryConfig::default()).general
    }

    /// Every delay until the recipient is given up, when each attempt fails at once.
    fn whole_schedule(policy: &RetryPolicy, draw: f64) -> Vec<String> {
        let (mut now_ms, mut delays) = (0, Vec::new());
        for attempt in 1.. {
            let delay = policy.delay(attempt, draw);
            now_ms += u64::try_from(delay.as_millis()).expect("small");
            if policy.is_expired(0, now_ms) {
                break;
            }
            delays.push(format_duration(delay));
        }
        delays
    }

    #[test]
    fn the_default_schedule_runs_from_one_minute_to_four_hours_until_five_days() {
        let mut expected: Vec<&str> = "1m 5m 15m 30m 1h 2h".split(' ').collect();
        // 3 h 51 min have passed; 29 times 4 h fit into the rest of 120 h.
        expected.extend(["4h"; 29]);
        assert_eq!(whole_schedule(&general(), 0.5), expected);
    }

    #[test]
    fn jitter_stretches_and_shrinks_the_whole_schedule() {
        let short = whole_schedule(&general(), 0.0);
        assert_eq!(short[..7].join(" "), "48s 4m 12m 24m 48m 96m 192m");
        let long = whole_schedule(&general(), 1.0);
        assert_eq!(long[..7].join(" "), "72s 6m 18m 36m 72m 144m 288m");
        assert!(short.len() > long.len());
    }

    #[test]
    fn a_delay_is_read_from_schedule_jitter_attempt_and_draw() {
        for (schedule, jitter, attempt, draw, expected) in [
            ("1m 5m", 0.2, 1, 0.5, "1m"),
            ("1m 5m", 0.2, 2, 0.5, "5m"),
            ("1m 5m", 0.2, 3, 0.5, "5m"),
            ("1m 5m", 0.2, u32::MAX, 0.5, "5m"),
            ("1m 5m", 0.2, 0, 0.5, "1m"),
            ("100s", 0.2, 1, 0.0, "80s"),
            ("100s", 0.2, 1, 0.25, "90s"),
            ("100s", 0.2, 1, 1.0, "2m"),
            ("100s", 0.0, 1, 1.0, "100s"),
            ("", 0.2, 1, 0.5, "1h"),
        ] {
            let delay = delay(&durations(schedule), jitter, attempt, draw);
            assert_eq!(format_duration(delay), expected, "{schedule} {jitter} {attempt} {draw}");
        }
    }

    #[test]
    fn a_draw_repeats_for_the_same_message_destination_and_attempt() {
        let first = draw(&[1; 16], "a.example", 1);
        assert_eq!(first.to_bits(), draw(&[1; 16], "a.example", 1).to_bits());
        for other in
            [draw(&[2; 16], "a.example", 1), draw(&[1; 16], "b.example", 1), draw(&[1; 16], "a.example", 2)]
        {
            assert_ne!(first.to_bits(), other.to_bits());
        }
    }

    #[test]
    fn draws_are_spread_evenly_though_ids_differ_little() {
        const DRAWS: usize = 20_000;
        let mut buckets = [0_usize; 20];
        let mut sum = 0.0;
        for number in 0..DRAWS {
            let id = (0x0193_0000_0000_7000_8000_u128 << 48 | number as u128).to_be_bytes();
            let drawn = draw(&id, "a.example", 1);
            assert!((0.0..1.0).contains(&drawn));
            buckets[(drawn * 20.0) as usize] += 1;
            sum += drawn;
        }
        assert!((sum / DRAWS as f64 - 0.5).abs() < 0.01, "mean {}", sum / DRAWS as f64);
        // 1,000 are expected in each; five standard deviations are about 155.
        assert!(buckets.iter().all(|count| (845..1155).contains(count)), "{buckets:?}");
    }

    #[test]
    fn the_next_deadline_is_the_notice_and_then_the_expiry() {
        let policy = general();
        let never = RetryPolicy { delay_notice_after: Duration::ZERO, ..policy.clone() };
        let late = RetryPolicy { delay_notice_after: policy.give_up_after, ..policy.clone() };
        for (policy, now_ms, notified, expected) in [
            (&policy, 0, false, Deadline::Notice(4 * HOUR_MS)),
            (&policy, 5 * HOUR_MS, false, Deadline::Notice(4 * HOUR_MS)),
            (&policy, 5 * HOUR_MS, true, Deadline::Expiry(5 * DAY_MS)),
            (&policy, 6 * DAY_MS, false, Deadline::Expiry(5 * DAY_MS)),
            (&never, 0, false, Deadline::Expiry(5 * DAY_MS)),
            (&late, 0, false, Deadline::Expiry(5 * DAY_MS)),
        ] {
            assert_eq!(
                next_deadline(policy, 0, now_ms, notified),
                expected,
                "{policy:?} {now_ms} {notified}"
            );
        }
    }

    #[test]
    fn a_recipient_expires_at_its_age_and_not_before() {
        let policy = general();
        assert!(!policy.is_expired(1000, 1000 + 5 * DAY_MS - 1));
        assert!(policy.is_expired(1000, 1000 + 5 * DAY_MS));
        assert!(!policy.is_expired(1000, 0), "the clock went back");
        assert!(!policy.is_expired(u64::MAX, u64::MAX - 1));
    }

    #[test]
    fn the_first_matching_override_wins_and_keeps_what_it_leaves_out() {
        let pattern = |text: &str| DomainPattern::try_from(text.to_owned()).expect("good");
        let config = RetryConfig {
            overrides: vec![
                RetryOverride {
                    domains: vec![pattern("slow.example"), pattern("*.slow.example")],
                    schedule: durations("1h"),
                    ..RetryOverride::default()
                },
                RetryOverride {
                    domains: vec![pattern("*.slow.example"), pattern("short.example")],
                    give_up_after: Some(Duration::from_secs(60)),
                    delay_notice_after: Some(Duration::ZERO),
                    ..RetryOverride::default()
                },
            ],
            ..RetryConfig::default()
        };
        let rules = RetryRules::new(&config);
        for (domain, schedule, give_up_after) in [
            ("other.example", config.schedule.clone(), "5d"),
            ("slow.example", durations("1h"), "5d"),
            ("mx.slow.example", durations("1h"), "5d"),
            ("short.example", config.schedule.clone(), "1m"),
        ] {
            let policy = rules.policy_for(&Domain::parse(domain).expect("good"));
            assert_eq!(policy.schedule, schedule, "{domain}");
            assert_eq!(format_duration(policy.give_up_after), give_up_after, "{domain}");
        }
    }
}
