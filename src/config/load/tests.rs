//! Bad files and bad variables against the exact text that an operator sees.

use std::time::Duration;

use super::*;

fn read(text: &str, environment: &[(&str, &str)]) -> Result<(Config, Source), ConfigErrors> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(&Sources::new(Some((Path::new("posthaste.toml"), text.to_owned())), environment))
}

fn problems(text: &str, environment: &[(&str, &str)]) -> String {
    read(text, environment).unwrap_err().to_string()
}

/// Each file has one problem, of which exactly this is said.
#[track_caller]
fn check_each(table: &[(&str, &str)]) {
    for (text, expected) in table {
        assert_eq!(problems(text, &[]), format!("posthaste.toml:{expected}"), "{text}");
    }
}

#[test]
fn an_unknown_key_or_section_is_told_what_was_meant() {
    check_each(&[
        (
            "[delivery]\nconections = 2\n",
            "2:1: unknown key \"conections\" in [delivery]; did you mean \"connections\"?",
        ),
        ("[[route]]\nhost = [\"a\"]\n", "2:1: unknown key \"host\" in [[route]]; did you mean \"hosts\"?"),
        (
            "[[retry.for]]\ndomain = []\n",
            "2:1: unknown key \"domain\" in [[retry.for]]; did you mean \"domains\"?",
        ),
        ("[spol]\npath = \"x\"\n", "1:2: unknown section [spol]; did you mean [spool]?"),
        (
            "[colours]\n",
            "1:2: unknown section [colours]; the sections are server, listener, relay, limits, spool, dns, delivery, \
             route, retry, http, log",
        ),
        (
            "hostname = \"x\"\n",
            "1:1: unknown key \"hostname\" outside of any section; it belongs in [server]",
        ),
        ("[spool]\nnetworks = []\n", "2:1: unknown key \"networks\" in [spool]; it belongs in [relay]"),
        ("[log]\ncolour = true\n", "2:1: unknown key \"colour\" in [log]; the keys here are format, buffer"),
    ]);
}

#[test]
fn a_wrong_number_or_switch_is_told_what_to_write() {
    check_each(&[
        (
            "[delivery]\nconnections = \"a\"\n",
            "2:15: delivery.connections is \"a\"; write a whole number, such as 1000",
        ),
        (
            "[delivery]\nconnections = -1\n",
            "2:15: delivery.connections is -1; write a whole number, such as 1000",
        ),
        (
            "[delivery]\nport = 70000\n",
            "2:8: delivery.port is 70000; write a whole number up to 65535, such as 25",
        ),
        (
            "[[route]]\nconnections = 1.5\n",
            "2:15: route.connections is 1.5; write a whole number, such as 10",
        ),
        ("[retry]\njitter = \"low\"\n", "2:10: retry.jitter is \"low\"; write a number, such as 0.2"),
        ("[dns]\nvalidate = \"yes\"\n", "2:12: dns.validate is \"yes\"; write true or false"),
    ]);
}

#[test]
fn a_wrong_text_or_word_is_told_what_to_write() {
    check_each(&[
        (
            "[server]\nhostname = 5\n",
            "2:12: server.hostname is 5; write text in quotes, such as \"relay.example.org\"",
        ),
        ("[spool]\npath = 5\n", "2:8: spool.path is 5; write text in quotes, such as \"spool\""),
        ("[log]\nformat = \"jason\"\n", "2:10: log.format is \"jason\"; write \"text\" or \"json\""),
        ("[log]\nformat = 5\n", "2:10: log.format is 5; write text in quotes, such as \"text\""),
        (
            "[[route]]\ntls = \"on\"\n",
            "2:7: route.tls is \"on\"; write one of \"off\", \"opportunistic\", \"required\"",
        ),
    ]);
}

#[test]
fn a_wrong_duration_or_size_is_told_what_to_write() {
    check_each(&[
        (
            "[retry]\ngive_up_after = \"5 weeks\"\n",
            "2:17: retry.give_up_after: \"5 weeks\" is not a duration; write a whole number and ms, s, m, h or d, such \
             as \"5m\"",
        ),
        (
            "[retry]\ngive_up_after = true\n",
            "2:17: retry.give_up_after is true; write a duration, such as \"5d\"",
        ),
        (
            "[retry]\nschedule = [1, 2]\n",
            "2:12: retry.schedule is [1, 2]; write a list of durations, such as [\"1m\", \"5m\", \"15m\", \"30m\", \
             \"1h\", \"2h\", \"4h\"]",
        ),
        ("[limits]\nmessage_size = -1\n", "2:16: limits.message_size is -1; write a size, such as \"50MiB\""),
    ]);
}

#[test]
fn a_wrong_address_network_or_domain_is_told_what_to_write() {
    check_each(&[
        (
            "[[listener]]\naddress = \"localhost:25\"\n",
            "2:11: listener.address is \"localhost:25\"; write an IP address and a port, such as \"127.0.0.1:2525\"",
        ),
        (
            "[dns]\nservers = [\n  \"127.0.0.1:53\",\n  \"1.1.1.1\",\n]\n",
            "4:3: dns.servers is \"1.1.1.1\"; write an IP address and a port, such as \"127.0.0.1:5353\"",
        ),
        (
            "[relay]\nnetworks = [\"10.0.0.1\"]\n",
            "2:13: relay.networks is \"10.0.0.1\"; write a network with its prefix length, such as \"127.0.0.0/8\"",
        ),
        (
            "[relay]\nnetworks = \"10.0.0.0/8\"\n",
            "2:12: relay.networks is \"10.0.0.0/8\"; write a list, such as [\"127.0.0.0/8\", \"::1/128\"]",
        ),
        (
            "[[route]]\ndomains = [\"a b\"]\n",
            "2:11: route.domains: \"a b\" is not a domain; write example.org, *.example.org (its subdomains) or *",
        ),
    ]);
}

#[test]
fn a_section_in_the_place_of_a_list_and_a_list_in_that_of_a_section_are_named() {
    check_each(&[
        (
            "server = 5\n",
            "1:10: server is one section; write [server] in the file, POSTHASTE_SERVER__… in the environment",
        ),
        (
            "[[spool]]\npath = \"x\"\n",
            "1:1: spool is one section; write [spool] in the file, POSTHASTE_SPOOL__… in the environment",
        ),
        (
            "[listener]\naddress = \"127.0.0.1:25\"\n",
            "1:1: listener is a list; write [[listener]] in the file, POSTHASTE_LISTENER__0__… in the environment",
        ),
        ("route = [5]\n", "1:10: route is 5; write it as a section: [[route]]"),
    ]);
}

#[test]
fn what_is_no_toml_is_told_in_plain_words() {
    check_each(&[
        (
            "[server]\nhostname = relay.example.org\n",
            "2:12: text needs straight quotes; write \"relay.example.org\"",
        ),
        ("[server]\nhostname = “relay”\n", "2:12: text needs straight quotes; write \"relay\""),
        ("[dns]\nvalidate = yes\n", "2:12: yes is no value; write true or false, or \"yes\" in quotes"),
        ("[server]\nworkers =\n", "2:10: there is no value behind the =; write one, or take the key out"),
        ("[server]\nworkers = 1\nworkers = 2\n", "3:1: workers stands there twice; keep one"),
        ("[spool]\ncache = 1\n[spool]\n", "3:2: spool stands there twice; keep one"),
        ("[server\nworkers = 1\n", "1:8: this is not TOML: unclosed table; write ]"),
        ("[server]\nworkers\n", "2:8: a key needs a value; write key = value"),
        (
            "[relay]\nnetworks = [\"::1/128\" \"127.0.0.0/8\"]\n",
            "2:23: put a comma between the entries of the list",
        ),
        ("[spool]\npath = 'ü' x\n", "2:12: put this on a line of its own, or take it out"),
    ]);
}

#[test]
fn a_wrong_type_does_not_hide_a_wrong_range() {
    let text = "\
[limits]
sessions = \"many\"
recipients = 5
message_size = \"1KiB\"

[retry]
jitter = 3
schedule = \"often\"
give_up_after = \"400d\"
";
    let expected = "\
posthaste.toml:2:12: limits.sessions is \"many\"; write a whole number, such as 1000
posthaste.toml:3:1: limits.recipients is 5; write 100 or more (RFC 5321 section 4.5.3.1.8)
posthaste.toml:4:1: limits.message_size is 1KiB; write 64KiB or more (RFC 5321 section 4.5.3.1.7)
posthaste.toml:7:1: retry.jitter is 3; write a number from 0 to 0.9
posthaste.toml:8:12: retry.schedule: \"often\" is not a duration; write a whole number and ms, s, m, h or d, such as \"5m\"
posthaste.toml:9:1: retry.give_up_after is 400d; write at most 365d";
    assert_eq!(problems(text, &[]), expected);
}

#[test]
fn a_value_that_was_not_read_is_not_held_against_others() {
    for (text, expected) in [
        // The default of give_up_after would do; what is meant is not known.
        (
            "[retry]\ngive_up_after = 5.5\ndelay_notice_after = \"6d\"\n",
            "2:17: retry.give_up_after is 5.5; write a duration, such as \"5d\"",
        ),
        // The second network would have the first one's number.
        (
            "[relay]\nnetworks = [\"x\", \"0.0.0.0/0\"]\n",
            "2:13: relay.networks is \"x\"; write a network with its prefix length, such as \"127.0.0.0/8\"",
        ),
        (
            "[[route]]\ndomains = [\"*\"]\nhosts = 5\n",
            "3:9: route.hosts is 5; write a list, such as [\"10.0.0.5:2500\"]",
        ),
    ] {
        assert_eq!(problems(text, &[]), format!("posthaste.toml:{expected}"), "{text}");
    }
}

#[test]
fn a_delay_notice_that_comes_too_late_has_its_line() {
    let text = "[retry]\n# as long as a shift\ngive_up_after = \"4h\"\n";
    let (config, source) = read(text, &[]).unwrap();
    let mut problems = rules::check(&config);
    source.locate(&mut problems);
    let places: Vec<String> = problems.iter().map(|problem| problem.place.to_string()).collect();
    assert_eq!(places, ["posthaste.toml:3:1"]);
}

#[test]
fn every_problem_is_told_at_once_in_the_order_of_the_file() {
    let text = "\
[delivery]
conections = 2
port = \"smtp\"

[relay]
networks = [\"10.0.0.0/99\", \"10.0.0.0/8\", 5]

[retry]
jitter = 3
[[route]]
domains = [\"*\"]
hosts = [\"mx.example\"]
user = \"x\"
";
    let expected = "\
posthaste.toml:2:1: unknown key \"conections\" in [delivery]; did you mean \"connections\"?
posthaste.toml:3:8: delivery.port is \"smtp\"; write a whole number up to 65535, such as 25
posthaste.toml:6:13: relay.networks is \"10.0.0.0/99\"; write a network with its prefix length, such as \"127.0.0.0/8\"
posthaste.toml:6:42: relay.networks is 5; write text in quotes, such as \"127.0.0.0/8\"
posthaste.toml:9:1: retry.jitter is 3; write a number from 0 to 0.9
posthaste.toml:13:1: unknown key \"user\" in [[route]]; did you mean \"username\"?
POSTHASTE_DNS__VALIDATE: dns.validate is \"maybe\"; write true or false";
    assert_eq!(problems(text, &[("POSTHASTE_DNS__VALIDATE", "maybe")]), expected);
}

#[test]
fn the_environment_sets_every_kind_of_key_over_the_file() {
    let text = "[spool]\npath = \"a\"\ncache = \"8MiB\"\n[[listener]]\naddress = \"127.0.0.1:1\"\n";
    let (config, source) = read(
        text,
        &[
            ("POSTHASTE_SPOOL__PATH", "12"),
            ("posthaste_Retry__schedule", "1m, 5m"),
            ("POSTHASTE_RETRY__JITTER", "0.5"),
            ("POSTHASTE_RELAY__NETWORKS", "127.0.0.0/8,::1/128"),
            ("POSTHASTE_DNS__SERVERS", "[\"127.0.0.1:53\"]"),
            ("POSTHASTE_HTTP__HOSTS", ""),
            ("POSTHASTE_DNS__VALIDATE", "true"),
            ("POSTHASTE_DELIVERY__CONNECTIONS", "7"),
            ("POSTHASTE_DELIVERY__TLS", "off"),
            ("POSTHASTE_LISTENER__1__ADDRESS", "127.0.0.1:3"),
            ("POSTHASTE_LISTENER__0__ADDRESS", "127.0.0.1:2"),
            ("POSTHASTE_ROUTE__0__DOMAINS", "a.example,*.b.example"),
            ("POSTHASTE_ROUTE__0__HOSTS__0", "hub.example"),
            ("POSTHASTE_ROUTE__0__CONNECTIONS", "3"),
            ("POSTHASTE_RETRY__FOR__0__GIVE_UP_AFTER", "2d"),
            // What a container system sets for a service of this name is not ours.
            ("POSTHASTE_SERVICE_HOST", "10.0.0.1"),
            ("POSTHASTE_PORT_2525_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!((config.spool.path.to_str().unwrap(), config.spool.cache), ("12", 8 << 20));
    assert_eq!(config.retry.schedule, [Duration::from_secs(60), Duration::from_secs(300)]);
    assert!((config.retry.jitter - 0.5).abs() < f64::EPSILON);
    assert_eq!((config.relay.networks.len(), config.dns.servers.len(), config.http.hosts.len()), (2, 1, 0));
    assert!(config.dns.validate);
    assert_eq!((config.delivery.connections, config.delivery.tls), (7, crate::config::TlsPolicy::Off));
    let ports: Vec<u16> = config.listeners.iter().map(|listener| listener.address.port()).collect();
    assert_eq!(ports, [2, 3]);
    let route = &config.routes[0];
    assert_eq!(
        (route.domains.len(), route.hosts[0].as_str(), route.connections),
        (2, "hub.example", Some(3))
    );
    assert_eq!(config.retry.overrides[0].give_up_after, Some(Duration::from_secs(2 * 86_400)));
    assert_eq!(source.to_string(), "posthaste.toml and 15 environment variables");
}

#[test]
fn a_bad_variable_is_named() {
    for (name, value, expected) in [
        (
            "POSTHASTE_DELIVERY__CONECTIONS",
            "7",
            "unknown key \"conections\" in [delivery]; did you mean \"connections\"?",
        ),
        (
            "POSTHASTE_DELIVERY__PORT",
            "smtp",
            "delivery.port is \"smtp\"; write a whole number up to 65535, such as 25",
        ),
        (
            "POSTHASTE_DELIVERY__PORT",
            "70000",
            "delivery.port is \"70000\"; write a whole number up to 65535, such as 25",
        ),
        (
            "POSTHASTE_RELAY__NETWORKS",
            "127.0.0.0/8,ten",
            "relay.networks is \"ten\"; write a network with its prefix length, such as \"127.0.0.0/8\"",
        ),
        ("POSTHASTE_SPOL__PATH", "x", "unknown section [spol]; did you mean [spool]?"),
        (
            "POSTHASTE_LISTENER__ADDRESS",
            "127.0.0.1:25",
            "listener is a list; write [[listener]] in the file, POSTHASTE_LISTENER__0__… in the environment",
        ),
        (
            "POSTHASTE_LISTENER__3__ADDRESS",
            "127.0.0.1:25",
            "listener has 0 entries so far; the next one is number 0",
        ),
        ("POSTHASTE_SPOOL__PATH__X", "y", "spool.path is a single value, nothing can stand under it"),
        (
            "POSTHASTE_SPOOL_PATH",
            "y",
            "two underscores stand between section and key; name it POSTHASTE_SPOOL__PATH",
        ),
    ] {
        let found = problems("[spool]\npath = \"x\"\n", &[(name, value)]);
        assert_eq!(found, format!("{name}: {expected}"));
    }
}

#[test]
fn problems_of_meaning_find_the_line_or_variable_of_their_key() {
    let text = "[retry]\nschedule = [\"1m\",\n  \"0\"]\n[[route]]\ndomains = [\"*\"]\n";
    let (config, source) = read(text, &[("POSTHASTE_LIMITS__RECIPIENTS", "5")]).unwrap();
    let mut problems = rules::check(&config);
    problems.push(Problem::error_at("spool.path", "of a key that nobody set"));
    source.locate(&mut problems);
    let places: Vec<String> = problems.iter().map(|problem| problem.place.to_string()).collect();
    assert_eq!(
        places,
        ["POSTHASTE_LIMITS__RECIPIENTS", "posthaste.toml:4:1", "posthaste.toml:3:3", "configuration"]
    );
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("conf.toml");
    let check = |expected: &str| {
        let found = load(Some(&path), std::iter::empty()).unwrap_err().to_string();
        assert!(found.starts_with(&format!("{}: {expected}", path.display())), "{found}");
    };
    check("there is no such file; ");
    std::fs::create_dir(&path).unwrap();
    check("it can't be read: ");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, b"[server]\nhostname = \"\xff\"\n").unwrap();
    check("line 2 is not UTF-8; ");
    std::fs::write(&path, b"[server]\nworkers = 3\n").unwrap();
    let (config, source) = load(Some(&path), std::iter::empty()).unwrap();
    assert_eq!((config.server.workers, source.file.as_deref()), (3, Some(path.as_path())));
}

#[test]
fn no_text_makes_the_reader_hang_or_panic() {
    let pieces =
        ["[", "]", "[[", "route", "spool", "retry.for", ".", "=", "\"", "5", "{", "}", ",", "\n", "ü", "[]"];
    let mut seed = 7_usize;
    for _ in 0..2000 {
        let mut text = String::new();
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(pieces[(seed >> 33) % pieces.len()]);
        }
        let _ = read(
            &text,
            &[("POSTHASTE_RETRY__FOR__0__X", "5"), ("POSTHASTE___", &text), ("POSTHASTE_é__é", "")],
        );
    }
}

#[test]
fn a_route_to_the_relay_itself_is_told_with_what_could_not_be_read() {
    let route = "[[route]]\ndomains = [\"*\"]\nhosts = [\"127.0.0.1:2525\"]\n";
    let told = problems(&format!("{route}[limits]\nsesions = 1\n"), &[]);
    assert!(told.contains("leads to this relay itself") && told.contains("sesions"), "{told}");
    assert!(told.starts_with("posthaste.toml:3:") || told.contains(":3:1"), "{told}");
    // Where the relay listens is not known then.
    let told = problems(&format!("{route}[[listener]]\naddress = \"here\"\n"), &[]);
    assert!(!told.contains("this relay itself"), "{told}");
}
