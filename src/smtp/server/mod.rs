//! The receiving side (RFC 5321 section 4), without I/O.
//!
//! ```text
//!           HELO/EHLO            MAIL allowed             DATA allowed
//!  Hello ─────────────► Ready ─────────────────► Mail ───────────────► Data
//!                         ▲                       │  RCPT…              │ final dot
//!                         │   RSET, EHLO, refused │                     ▼
//!                         └───────────────────────┴──── accepted ◄── verdict
//!  QUIT, too many errors, bare CR or LF in content, close(): Closed
//! ```

mod replies;

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use memchr::memchr;

use self::replies::{line, lines};
use super::address::{ForwardPath, ReversePath};
pub use super::command::BodyParam;
use super::command::{Command, CommandError};
use super::reply::{EnhancedStatus, ReplyCode};
use super::scanner::{Scan, Scanner};
pub use replies::Refusal;

/// Longest command line in octets, CRLF included: RFC 5321 section 4.5.3.1.4 asks for 512, extensions for more.
pub const COMMAND_LINE_MAX: usize = 2048;
/// More `Received:` fields than this are a loop (RFC 5321 section 6.3 asks for at least 100 hops of patience in theory,
/// the field uses 25 to 100).
pub const RECEIVED_MAX: usize = 50;

/// What a server does and allows.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Its name in greeting and EHLO.
    pub hostname: String,
    /// Whether this client may relay.
    pub may_relay: bool,
    /// Largest content in bytes.
    pub message_size: u64,
    /// Recipients of one transaction.
    pub recipients: usize,
    /// Errors of one session.
    pub errors: usize,
}

/// What a client has said about the message it is sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// BODY.
    pub body: BodyParam,
    /// SIZE, in bytes.
    pub declared_size: Option<u64>,
    /// RCPT TO, in order; those that were refused are not here.
    pub recipients: Vec<ForwardPath>,
    /// The client's name for itself.
    pub helo: String,
    /// EHLO rather than HELO.
    pub extended: bool,
}

/// What the machine wants from its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// MAIL was good: answer with [`Server::allow`] or [`Server::refuse`].
    MailWanted,
    /// DATA was good: the same.
    DataWanted,
    /// There is new content in [`Server::content`]; no verdict is needed.
    Content,
    /// The content is whole: answer with [`Server::accepted`] or [`Server::refuse`].
    MessageEnd(Transaction),
    /// A transaction that was allowed ended without a message: free what it holds.
    Reset,
    /// The client was refused something, for log and metrics.
    Refused {
        /// The verb, or `connection`.
        command: &'static str,
        /// The reply's code.
        reply: ReplyCode,
        /// Its status and text.
        text: String,
    },
    /// Write [`Server::transmit`], then close.
    Close,
}

#[derive(Debug)]
enum State {
    Hello,
    Ready,
    Mail(Transaction),
    Data(Data),
    Closed,
}

#[derive(Debug)]
struct Data {
    transaction: Transaction,
    scanner: Scanner,
    size: u64,
    too_large: bool,
}

/// What the driver owes an answer for.
#[derive(Debug)]
enum Pending {
    Mail(Transaction),
    Data(Transaction),
    Message,
}

type OnRecipient = Box<dyn FnMut(&ForwardPath) -> Option<Refusal> + Send>;

/// The receiving machine.
///
/// Input: [`Self::handle_bytes`]. Verdicts: [`Self::allow`], [`Self::refuse`], [`Self::accepted`], and [`Self::close`] at
/// any time. Output, after each of those: [`Self::poll_event`] until `None`, then write and clear [`Self::transmit`].
/// Bytes are taken while a verdict is pending too, but only buffered: read no more while [`Self::wants_input`] is false.
pub struct Server {
    settings: ServerSettings,
    state: State,
    helo: Option<(String, bool)>,
    pending: Option<Pending>,
    closing: Option<Refusal>,
    input: BytesMut,
    /// Inside a command line that is too long: its rest is dropped.
    skipping: bool,
    output: BytesMut,
    content: BytesMut,
    events: VecDeque<Event>,
    errors: usize,
    on_recipient: Option<OnRecipient>,
}

impl Server {
    /// A machine that has its greeting ready in [`Self::transmit`].
    pub fn new(settings: ServerSettings) -> Self {
        let mut output = BytesMut::with_capacity(256);
        line(&mut output, 220, None, &format!("{} ESMTP Posthaste", settings.hostname));
        Self {
            settings,
            state: State::Hello,
            helo: None,
            pending: None,
            closing: None,
            input: BytesMut::new(),
            skipping: false,
            output,
            content: BytesMut::new(),
            events: VecDeque::new(),
            errors: 0,
            on_recipient: None,
        }
    }

    /// Asks `decide` about every recipient that would be taken; its refusal is answered instead.
    pub fn on_recipient(&mut self, decide: impl FnMut(&ForwardPath) -> Option<Refusal> + Send + 'static) {
        self.on_recipient = Some(Box::new(decide));
    }

    /// Takes bytes of the client.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.input.is_empty() {
            let used = self.consume(bytes);
            self.input.extend_from_slice(&bytes[used..]);
        } else {
            self.input.extend_from_slice(bytes);
            self.resume();
        }
    }

    /// What the driver is to do next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Replies to write; clear it once written.
    pub fn transmit(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Content that has come so far, without stuffing; the driver may take from its front.
    pub fn content(&mut self) -> &mut BytesMut {
        &mut self.content
    }

    /// Content bytes of the running message, taken ones included.
    pub fn content_size(&self) -> u64 {
        match &self.state {
            State::Data(data) => data.size,
            _ => 0,
        }
    }

    /// The transaction whose content is asked for or coming in.
    pub fn transaction(&self) -> Option<&Transaction> {
        match (&self.pending, &self.state) {
            (Some(Pending::Data(transaction)), _) => Some(transaction),
            (_, State::Data(data)) => Some(&data.transaction),
            _ => None,
        }
    }

    /// Whether a transaction is open: from MAIL to the answer of its final dot.
    pub fn in_transaction(&self) -> bool {
        self.pending.is_some() || matches!(self.state, State::Mail(_) | State::Data(_))
    }

    /// Whether content is coming in.
    pub fn in_data(&self) -> bool {
        matches!(self.state, State::Data(_))
    }

    /// False while a verdict is pending, and after the end.
    pub fn wants_input(&self) -> bool {
        self.pending.is_none() && !matches!(self.state, State::Closed)
    }

    /// Verdict: go on with what MAIL or DATA asked for.
    pub fn allow(&mut self) {
        match self.pending.take() {
            Some(Pending::Mail(transaction)) => {
                self.say(250, (2, 1, 0), "sender ok");
                self.state = State::Mail(transaction);
            }
            Some(Pending::Data(transaction)) => {
                line(&mut self.output, 354, None, "send the message; end with a line that is a single dot");
                self.content.clear();
                let data = Data { transaction, scanner: Scanner::default(), size: 0, too_large: false };
                self.state = State::Data(data);
            }
            other => self.pending = other,
        }
        self.resume();
    }

    /// Verdict: the message is on stable storage under this queue id.
    pub fn accepted(&mut self, id: impl std::fmt::Display) {
        if matches!(self.pending, Some(Pending::Message)) {
            self.pending = None;
            self.say(250, (2, 0, 0), &format!("ok, queued as {id}"));
            self.resume();
        }
    }

    /// Verdict: not now, or not at all. 421 ends the session.
    pub fn refuse(&mut self, refusal: Refusal) {
        let command = match self.pending.take() {
            Some(Pending::Mail(_)) => "MAIL",
            Some(Pending::Data(_)) => {
                self.events.push_back(Event::Reset);
                "DATA"
            }
            Some(Pending::Message) => "DATA",
            None => return,
        };
        self.content.clear();
        self.state = State::Ready;
        let ends = refusal.code == ReplyCode::SERVICE_UNAVAILABLE;
        self.give(command, &refusal);
        if ends {
            self.end();
        }
        self.resume();
    }

    /// Ends the session with this reply at the next moment when a reply may be sent (RFC 5321 section 3.8): at once
    /// between commands, after the answer to the final dot in a message.
    pub fn close(&mut self, refusal: Refusal) {
        self.closing = Some(refusal);
        self.close_when_possible();
    }

    /// Ends the session with this reply now, whatever it is in.
    pub fn close_now(&mut self, refusal: Refusal) {
        if matches!(self.state, State::Closed) {
            return;
        }
        if self.in_transaction() {
            self.events.push_back(Event::Reset);
        }
        self.pending = None;
        self.give("connection", &refusal);
        self.end();
    }

    fn close_when_possible(&mut self) {
        let free = self.pending.is_none() && !self.in_data();
        if let (true, Some(refusal)) = (free, self.closing.take_if(|_| free)) {
            self.close_now(refusal);
        }
    }

    fn end(&mut self) {
        self.state = State::Closed;
        self.input.clear();
        self.content.clear();
        self.events.push_back(Event::Close);
    }

    fn resume(&mut self) {
        self.close_when_possible();
        let mut input = std::mem::take(&mut self.input);
        let used = self.consume(&input);
        if !matches!(self.state, State::Closed) {
            input.advance(used);
            self.input = input;
        }
    }

    /// Works through input until it is used up or a verdict is needed; returns how much it took.
    fn consume(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        while self.pending.is_none() && at < input.len() {
            let used = match &self.state {
                State::Closed => input.len() - at,
                State::Data(_) => self.take_content(&input[at..]),
                _ => self.take_line(&input[at..]),
            };
            if used == 0 {
                break;
            }
            at += used;
        }
        at
    }

    fn take_line(&mut self, input: &[u8]) -> usize {
        let Some(end) = memchr(b'\n', input) else {
            if self.skipping || input.len() > COMMAND_LINE_MAX {
                self.skipping = true;
                return input.len();
            }
            return 0;
        };
        let whole = end + 1;
        if std::mem::take(&mut self.skipping) || whole > COMMAND_LINE_MAX {
            self.fail("unknown", 500, (5, 5, 2), "line too long");
            return whole;
        }
        match input[..end].strip_suffix(b"\r").map(std::str::from_utf8) {
            Some(Ok(text)) if !text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 127) => {
                self.command(text);
            }
            Some(_) => self.fail("unknown", 500, (5, 5, 2), "a command has a character that is not allowed"),
            None => self.fail("unknown", 500, (5, 5, 2), "end each line with CR and LF"),
        }
        whole
    }

    fn command(&mut self, text: &str) {
        match Command::parse(text, &self.settings.hostname) {
            Ok(Command::Helo(name)) => self.hello(name, false),
            Ok(Command::Ehlo(name)) => self.hello(name, true),
            Ok(Command::Mail { path, size, body }) => self.mail(path, size, body),
            Ok(Command::Rcpt(path)) => self.rcpt(path),
            Ok(Command::Data) => self.data(),
            Ok(Command::Rset) => {
                self.reset();
                self.say(250, (2, 0, 0), "ok");
            }
            Ok(Command::Noop) => self.say(250, (2, 0, 0), "ok"),
            Ok(Command::Vrfy) => {
                self.say(252, (2, 5, 0), "addresses are not verified here; send mail to find out")
            }
            Ok(Command::Help) => lines(
                &mut self.output,
                214,
                &[
                    "2.0.0 HELO EHLO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP",
                    "2.0.0 this is an outbound relay; its operator configures who may send",
                ],
            ),
            Ok(Command::Quit) => {
                self.reset();
                self.say(221, (2, 0, 0), "bye");
                self.end();
            }
            Err(CommandError { command, code, status, text }) => {
                self.fail(command, code, (status.class, status.subject, status.detail), &text);
            }
        }
    }

    fn hello(&mut self, name: String, extended: bool) {
        self.reset();
        let hostname = &self.settings.hostname;
        if extended {
            let greeting = format!("{hostname} greets {name}");
            let size = format!("SIZE {}", self.settings.message_size);
            let texts = [&greeting, "PIPELINING", &size, "8BITMIME", "ENHANCEDSTATUSCODES", "HELP"];
            lines(&mut self.output, 250, &texts);
        } else {
            line(&mut self.output, 250, None, hostname);
        }
        self.helo = Some((name, extended));
        self.state = State::Ready;
    }

    fn mail(&mut self, reverse_path: ReversePath, declared_size: Option<u64>, body: BodyParam) {
        let Some((helo, extended)) = self.helo.clone() else {
            return self.fail("MAIL", 503, (5, 5, 1), "send EHLO or HELO first");
        };
        if self.in_transaction() {
            return self.fail("MAIL", 503, (5, 5, 1), "a transaction is open already; RSET ends it");
        }
        if declared_size.is_some_and(|size| size > self.settings.message_size) {
            return self.fail("MAIL", 552, (5, 3, 4), &self.too_large());
        }
        self.pending = Some(Pending::Mail(Transaction {
            reverse_path,
            body,
            declared_size,
            recipients: Vec::new(),
            helo,
            extended,
        }));
        self.events.push_back(Event::MailWanted);
    }

    fn rcpt(&mut self, path: ForwardPath) {
        let State::Mail(transaction) = &mut self.state else {
            return self.fail("RCPT", 503, (5, 5, 1), "send MAIL first");
        };
        if !self.settings.may_relay {
            let text = "relaying denied: this client's network is not among relay.networks";
            return self.fail("RCPT", 550, (5, 7, 1), text);
        }
        if transaction.recipients.len() >= self.settings.recipients {
            let refusal =
                Refusal::new(452, (4, 5, 3), "too many recipients; send the rest in another transaction");
            return self.give("RCPT", &refusal);
        }
        if let Some(refusal) = self.on_recipient.as_mut().and_then(|decide| decide(&path)) {
            return self.give("RCPT", &refusal);
        }
        transaction.recipients.push(path);
        self.say(250, (2, 1, 5), "recipient ok");
    }

    fn data(&mut self) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(transaction) if !transaction.recipients.is_empty() => {
                self.pending = Some(Pending::Data(transaction));
                self.events.push_back(Event::DataWanted);
            }
            other => {
                let after_mail = matches!(other, State::Mail(_));
                self.state = other;
                if after_mail {
                    self.fail("DATA", 554, (5, 5, 1), "no valid recipients");
                } else {
                    self.fail("DATA", 503, (5, 5, 1), "send MAIL and RCPT first");
                }
            }
        }
    }

    fn take_content(&mut self, input: &[u8]) -> usize {
        let State::Data(data) = &mut self.state else { return 0 };
        let before = self.content.len();
        let (used, scan) = data.scanner.scan(input, &mut self.content);
        data.size += (self.content.len() - before) as u64;
        data.too_large |= data.size > self.settings.message_size;
        if data.too_large || data.scanner.has_long_line() {
            self.content.clear();
        }
        match scan {
            Scan::More if self.content.len() > before => self.events.push_back(Event::Content),
            Scan::More => {}
            Scan::End => self.end_content(),
            Scan::Bare => {
                let text = "bare CR or LF in the message; end each line with CR and LF";
                self.close_now(Refusal::new(521, (5, 5, 2), text));
                return input.len();
            }
        }
        used
    }

    fn end_content(&mut self) {
        let State::Data(data) = std::mem::replace(&mut self.state, State::Ready) else { return };
        let refusal = if data.too_large {
            Refusal::new(552, (5, 3, 4), self.too_large())
        } else if data.scanner.has_long_line() {
            Refusal::new(554, (5, 6, 0), "the message has a line that is too long")
        } else if data.scanner.received() > RECEIVED_MAX {
            Refusal::new(554, (5, 4, 6), "too many hops: the message is in a loop")
        } else {
            self.pending = Some(Pending::Message);
            return self.events.push_back(Event::MessageEnd(data.transaction));
        };
        self.content.clear();
        self.events.push_back(Event::Reset);
        self.give("DATA", &refusal);
        self.close_when_possible();
    }

    /// Ends an open transaction.
    fn reset(&mut self) {
        if let State::Mail(_) = self.state {
            self.events.push_back(Event::Reset);
            self.state = State::Ready;
        }
    }

    fn too_large(&self) -> String {
        format!("the message is larger than {} bytes", self.settings.message_size)
    }

    fn say(&mut self, code: u16, (class, subject, detail): (u8, u16, u16), text: &str) {
        line(&mut self.output, code, Some(EnhancedStatus::new(class, subject, detail)), text);
    }

    /// Writes a refusal and tells the driver.
    fn give(&mut self, command: &'static str, refusal: &Refusal) {
        line(&mut self.output, refusal.code.get(), Some(refusal.status), &refusal.text);
        let text = format!("{} {}", refusal.status, refusal.text);
        self.events.push_back(Event::Refused { command, reply: refusal.code, text });
    }

    /// Refuses a command and counts the error; too many end the session.
    fn fail(&mut self, command: &'static str, code: u16, status: (u8, u16, u16), text: &str) {
        self.give(command, &Refusal::new(code, status, text.to_owned()));
        self.errors += 1;
        if self.errors >= self.settings.errors {
            if self.in_transaction() {
                self.events.push_back(Event::Reset);
            }
            self.give("connection", &Refusal::new(421, (4, 7, 0), "too many errors"));
            self.end();
        }
    }
}

#[cfg(test)]
mod tests;
