//! One transaction: which command the next reply answers, and what may be sent before it is here.
//!
//! All commands are written into one script at the start. With PIPELINING (RFC 2920) the script goes out in bursts,
//! else line by line; the replies are the same either way.

use std::io::Write;

use super::facts::{End, Facts, RcptAnswer, Step, Timer, Trouble, TroubleKind};
use super::{Extensions, MailCommand};
use crate::smtp::address::ForwardPath;
use crate::smtp::framing::ReplyLines;
use crate::smtp::reply::Reply;

/// Commands whose replies may be outstanding at once: 512 octets each (RFC 5321 section 4.5.3.1.5) fit into any
/// receive buffer, so that neither side ever waits for the other to read.
const BURST: usize = 120;

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// RSET, MAIL, RCPT, DATA.
    Commands,
    /// The driver sends the content.
    Content,
    /// The content was sent.
    FinalDot,
    /// 354 came though nobody was accepted (RFC 2920 section 3.1): an empty message was sent to get out of DATA.
    LoneDot,
}

/// What a reply leads to.
#[derive(Debug)]
pub(super) enum Next {
    Wait,
    SendContent,
    SendLoneDot,
    /// The connection is in step for another transaction.
    Finished(Facts),
    /// The connection is not.
    FinishedEarly(Facts),
    Protocol(String),
}

#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// RSET when needed, MAIL, each RCPT, DATA; each ends with CRLF.
    script: Vec<u8>,
    /// Bytes of the script that went out.
    sent: usize,
    /// Commands of the script that went out.
    released: usize,
    /// Commands that were answered.
    answered: usize,
    /// Commands before MAIL: 1 with an RSET.
    prelude: usize,
    pipelined: bool,
    recipients: Vec<RcptAnswer>,
    accepted: usize,
    mail_refused: Option<Reply>,
    /// The last transaction was given up between MAIL and DATA: the next one starts with RSET.
    dirty: bool,
}

impl Exchange {
    pub(super) fn begin<'a>(
        &mut self,
        mail: MailCommand<'_>,
        recipients: impl Iterator<Item = &'a ForwardPath>,
        offered: &Extensions,
    ) {
        let mut script = std::mem::take(&mut self.script);
        script.clear();
        let prelude = usize::from(self.dirty);
        if self.dirty {
            script.extend_from_slice(b"RSET\r\n");
        }
        write_mail(&mut script, mail, offered);
        let mut answers = Vec::with_capacity(recipients.size_hint().0);
        for path in recipients {
            script.extend_from_slice(b"RCPT TO:<");
            script.extend_from_slice(path.as_str().as_bytes());
            script.extend_from_slice(b">\r\n");
            answers.push(RcptAnswer::Unanswered);
        }
        script.extend_from_slice(b"DATA\r\n");
        let pipelined = offered.pipelining;
        *self = Self { script, prelude, pipelined, recipients: answers, ..Self::default() };
    }

    /// Moves the commands that may go out now to `out`.
    pub(super) fn release(&mut self, out: &mut Vec<u8>) {
        if self.released > self.answered || self.sent == self.script.len() {
            return;
        }
        let from = self.sent;
        let burst = if self.pipelined { BURST } else { 1 };
        if burst > self.recipients.len() + 2 && self.sent == 0 {
            self.sent = self.script.len();
            self.released = self.commands();
        } else {
            for end in memchr::memchr_iter(b'\n', &self.script[from..]).take(burst) {
                self.sent = from + end + 1;
                self.released += 1;
            }
        }
        out.extend_from_slice(&self.script[from..self.sent]);
    }

    pub(super) fn handle_reply(&mut self, phase: Phase, reply: ReplyLines) -> Next {
        let code = reply.code();
        let refused = code.is_transient() || code.is_permanent();
        if !(refused || code.is_positive() || self.awaits_354(phase)) {
            return unexpected(reply);
        }
        match phase {
            Phase::Commands => self.handle_command_reply(refused, reply),
            // A server that can't wait for the end: it will not read the rest.
            Phase::Content if refused => Next::FinishedEarly(self.refused(Step::FinalDot, reply)),
            Phase::Content => unexpected(reply),
            Phase::FinalDot if refused => Next::Finished(self.refused(Step::FinalDot, reply)),
            Phase::FinalDot => Next::Finished(self.end(End::Accepted(reply.into_reply()))),
            Phase::LoneDot => Next::Finished(self.nobody()),
        }
    }

    fn handle_command_reply(&mut self, refused: bool, reply: ReplyLines) -> Next {
        let index = self.answered;
        self.answered += 1;
        match self.command(index) {
            Step::Rset if refused => {
                let trouble = Trouble { step: Step::Rset, kind: TroubleKind::Refused(reply.into_reply()) };
                return Next::FinishedEarly(self.end(End::Broken(trouble)));
            }
            Step::Mail => {
                self.dirty = !refused;
                self.mail_refused = refused.then(|| reply.into_reply());
            }
            Step::Rcpt if self.mail_refused.is_none() => {
                self.accepted += usize::from(!refused);
                self.recipients[index - self.prelude - 1] =
                    if refused { RcptAnswer::Refused(reply.into_reply()) } else { RcptAnswer::Accepted };
            }
            Step::Data => return self.handle_data_reply(refused, reply),
            _ => {}
        }
        // Nothing outstanding: the last moment to give up without another command.
        let idle = self.released == self.answered;
        let data_is_next = self.command(self.answered) == Step::Data;
        if idle && (self.mail_refused.is_some() || data_is_next && self.accepted == 0) {
            return Next::Finished(self.nobody());
        }
        Next::Wait
    }

    fn handle_data_reply(&mut self, refused: bool, reply: ReplyLines) -> Next {
        let anybody = self.accepted > 0 && self.mail_refused.is_none();
        match (reply.code().is_intermediate(), anybody) {
            (true, true) => Next::SendContent,
            (true, false) => Next::SendLoneDot,
            (false, true) if refused => Next::Finished(self.refused(Step::Data, reply)),
            (false, false) if refused => Next::Finished(self.nobody()),
            (false, _) => unexpected(reply),
        }
    }

    fn awaits_354(&self, phase: Phase) -> bool {
        phase == Phase::Commands && self.command(self.answered) == Step::Data
    }

    /// The facts when the conversation ends in the middle.
    pub(super) fn broken(&mut self, phase: Phase, trouble: Trouble) -> Facts {
        let end = match self.mail_refused.take() {
            // MAIL was answered; what is missing are answers that don't matter.
            Some(reply) => End::Refused { step: Step::Mail, reply },
            None if phase == Phase::LoneDot => End::NoRecipient,
            None => End::Broken(trouble),
        };
        self.end(end)
    }

    /// The facts when nobody is left to send to.
    fn nobody(&mut self) -> Facts {
        let end = match self.mail_refused.take() {
            Some(reply) => End::Refused { step: Step::Mail, reply },
            None => End::NoRecipient,
        };
        self.end(end)
    }

    fn refused(&mut self, step: Step, reply: ReplyLines) -> Facts {
        self.dirty = step == Step::Data;
        self.end(End::Refused { step, reply: reply.into_reply() })
    }

    fn end(&mut self, end: End) -> Facts {
        if matches!(end, End::Accepted(_)) {
            self.dirty = false;
        }
        Facts { recipients: std::mem::take(&mut self.recipients), end }
    }

    pub(super) fn step(&self, phase: Phase) -> Step {
        match phase {
            Phase::Commands => self.command(self.answered),
            Phase::Content => Step::Content,
            Phase::FinalDot | Phase::LoneDot => Step::FinalDot,
        }
    }

    pub(super) fn timer(&self, phase: Phase) -> Timer {
        match self.step(phase) {
            Step::Mail => Timer::Mail,
            Step::Rcpt => Timer::Rcpt,
            Step::Data => Timer::DataInit,
            Step::Content => Timer::DataBlock,
            Step::FinalDot => Timer::DataDone,
            _ => Timer::Command,
        }
    }

    fn commands(&self) -> usize {
        self.prelude + self.recipients.len() + 2
    }

    /// The command at this place of the script.
    fn command(&self, index: usize) -> Step {
        match index.checked_sub(self.prelude) {
            None => Step::Rset,
            Some(0) => Step::Mail,
            Some(place) if place <= self.recipients.len() => Step::Rcpt,
            Some(_) => Step::Data,
        }
    }
}

fn unexpected(reply: ReplyLines) -> Next {
    Next::Protocol(format!("unexpected reply {}", reply.into_reply()))
}

fn write_mail(script: &mut Vec<u8>, mail: MailCommand<'_>, offered: &Extensions) {
    script.extend_from_slice(b"MAIL FROM:<");
    script.extend_from_slice(mail.reverse_path.as_str().as_bytes());
    script.extend_from_slice(b">");
    if offered.size.is_some() {
        let _ = write!(script, " SIZE={}", mail.size);
    }
    if mail.eight_bit_mime && offered.eight_bit_mime {
        script.extend_from_slice(b" BODY=8BITMIME");
    }
    script.extend_from_slice(b"\r\n");
}
