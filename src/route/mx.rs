//! Which of a domain's MX hosts to dial, in which order (RFC 5321 section 5.1, RFC 7505). Pure.

use std::net::IpAddr;

/// Most MX hosts of one domain that are looked at: a zone with thousands must not cost thousands of look-ups.
pub const HOSTS_MAX: usize = 32;

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxRecord {
    /// Lower is better.
    pub preference: u16,
    /// The host in lower case without a final dot; `.` alone is a null MX (RFC 7505).
    pub exchange: String,
}

impl MxRecord {
    fn is_null(&self) -> bool {
        self.exchange == "."
    }
}

/// What a domain's MX records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxPlan {
    /// The hosts to try, best first; never empty.
    Hosts(Vec<MxRecord>),
    /// No MX: the domain itself is the host (RFC 5321 section 5.1, the implicit MX).
    Implicit,
    /// The domain accepts no mail (RFC 7505).
    NullMx,
    /// The relay itself is among the best: whatever is left would send the mail round in circles.
    SelfIsBest,
}

/// Orders a domain's MX records: by preference, and within one preference in an order that `shuffle` picks
/// (the same for the same number, whatever the order of the records).
///
/// A host that is the relay itself is dropped with all of the same or a worse preference (RFC 5321 section 5.1).
/// A null MX beside other hosts breaks RFC 7505 section 3 and is ignored.
pub fn order(mut records: Vec<MxRecord>, is_self: impl Fn(&str) -> bool, shuffle: u64) -> MxPlan {
    if records.is_empty() {
        return MxPlan::Implicit;
    }
    records.retain(|record| !record.is_null());
    if records.is_empty() {
        return MxPlan::NullMx;
    }
    let own = records.iter().filter(|record| is_self(&record.exchange)).map(|record| record.preference).min();
    if let Some(own) = own {
        records.retain(|record| record.preference < own);
        if records.is_empty() {
            return MxPlan::SelfIsBest;
        }
    }
    records.sort_by_cached_key(|record| {
        (record.preference, draw(shuffle, record.exchange.as_bytes()), record.exchange.clone())
    });
    let mut seen = Vec::with_capacity(records.len().min(HOSTS_MAX));
    for record in records {
        if seen.len() == HOSTS_MAX {
            break;
        }
        if !seen.iter().any(|known: &MxRecord| known.exchange == record.exchange) {
            seen.push(record);
        }
    }
    MxPlan::Hosts(seen)
}

/// Orders one host's addresses: the families take turns, so that a broken IPv6 (or IPv4) never uses up all the
/// addresses of an attempt; within a family `shuffle` picks the order. Duplicates and what can't be dialled (the
/// unspecified address, multicast, broadcast) are dropped.
pub fn interleave(addresses: &[IpAddr], v6_first: bool, shuffle: u64) -> Vec<IpAddr> {
    let mut sorted: Vec<IpAddr> =
        addresses.iter().map(IpAddr::to_canonical).filter(|ip| is_dialable(*ip)).collect();
    sorted.sort_by_cached_key(|ip| (draw_address(shuffle, *ip), *ip));
    sorted.dedup();
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        sorted.into_iter().partition(|ip| ip.is_ipv6() == v6_first);
    if first.is_empty() {
        std::mem::swap(&mut first, &mut second);
    }
    take_turns(vec![first, second])
}

/// The first of each list, then the second of each, and so on.
pub fn take_turns<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    let mut merged = Vec::with_capacity(lists.iter().map(Vec::len).sum());
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    loop {
        let before = merged.len();
        merged.extend(lists.iter_mut().filter_map(Iterator::next));
        if merged.len() == before {
            return merged;
        }
    }
}

/// A connection to the unspecified address would reach this machine; the others are no hosts.
fn is_dialable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

fn draw_address(shuffle: u64, ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(v4) => draw(shuffle, &v4.octets()),
        IpAddr::V6(v6) => draw(shuffle, &v6.octets()),
    }
}

/// A number that looks random and depends on both: FNV-1a, then the finalizer of SplitMix64.
fn draw(shuffle: u64, bytes: &[u8]) -> u64 {
    let seed = 0xcbf2_9ce4_8422_2325 ^ shuffle;
    let mut hash =
        bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OWN: &str = "self.example";

    fn records(list: &[(u16, &str)]) -> Vec<MxRecord> {
        list.iter()
            .map(|(preference, name)| MxRecord { preference: *preference, exchange: (*name).to_owned() })
            .collect()
    }

    fn ordered(list: &[(u16, &str)], shuffle: u64) -> MxPlan {
        order(records(list), |name| name == OWN, shuffle)
    }

    #[test]
    fn the_table_of_mx_orders() {
        let hosts = |list: &[(u16, &str)]| MxPlan::Hosts(records(list));
        for (given, expected) in [
            (&[][..], MxPlan::Implicit),
            (&[(0, ".")], MxPlan::NullMx),
            (&[(0, "."), (7, ".")], MxPlan::NullMx),
            (&[(0, "."), (10, "a")], hosts(&[(10, "a")])),
            (&[(20, "b"), (10, "a"), (30, "c")], hosts(&[(10, "a"), (20, "b"), (30, "c")])),
            (&[(20, "a"), (10, "a")], hosts(&[(10, "a")])),
            (&[(10, "a"), (20, OWN), (30, "c")], hosts(&[(10, "a")])),
            (&[(10, "a"), (20, OWN), (20, "b")], hosts(&[(10, "a")])),
            (&[(10, OWN), (10, "a"), (20, "b")], MxPlan::SelfIsBest),
            (&[(10, OWN)], MxPlan::SelfIsBest),
        ] {
            assert_eq!(ordered(given, 7), expected, "{given:?}");
        }
    }

    #[test]
    fn one_preference_is_shuffled_the_same_way_for_the_same_number() {
        let given = [(10, "a"), (10, "b"), (10, "c")];
        let turned = [(10, "c"), (10, "a"), (10, "b")];
        let mut first = std::collections::BTreeSet::new();
        for shuffle in 0..100 {
            let MxPlan::Hosts(hosts) = ordered(&given, shuffle) else { panic!("there are hosts") };
            assert_eq!(MxPlan::Hosts(hosts.clone()), ordered(&turned, shuffle));
            first.insert(hosts[0].exchange.clone());
        }
        assert_eq!(first.len(), 3, "each host comes first at times");
    }

    #[test]
    fn a_zone_with_thousands_of_hosts_is_cut() {
        let many =
            (0..5000).map(|n| MxRecord { preference: 1, exchange: format!("mx{n}.example") }).collect();
        let MxPlan::Hosts(hosts) = order(many, |_| false, 1) else { panic!("there are hosts") };
        assert_eq!(hosts.len(), HOSTS_MAX);
    }

    #[test]
    fn families_take_turns() {
        let addresses: Vec<IpAddr> =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::3"].map(|ip| ip.parse().unwrap()).to_vec();
        let families = |v6_first| -> Vec<bool> {
            interleave(&addresses, v6_first, 3).iter().map(IpAddr::is_ipv6).collect()
        };
        assert_eq!(families(true), [true, false, true, true]);
        assert_eq!(families(false), [false, true, true, true]);
    }

    #[test]
    fn what_is_no_host_is_not_dialled() {
        let addresses: Vec<IpAddr> =
            ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:192.0.2.1", "192.0.2.1"]
                .map(|ip| ip.parse().unwrap())
                .to_vec();
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(interleave(&addresses, true, 3), expected);
    }
}
