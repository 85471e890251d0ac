//! The sink over real sockets on loopback, with a client that sends in one write and reads until it knows enough.

use std::net::Ipv4Addr;
use std::time::Duration;

use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::config::pattern::DomainPattern;
use crate::smtp::address::ForwardPath;
use crate::smtp::server::Refusal;

const DIALOGUE: [&str; 6] = [
    "EHLO client.example\r\n",
    "MAIL FROM:<ann@sender.example>\r\n",
    "RCPT TO:<joe@one.example>\r\n",
    "RCPT TO:<joe@two.example>\r\n",
    "DATA\r\n",
    "Subject: s\r\n\r\n..dot\r\n.\r\n",
];

fn sink(rules: Rules) -> Sink {
    Sink::bind((Ipv4Addr::LOCALHOST, 0).into(), Arc::new(rules)).expect("a free port")
}

fn domain(text: &str) -> DomainPattern {
    DomainPattern::try_from(text.to_owned()).expect("good")
}

fn later() -> Refusal {
    Refusal::new(451, (4, 7, 1), "come back later")
}

fn busy() -> Refusal {
    Refusal::new(421, (4, 3, 2), "too busy")
}

/// Says the lines, each after the answer to the one before. Returns the codes, up to the end of the connection.
async fn talk(sink: &Sink, lines: &[&str]) -> Vec<u16> {
    let mut socket = TcpStream::connect(sink.address()).await.expect("connects");
    let mut codes = Vec::new();
    let mut lines = lines.iter();
    while let Some(code) = last_code(&mut socket).await {
        codes.push(code);
        let Some(line) = lines.next() else { break };
        if socket.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    codes
}

/// The code of the next reply, all of its lines read; `None` at the end of the connection.
async fn last_code(socket: &mut TcpStream) -> Option<u16> {
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(socket.read_u8().await.ok()?);
        }
        if line[3] == b' ' {
            return std::str::from_utf8(&line[..3]).ok()?.parse().ok();
        }
    }
}

async fn check(rules: Rules, expected_codes: &[u16], expected_messages: usize) -> Sink {
    let sink = sink(rules);
    let codes = timeout(Duration::from_secs(10), talk(&sink, &DIALOGUE)).await.expect("no tarpit");
    assert_eq!(codes, expected_codes);
    assert_eq!(sink.count(), expected_messages);
    sink
}

#[tokio::test]
async fn what_is_sent_is_kept_as_it_came() {
    let sink = check(Rules::new(), &[220, 250, 250, 250, 250, 354, 250], 1).await;
    sink.wait_for(1).await;
    let received = sink.received();
    assert_eq!(received[0].reverse_path.as_str(), "ann@sender.example");
    let recipients: Vec<_> = received[0].recipients.iter().map(ForwardPath::as_str).collect();
    assert_eq!(recipients, ["joe@one.example", "joe@two.example"]);
    assert_eq!(received[0].content, "Subject: s\r\n\r\n.dot\r\n");
    assert_eq!((sink.connections(), sink.most_open_connections()), (1, 1));
}

#[tokio::test]
async fn a_connection_can_be_refused_or_dropped() {
    check(Rules::new().always(Stage::Connect, domain("*"), Answer::Refuse(busy())), &[421], 0).await;
    check(Rules::new().always(Stage::Connect, domain("*"), Answer::Drop), &[], 0).await;
}

#[tokio::test]
async fn a_recipient_can_be_refused_once_and_then_taken() {
    let rules = Rules::new().first(1, Stage::Recipient, domain("one.example"), Answer::Refuse(later()));
    let sink = check(rules, &[220, 250, 250, 451, 250, 354, 250], 1).await;
    assert_eq!(sink.received()[0].recipients.len(), 1);
    assert_eq!(talk(&sink, &DIALOGUE).await, [220, 250, 250, 250, 250, 354, 250]);
    assert_eq!(sink.received()[1].recipients.len(), 2);
}

#[tokio::test]
async fn a_message_can_be_refused_dropped_or_thrown_away() {
    for (stage, answer, codes, kept, counted) in [
        (Stage::Data, Answer::Refuse(later()), &[220, 250, 250, 250, 250, 451, 500][..], 0, 0),
        (Stage::Data, Answer::Drop, &[220, 250, 250, 250, 250, 354], 0, 0),
        (Stage::Message, Answer::Refuse(later()), &[220, 250, 250, 250, 250, 354, 451], 0, 0),
        (Stage::Message, Answer::Drop, &[220, 250, 250, 250, 250, 354], 0, 0),
        (Stage::Message, Answer::TakeAndDrop, &[220, 250, 250, 250, 250, 354], 1, 1),
        (Stage::Message, Answer::Discard, &[220, 250, 250, 250, 250, 354, 250], 0, 1),
    ] {
        let sink = check(Rules::new().always(stage, domain("*"), answer), codes, counted).await;
        assert_eq!(sink.received().len(), kept);
    }
}

#[tokio::test]
async fn a_tarpit_holds_its_client_until_it_goes() {
    let sink = sink(Rules::new().always(Stage::Recipient, domain("two.example"), Answer::Hang));
    let mut socket = TcpStream::connect(sink.address()).await.expect("connects");
    for line in &DIALOGUE[..4] {
        assert!(last_code(&mut socket).await.is_some());
        socket.write_all(line.as_bytes()).await.expect("open");
    }
    let silence = timeout(Duration::from_millis(50), last_code(&mut socket)).await;
    assert!(silence.is_err() && sink.open_connections() == 1);
    drop(socket);
    timeout(Duration::from_secs(10), async {
        while sink.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the connection is closed with its client");
}

#[tokio::test]
async fn dropping_a_sink_closes_its_connections() {
    let sink = sink(Rules::new());
    let mut socket = TcpStream::connect(sink.address()).await.expect("connects");
    assert_eq!(last_code(&mut socket).await, Some(220));
    drop(sink);
    assert_eq!(timeout(Duration::from_secs(10), last_code(&mut socket)).await, Ok(None));
}

#[tokio::test]
async fn connections_are_counted_while_they_are_open() {
    let sink = sink(Rules::new());
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(sink.address()).await.expect("connects");
        assert_eq!(last_code(&mut socket).await, Some(220));
        sockets.push(socket);
    }
    assert_eq!((sink.connections(), sink.open_connections(), sink.most_open_connections()), (3, 3, 3));
}
