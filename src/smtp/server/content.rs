//! What follows DATA (RFC 5321 section 4.1.1.4).

use bytes::BytesMut;

use super::replies::line;
use super::{Data, Event, Pending, RECEIVED_MAX, Refusal, Server, ServerSettings, State, Transaction};
use crate::smtp::scanner::{Scan, Scanner, TEXT_LINE_MAX};

impl Server {
    pub(super) fn begin_content(&mut self, transaction: Transaction) {
        line(&mut self.output, 354, None, "send the message; end with a line that is a single dot");
        self.content.clear();
        self.content_size = 0;
        self.state = State::Data(Data { transaction, scanner: Scanner::default(), refusal: None });
    }

    /// Takes content up to the final dot; returns how much of the input it took. What will be refused is dropped, but
    /// read to its end: the client hears the answer there.
    pub(super) fn take_content(&mut self, input: &[u8]) -> usize {
        let State::Data(data) = &mut self.state else { return 0 };
        let before = self.content.len();
        let (used, scan) = data.scanner.scan(input, &mut self.content);
        self.content_size += (self.content.len() - before) as u64;
        if self.content_size > self.settings.message_size {
            data.refusal.get_or_insert_with(|| Refusal::new(552, (5, 3, 4), self.settings.too_large()));
        } else if data.scanner.has_long_line() {
            data.refusal.get_or_insert_with(long_line);
        } else if data.scanner.has_nul() {
            data.refusal.get_or_insert_with(nul);
        }
        if data.refusal.is_some() {
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
        let looping = data.scanner.received() > RECEIVED_MAX;
        let refusal = data.refusal.or_else(|| looping.then(too_many_hops));
        let Some(refusal) = refusal else {
            self.pending = Some(Pending::Message);
            return self.events.push_back(Event::MessageEnd(data.transaction));
        };
        self.content = BytesMut::new();
        self.events.push_back(Event::Reset);
        self.give("DATA", &refusal);
        self.close_when_possible();
    }
}

impl ServerSettings {
    pub(super) fn too_large(&self) -> String {
        format!("the message is larger than {} bytes", self.message_size)
    }
}

fn long_line() -> Refusal {
    let text = format!("the message has a line of more than {TEXT_LINE_MAX} octets; wrap it");
    Refusal::new(554, (5, 6, 0), text)
}

fn nul() -> Refusal {
    Refusal::new(554, (5, 6, 0), "the message has a NUL character; encode it as base64 or quoted-printable")
}

fn too_many_hops() -> Refusal {
    Refusal::new(554, (5, 4, 6), "too many hops: the message is in a loop")
}
