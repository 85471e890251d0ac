//! `curl`: as a client that submits mail, and as whoever looks at the relay over HTTP.

use crate::peer::{self, Said};
use crate::support::place;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::Sink;

/// Status and body of a GET.
fn get(relay: &Relay, path: &str, more: &[&str]) -> Said {
    let url = format!("http://{}{path}", relay.http());
    let args = ["--silent", "--show-error", "--max-time", "20", "--write-out", "\nstatus %{http_code}"];
    let said = peer::run("curl", args.iter().chain(more).copied().chain([url.as_str()]));
    said.succeeded();
    said
}

#[test]
fn curl_submits_a_message() {
    let sink = Sink::friendly();
    let relay = Setup::new().route("*", sink.address()).start();
    let file = relay.folder().join("message");
    std::fs::write(&file, "Subject: by curl\r\n\r\nhello\r\n.dotted\r\n").unwrap();
    let url = format!("smtp://{}/curl.test", relay.smtp());
    let said = peer::run(
        "curl",
        [
            "--silent",
            "--show-error",
            &url,
            "--mail-from",
            "me@sender.test",
            "--mail-rcpt",
            "you@x.test",
            "--mail-rcpt",
            "her@x.test",
            "--upload-file",
            &file.display().to_string(),
        ],
    );
    said.succeeded();
    let line = sink.await_mail_for("you@x.test");
    assert!(line.text().ends_with("\r\n\r\nhello\r\n.dotted\r\n"), "{:?}", line.text());
    sink.await_mail_for("her@x.test");
}

#[test]
fn health_and_metrics_are_open() {
    let relay = Setup::new().start();
    get(&relay, "/livez", &[]).with("status 200");
    get(&relay, "/readyz", &[]).with("status 200");
    get(&relay, "/metrics", &[])
        .with("# TYPE posthaste_messages_accepted_total counter")
        .with("# HELP posthaste_queue_messages ")
        .with("status 200");
    get(&relay, "/nothing", &[]).with("status 404");
}

#[test]
fn the_queue_api_needs_the_token() {
    // Nobody listens there, so the mail stays.
    let relay = Setup::new().route("*", place::free_place()).start();
    assert_eq!(relay.submit(&["you@x.test"], b"Subject: stays\r\n\r\nhello\r\n").code, 250);
    let token = format!("Authorization: Bearer {}", relay.token());
    get(&relay, "/api/queue", &[]).with("status 401");
    get(&relay, "/api/queue", &["--header", "Authorization: Bearer wrong"]).with("status 401");
    get(&relay, "/api/queue", &["--header", &token]).with("you@x.test").with("status 200");
}

#[test]
fn a_request_for_another_host_is_refused() {
    let relay = Setup::new().start();
    let said = get(&relay, "/metrics", &["--header", "Host: evil.example"]);
    said.with("status 421");
    assert!(!said.text.contains("posthaste_messages_accepted_total"));
}
