//! One configuration per rule, and what is said of it.

use super::*;

fn check_text(text: &str) -> Vec<String> {
    let config = toml::from_str(text).expect("readable");
    let line = |problem: &Problem| match &problem.place {
        crate::config::problem::Place::Key(key) => {
            format!("{}{key}: {}", if problem.is_error() { "" } else { "warning: " }, problem.text)
        }
        place => panic!("rules name keys, not {place}"),
    };
    check(&config).iter().map(line).collect()
}

#[test]
fn the_defaults_are_good() {
    assert_eq!(check_text(""), Vec::<String>::new());
}

/// Each configuration breaks one rule; what is said of it begins so.
#[track_caller]
fn check_each(table: &[(&str, &str)]) {
    for (text, expected) in table {
        let found = check_text(text);
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(found[0].starts_with(expected), "{text}\n{found:#?}\n{expected}");
    }
}

/// A good route with more keys.
fn route_with(keys: &str) -> String {
    format!("[[route]]\ndomains = [\"a.example\"]\nhosts = [\"b.example\"]\n{keys}")
}

#[test]
fn delays_and_chances_outside_of_their_range_are_named() {
    check_each(&[
        ("[retry]\nschedule = []", "retry.schedule: retry.schedule is empty; write at least one delay"),
        ("[retry]\nschedule = [\"1m\", \"0\"]", "retry.schedule.1: retry.schedule has a delay of 0"),
        ("[retry]\njitter = 0.95", "retry.jitter: retry.jitter is 0.95; write a number from 0 to 0.9"),
        ("[retry]\njitter = nan", "retry.jitter: retry.jitter is NaN"),
        ("[retry]\njitter = -0.1", "retry.jitter: retry.jitter is -0.1"),
        (
            "[retry]\ngive_up_after = 0\ndelay_notice_after = 0",
            "retry.give_up_after: retry.give_up_after is 0",
        ),
        (
            "[retry]\ngive_up_after = \"366d\"",
            "retry.give_up_after: retry.give_up_after is 366d; write at most 365d",
        ),
        ("[[retry.for]]\nschedule = [\"5m\"]", "retry.for.0.domains: this [[retry.for]] has no domains"),
    ]);
}

#[test]
fn a_delay_notice_that_would_come_after_the_end_is_told_at_the_key_that_was_written() {
    check_each(&[
        (
            "[retry]\ngive_up_after = \"4h\"",
            "retry.give_up_after: delay_notice_after (4h) must be less than give_up_after (4h); change one of them",
        ),
        ("[retry]\ndelay_notice_after = \"6d\"", "retry.delay_notice_after: delay_notice_after (6d) must be"),
        (
            "[[retry.for]]\ndomains = [\"*\"]\ngive_up_after = \"1h\"",
            "retry.for.0.give_up_after: delay_notice_after (4h) must be less than give_up_after (1h)",
        ),
        (
            "[[retry.for]]\ndomains = [\"*\"]\ngive_up_after = \"1h\"\ndelay_notice_after = \"2h\"",
            "retry.for.0.delay_notice_after: delay_notice_after (2h) must be less than give_up_after (1h)",
        ),
    ]);
}

#[test]
fn limits_below_what_rfc_5321_asks_for_are_named() {
    check_each(&[
        (
            "[limits]\nmessage_size = \"63KiB\"",
            "limits.message_size: limits.message_size is 63KiB; write 64KiB or",
        ),
        (
            "[limits]\nrecipients = 99",
            "limits.recipients: limits.recipients is 99; write 100 or more (RFC 5321",
        ),
        ("[limits]\nsessions = 0", "limits.sessions: limits.sessions is 0; write 1 or more"),
        (
            "[limits]\nidle_timeout = 0",
            "limits.idle_timeout: limits.idle_timeout is 0; write a duration above",
        ),
        ("[log]\nbuffer = 0", "log.buffer: log.buffer is 0; write 1 or more"),
    ]);
}

#[test]
fn a_spool_that_could_not_work_is_named() {
    check_each(&[
        (
            "[spool]\ncontent_threshold = 0",
            "spool.content_threshold: spool.content_threshold is 0B; write a size",
        ),
        ("[spool]\ncontent_threshold = \"5MiB\"", "spool.content_threshold: spool.content_threshold is 5MiB"),
        ("[spool]\ncache = \"1KiB\"", "spool.cache: spool.cache is 1KiB; write 1MiB or more"),
        (
            "[spool]\nmin_free = 0",
            "warning: spool.min_free: spool.min_free is 0B, and removing mail needs room",
        ),
        ("[spool]\nmin_free = \"63MiB\"", "warning: spool.min_free: spool.min_free is 63MiB, and"),
        ("[spool]\nreserve = 0", "warning: spool.reserve: spool.reserve is 0B, too little"),
        ("[spool]\npath = \"\"", "spool.path: spool.path is empty; write a folder"),
    ]);
}

#[test]
fn values_of_server_delivery_dns_and_relay_have_their_ranges() {
    check_each(&[
        ("[delivery]\nconnections = 0", "delivery.connections: delivery.connections is 0; write 1 or more"),
        (
            "[delivery]\nconnects_per_second = 9",
            "delivery.connects_per_second: delivery.connects_per_second is 9; write 10 to 100000",
        ),
        (
            "[delivery]\nport = 0",
            "delivery.port: delivery.port is 0; write the port of MX hosts, which is 25",
        ),
        ("[dns]\nservers = [\"127.0.0.1:0\"]", "dns.servers.0: dns.servers has 127.0.0.1:0; write the port"),
        (
            "[server]\nhostname = \"a b\"",
            "server.hostname: server.hostname is \"a b\"; write a host name such as",
        ),
        ("[server]\nhostname = \"relay\"", "warning: server.hostname: server.hostname \"relay\" has no dot"),
        ("[server]\nworkers = 5000", "server.workers: server.workers is 5000; write at most 1024"),
        ("[relay]\nnetworks = []", "warning: relay.networks: relay.networks is empty, so nobody may relay"),
    ]);
}

#[test]
fn an_address_that_can_not_be_listened_on_is_named() {
    check_each(&[
        (
            "listener = [{ address = \"127.0.0.1:25\" }, { address = \"127.0.0.1:25\" }]",
            "listener.1.address: another [[listener]] has the address 127.0.0.1:25 already",
        ),
        (
            "listener = [{ address = \"0.0.0.0:25\" }, { address = \"127.0.0.1:25\" }]",
            "listener.1.address: another [[listener]] has the address 127.0.0.1:25 already",
        ),
        (
            "[http]\naddress = \"127.0.0.1:2525\"",
            "http.address: http.address 127.0.0.1:2525 is a listener's too",
        ),
    ]);
}

#[test]
fn a_listening_address_in_the_other_family_s_form_is_named_with_the_right_one() {
    check_each(&[
        (
            "listener = [{ address = \"[::ffff:127.0.0.1]:2525\" }]",
            "listener.0.address: [::ffff:127.0.0.1]:2525 is an IPv4 address in IPv6 form; write 127.0.0.1:2525",
        ),
        (
            "[http]\naddress = \"[::ffff:192.0.2.1]:80\"",
            "http.address: [::ffff:192.0.2.1]:80 is an IPv4 address in IPv6 form; write 192.0.2.1:80",
        ),
    ]);
}

#[test]
fn a_route_that_leads_nowhere_is_named() {
    check_each(&[
        ("[[route]]\nhosts = [\"b.example\"]", "route.0.domains: this route has no domains; add domains = "),
        ("[[route]]\ndomains = [\"*\"]", "route.0.hosts: this route has no hosts; add hosts = "),
        (&route_with("connections = 0"), "route.0.connections: route.connections is 0; write 1 or more"),
        (
            "[[route]]\ndomains = [\"*\"]\nhosts = [\"a\", \"a:smtp\"]",
            "route.0.hosts.1: \"a:smtp\" is not a host; write mx.example.org, mx.example.org:2525,",
        ),
        (
            "[[route]]\ndomains = [\"*\"]\nhosts = [\"a\"]\n[[route]]\ndomains = [\"b\"]\nhosts = [\"a\"]",
            "warning: route.1: this route is never used: route number 1 is for every domain (*)",
        ),
    ]);
}

#[test]
fn a_password_without_a_name_a_file_or_tls_is_named() {
    check_each(&[
        (
            &route_with("username = \"u\"\ntls = \"required\""),
            "route.0.username: this route has a username but no",
        ),
        (
            &route_with("password_file = \"f\"\ntls = \"required\""),
            "route.0.password_file: this route has a password_",
        ),
        (
            &route_with("password_file = \"f\"\nusername = \"u\""),
            "route.0.username: a password is sent only over checked TLS",
        ),
        (
            &route_with("password_file = \"f\"\nusername = \"u\"\ntls = \"opportunistic\""),
            "route.0.tls: a password is sent only over checked TLS; add tls = \"required\" to this route",
        ),
    ]);
}

#[test]
fn good_configurations_pass() {
    for text in [
        "[[route]]\ndomains = [\"*\"]\nhosts = [\"a:587\"]\nusername = \"u\"\npassword_file = \"f\"\ntls = \"required\"",
        "delivery.tls = \"required\"\n[[route]]\ndomains = [\"*\"]\nhosts = [\"a\"]\nusername = \"u\"\npassword_file = \"f\"",
        "listener = [{ address = \"127.0.0.1:0\" }, { address = \"127.0.0.1:0\" }]\nhttp.address = \"127.0.0.1:0\"",
        "listener = [{ address = \"0.0.0.0:25\" }, { address = \"[::]:25\" }]",
        "retry.delay_notice_after = 0\nretry.give_up_after = \"1m\"",
        "relay.networks = [\"10.0.0.0/8\", \"192.0.2.7/32\", \"fc00::/7\", \"fe80::/10\", \"2001:db8::/32\"]",
    ] {
        assert_eq!(check_text(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn networks_of_strangers_are_an_open_relay_in_capital_letters() {
    for network in ["0.0.0.0/0", "::/0", "128.0.0.0/1", "2000::/3"] {
        let found = check_text(&format!("[relay]\nnetworks = [\"127.0.0.0/8\", \"{network}\"]"));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("warning: relay.networks.1: THIS IS AN OPEN RELAY: relay.networks has ")
        );
    }
}
