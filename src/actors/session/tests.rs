//! One session over a real socket, with a Queue that answers as it is told, in simulated time.
//!
//! Time moves only when a test says so: a socket needs real time, and simulated time must not run past it.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, advance};

use super::*;
use crate::actors::queue::messages::NotQueued;
use crate::clock::SystemClock;
use crate::config::LogFormat;
use crate::mail::envelope::Content;
use crate::spool::memory::MemorySpool;

const MESSAGES: usize = 3;
const MEMORY_KIB: usize = 4;
const IDLE: Duration = Duration::from_secs(60);
const DATA: Duration = Duration::from_secs(600);
/// More than any time-out of a session.
const LONG: Duration = Duration::from_secs(10_000);

/// How the fake Queue answers.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Take,
    Fail,
    Never,
}

struct FakeQueue {
    answer: Answer,
    got: Arc<Mutex<Vec<Enqueue>>>,
}

impl Actor for FakeQueue {
    type Context = Context<Self>;
}

impl Handler<Enqueue> for FakeQueue {
    type Result = ();

    fn handle(&mut self, mut message: Enqueue, _: &mut Self::Context) {
        let answer = match self.answer {
            Answer::Never => return self.got.lock().unwrap().push(message),
            Answer::Take => Ok(()),
            Answer::Fail => Err(NotQueued::Spool),
        };
        let (spare, _) = tokio::sync::oneshot::channel();
        let _ = std::mem::replace(&mut message.answer, spare).send(answer);
        message.credits.clear();
        self.got.lock().unwrap().push(message);
    }
}

struct FakeListener(mpsc::UnboundedSender<u64>);

impl Actor for FakeListener {
    type Context = Context<Self>;
}

impl Handler<SessionEnded> for FakeListener {
    type Result = ();

    fn handle(&mut self, message: SessionEnded, _: &mut Self::Context) {
        let _ = self.0.send(message.number);
    }
}

/// One session and its client.
struct Stage {
    client: TcpStream,
    session: Option<Addr<Session>>,
    context: Arc<SessionContext>,
    got: Arc<Mutex<Vec<Enqueue>>>,
    ended: mpsc::UnboundedReceiver<u64>,
}

impl Stage {
    async fn new(may_relay: bool, answer: Answer) -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let queue = FakeQueue { answer, got: got.clone() }.start();
        let context = Arc::new(SessionContext {
            hostname: "relay.example".into(),
            message_size: 20_000,
            recipients: 100,
            errors: 5,
            idle_timeout: IDLE,
            data_timeout: DATA,
            content_threshold: MEMORY_KIB * 1024,
            instance: "test".to_owned(),
            credits: Credits {
                messages: Arc::new(Semaphore::new(MESSAGES)),
                memory: Arc::new(Semaphore::new(MEMORY_KIB)),
            },
            room: Arc::default(),
            queue: queue.recipient(),
            front: Front::inline(Arc::new(MemorySpool::new())),
            clock: Arc::new(SystemClock),
            metrics: Metrics::new().unwrap(),
            maillog: MailLog::discard(LogFormat::Text),
        });
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = socket.accept().await.unwrap();
        let (told, ended) = mpsc::unbounded_channel();
        let start = Start {
            stream: stream.into_std().unwrap(),
            peer,
            may_relay,
            number: 7,
            context: context.clone(),
            ended: FakeListener(told).start().recipient(),
        };
        let session = Some(Session::new(start).start());
        let mut stage = Self { client, session, context, got, ended };
        assert_eq!(stage.reply().await, "220 relay.example ESMTP Posthaste\r\n");
        stage
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    /// One line; empty at the end of the connection.
    async fn reply(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            match self.client.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(line).unwrap()
    }

    /// Sends the same now and then, for so long; the session may be gone by then.
    async fn drip(&mut self, bytes: &[u8], every: Duration, for_long: Duration) {
        let began = Instant::now();
        while began.elapsed() < for_long {
            let _ = self.client.write_all(bytes).await;
            advance(every).await;
        }
    }

    #[track_caller]
    fn assert_code(reply: &str, code: &str) {
        assert!(reply.starts_with(code), "{reply:?} instead of {code}");
    }

    /// Sends lines that each get one reply with the code that stands in front of them.
    async fn talk(&mut self, dialogue: &[(&str, &str)]) {
        for (line, code) in dialogue {
            self.send(format!("{line}\r\n")).await;
            let reply = self.reply().await;
            assert!(reply.starts_with(code), "{:.40}: {reply:?} instead of {code}", line);
        }
    }

    /// Lets the time pass that a session waits for a credit, once it does for the `count`th time.
    async fn wait_for_credit(&self, count: u64) {
        until(|| self.context.metrics.credit_waits.get() == count).await;
        advance(Duration::from_secs(31)).await;
    }

    /// Messages and KiB that are free.
    fn free(&self) -> (usize, usize) {
        let credits = &self.context.credits;
        (credits.messages.available_permits(), credits.memory.available_permits())
    }

    async fn finish(mut self) {
        let context = self.context.clone();
        drop(self.client);
        assert_eq!(self.ended.recv().await, Some(7));
        self.got.lock().unwrap().clear();
        let credits = &context.credits;
        let free = (credits.messages.available_permits(), credits.memory.available_permits());
        assert_eq!(free, (MESSAGES, MEMORY_KIB), "credits leaked");
    }
}

const ENVELOPE: &[(&str, &str)] =
    &[("HELO c.example", "250"), ("MAIL FROM:<a@b.example>", "250"), ("RCPT TO:<c@d.example>", "250")];

/// Runs a test in simulated time, which stands still but for [`advance`].
fn stage(test: impl AsyncFnOnce()) {
    actix_rt::System::new().block_on(async {
        tokio::time::pause();
        // While a blocking task runs, tokio does not move time by itself.
        let (release, released) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || released.recv());
        test().await;
        drop(release);
    });
}

async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_command_that_comes_byte_by_byte_is_no_progress() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.drip(b"x", IDLE / 4, IDLE + IDLE / 4).await;
        // A session that is still there would answer this.
        let _ = stage.client.write_all(b"\r\n").await;
        Stage::assert_code(&stage.reply().await, "421 4.4.2");
        stage.finish().await;
    });
}

#[test]
fn a_client_that_sends_a_command_now_and_then_stays() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        for _ in 0..20 {
            advance(IDLE * 3 / 4).await;
            stage.talk(&[("NOOP", "250")]).await;
        }
        stage.finish().await;
    });
}

#[test]
fn content_that_comes_byte_by_byte_ends_with_the_data_timeout() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354")]).await;
        stage.drip(b"x", IDLE / 10, DATA + IDLE / 10).await;
        let _ = stage.client.write_all(b"\r\n.\r\n").await;
        Stage::assert_code(&stage.reply().await, "421 4.4.2");
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.finish().await;
    });
}

#[test]
fn an_envelope_that_never_ends_gives_its_credit_back() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.talk(ENVELOPE).await;
        let steps = DATA.as_secs() / IDLE.as_secs() * 2;
        for _ in 1..steps {
            advance(IDLE / 2).await;
            stage.talk(&[("NOOP", "250")]).await;
        }
        assert_eq!(stage.free().0, MESSAGES - 1);
        advance(IDLE / 2).await;
        let _ = stage.client.write_all(b"NOOP\r\n").await;
        Stage::assert_code(&stage.reply().await, "421 4.4.2");
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.finish().await;
    });
}

#[test]
fn a_stranger_takes_no_credit() {
    stage(async || {
        let mut stage = Stage::new(false, Answer::Take).await;
        stage.talk(&[("HELO c.example", "250"), ("MAIL FROM:<a@b.example>", "250")]).await;
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.talk(&[("RCPT TO:<c@d.example>", "550 5.7.1"), ("DATA", "554")]).await;
        stage.finish().await;
    });
}

#[test]
fn credits_come_back_however_a_transaction_ends() {
    let too_large = format!("{}\r\n.", "x\r\n".repeat(50_000));
    for (steps, in_data) in [
        (&[("RSET", "250")][..], false),
        (&[("QUIT", "221")], false),
        (&[("EHLO c.example", "250-")], false),
        (&[("BAD", "500"), ("BAD", "500"), ("BAD", "500"), ("BAD", "500"), ("BAD", "500")], false),
        (&[("hello\r\n.", "250")], true),
        (&[("bare\nline feed", "521")], true),
        (&[(too_large.as_str(), "552")], true),
    ] {
        stage(async || {
            let mut stage = Stage::new(true, Answer::Take).await;
            stage.talk(ENVELOPE).await;
            assert_eq!(stage.free(), (MESSAGES - 1, MEMORY_KIB));
            if in_data {
                stage.talk(&[("DATA", "354")]).await;
                assert_eq!(stage.free(), (MESSAGES - 1, 0));
            }
            stage.talk(steps).await;
            assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB), "after {:?}", steps[0].1);
            stage.finish().await;
        });
    }
}

#[test]
fn credits_come_back_when_the_client_vanishes() {
    for data in [false, true] {
        stage(async || {
            let mut stage = Stage::new(true, Answer::Take).await;
            stage.talk(ENVELOPE).await;
            if data {
                stage.talk(&[("DATA", "354")]).await;
                stage.send("half a li").await;
            }
            stage.finish().await;
        });
    }
}

#[test]
fn without_room_in_the_spool_new_mail_is_told_452_and_the_session_goes_on() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.talk(&[("HELO c.example", "250")]).await;
        stage.context.room.set_short(true);
        stage.talk(&[("MAIL FROM:<a@b.example>", "452 4.3.1")]).await;
        stage.context.room.set_short(false);
        stage.talk(&[("MAIL FROM:<a@b.example>", "250"), ("QUIT", "221")]).await;
        stage.finish().await;
    });
}

#[test]
fn without_a_credit_the_client_waits_and_is_told_452() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        let messages = stage.context.credits.messages.clone();
        let all = messages.acquire_many_owned(MESSAGES as u32).await.unwrap();
        stage.talk(&[("HELO c.example", "250")]).await;
        stage.send("MAIL FROM:<a@b.example>\r\n").await;
        stage.wait_for_credit(1).await;
        Stage::assert_code(&stage.reply().await, "452 4.3.1");
        drop(all);
        stage.talk(ENVELOPE).await;
        let memory = stage.context.credits.memory.clone();
        let all = memory.acquire_many_owned(MEMORY_KIB as u32).await.unwrap();
        stage.send("DATA\r\n").await;
        stage.wait_for_credit(2).await;
        Stage::assert_code(&stage.reply().await, "452 4.3.1");
        drop(all);
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354"), ("hello\r\n.", "250")]).await;
        stage.finish().await;
    });
}

#[test]
fn a_spool_that_fails_is_451_and_one_that_never_answers_is_silence() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Fail).await;
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354"), ("hello\r\n.", "451 4.3.0"), ("NOOP", "250")]).await;
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.finish().await;
    });
    stage(async || {
        let mut stage = Stage::new(true, Answer::Never).await;
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354")]).await;
        stage.send("hello\r\n.\r\n").await;
        until(|| !stage.got.lock().unwrap().is_empty()).await;
        advance(LONG).await;
        assert_eq!(stage.free(), (MESSAGES - 1, 0), "what waits for the spool keeps its credits");
        // The Queue goes: that is the first thing the client is told, and it has its full time for the next command.
        stage.got.lock().unwrap().clear();
        Stage::assert_code(&stage.reply().await, "451 4.3.0");
        advance(IDLE * 3 / 4).await;
        stage.talk(&[("NOOP", "250")]).await;
        stage.finish().await;
    });
}

#[test]
fn content_without_a_place_is_answered_behind_its_final_dot() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354")]).await;
        // Beyond the threshold it needs a file, and the front of this test has none.
        stage.send("0123456789abcdef\r\n".repeat(1000)).await;
        stage.talk(&[(".", "451 4.3.0"), ("NOOP", "250")]).await;
        assert_eq!(stage.free(), (MESSAGES, MEMORY_KIB));
        stage.talk(ENVELOPE).await;
        stage.talk(&[("DATA", "354"), ("small\r\n.", "250")]).await;
        assert!(stage.got.lock().unwrap().iter().all(|mail| matches!(mail.content, Content::Memory(_))));
        stage.finish().await;
    });
}

#[test]
fn a_drain_lets_the_transaction_finish_and_an_idle_session_go() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.talk(ENVELOPE).await;
        stage.session.as_ref().unwrap().do_send(Drain);
        stage.talk(&[("NOOP", "250"), ("DATA", "354"), ("hello\r\n.", "250")]).await;
        Stage::assert_code(&stage.reply().await, "421 4.3.2");
        stage.finish().await;
    });
}

#[test]
fn a_session_whose_actor_is_gone_ends() {
    stage(async || {
        let mut stage = Stage::new(true, Answer::Take).await;
        stage.session = None;
        Stage::assert_code(&stage.reply().await, "421 4.3.2");
        stage.finish().await;
    });
}
