//! A receiving SMTP server that keeps a ledger: what arrived, whole or not, when, and how it was answered.
//!
//! One blocking thread per connection. How it behaves is a function of the moment, so that a test can defer, refuse,
//! stall or hang up wherever it likes.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{message, place};

/// Where in the dialogue the sink stands when it asks how to behave.
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// A client connected.
    Greeting,
    /// RCPT for this path.
    Recipient(&'a str),
    /// DATA for these paths; `HangUp` hangs up in the middle of the content.
    Content(&'a [String]),
    /// The final dot arrived: name in the ledger ("" without) and paths.
    Dot(&'a str, &'a [String]),
}

/// How to behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As a good server does.
    Accept,
    /// The same, later.
    Slow(Duration),
    /// With this reply line (without CRLF); the connection goes on unless it is a 421.
    Say(&'static str),
    /// Close the connection without a word.
    HangUp,
}

/// Decides how the sink behaves.
pub type Manners = dyn Fn(Moment<'_>) -> Manner + Send + Sync;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// 250 was sent for the final dot.
    Answered,
    /// The sink refused or hung up, on purpose.
    Refused,
    /// The client vanished or reset before an answer.
    Lost,
}

/// A line of the ledger.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The reverse-path.
    pub from: String,
    /// The recipients that were accepted.
    pub recipients: Vec<String>,
    /// Name and checksum, when the whole content arrived and carries the mark.
    pub seen: Option<(String, u32)>,
    /// The content, unstuffed, if the sink keeps it and all of it arrived.
    pub content: Vec<u8>,
    /// When the client connected.
    pub connected: Instant,
    /// When MAIL was read.
    pub began: Instant,
    /// When the final dot was read.
    pub dot: Option<Instant>,
    /// Just before the answer to the final dot was sent.
    pub replied: Option<Instant>,
    /// When the answer was sent or the end was noticed.
    pub ended: Instant,
    /// How it ended.
    pub ending: Ending,
}

impl Transaction {
    /// The content as text, for assertions.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

struct Shared {
    manners: Box<Manners>,
    keep: bool,
    ledger: Mutex<Vec<Transaction>>,
    answered: AtomicUsize,
    open: AtomicUsize,
    stopped: AtomicBool,
}

/// The running sink. Dropping it closes the listener; open connections end with their clients.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Sink {
    /// A sink that accepts everything and keeps the content.
    pub fn friendly() -> Self {
        Self::start((place::own_address(), 0).into(), true, |_| Manner::Accept)
    }

    /// A sink that keeps the content and behaves so.
    pub fn with(manners: impl Fn(Moment<'_>) -> Manner + Send + Sync + 'static) -> Self {
        Self::start((place::own_address(), 0).into(), true, manners)
    }

    /// A sink at this address (port 0: any); `keep` keeps the content in memory.
    ///
    /// # Panics
    /// When the address can't be had.
    pub fn start(
        at: SocketAddr,
        keep: bool,
        manners: impl Fn(Moment<'_>) -> Manner + Send + Sync + 'static,
    ) -> Self {
        let listener =
            TcpListener::bind(at).unwrap_or_else(|error| panic!("the sink can't listen on {at}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            manners: Box::new(manners),
            keep,
            ledger: Mutex::default(),
            answered: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    // The client's vanishing is in the ledger; there is nobody else to tell.
                    let _ = Dialogue::new(&shared, stream).and_then(Dialogue::run);
                });
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Transactions that were answered 250.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Transactions between MAIL and their end.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Looks at the ledger without a copy.
    pub fn read<T>(&self, look: impl FnOnce(&[Transaction]) -> T) -> T {
        look(&self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The transactions that were answered 250 for this recipient.
    pub fn delivered_to(&self, path: &str) -> Vec<Transaction> {
        self.read(|ledger| {
            let for_path = |line: &&Transaction| {
                line.ending == Ending::Answered && line.recipients.iter().any(|recipient| recipient == path)
            };
            ledger.iter().filter(for_path).cloned().collect()
        })
    }

    /// Waits for the first transaction that is answered 250 for this recipient.
    #[track_caller]
    pub fn await_mail_for(&self, path: &str) -> Transaction {
        let what = format!("mail for {path} at the sink");
        super::wait_for(&what, super::PATIENCE, || self.delivered_to(path).into_iter().next())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
    }
}

/// What came of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It was answered with a positive reply.
    Accepted,
    /// It was answered with another one.
    Refused,
    /// The connection is to be closed.
    Close,
}

/// One connection.
struct Dialogue<'a> {
    shared: &'a Shared,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    replies: Vec<u8>,
    connected: Instant,
    current: Option<Current>,
}

/// The transaction that is under way.
struct Current {
    from: String,
    recipients: Vec<String>,
    began: Instant,
    dot: Option<Instant>,
    replied: Option<Instant>,
    seen: Option<(String, u32)>,
    content: Vec<u8>,
}

impl<'a> Dialogue<'a> {
    fn new(shared: &'a Shared, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let writer = stream.try_clone()?;
        let reader = BufReader::with_capacity(64 << 10, stream);
        Ok(Self { shared, reader, writer, replies: Vec::new(), connected: Instant::now(), current: None })
    }

    fn run(mut self) -> io::Result<()> {
        let result = self.talk();
        self.end(Ending::Lost);
        result
    }

    fn talk(&mut self) -> io::Result<()> {
        if self.behave(Moment::Greeting, "220 sink.test ESMTP")? == Next::Close {
            return Ok(());
        }
        let mut line = Vec::new();
        loop {
            if self.reader.buffer().is_empty() {
                self.flush()?;
            }
            line.clear();
            if self.reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if self.command(&String::from_utf8_lossy(&line))? == Next::Close {
                return self.flush();
            }
        }
    }

    fn command(&mut self, line: &str) -> io::Result<Next> {
        let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => self.say("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 104857600"),
            "MAIL" => self.mail(line),
            "RCPT" => return self.rcpt(line),
            "DATA" => return self.data(),
            "RSET" => {
                self.end(Ending::Refused);
                self.say("250 2.0.0 forgotten");
            }
            "QUIT" => {
                self.say("221 2.0.0 bye");
                return Ok(Next::Close);
            }
            "HELO" | "NOOP" => self.say("250 2.0.0 sink.test"),
            _ => self.say("500 5.5.2 unknown"),
        }
        Ok(Next::Accepted)
    }

    fn mail(&mut self, line: &str) {
        self.end(Ending::Refused);
        self.current = Some(Current {
            from: path_of(line),
            recipients: Vec::new(),
            began: Instant::now(),
            dot: None,
            replied: None,
            seen: None,
            content: Vec::new(),
        });
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        self.say("250 2.1.0 sender ok");
    }

    fn rcpt(&mut self, line: &str) -> io::Result<Next> {
        let path = path_of(line);
        let next = self.behave(Moment::Recipient(&path), "250 2.1.5 recipient ok")?;
        if let Some(current) = self.current.as_mut().filter(|_| next == Next::Accepted) {
            current.recipients.push(path);
        }
        Ok(next)
    }

    fn data(&mut self) -> io::Result<Next> {
        let recipients = self.current.as_ref().map(|current| current.recipients.clone()).unwrap_or_default();
        if recipients.is_empty() {
            self.say("554 5.5.1 no valid recipients");
            return Ok(Next::Refused);
        }
        let manner = (self.shared.manners)(Moment::Content(&recipients));
        self.say("354 go on");
        self.flush()?;
        if manner == Manner::HangUp {
            self.reader.fill_buf()?;
            self.end(Ending::Refused);
            return Ok(Next::Close);
        }
        let content = self.content()?;
        let seen = message::recognise(&content);
        let id = seen.as_ref().map(|(id, _)| id.clone()).unwrap_or_default();
        if let Some(current) = &mut self.current {
            current.dot = Some(Instant::now());
            current.seen = seen;
            current.content = if self.shared.keep { content } else { Vec::new() };
        }
        let next = self.behave(Moment::Dot(&id, &recipients), "250 2.0.0 kept")?;
        if let Some(current) = &mut self.current {
            current.replied = Some(Instant::now());
        }
        self.flush()?;
        self.end(if next == Next::Accepted { Ending::Answered } else { Ending::Refused });
        Ok(next)
    }

    /// Reads content up to the final dot. Only CRLF ends a line; a dot after anything else ends nothing.
    fn content(&mut self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut line = Vec::new();
        let mut at_start = true;
        loop {
            line.clear();
            if self.reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if at_start && line == b".\r\n" {
                return Ok(content);
            }
            let stuffed = at_start && line.first() == Some(&b'.');
            content.extend_from_slice(&line[usize::from(stuffed)..]);
            at_start = line.ends_with(b"\r\n");
        }
    }

    /// Asks how to behave and does it; `usual` is the reply of a good server.
    fn behave(&mut self, moment: Moment<'_>, usual: &str) -> io::Result<Next> {
        match (self.shared.manners)(moment) {
            Manner::Accept => self.say(usual),
            Manner::Slow(delay) => {
                self.flush()?;
                thread::sleep(delay);
                self.say(usual);
            }
            Manner::Say(reply) => {
                self.say(reply);
                let closing = reply.starts_with("421");
                if closing {
                    self.flush()?;
                    self.end(Ending::Refused);
                }
                return Ok(if closing { Next::Close } else { Next::Refused });
            }
            Manner::HangUp => {
                self.end(Ending::Refused);
                return Ok(Next::Close);
            }
        }
        Ok(Next::Accepted)
    }

    fn say(&mut self, reply: &str) {
        self.replies.extend_from_slice(reply.as_bytes());
        self.replies.extend_from_slice(b"\r\n");
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.writer.write_all(&self.replies);
        self.replies.clear();
        result
    }

    /// Writes the transaction into the ledger, if there is one.
    fn end(&mut self, ending: Ending) {
        let Some(current) = self.current.take() else { return };
        let line = Transaction {
            from: current.from,
            recipients: current.recipients,
            seen: current.seen,
            content: current.content,
            connected: self.connected,
            began: current.began,
            dot: current.dot,
            replied: current.replied,
            ended: Instant::now(),
            ending,
        };
        self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        if ending == Ending::Answered {
            self.shared.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What stands between the angle brackets of MAIL or RCPT.
fn path_of(line: &str) -> String {
    let path = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    path.map(|(path, _)| path.to_owned()).unwrap_or_default()
}
