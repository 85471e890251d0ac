//! The commands, one by one (RFC 5321 section 4.1).

use memchr::memchr;

use super::replies::{line, lines};
use super::{
    CHATTER_MAX, COMMAND_LINE_MAX, ENDLESS_LINE, Event, OVERSHOOT_MAX, Pending, Refusal, Server, State,
    Transaction,
};
use crate::smtp::address::{ForwardPath, ReversePath};
use crate::smtp::command::{BodyParam, Command, CommandError};

/// What is known of the command line that is coming in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing bad.
    Fresh,
    /// Longer than [`COMMAND_LINE_MAX`]: dropped as it comes; so many octets were, at most [`ENDLESS_LINE`].
    TooLong(usize),
    /// A bare LF came before it. Each LF is answered, so that a client that sends nothing else learns why, but nothing
    /// is run up to the next CRLF: whoever gets a line feed into an address can't bring a command along.
    Damaged,
}

impl Server {
    /// Takes one line; returns how much of the input it took.
    pub(super) fn take_line(&mut self, input: &[u8]) -> usize {
        let Some(end) = memchr(b'\n', input) else {
            return self.take_part_of_line(input);
        };
        let text = input[..end].strip_suffix(b"\r");
        let after = if text.is_some() { Line::Fresh } else { Line::Damaged };
        let before = std::mem::replace(&mut self.line, after);
        match text {
            _ if matches!(before, Line::TooLong(_)) || end >= COMMAND_LINE_MAX => self.line_too_long(),
            Some(text) if before == Line::Fresh => match std::str::from_utf8(text) {
                Ok(text) if !text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') => {
                    self.command(text);
                }
                _ => self.fail("unknown", 500, (5, 5, 2), "a command has a character that is not allowed"),
            },
            _ => self.fail("unknown", 500, (5, 5, 2), "end each line with CR and LF"),
        }
        end + 1
    }

    /// Takes input without the end of its line: keeps a line that may still be a command, drops a longer one, and after
    /// [`ENDLESS_LINE`] the client.
    fn take_part_of_line(&mut self, input: &[u8]) -> usize {
        let before = match self.line {
            Line::TooLong(before) => before,
            _ if input.len() <= COMMAND_LINE_MAX => return 0,
            _ => 0,
        };
        // A CR stays: its LF may be next.
        let used = input.len() - usize::from(input.ends_with(b"\r"));
        self.line = Line::TooLong(before + used);
        if before + used > ENDLESS_LINE {
            self.line_too_long();
            self.close_now(Refusal::new(421, (4, 7, 0), "too long a line without an end"));
        }
        used
    }

    fn line_too_long(&mut self) {
        let text = format!("the line is too long; a command has at most {COMMAND_LINE_MAX} octets");
        self.fail("unknown", 500, (5, 5, 2), text);
    }

    fn command(&mut self, text: &str) {
        if speaks_http(text) {
            let text = "this is a mail server: it does not speak HTTP";
            return self.close_now(Refusal::new(521, (5, 5, 1), text));
        }
        match Command::parse(text, &self.settings.hostname) {
            Ok(Command::Helo(name)) => self.hello(name, false),
            Ok(Command::Ehlo(name)) => self.hello(name, true),
            Ok(Command::Mail { path, size, body }) => self.mail(path, size, body),
            Ok(Command::Rcpt(path)) => self.rcpt(path),
            Ok(Command::Data) => self.data(),
            Ok(Command::Rset) => {
                self.reset();
                self.chat(250, (2, 0, 0), "ok");
            }
            Ok(Command::Noop) => self.chat(250, (2, 0, 0), "ok"),
            Ok(Command::Vrfy) => {
                self.chat(252, (2, 5, 0), "addresses are not verified here; send mail to find out");
            }
            Ok(Command::Help) => {
                let texts = [
                    "2.0.0 HELO EHLO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP",
                    "2.0.0 this is an outbound relay; its operator configures who may send",
                ];
                lines(&mut self.output, 214, &texts);
                self.count_chatter();
            }
            Ok(Command::Quit) => {
                self.reset();
                self.say(221, (2, 0, 0), "bye");
                self.end();
            }
            Err(CommandError { command, code, status, text }) => {
                self.fail(command, code, (status.class, status.subject, status.detail), text);
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
        self.count_chatter();
    }

    fn mail(&mut self, reverse_path: ReversePath, declared_size: Option<u64>, body: Option<BodyParam>) {
        let Some((helo, extended)) = self.helo.clone() else {
            return self.fail("MAIL", 503, (5, 5, 1), "send EHLO or HELO first");
        };
        if matches!(self.state, State::Mail(_)) {
            return self.fail("MAIL", 503, (5, 5, 1), "a transaction is open already; RSET ends it");
        }
        if !extended && (declared_size.is_some() || body.is_some()) {
            return self.fail("MAIL", 555, (5, 5, 4), "parameters need EHLO instead of HELO");
        }
        if declared_size.is_some_and(|size| size > self.settings.message_size) {
            return self.fail("MAIL", 552, (5, 3, 4), self.settings.too_large());
        }
        let body = body.unwrap_or_default();
        let recipients = Vec::new();
        let transaction = Transaction { reverse_path, body, declared_size, recipients, helo, extended };
        if self.settings.may_relay {
            self.pending = Some(Pending::Mail(transaction));
            self.events.push_back(Event::MailWanted);
        } else {
            self.open(transaction);
        }
    }

    pub(super) fn open(&mut self, transaction: Transaction) {
        self.say(250, (2, 1, 0), "sender ok");
        self.overshoot = 0;
        self.state = State::Mail(transaction);
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
            return self.too_many_recipients();
        }
        if let Some(refusal) = self.on_recipient.as_mut().and_then(|decide| decide(&path)) {
            return self.give("RCPT", &refusal);
        }
        transaction.recipients.push(path);
        self.say(250, (2, 1, 5), "recipient ok");
    }

    /// No error at first: a client that does as RFC 5321 section 4.5.3.1.10 says names more and sends the rest later.
    fn too_many_recipients(&mut self) {
        let text = "too many recipients; send the rest in another transaction";
        self.give("RCPT", &Refusal::new(452, (4, 5, 3), text));
        self.overshoot += 1;
        if self.overshoot > OVERSHOOT_MAX {
            self.count_error();
        }
    }

    fn data(&mut self) {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Mail(transaction) if !transaction.recipients.is_empty() => {
                self.pending = Some(Pending::Data(transaction));
                self.events.push_back(Event::DataWanted);
            }
            State::Mail(transaction) => {
                self.state = State::Mail(transaction);
                self.fail("DATA", 554, (5, 5, 1), "no valid recipients");
            }
            other => {
                self.state = other;
                self.fail("DATA", 503, (5, 5, 1), "send MAIL and RCPT first");
            }
        }
    }

    /// Ends an open transaction.
    fn reset(&mut self) {
        if self.is_allowed() {
            self.events.push_back(Event::Reset);
        }
        if let State::Mail(_) = self.state {
            self.state = State::Ready;
        }
    }

    /// Answers a command that moves nothing on.
    fn chat(&mut self, code: u16, status: (u8, u16, u16), text: &str) {
        self.say(code, status, text);
        self.count_chatter();
    }

    fn count_chatter(&mut self) {
        self.chatter += 1;
        if self.chatter > CHATTER_MAX {
            self.count_error();
        }
    }
}

/// The first line of an HTTP request. A web page can make a browser send one to any port, with SMTP commands as the body:
/// reading on would let it relay as a client of loopback.
fn speaks_http(line: &str) -> bool {
    const METHODS: [&str; 9] = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "DELETE", "CONNECT", "PRI"];
    line.split_once(' ').is_some_and(|(method, _)| METHODS.contains(&method))
}
