//! The client's side of SMTP (RFC 5321) as a machine: bytes in; bytes and events out.
//!
//! ```text
//! Greeting ─220→ Ehlo ─250→ [StartTls ─220→ Handshake → Ehlo] → [Auth ─235→] Ready ⇄ Transaction
//!                 └5yz→ Helo ─250→ Ready                                       Ready → Quit → Closed
//!
//! Transaction: Commands (RSET? MAIL RCPT… DATA) ─354→ Content → FinalDot → Ready
//!                                               └354, nobody accepted→ LoneDot → Ready
//! ```
//!
//! Whatever goes wrong ends in `Closed` with a [`Trouble`] that says where and what. The machine never decides what
//! a reply means for the mail: it gives facts, `mail::outcome` decides.

mod auth;
mod exchange;
mod extensions;
mod facts;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use auth::Login;
pub use extensions::Extensions;
pub use facts::{End, Facts, RcptAnswer, Step, Timer, Trouble, TroubleKind};

use crate::smtp::address::{ForwardPath, ReversePath};
use crate::smtp::framing::{ReplyLines, ReplyParser};
use crate::smtp::reply::ReplyCode;
use exchange::{Exchange, Next, Phase};

/// How a conversation begins.
#[derive(Clone, Debug)]
pub struct Options {
    /// What EHLO says.
    pub hostname: Arc<str>,
    /// Whether STARTTLS is used.
    pub tls: TlsUse,
    /// AUTH, only ever sent under TLS.
    pub login: Option<Login>,
}

/// Whether a conversation uses STARTTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// No.
    Never,
    /// When it is offered and not refused.
    WhenOffered,
    /// Nothing is sent without it.
    Always,
}

/// What MAIL says of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct MailCommand<'a> {
    /// The sender.
    pub reverse_path: &'a ReversePath,
    /// Whether the content was declared `8BITMIME`; passed on when the server offers it.
    pub eight_bit_mime: bool,
    /// Length of the content in bytes, before dot-stuffing.
    pub size: u64,
}

/// What the driver is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction can begin: [`Client::begin`].
    Ready,
    /// Do the TLS handshake now, then [`Client::handle_tls_ready`] or [`Client::handle_tls_failed`].
    StartTls,
    /// Send the content, dot-stuffed, and the final dot, then [`Client::content_sent`].
    SendContent,
    /// The transaction is over.
    Finished(Facts),
    /// The conversation ended outside a transaction.
    Broken(Trouble),
    /// QUIT was answered, or the connection closed after it.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Auth(AuthStep),
    Ready,
    Transaction(Phase),
    Quit,
    Closed,
}

/// Which answer AUTH waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AuthStep {
    Plain,
    LoginUsername,
    LoginPassword,
    LoginResult,
}

/// One conversation. A driver calls, in a loop: [`poll_event`](Self::poll_event) until it has none,
/// [`poll_transmit`](Self::poll_transmit) and writes, [`poll_timeout`](Self::poll_timeout), then waits for bytes or
/// the time and calls [`handle_bytes`](Self::handle_bytes), [`handle_timeout`](Self::handle_timeout) or
/// [`handle_lost`](Self::handle_lost).
#[derive(Debug)]
pub struct Client {
    options: Options,
    state: State,
    parser: ReplyParser,
    out: Vec<u8>,
    event: Option<Event>,
    extensions: Extensions,
    secure: bool,
    exchange: Exchange,
    answers: u64,
}

// Getters.
impl Client {
    /// A conversation over a connection that was just made.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            state: State::Greeting,
            parser: ReplyParser::default(),
            out: Vec::new(),
            event: None,
            extensions: Extensions::default(),
            secure: false,
            exchange: Exchange::default(),
            answers: 0,
        }
    }

    /// Whether a transaction can begin.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether the connection can't be used any more.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the conversation runs under TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// What the server offered in its last EHLO reply.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// How many replies were read so far; while it stands still, the time of [`Self::poll_timeout`] runs.
    pub fn answers(&self) -> u64 {
        self.answers
    }
}

// Input.
impl Client {
    /// Takes bytes that the server sent.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.parser.push(bytes);
        self.pump();
    }

    /// The time of [`Self::poll_timeout`] is over.
    pub fn handle_timeout(&mut self) {
        self.fail(TroubleKind::Timeout);
    }

    /// The connection ended or broke, with the system's words.
    pub fn handle_lost(&mut self, why: impl Into<String>) {
        self.fail(TroubleKind::Lost(why.into()));
    }

    /// The handshake asked for by [`Event::StartTls`] succeeded.
    pub fn handle_tls_ready(&mut self) {
        self.secure = true;
        self.extensions = Extensions::default();
        self.say_ehlo();
    }

    /// The handshake asked for by [`Event::StartTls`] failed.
    pub fn handle_tls_failed(&mut self, why: impl Into<String>) {
        self.fail(TroubleKind::TlsHandshake(why.into()));
    }

    /// The content can't be read: the connection must be dropped before the final dot.
    pub fn handle_local_failure(&mut self, why: impl Into<String>) {
        self.fail(TroubleKind::Local(why.into()));
    }

    /// The content turned out to be damaged: the connection must be dropped before the final dot.
    pub fn handle_damaged_content(&mut self, why: impl Into<String>) {
        self.fail(TroubleKind::Damaged(why.into()));
    }

    /// The relay stops; nothing more is waited for.
    pub fn handle_abort(&mut self) {
        self.fail(TroubleKind::Aborted);
    }
}

// What the application does.
impl Client {
    /// Begins a transaction; only when [ready](Self::is_ready). At least one recipient.
    pub fn begin<'a>(&mut self, mail: MailCommand<'_>, recipients: impl Iterator<Item = &'a ForwardPath>) {
        debug_assert!(self.is_ready(), "a transaction begins only on a ready connection");
        if let Some(limit) = self.extensions.size_exceeded(mail.size) {
            let recipients = recipients.map(|_| RcptAnswer::Unanswered).collect();
            self.event = Some(Event::Finished(Facts { recipients, end: End::TooLarge { limit } }));
            return;
        }
        self.exchange.begin(mail, recipients, &self.extensions);
        self.state = State::Transaction(Phase::Commands);
        self.exchange.release(&mut self.out);
    }

    /// The content with its final dot is on its way, as [`Event::SendContent`] asked.
    pub fn content_sent(&mut self) {
        if self.state == State::Transaction(Phase::Content) {
            self.state = State::Transaction(Phase::FinalDot);
        }
    }

    /// Says QUIT; only when [ready](Self::is_ready).
    pub fn quit(&mut self) {
        if self.is_ready() {
            self.send(&["QUIT"]);
            self.state = State::Quit;
        }
    }
}

// Output.
impl Client {
    /// Moves what is to be sent to the end of `out`; false when there is nothing.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        if self.out.is_empty() {
            return false;
        }
        if out.is_empty() {
            std::mem::swap(out, &mut self.out);
        } else {
            out.append(&mut self.out);
        }
        true
    }

    /// The next thing that the driver must know or do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.pump();
        self.event.take()
    }

    /// Which time runs now; none when nothing is owed.
    pub fn poll_timeout(&self) -> Option<Timer> {
        Some(match self.state {
            State::Greeting => Timer::Greeting,
            State::Ehlo | State::Helo | State::StartTls | State::Handshake | State::Auth(_) => Timer::Command,
            State::Transaction(phase) => self.exchange.timer(phase),
            State::Quit => Timer::Quit,
            State::Ready | State::Closed => return None,
        })
    }
}

// The dialogue.
impl Client {
    /// Takes replies from the parser until there is something to tell.
    fn pump(&mut self) {
        while self.event.is_none() && !matches!(self.state, State::Closed | State::Handshake) {
            match self.parser.next_reply() {
                Ok(Some(reply)) => {
                    self.answers += 1;
                    self.handle_reply(reply);
                }
                Ok(None) => return,
                Err(error) => self.fail(TroubleKind::Protocol(error.to_string())),
            }
        }
    }

    fn handle_reply(&mut self, reply: ReplyLines) {
        const CLOSING: Option<ReplyCode> = ReplyCode::new(421);
        if Some(reply.code()) == CLOSING && self.state != State::Quit {
            return self.fail(TroubleKind::Refused(reply.into_reply()));
        }
        match self.state {
            State::Greeting if reply.code().is_positive() => self.say_ehlo(),
            State::Ehlo if reply.code().is_positive() => {
                self.extensions = Extensions::parse(reply.lines());
                self.proceed();
            }
            State::Ehlo if reply.code().is_permanent() && !self.secure => {
                self.say("HELO", State::Helo);
            }
            State::Helo if reply.code().is_positive() => self.proceed(),
            State::StartTls => self.handle_starttls_reply(reply),
            State::Auth(step) => self.handle_auth_reply(step, reply),
            State::Transaction(phase) => self.handle_transaction_reply(phase, reply),
            State::Quit => self.close(Event::Closed),
            // Nothing was asked: most often the server's farewell to an idle connection.
            State::Ready => self.state = State::Closed,
            _ => self.refuse(reply),
        }
    }

    fn handle_starttls_reply(&mut self, reply: ReplyLines) {
        if reply.code().is_positive() {
            // Whatever came before the handshake would be read as if it came under TLS (CVE-2011-0411).
            if !self.parser.is_empty() {
                return self.fail(TroubleKind::Protocol("data before the TLS handshake".to_owned()));
            }
            self.state = State::Handshake;
            self.event = Some(Event::StartTls);
        } else if self.options.tls == TlsUse::Always {
            self.refuse(reply);
        } else {
            self.options.tls = TlsUse::Never;
            self.proceed();
        }
    }

    fn handle_auth_reply(&mut self, step: AuthStep, reply: ReplyLines) {
        let code = reply.code();
        let Some(login) = self.options.login.as_ref().filter(|_| code.is_intermediate()) else {
            let unknown_mechanism = code.get() == 504 && step == AuthStep::Plain;
            return if code.is_positive() && !matches!(step, AuthStep::LoginUsername | AuthStep::LoginPassword)
            {
                self.ready();
            } else if unknown_mechanism && self.extensions.auth_login {
                self.auth_login();
            } else {
                self.refuse(reply);
            };
        };
        let (answer, next) = match step {
            AuthStep::LoginUsername => (STANDARD.encode(&login.username), AuthStep::LoginPassword),
            AuthStep::LoginPassword => (STANDARD.encode(&login.password), AuthStep::LoginResult),
            AuthStep::Plain | AuthStep::LoginResult => return self.refuse(reply),
        };
        self.send(&[&answer]);
        self.state = State::Auth(next);
    }

    fn handle_transaction_reply(&mut self, phase: Phase, reply: ReplyLines) {
        match self.exchange.handle_reply(phase, reply) {
            Next::Wait => self.exchange.release(&mut self.out),
            // Whatever it said behind its 354 would be taken for the answer to a final dot it has not seen.
            Next::SendContent if !self.parser.is_empty() => {
                self.fail(TroubleKind::Protocol("it answered before the content was sent".to_owned()));
            }
            Next::SendContent => {
                self.state = State::Transaction(Phase::Content);
                self.event = Some(Event::SendContent);
            }
            Next::SendLoneDot => {
                self.out.extend_from_slice(b".\r\n");
                self.state = State::Transaction(Phase::LoneDot);
            }
            Next::Finished(facts) => {
                self.state = State::Ready;
                self.event = Some(Event::Finished(facts));
            }
            Next::FinishedEarly(facts) => self.close(Event::Finished(facts)),
            Next::Protocol(what) => self.fail(TroubleKind::Protocol(what)),
        }
    }

    /// After EHLO: TLS, then AUTH, then transactions.
    fn proceed(&mut self) {
        if !self.secure && self.options.tls != TlsUse::Never {
            if self.extensions.starttls {
                self.send(&["STARTTLS"]);
                self.state = State::StartTls;
                return;
            }
            if self.options.tls == TlsUse::Always {
                return self.fail(TroubleKind::TlsNotOffered);
            }
        }
        match &self.options.login {
            None => self.ready(),
            Some(login) if self.secure && self.extensions.auth_plain => {
                let response = login.plain();
                self.send(&["AUTH PLAIN ", &response]);
                self.state = State::Auth(AuthStep::Plain);
            }
            Some(_) if self.secure && self.extensions.auth_login => self.auth_login(),
            Some(_) => {
                self.state = State::Auth(AuthStep::Plain);
                self.fail(TroubleKind::AuthNotOffered);
            }
        }
    }

    fn auth_login(&mut self) {
        self.send(&["AUTH LOGIN"]);
        self.state = State::Auth(AuthStep::LoginUsername);
    }

    fn ready(&mut self) {
        self.state = State::Ready;
        self.event = Some(Event::Ready);
    }

    fn say_ehlo(&mut self) {
        self.say("EHLO", State::Ehlo);
    }

    fn say(&mut self, verb: &str, next: State) {
        let hostname = Arc::clone(&self.options.hostname);
        self.send(&[verb, " ", &hostname]);
        self.state = next;
    }

    fn send(&mut self, words: &[&str]) {
        for word in words {
            self.out.extend_from_slice(word.as_bytes());
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Ends over a reply that is not the wanted one.
    fn refuse(&mut self, reply: ReplyLines) {
        let code = reply.code();
        self.fail(if code.is_transient() || code.is_permanent() {
            TroubleKind::Refused(reply.into_reply())
        } else {
            TroubleKind::Protocol(format!("unexpected reply {}", reply.into_reply()))
        });
    }

    fn fail(&mut self, kind: TroubleKind) {
        let trouble = Trouble { step: self.step(), kind };
        match self.state {
            State::Closed => {}
            State::Ready => self.state = State::Closed,
            State::Quit => self.close(Event::Closed),
            State::Transaction(phase) => {
                let facts = self.exchange.broken(phase, trouble);
                self.close(Event::Finished(facts));
            }
            _ => self.close(Event::Broken(trouble)),
        }
    }

    fn close(&mut self, last: Event) {
        self.state = State::Closed;
        self.out.clear();
        self.event = Some(last);
    }

    fn step(&self) -> Step {
        match self.state {
            State::Greeting => Step::Greeting,
            State::Ehlo | State::Helo => Step::Ehlo,
            State::StartTls | State::Handshake => Step::StartTls,
            State::Auth(_) => Step::Auth,
            State::Transaction(phase) => self.exchange.step(phase),
            State::Ready | State::Quit | State::Closed => Step::Quit,
        }
    }
}
