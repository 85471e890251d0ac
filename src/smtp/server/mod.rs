//! The receiving side (RFC 5321 section 4), without I/O.
//!
//! ```text
//!          HELO, EHLO          MAIL, allowed          DATA, allowed
//!  Hello ────────────► Ready ────────────────► Mail ─────────────────► Data
//!                        ▲                      │ RCPT…                 │ final dot
//!                        │ RSET, EHLO, refused  │                       ▼
//!                        ├──────────────────────┘        accepted, refused
//!                        └──────────────────────────────────────────────┘
//!  any ── QUIT, too many errors, a bare CR or LF in content, 421 ──► Closed
//! ```
//!
//! Where an arrow says "allowed" or "accepted", the machine raises an event and waits for its driver's verdict; it
//! parses nothing until then. `dialogue` has the commands, `content` what follows DATA, `replies` what is said.

mod content;
mod dialogue;
mod replies;

use std::collections::VecDeque;
use std::fmt;

use bytes::{Buf, BytesMut};

use self::dialogue::Line;
use self::replies::line;
use super::address::{ForwardPath, ReversePath};
pub use super::command::BodyParam;
use super::reply::{EnhancedStatus, ReplyCode};
use super::scanner::Scanner;
pub use replies::Refusal;

/// Longest command line in octets, CRLF included: RFC 5321 section 4.5.3.1.4 asks for 512, extensions for more.
pub const COMMAND_LINE_MAX: usize = 2048;
/// A line of which so many octets came is nobody's command: the client is told, and sent away.
pub const ENDLESS_LINE: usize = 1 << 20;
/// More `Received:` fields than this are a loop (RFC 5321 section 6.3 asks for at least 100 hops of patience in theory,
/// the field uses 25 to 100).
pub const RECEIVED_MAX: usize = 50;
/// Commands since the last message that moved nothing on (NOOP, RSET, HELP, VRFY, HELO, EHLO); each one more is an
/// error. It bounds what one burst of input can make the server say.
pub const CHATTER_MAX: usize = 100;
/// Recipients above the limit that one transaction may name; each one more is an error.
pub const OVERSHOOT_MAX: usize = 1000;
/// An idle session keeps no buffer above this many bytes.
const IDLE_BUFFER_MAX: usize = 4096;

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
    /// Errors of one session since its last accepted message; then it ends.
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
    /// The client's name for itself: 1–255 printable ASCII characters without blanks, unchecked beyond that.
    pub helo: String,
    /// EHLO rather than HELO.
    pub extended: bool,
}

/// What the machine wants from its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// MAIL was good: answer with [`Server::allow`] or [`Server::refuse`]. Not raised for a client that may not relay:
    /// nothing it says can become a message.
    MailWanted,
    /// DATA was good: the same.
    DataWanted,
    /// There is new content in [`Server::content`]; no verdict is needed.
    Content,
    /// The content is whole: answer with [`Server::accepted`] or [`Server::refuse`].
    MessageEnd(Transaction),
    /// A transaction that was allowed ended without [`Event::MessageEnd`]: free what it holds, drop its content.
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
    /// Write [`Server::transmit`], then close. Nothing comes behind it.
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

/// A message that is coming in.
#[derive(Debug)]
struct Data {
    transaction: Transaction,
    scanner: Scanner,
    /// Set once the message can't be taken: the rest is read and dropped, and this answers the final dot.
    refusal: Option<Refusal>,
}

/// What the driver owes an answer for.
#[derive(Debug)]
enum Pending {
    Mail(Transaction),
    Data(Transaction),
    Message,
}

type OnRecipient = Box<dyn FnMut(&ForwardPath) -> Option<Refusal> + Send>;

/// The receiving machine. A driver calls, for each connection:
///
/// 1. [`new`](Self::new), then writes and clears [`transmit`](Self::transmit): the greeting.
/// 2. *Input*: [`handle_bytes`](Self::handle_bytes) with what it read. All of it is taken, while a verdict is pending
///    too, but then only buffered: it reads no more while [`wants_input`](Self::wants_input) is false.
/// 3. *Output*: [`poll_event`](Self::poll_event) until `None`, then it writes and clears [`transmit`](Self::transmit):
///    one write for a burst of pipelined commands. Content may be taken from [`content`](Self::content) at any time.
/// 4. *Verdicts*: [`allow`](Self::allow) or [`refuse`](Self::refuse) after [`Event::MailWanted`] and
///    [`Event::DataWanted`], [`accepted`](Self::accepted) or [`refuse`](Self::refuse) after [`Event::MessageEnd`]. Each
///    lets the machine go on with what is buffered: back to 3.
/// 5. [`refuse_content`](Self::refuse_content) while content comes in that it has no place for.
/// 6. [`close`](Self::close) and [`close_now`](Self::close_now) at any time: back to 3. After [`Event::Close`] it writes
///    what is left and closes, reading on for a moment so that a client that still sends sees the last reply.
///
/// Memory is bounded by one burst of input (what is read between two rounds of 3), the replies to it, the recipients,
/// and the content that the driver leaves here, at most `message_size` bytes.
pub struct Server {
    settings: ServerSettings,
    state: State,
    helo: Option<(String, bool)>,
    pending: Option<Pending>,
    closing: Option<Refusal>,
    input: BytesMut,
    line: Line,
    output: BytesMut,
    content: BytesMut,
    content_size: u64,
    events: VecDeque<Event>,
    errors: usize,
    chatter: usize,
    overshoot: usize,
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
            line: Line::Fresh,
            output,
            content: BytesMut::new(),
            content_size: 0,
            events: VecDeque::new(),
            errors: 0,
            chatter: 0,
            overshoot: 0,
            on_recipient: None,
        }
    }

    /// Asks `decide` about every recipient that would be taken; its refusal is answered instead.
    pub fn on_recipient(&mut self, decide: impl FnMut(&ForwardPath) -> Option<Refusal> + Send + 'static) {
        self.on_recipient = Some(Box::new(decide));
    }

    /// Takes bytes of the client, all of them.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        drop_if_idle(&mut self.output);
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

    /// Content bytes of the message that is coming in or awaits its verdict, taken ones included.
    pub fn content_size(&self) -> u64 {
        self.content_size
    }

    /// The transaction whose content is asked for or coming in.
    pub fn transaction(&self) -> Option<&Transaction> {
        match (&self.pending, &self.state) {
            (Some(Pending::Data(transaction)), _) => Some(transaction),
            (_, State::Data(data)) => Some(&data.transaction),
            _ => None,
        }
    }

    /// Whether a transaction is open, from MAIL to the answer of its final dot; never for a client that may not relay.
    pub fn in_transaction(&self) -> bool {
        self.pending.is_some() || self.is_allowed()
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
            Some(Pending::Mail(transaction)) => self.open(transaction),
            Some(Pending::Data(transaction)) => self.begin_content(transaction),
            other => self.pending = other,
        }
        self.resume();
    }

    /// Verdict: the message is on stable storage under this queue id.
    pub fn accepted(&mut self, id: impl fmt::Display) {
        if matches!(self.pending, Some(Pending::Message)) {
            self.pending = None;
            self.content = BytesMut::new();
            (self.chatter, self.errors) = (0, 0);
            self.say(250, (2, 0, 0), &format!("ok, queued as {id}"));
            self.resume();
        }
    }

    /// The content that is coming in can't be kept: its rest is dropped, and this answers the final dot, before which no
    /// reply may come (RFC 5321 section 4.2.5). Without content coming in nothing happens.
    pub fn refuse_content(&mut self, refusal: Refusal) {
        if let State::Data(data) = &mut self.state {
            data.refusal.get_or_insert(refusal);
            self.content = BytesMut::new();
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
        self.content = BytesMut::new();
        self.state = State::Ready;
        self.give(command, &refusal);
        if refusal.code == ReplyCode::SERVICE_UNAVAILABLE {
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

    /// Ends the session with this reply now, whatever it is in. What was to be asked of the driver is asked no more.
    pub fn close_now(&mut self, refusal: Refusal) {
        if matches!(self.state, State::Closed) {
            return;
        }
        let unheard = self.events.iter().any(|event| matches!(event, Event::MessageEnd(_)));
        self.events.retain(|event| matches!(event, Event::Reset | Event::Refused { .. }));
        if unheard || self.is_allowed() {
            self.events.push_back(Event::Reset);
        }
        self.pending = None;
        self.give("connection", &refusal);
        self.end();
    }

    fn close_when_possible(&mut self) {
        let free = self.pending.is_none() && !self.in_data();
        if let Some(refusal) = self.closing.take_if(|_| free) {
            self.close_now(refusal);
        }
    }

    fn end(&mut self) {
        self.state = State::Closed;
        self.input = BytesMut::new();
        self.content = BytesMut::new();
        self.events.push_back(Event::Close);
    }

    /// Whether the driver allowed a transaction and has not heard of its end.
    fn is_allowed(&self) -> bool {
        match self.state {
            State::Mail(_) => self.settings.may_relay,
            State::Data(_) => true,
            _ => matches!(self.pending, Some(Pending::Data(_))),
        }
    }

    /// Goes on with what is buffered.
    fn resume(&mut self) {
        self.close_when_possible();
        let mut input = std::mem::take(&mut self.input);
        let used = self.consume(&input);
        if !matches!(self.state, State::Closed) {
            input.advance(used);
            drop_if_idle(&mut input);
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

    fn say(&mut self, code: u16, (class, subject, detail): (u8, u16, u16), text: &str) {
        line(&mut self.output, code, Some(EnhancedStatus::new(class, subject, detail)), text);
    }

    /// Writes a refusal and tells the driver. Replies to HELO and EHLO carry no status (RFC 2034 section 4).
    fn give(&mut self, command: &'static str, refusal: &Refusal) {
        let status = (!matches!(command, "HELO" | "EHLO")).then_some(refusal.status);
        line(&mut self.output, refusal.code.get(), status, &refusal.text);
        let text = format!("{} {}", refusal.status, refusal.text);
        self.events.push_back(Event::Refused { command, reply: refusal.code, text });
    }

    /// Refuses a command and counts the error.
    fn fail(&mut self, command: &'static str, code: u16, status: (u8, u16, u16), text: impl Into<String>) {
        self.give(command, &Refusal::new(code, status, text.into()));
        self.count_error();
    }

    /// Too many errors end the session.
    fn count_error(&mut self) {
        self.errors += 1;
        if self.errors >= self.settings.errors {
            self.close_now(Refusal::new(421, (4, 7, 0), "too many errors"));
        }
    }
}

/// An empty buffer that grew in a burst is given back.
fn drop_if_idle(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > IDLE_BUFFER_MAX {
        *buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests;
