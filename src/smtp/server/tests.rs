//! The machine by itself; whole dialogues are in `tests/transcripts`.

use proptest::prelude::*;

use super::*;

fn settings() -> ServerSettings {
    ServerSettings {
        hostname: "relay.example".to_owned(),
        may_relay: true,
        message_size: 1000,
        recipients: 3,
        errors: 5,
    }
}

/// Drives a machine with a driver that allows everything; returns all output and all finished contents.
fn dialogue(pieces: &[&[u8]]) -> (String, Vec<Vec<u8>>) {
    let mut server = Server::new(settings());
    let (mut output, mut contents, mut closed) = (Vec::new(), Vec::new(), false);
    for piece in pieces {
        if closed {
            break;
        }
        server.handle_bytes(piece);
        while let Some(event) = server.poll_event() {
            match event {
                Event::MailWanted | Event::DataWanted => server.allow(),
                Event::MessageEnd(_) => {
                    contents.push(server.content().split().to_vec());
                    server.accepted("id");
                }
                Event::Close => closed = true,
                Event::Content | Event::Reset | Event::Refused { .. } => {}
            }
        }
        output.extend_from_slice(&server.transmit().split());
    }
    (String::from_utf8(output).expect("ASCII"), contents)
}

#[test]
fn two_messages_pass_over_one_connection() {
    let (output, contents) = dialogue(&[
        b"EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
        b"one\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nDATA\r\ntwo\r\n.\r\nQUIT\r\n",
    ]);
    assert_eq!(contents, [b"one\r\n".to_vec(), b"two\r\n".to_vec()]);
    assert_eq!(output.matches("queued as id").count(), 2, "{output}");
    assert!(output.ends_with("221 2.0.0 bye\r\n"), "{output}");
}

#[test]
fn what_is_smuggled_behind_a_bare_line_feed_is_never_a_command() {
    for smuggled in ["\n.\n", "\n.\r\n", "\r.\r\n", "\r\n.\n", "\r\n.\r\r\n"] {
        let content = format!(
            "hello{smuggled}MAIL FROM:<evil@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nx\r\n.\r\n"
        );
        let (output, contents) = dialogue(&[
            b"EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
            content.as_bytes(),
        ]);
        assert!(contents.is_empty(), "{smuggled:?}");
        assert!(
            output.ends_with("521 5.5.2 bare CR or LF in the message; end each line with CR and LF\r\n"),
            "{output}"
        );
    }
}

#[test]
fn a_verdict_stops_the_parser_until_it_is_given() {
    let mut server = Server::new(settings());
    server.handle_bytes(b"EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n");
    assert_eq!(server.poll_event(), Some(Event::MailWanted));
    assert_eq!(server.poll_event(), None);
    assert!(!server.wants_input());
    server.transmit().clear();
    server.refuse(Refusal::new(452, (4, 3, 1), "busy"));
    let output = String::from_utf8(server.transmit().to_vec()).expect("ASCII");
    assert_eq!(output, "452 4.3.1 busy\r\n503 5.5.1 send MAIL first\r\n");
}

#[test]
fn closing_waits_for_the_answer_to_a_message_that_is_coming_in() {
    let mut server = Server::new(settings());
    server.handle_bytes(b"HELO c.example\r\nMAIL FROM:<a@b.example>\r\n");
    server.allow();
    server.handle_bytes(b"RCPT TO:<c@d.example>\r\nDATA\r\n");
    server.allow();
    server.close(Refusal::new(421, (4, 3, 2), "stopping"));
    server.handle_bytes(b"text\r\n.\r\n");
    server.transmit().clear();
    server.accepted("id");
    let output = String::from_utf8(server.transmit().to_vec()).expect("ASCII");
    assert_eq!(output, "250 2.0.0 ok, queued as id\r\n421 4.3.2 stopping\r\n");
    assert!(std::iter::from_fn(|| server.poll_event()).any(|event| event == Event::Close));
}

/// A machine behind EHLO and MAIL, allowed, with one recipient.
fn in_mail(settings: ServerSettings) -> Server {
    let mut server = Server::new(settings);
    server.handle_bytes(b"EHLO c.example\r\nMAIL FROM:<a@b.example>\r\n");
    server.allow();
    server.handle_bytes(b"RCPT TO:<c@d.example>\r\n");
    while server.poll_event().is_some() {}
    server.transmit().clear();
    server
}

fn said(server: &mut Server) -> String {
    String::from_utf8(server.transmit().split().to_vec()).expect("ASCII")
}

fn events(server: &mut Server) -> Vec<Event> {
    std::iter::from_fn(|| server.poll_event()).collect()
}

#[test]
fn a_recipient_is_asked_about_only_when_it_would_be_taken() {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut server = Server::new(settings());
    let count = asked.clone();
    server.on_recipient(move |path| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (path.as_str() == "no@d.example").then(|| Refusal::new(550, (5, 1, 1), "no\r\n250 such user"))
    });
    server.handle_bytes(b"HELO c.example\r\nRCPT TO:<early@d.example>\r\nMAIL FROM:<a@b.example>\r\n");
    server.allow();
    server.transmit().clear();
    server.handle_bytes(b"RCPT TO:<no@d.example>\r\nRCPT TO:<c@d.example>\r\n");
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
    assert_eq!(said(&mut server), "550 5.1.1 no??250 such user\r\n250 2.1.5 recipient ok\r\n");
}

#[test]
fn a_session_that_is_cut_off_asks_for_nothing_more() {
    let mut server = in_mail(settings());
    server.handle_bytes(b"DATA\r\n");
    server.allow();
    server.handle_bytes(b"text\r\n.\r\n");
    server.close_now(Refusal::new(451, (4, 3, 0), "can't write"));
    let events = events(&mut server);
    assert!(
        matches!(
            events.as_slice(),
            [Event::Reset, Event::Refused { command: "connection", .. }, Event::Close]
        ),
        "{events:?}"
    );
    assert!(said(&mut server).ends_with("451 4.3.0 can't write\r\n"));
    server.accepted("id");
    assert_eq!(said(&mut server), "");
}

#[test]
fn a_client_that_may_not_relay_holds_nothing_and_delays_no_drain() {
    let mut server = Server::new(ServerSettings { may_relay: false, ..settings() });
    server.handle_bytes(b"EHLO c.example\r\nMAIL FROM:<a@b.example>\r\n");
    assert_eq!(events(&mut server), []);
    assert!(!server.in_transaction());
    server.handle_bytes(b"RSET\r\nQUIT\r\n");
    assert_eq!(events(&mut server), [Event::Close]);
}

#[test]
fn an_idle_session_holds_no_large_buffer() {
    let mut settings = settings();
    settings.message_size = 1 << 20;
    let mut server = in_mail(settings);
    // The content comes in the burst of DATA, so it is buffered as input first.
    let mut burst = b"DATA\r\n".to_vec();
    burst.extend_from_slice(&b"some text\r\n".repeat(5000));
    burst.extend_from_slice(b".\r\n");
    server.handle_bytes(&burst);
    server.allow();
    let taken = server.content().split().freeze();
    server.accepted("id");
    drop(taken);
    assert_eq!(said(&mut server).matches("250 2.0.0").count(), 1);
    server.handle_bytes(b"NOOP\r\n");
    for (name, buffer) in [("input", &server.input), ("content", &server.content), ("output", &server.output)]
    {
        assert!(buffer.capacity() <= IDLE_BUFFER_MAX, "{name}: {}", buffer.capacity());
    }
}

#[test]
fn no_burst_makes_the_server_say_more_than_it_hears() {
    for flood in ["\r\n", "NOOP\r\n", "HELP\r\n", "EHLO x\r\n", "VRFY x\r\n", "RCPT TO:<a@b.example>\r\n"] {
        let mut server = in_mail(ServerSettings { errors: 20, ..settings() });
        server.handle_bytes(&flood.repeat((64 << 10) / flood.len()).into_bytes());
        assert!(server.transmit().len() < 100 << 10, "{flood:?}: {}", server.transmit().len());
    }
}

#[test]
fn an_endless_command_line_is_not_kept() {
    let mut server = Server::new(settings());
    for _ in 0..1000 {
        server.handle_bytes(&[b'x'; 1000]);
    }
    assert!(server.input.len() <= COMMAND_LINE_MAX);
    assert!(server.input.capacity() <= 2 * COMMAND_LINE_MAX, "{}", server.input.capacity());
}

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop_oneof![
        Just("EHLO a.example\r\n"),
        Just("MAIL FROM:<a@b.example>\r\n"),
        Just("RCPT TO:<c@d.example>\r\n"),
        Just("DATA\r\n"),
        Just("text\r\n"),
        Just("..\r\n"),
        Just(".\r\n"),
        Just("\n"),
        Just("\r"),
        Just("RSET\r\n"),
        Just("QUIT\r\n"),
        Just("\u{0}\u{7f}é"),
        Just("Received: x\r\n"),
        Just("NOOP"),
        Just("\r\n"),
        Just("."),
    ];
    prop::collection::vec(lines, 1..40).prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    #[test]
    fn any_split_of_any_input_gives_the_same_answers(input in fragments(), cuts in prop::collection::vec(1usize..7, 1..20)) {
        let whole = dialogue(&[&input]);
        prop_assume!(!input.is_empty());
        let mut pieces = Vec::new();
        let (mut rest, mut cuts) = (input.as_slice(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        prop_assert_eq!(dialogue(&pieces), whole);
    }

    #[test]
    fn random_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 1..500)) {
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        prop_assert_eq!(dialogue(&bytes), dialogue(&[&input]));
    }
}
