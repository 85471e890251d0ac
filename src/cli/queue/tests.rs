//! The verbs against a relay that is only its HTTP side.
#![allow(clippy::unwrap_used)]

use clap::Parser;

use super::*;
use crate::actors::queue::messages::InMemory;
use crate::admin::tests::{FakeQueue, FakeRelay};
use crate::admin::view::tests::{NOW, last, message, queued};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    queue: QueueArgs,
}

fn args(line: &str) -> QueueArgs {
    Program::try_parse_from(["queue"].into_iter().chain(line.split_whitespace())).unwrap().queue
}

fn relay() -> (FakeRelay, Config, String) {
    let mut states = vec![queued(NOW + 300_000), queued(NOW)];
    states[0].attempts = 2;
    states[0].last = Some(last(NOW - 60_000, "connection refused \u{1b}[31m"));
    let message = message(states);
    let id = message.envelope.id.to_string();
    let queue = FakeQueue { memory: InMemory { in_flight: vec![1], ready: vec![] }, stuck: false };
    let relay = FakeRelay::start(vec![message], queue, NOW);
    let mut config = Config::default();
    config.http.address = relay.address;
    config.spool.path = relay.folder.path().to_owned();
    (relay, config, id)
}

#[test]
fn list_is_a_table() {
    let (_relay, config, id) = relay();
    let expected = format!(
        "\
ID                                AGE  SIZE  TRIES  NEXT  FROM                  TO                   LAST REPLY
{id}  1m   4KiB  2      now   <sender@app.example>  <r0@one.example> +1  4.4.1 connection refused ?[31m
"
    );
    assert_eq!(answer(&args("list"), &config).unwrap(), expected);
}

#[test]
fn show_tells_for_each_recipient_why_it_waits() {
    let (_relay, config, id) = relay();
    let expected = format!(
        "\
message   {id}
from      <sender@app.example>
arrived   2023-11-15T11:59:00.000Z (1m ago)
size      4096 bytes
origin    embedded

recipient 0   <r0@one.example>
  destination one.example
  status      queued, 2 attempts
  waits       next attempt at 2023-11-15T12:05:00.000Z (in 5m)
  next        2023-11-15T12:05:00.000Z (in 5m)
  last reply  4.4.1 connection refused ?[31m (2023-11-15T11:59:00.000Z (1m ago), mx.one.example[192.0.2.1]:25)

recipient 1   <r1@one.example>
  destination one.example
  status      queued, 0 attempts
  waits       in flight: it is being attempted now
"
    );
    assert_eq!(answer(&args(&format!("show {id}")), &config).unwrap(), expected);
}

#[test]
fn a_list_of_nothing_is_refused_and_the_end_of_a_list_is_told() {
    let (_relay, config, id) = relay();
    let refused = Program::try_parse_from(["queue", "list", "--limit", "0"]).err().unwrap().to_string();
    assert!(refused.contains("0 is not in 1.."), "{refused}");
    assert_eq!(answer(&args(&format!("list --after {id}")), &config).unwrap(), "no more messages\n");
}

#[test]
fn what_was_said_before_a_delivery_is_not_its_reason() {
    let mut states = vec![queued(NOW), queued(NOW)];
    states[0].status = Status::Delivered;
    states[0].last = Some(last(NOW - 60_000, "try later"));
    let relay = FakeRelay::start(vec![message(states)], FakeQueue::default(), NOW);
    let mut config = Config::default();
    config.http.address = relay.address;
    config.spool.path = relay.folder.path().to_owned();
    let id = message(vec![]).envelope.id;
    let told = answer(&args(&format!("show {id}")), &config).unwrap();
    assert!(told.contains("  before      4.4.1 try later") && !told.contains("last reply"), "{told}");
}

#[test]
fn retry_and_remove_say_what_was_done() {
    let (_relay, config, id) = relay();
    assert_eq!(
        answer(&args(&format!("remove {id} --recipient 0")), &config).unwrap(),
        "1 recipient removed\n"
    );
    assert_eq!(
        answer(&args(&format!("retry {id}")), &config).unwrap(),
        "2 recipients due now\n1 recipient in flight: will be due at once when the attempt reports, unless it is delivered\n"
    );
    let error = answer(&args(&format!("remove {id} --recipient 7")), &config).unwrap_err().to_string();
    assert!(error.contains(&id) && error.contains("mail log"), "{error}");
}

#[test]
fn json_is_the_answer_of_the_api() {
    let (_relay, config, id) = relay();
    let page: QueuePage = serde_json::from_str(&answer(&args("list --json"), &config).unwrap()).unwrap();
    assert_eq!(page.messages[0].id, id);
    let shown: MessageView =
        serde_json::from_str(&answer(&args(&format!("show {id} --json")), &config).unwrap()).unwrap();
    assert_eq!(shown.recipients[0].attempts, 2);
}

#[test]
fn an_unknown_id_a_wrong_token_and_a_bad_id_have_clear_words() {
    let (relay, config, id) = relay();
    let unknown = id.replace('7', "8");
    let error = answer(&args(&format!("show {unknown}")), &config).unwrap_err().to_string();
    assert!(error.contains("mail log"), "{error}");
    std::fs::write(relay.folder.path().join("api-token"), "0".repeat(64)).unwrap();
    let error = answer(&args("list"), &config).unwrap_err().to_string();
    assert!(error.contains("same relay"), "{error}");
    let error = Program::try_parse_from(["queue", "show", &id[..8]]).err().unwrap().to_string();
    assert!(error.contains("32 hexadecimal digits"), "{error}");
}
