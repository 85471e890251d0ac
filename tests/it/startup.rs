//! Trouble at the start: the relay ends with a message that names what is wrong and what to do.

use std::net::TcpListener;

use crate::support::relay::{Ended, Setup};
use crate::support::{PATIENCE, http};

/// The program must fail, and say each of `words`.
#[track_caller]
fn check_refused(ended: &Ended, words: &[&str]) {
    assert!(!ended.status.success(), "it ended with {}, saying:\n{}", ended.status, ended.output);
    let said = ended.output.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "\"{word}\" is not in:\n{}", ended.output);
    }
    assert!(!said.contains("panicked"), "a message is wanted, not a panic:\n{}", ended.output);
}

#[test]
fn it_serves_smtp_and_http_and_says_where() {
    let mut relay = Setup::new().start();
    let reply = relay.client().command("NOOP").unwrap();
    assert_eq!(reply.code, 250);
    assert_eq!(http::get(relay.http(), "/livez").unwrap().status, 200);
    let output = relay.output();
    for place in [relay.smtp().to_string(), relay.http().to_string()] {
        assert!(output.contains(&place), "it does not say that it listens on {place}:\n{output}");
    }
    assert!(!relay.has_ended());
}

#[test]
fn a_taken_smtp_port_is_named() {
    let setup = Setup::new();
    let _taken = TcpListener::bind(setup.smtp).unwrap();
    check_refused(&setup.run_to_end(), &[&setup.smtp.to_string(), "in use"]);
}

#[test]
fn a_taken_http_port_is_named() {
    let setup = Setup::new();
    let _taken = TcpListener::bind(setup.http).unwrap();
    check_refused(&setup.run_to_end(), &[&setup.http.to_string(), "in use"]);
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let setup = Setup::new();
    check_refused(&setup.run(&["serve", "--config", "nowhere.toml"]), &["nowhere.toml", "no such file"]);
}

#[test]
fn a_configuration_that_can_not_be_read_is_named() {
    let setup = Setup::new();
    // A folder can't be read as a file, by root neither.
    std::fs::create_dir(setup.folder().join("folder.toml")).unwrap();
    check_refused(&setup.run(&["serve", "--config", "folder.toml"]), &["folder.toml", "read"]);
}

#[test]
fn a_wrong_configuration_is_named_with_its_line_and_the_remedy() {
    // The keys are sorted, so that each text's line is known by looking for it.
    for (key, value, words) in [
        ("limits.idle_timout", "\"1s\"", &["idle_timout", "idle_timeout"][..]),
        ("limits.idle_timeout", "\"soon\"", &["idle_timeout", "soon", "5m"]),
        ("limits.message_size", "\"big\"", &["message_size", "big", "MiB"]),
        ("relay.networks", "[\"not a network\"]", &["networks", "not a network"]),
        ("delivery.tls", "\"perhaps\"", &["tls", "perhaps", "opportunistic"]),
    ] {
        let setup = Setup::new().set(key, value);
        let text = setup.toml();
        let line = 1 + text.lines().position(|line| line.starts_with(key)).unwrap();
        let ended = setup.run_to_end();
        check_refused(&ended, words);
        check_refused(&ended, &[&format!("posthaste.toml:{line}")]);
    }
}

#[test]
fn a_route_to_the_relay_itself_is_refused_with_its_line() {
    let setup = Setup::new();
    let own = setup.smtp;
    let setup = setup.route("loop.test", own);
    let line = 1 + setup.toml().lines().position(|line| line.starts_with("hosts")).unwrap();
    let words =
        [&format!("posthaste.toml:{line}:"), "route number 1", "this relay itself", "name another host"];
    check_refused(&setup.run_to_end(), &words);
    check_refused(&setup.run(&["check"]), &words);
}

#[test]
fn check_names_a_port_that_another_program_has_and_only_warns_of_a_relay_s_own() {
    let setup = Setup::new();
    let taken = TcpListener::bind(setup.smtp).unwrap();
    check_refused(
        &setup.run(&["check"]),
        &["posthaste.toml:", &setup.smtp.to_string(), "another program has it"],
    );
    drop(taken);
    let relay = setup.start();
    let checked = relay.verb(&["check"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    assert_eq!(said.matches("by the posthaste that is running").count(), 2, "{said}");
}

#[test]
fn check_names_a_spool_that_can_not_be_made() {
    let setup = Setup::new().set("spool.path", "\"file/spool\"");
    std::fs::write(setup.folder().join("file"), "in the way").unwrap();
    check_refused(&setup.run(&["check"]), &["posthaste.toml:", "file is no folder", "spool.path"]);
}

#[test]
fn check_reports_without_starting() {
    let setup = Setup::new().set("server.hostnam", "\"x.test\"");
    check_refused(&setup.run(&["check", "--config", "posthaste.toml"]), &["hostnam", "hostname"]);
    assert!(!setup.folder().join("spool").exists(), "check must not create a spool");
}

#[test]
fn a_locked_spool_is_named() {
    let first = Setup::new().start();
    let path = first.folder().join("spool");
    let second = Setup::new().set("spool.path", &format!("\"{}\"", path.display()));
    check_refused(&second.run_to_end(), &[&path.display().to_string(), "another"]);
    assert_eq!(first.client().command("NOOP").unwrap().code, 250, "the first one must not mind");
}

#[test]
fn a_spool_path_that_can_not_be_a_folder_is_named() {
    let setup = Setup::new().set("spool.path", "\"file/spool\"");
    std::fs::write(setup.folder().join("file"), "in the way").unwrap();
    check_refused(&setup.run_to_end(), &["file/spool"]);
}

#[test]
fn spool_and_token_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let relay = Setup::new().start();
    let mut folders = vec![relay.folder().join("spool")];
    let token = relay.folder().join("spool/api-token");
    assert_eq!(token.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    while let Some(folder) = folders.pop() {
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        folders.extend(entries.filter(|path| path.is_dir()));
    }
}

#[test]
fn it_starts_again_after_a_kill_with_the_same_token() {
    let mut relay = Setup::new().start();
    let token = relay.token();
    relay.kill();
    relay.restart();
    relay.await_ready();
    assert_eq!(relay.token(), token);
    assert!(relay.ended_within(std::time::Duration::from_millis(100)).is_none(), "{PATIENCE:?}");
}

#[test]
fn too_few_open_files_are_refused_with_a_remedy() {
    let setup = Setup::new();
    std::fs::write(setup.folder().join("posthaste.toml"), setup.toml()).unwrap();
    for limit in [10, 20, 30] {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("ulimit -n {limit} && exec \"$0\" serve --config posthaste.toml")])
            .arg(crate::support::relay::program())
            .current_dir(setup.folder())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains("ulimit -n, LimitNOFILE=") && !said.contains("panicked"), "{limit}: {said}");
    }
}

#[test]
fn a_wrong_configuration_has_an_exit_code_of_its_own() {
    let own = Setup::new();
    let address = own.smtp;
    let wrong = [
        Setup::new().set("limits.sessions", "0"),
        Setup::new().set("limits.sesions", "1"),
        own.route("loop.test", address),
    ];
    for setup in wrong {
        for ended in [setup.run_to_end(), setup.run(&["check"])] {
            assert_eq!(ended.status.code(), Some(78), "{}", ended.output);
        }
    }
    // The configuration may be right where something is in its way.
    let setup = Setup::new();
    let _taken = TcpListener::bind(setup.smtp).unwrap();
    for ended in [setup.run_to_end(), setup.run(&["check"])] {
        assert_eq!(ended.status.code(), Some(1), "{}", ended.output);
    }
}
