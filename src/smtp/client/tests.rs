//! Dialogues: `S:` is what the server says, `C:` what the machine must send, `!` an event. Each runs whole, then with
//! the server's bytes one by one.

use super::*;
use crate::smtp::address::Mailbox;

#[derive(Clone, Debug)]
struct Script {
    tls: TlsUse,
    login: bool,
    recipients: usize,
    eight_bit_mime: bool,
    lines: &'static str,
}

const PLAIN: Script =
    Script { tls: TlsUse::WhenOffered, login: false, recipients: 1, eight_bit_mime: false, lines: "" };

fn path(number: usize) -> ForwardPath {
    ForwardPath::new(Mailbox::parse(&format!("r{number}@b.example")).expect("an address"))
}

fn begin(client: &mut Client, script: &Script) {
    let reverse_path = ReversePath::parse("s@a.example").expect("a path");
    let mail = MailCommand { reverse_path: &reverse_path, eight_bit_mime: script.eight_bit_mime, size: 1000 };
    let recipients: Vec<_> = (0..script.recipients).map(path).collect();
    client.begin(mail, recipients.iter());
}

/// One word for each event; for a transaction each recipient and the end.
fn word(event: &Event) -> String {
    match event {
        Event::Ready => "ready".to_owned(),
        Event::StartTls => "starttls".to_owned(),
        Event::SendContent => "content".to_owned(),
        Event::Closed => "closed".to_owned(),
        Event::Broken(trouble) => format!("broken {trouble}"),
        Event::Finished(facts) => {
            let mut text = "finished".to_owned();
            for answer in &facts.recipients {
                text += &match answer {
                    RcptAnswer::Unanswered => " ?".to_owned(),
                    RcptAnswer::Accepted => " +".to_owned(),
                    RcptAnswer::Refused(reply) => format!(" {}", reply.code.get()),
                };
            }
            text + &match &facts.end {
                End::Accepted(reply) => format!(", accepted {reply}"),
                End::Refused { step, reply } => format!(", {step:?} refused {reply}"),
                End::NoRecipient => ", nobody".to_owned(),
                End::TooLarge { limit } => format!(", above {limit}"),
                End::Broken(trouble) => format!(", {trouble}"),
            }
        }
    }
}

fn run(script: &Script, byte_by_byte: bool) {
    let login = Login { username: "tim".to_owned(), password: "tanstaaf".to_owned() };
    let mut client = Client::new(Options {
        hostname: "me.example".into(),
        tls: script.tls,
        login: script.login.then_some(login),
    });
    for line in script.lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (kind, rest) = line.split_at(2);
        let rest = rest.trim_start();
        match kind {
            "S:" => feed(&mut client, rest, byte_by_byte),
            "C:" => {
                let mut sent = Vec::new();
                client.poll_transmit(&mut sent);
                let sent = String::from_utf8(sent).expect("text").replace("\r\n", "|");
                assert_eq!(sent, format!("{rest}|"), "{script:#?}");
            }
            "! " => {
                let event =
                    client.poll_event().unwrap_or_else(|| panic!("no event for {line} of {script:#?}"));
                assert_eq!(word(&event), rest, "{script:#?}");
            }
            "> " => act(&mut client, script, rest),
            _ => panic!("what is {line}?"),
        }
    }
    assert_eq!(client.poll_event(), None, "{script:#?}");
    assert!(!client.poll_transmit(&mut Vec::new()), "nothing is left to send: {script:#?}");
}

fn feed(client: &mut Client, text: &str, byte_by_byte: bool) {
    let mut bytes = Vec::new();
    for line in text.split('|') {
        bytes.extend_from_slice(line.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let piece = if byte_by_byte { 1 } else { bytes.len() };
    bytes.chunks(piece).for_each(|piece| client.handle_bytes(piece));
}

fn act(client: &mut Client, script: &Script, what: &str) {
    match what {
        "begin" => begin(client, script),
        "sent" => client.content_sent(),
        "tls" => client.handle_tls_ready(),
        "no tls" => client.handle_tls_failed("bad certificate"),
        "timeout" => client.handle_timeout(),
        "lost" => client.handle_lost("reset by peer"),
        "abort" => client.handle_abort(),
        "quit" => client.quit(),
        timer => assert_eq!(format!("{:?}", client.poll_timeout()), timer),
    }
}

fn check(script: Script, lines: &'static str) {
    let script = Script { lines, ..script };
    run(&script, false);
    run(&script, true);
}

const TWO: Script = Script { recipients: 2, ..PLAIN };
const REQUIRED: Script = Script { tls: TlsUse::Always, ..PLAIN };
const LOGIN: Script = Script { tls: TlsUse::Always, login: true, ..PLAIN };

#[test]
fn without_pipelining_every_command_waits_for_its_reply() {
    check(
        TWO,
        "> Some(Greeting)
         S: 220 mx.example ESMTP
         C: EHLO me.example
         > Some(Command)
         S: 250 mx.example
         ! ready
         > None
         > begin
         C: MAIL FROM:<s@a.example>
         > Some(Mail)
         S: 250 ok
         C: RCPT TO:<r0@b.example>
         > Some(Rcpt)
         S: 250 ok
         C: RCPT TO:<r1@b.example>
         S: 550 5.1.1 who?
         C: DATA
         > Some(DataInit)
         S: 354 go
         ! content
         > Some(DataBlock)
         > sent
         > Some(DataDone)
         S: 250 2.0.0 queued
         ! finished + 550, accepted 250 2.0.0 queued
         > begin
         C: MAIL FROM:<s@a.example>
         S: 451 later
         ! finished ? ?, Mail refused 451 later
         > quit
         C: QUIT
         > Some(Quit)
         S: 221 bye
         ! closed",
    );
}

#[test]
fn with_pipelining_all_commands_go_in_one_burst() {
    check(
        TWO,
        "S: 220-mx.example|220 ESMTP
         C: EHLO me.example
         S: 250-mx.example|250-PIPELINING|250-SIZE 2000|250 8BITMIME
         ! ready
         > begin
         C: MAIL FROM:<s@a.example> SIZE=1000|RCPT TO:<r0@b.example>|RCPT TO:<r1@b.example>|DATA
         S: 250 ok|250 ok|450 later|354 go
         ! content
         > sent
         S: 250 done
         ! finished + 450, accepted 250 done
         > begin
         C: MAIL FROM:<s@a.example> SIZE=1000|RCPT TO:<r0@b.example>|RCPT TO:<r1@b.example>|DATA
         S: 250 ok|250 ok|250 ok|354 go
         ! content
         > sent
         S: 552 5.3.4 too big
         ! finished + +, FinalDot refused 552 5.3.4 too big",
    );
}

#[test]
fn a_burst_is_bounded() {
    let mut client = Client::new(Options { hostname: "me".into(), tls: TlsUse::Never, login: None });
    feed(&mut client, "220 hi|250-mx|250 PIPELINING", false);
    assert_eq!(client.poll_event(), Some(Event::Ready));
    client.poll_transmit(&mut Vec::new());
    begin(&mut client, &Script { recipients: 150, ..PLAIN });
    let mut sent = Vec::new();
    client.poll_transmit(&mut sent);
    assert_eq!(memchr::memchr_iter(b'\n', &sent).count(), 120);
    for answered in 1..=120 {
        assert!(!client.poll_transmit(&mut Vec::new()), "after {answered} replies");
        feed(&mut client, "250 ok", false);
    }
    sent.clear();
    client.poll_transmit(&mut sent);
    assert_eq!(memchr::memchr_iter(b'\n', &sent).count(), 32, "31 RCPT and DATA");
    assert!(sent.ends_with(b"RCPT TO:<r149@b.example>\r\nDATA\r\n"));
}

#[test]
fn eight_bit_mime_is_passed_on_only_where_offered() {
    let script = Script { eight_bit_mime: true, ..PLAIN };
    check(
        script.clone(),
        "S: 220 hi|250-mx|250 8BITMIME
         ! ready
         C: EHLO me.example
         > begin
         C: MAIL FROM:<s@a.example> BODY=8BITMIME",
    );
    check(
        script,
        "S: 220 hi|250 mx
         ! ready
         C: EHLO me.example
         > begin
         C: MAIL FROM:<s@a.example>",
    );
}

#[test]
fn a_message_above_the_announced_size_is_not_sent() {
    check(
        TWO,
        "S: 220 hi|250-mx|250 SIZE 999
         ! ready
         C: EHLO me.example
         > begin
         ! finished ? ?, above 999
         > None",
    );
}

#[test]
fn helo_follows_a_refused_ehlo() {
    check(
        PLAIN,
        "S: 220 hi
         C: EHLO me.example
         S: 502 what?
         C: HELO me.example
         S: 250 mx
         ! ready",
    );
    check(PLAIN, "S: 220 hi\nC: EHLO me.example\nS: 421 4.3.2 bye\n! broken EHLO refused");
    check(PLAIN, "S: 220 hi\nC: EHLO me.example\nS: 450 later\n! broken EHLO refused");
    check(PLAIN, "S: 554 go away\n! broken session refused");
    check(
        PLAIN,
        "S: 354 go\n! broken protocol error while waiting for the greeting: unexpected reply 354 go",
    );
    check(
        REQUIRED,
        "S: 220 hi|502 what?|250 mx\n! broken TLS is required, and the host does not offer STARTTLS",
    );
}

#[test]
fn after_starttls_everything_begins_again() {
    check(
        PLAIN,
        "S: 220 hi|250-mx|250-PIPELINING|250 STARTTLS
         C: EHLO me.example|STARTTLS
         S: 220 go
         ! starttls
         > Some(Command)
         > tls
         C: EHLO me.example
         S: 250 mx
         ! ready
         > begin
         C: MAIL FROM:<s@a.example>",
    );
    check(
        PLAIN,
        "S: 220 hi|250-mx|250 STARTTLS
         C: EHLO me.example|STARTTLS
         S: 220 go
         ! starttls
         > no tls
         ! broken the TLS handshake failed: bad certificate",
    );
}

#[test]
fn a_refused_starttls_matters_only_when_tls_is_required() {
    let dialogue = "S: 220 hi|250-mx|250 STARTTLS\nC: EHLO me.example|STARTTLS\nS: 454 not now\n";
    check(PLAIN, Box::leak(format!("{dialogue}! ready").into_boxed_str()));
    check(REQUIRED, Box::leak(format!("{dialogue}! broken STARTTLS refused").into_boxed_str()));
    let never = Script { tls: TlsUse::Never, ..PLAIN };
    check(never, "S: 220 hi|250-mx|250 STARTTLS\n! ready\nC: EHLO me.example");
}

/// CVE-2011-0411: what an attacker puts behind the 220 must not be taken for what TLS protects.
#[test]
fn bytes_before_the_handshake_break_the_conversation() {
    let script = Script {
        lines: "S: 220 hi|250-mx|250 STARTTLS
         C: EHLO me.example|STARTTLS
         S: 220 go|250 injected
         ! broken protocol error while starting TLS: data before the TLS handshake",
        ..PLAIN
    };
    run(&script, false);
}

const UNDER_TLS: &str =
    "S: 220 hi|250-mx|250 STARTTLS\nC: EHLO me.example|STARTTLS\nS: 220 go\n! starttls\n> tls\n";

fn check_login(lines: &str) {
    check(LOGIN, Box::leak(format!("{UNDER_TLS}C: EHLO me.example\n{lines}").into_boxed_str()));
}

#[test]
fn auth_is_plain_then_login_and_only_under_tls() {
    check_login("S: 250-mx|250 AUTH LOGIN PLAIN\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZg==\nS: 235 ok\n! ready");
    check_login(
        "S: 250-mx|250 AUTH PLAIN\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZg==\nS: 535 no\n! broken AUTH refused",
    );
    check_login(
        "S: 250-mx|250 AUTH LOGIN
         C: AUTH LOGIN
         S: 334 VXNlcm5hbWU6
         C: dGlt
         S: 334 UGFzc3dvcmQ6
         C: dGFuc3RhYWY=
         S: 235 ok
         ! ready",
    );
    check_login(
        "S: 250-mx|250 AUTH LOGIN PLAIN
         C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==
         S: 504 what?
         C: AUTH LOGIN
         S: 535 no
         ! broken AUTH refused",
    );
    let not_offered = "a login is configured, and the host does not offer AUTH PLAIN or LOGIN under TLS";
    check_login(&format!("S: 250-mx|250 AUTH CRAM-MD5\n! broken {not_offered}"));
    let clear = Script { tls: TlsUse::WhenOffered, ..LOGIN };
    let lines = format!("S: 220 hi|250-mx|250 AUTH PLAIN\n! broken {not_offered}");
    check(clear, Box::leak(lines.into_boxed_str()));
}

const PIPELINED: &str = "S: 220 hi|250-mx|250 PIPELINING\n! ready\nC: EHLO me.example\n> begin\n\
    C: MAIL FROM:<s@a.example>|RCPT TO:<r0@b.example>|RCPT TO:<r1@b.example>|DATA\n";

fn check_pipelined(lines: &str) {
    check(TWO, Box::leak(format!("{PIPELINED}{lines}").into_boxed_str()));
}

#[test]
fn a_pipelined_data_with_nobody_accepted_ends_without_the_message() {
    const AGAIN: &str =
        "> begin\nC: RSET|MAIL FROM:<s@a.example>|RCPT TO:<r0@b.example>|RCPT TO:<r1@b.example>|DATA";
    for code in [503, 554] {
        check_pipelined(&format!("S: 250 ok|550 no|450 no|{code} no\n! finished 550 450, nobody\n{AGAIN}"));
    }
    check_pipelined(
        "S: 250 ok|550 no|550 no|354 go
         C: .
         > Some(DataDone)
         S: 554 no valid recipients
         ! finished 550 550, nobody",
    );
    check_pipelined("S: 250 ok|550 no|550 no|354 go\nC: .\n> timeout\n! finished 550 550, nobody");
    check_pipelined("S: 550 no|503 no|503 no|503 no\n! finished ? ?, Mail refused 550 no");
    check_pipelined("S: 451 no|503 no|503 no|354 go\nC: .\nS: 250 hm\n! finished ? ?, Mail refused 451 no");
}

#[test]
fn without_pipelining_data_is_not_sent_for_nobody_and_rset_comes_first_next_time() {
    check(
        PLAIN,
        "S: 220 hi|250 mx
         ! ready
         C: EHLO me.example
         > begin
         C: MAIL FROM:<s@a.example>
         S: 250 ok
         C: RCPT TO:<r0@b.example>
         S: 550 no
         ! finished 550, nobody
         > begin
         C: RSET
         S: 250 ok
         C: MAIL FROM:<s@a.example>
         S: 250 ok
         C: RCPT TO:<r0@b.example>
         S: 250 ok
         C: DATA
         S: 451 no
         ! finished +, Data refused 451 no
         > begin
         C: RSET
         > Some(Command)
         S: 502 no
         ! finished ?, RSET refused",
    );
}

#[test]
fn the_closing_code_ends_the_connection_at_any_step() {
    check(PLAIN, "S: 421 busy\n! broken session refused");
    check_pipelined("S: 421 bye\n! finished ? ?, MAIL refused");
    check_pipelined("S: 250 ok|250 ok|421 bye\n! finished + ?, RCPT refused");
    check_pipelined("S: 250 ok|250 ok|250 ok|421 bye\n! finished + +, DATA refused");
    check_pipelined(
        "S: 250 ok|250 ok|250 ok|354 go\n! content\n> sent\nS: 421 bye\n! finished + +, message refused",
    );
}

#[test]
fn what_breaks_is_told_with_its_step() {
    check(PLAIN, "> timeout\n! broken timed out while waiting for the greeting");
    check_pipelined(
        "S: 250 ok|550 no\n> lost\n! finished 550 ?, connection lost while sending RCPT: reset by peer",
    );
    check_pipelined("S: 250 ok|250 ok|250 ok\n> timeout\n! finished + +, timed out while sending DATA");
    check_pipelined("S: 450 no\n> lost\n! finished ? ?, Mail refused 450 no");
    check_pipelined(
        "S: 250 ok|250 ok|250 ok|354 go
         ! content
         > lost
         ! finished + +, connection lost while sending the content: reset by peer",
    );
    check_pipelined(
        "S: 250 ok|250 ok|550 no|354 go
         ! content
         > sent
         > abort
         ! finished + 550, the relay stopped while waiting for the answer to the final dot",
    );
    check_pipelined(
        "S: 250 ok|250 ok|250 ok|250 what?
         ! finished + +, protocol error while sending DATA: unexpected reply 250 what?",
    );
    check_pipelined("S: nonsense\n! finished ? ?, protocol error while sending MAIL: not a reply: nonsense");
}

#[test]
fn a_reply_that_is_none_takes_back_no_answer_that_came_before_it() {
    check_pipelined(
        "S: 250 ok|550 5.1.1 who?|999 x
         ! finished 550 ?, protocol error while sending RCPT: not a reply: 999 x",
    );
    check_pipelined(
        "S: 250 ok|250 ok|999 x|354 go
         ! finished + ?, protocol error while sending RCPT: not a reply: 999 x",
    );
    check_pipelined("S: 550 no|999 x\n! finished ? ?, Mail refused 550 no");
}

#[test]
fn a_refusal_in_the_middle_of_the_content_counts() {
    check_pipelined(
        "S: 250 ok|250 ok|250 ok|354 go
         ! content
         S: 552 5.3.4 too much
         ! finished + +, FinalDot refused 552 5.3.4 too much
         > None",
    );
}

#[test]
fn a_farewell_to_an_idle_connection_closes_it() {
    let mut client = Client::new(Options { hostname: "me".into(), tls: TlsUse::Never, login: None });
    feed(&mut client, "220 hi|250 mx", false);
    assert_eq!(client.poll_event(), Some(Event::Ready));
    feed(&mut client, "421 4.4.2 idle too long", false);
    assert_eq!((client.poll_event(), client.is_closed(), client.is_ready()), (None, true, false));
}

#[test]
fn what_is_said_behind_the_354_is_no_answer_to_the_final_dot() {
    let mut client = Client::new(Options { hostname: "me.example".into(), tls: TlsUse::Never, login: None });
    let hear = |client: &mut Client, bytes: &[u8]| {
        client.handle_bytes(bytes);
        client.poll_transmit(&mut Vec::new());
        client.poll_event().map(|event| word(&event))
    };
    hear(&mut client, b"220 mx.example\r\n");
    assert_eq!(hear(&mut client, b"250 mx.example\r\n").as_deref(), Some("ready"));
    begin(&mut client, &PLAIN);
    hear(&mut client, b"250 ok\r\n");
    hear(&mut client, b"250 ok\r\n");
    let end = hear(&mut client, b"354 go\r\n250 stale\r\n").expect("an end");
    assert!(end.contains("it answered before the content was sent"), "{end}");
}
