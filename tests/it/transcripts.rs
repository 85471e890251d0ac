//! Golden transcripts: whole dialogues with the receiving machine, in `tests/transcripts/**/*.smtp`.
//!
//! | line | meaning |
//! |---|---|
//! | `# …`, empty | a comment |
//! | `set key value` | a setting of the server: `may_relay`, `message_size`, `recipients`, `errors` |
//! | `C: text` | the client sends the text and CRLF |
//! | `C~ text` | the client sends the text alone; `\r`, `\n`, `\t`, `\0`, `\xNN` and `\\` are escapes |
//! | `C* n text` | the same, n times |
//! | `! refuse code status text` | the driver's verdict on the next thing it is asked (it allows all else) |
//! | `! close code status text` | the driver ends the session here |
//! | `! discard code status text` | the driver has no place for the content that is coming in |
//! | `S: text` | the server answers; `<id>` is the queue id |
//! | `E: <from> 7BIT <to> …` | a message was accepted, this is its envelope |
//! | `M: text`, `M~ text`, `M* n text` | a line of the accepted content; `~` with escapes, `*` with the text n times |
//! | `X: closed` | the server closed the connection |
//!
//! Client lines that follow each other are one write. Each file runs three times: as it is written; one byte per push,
//! with content taken from the machine as it comes; and with all that the client says in one write, which is compared
//! as a whole (files with `! close` or `! discard`, which need their place, run twice). Behind what the server says to one write come
//! the messages that it accepted, then the end.
//!
//! To report a protocol bug, add a file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use posthaste::smtp::server::{BodyParam, Event, Refusal, Server, ServerSettings, Transaction};

#[test]
fn every_transcript_holds_whole_byte_by_byte_and_in_one_write() {
    let files = transcripts();
    assert!(files.len() >= 20, "only {} transcripts were found", files.len());
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| check(&std::fs::read_to_string(file).unwrap(), &file.display().to_string()).err())
        .collect();
    assert!(failures.is_empty(), "{}\n{} of {} fail", failures.join("\n"), failures.len(), files.len());
}

#[test]
fn a_transcript_that_fails_shows_what_differs() {
    let text = "S: 220 relay.example ESMTP Posthaste\nC: NOOP\nS: 250 2.0.0 fine\nC: QUIT\nS: 221 2.0.0 bye\nX: closed\n";
    let diff = check(text, "sample.smtp").unwrap_err();
    assert!(diff.contains("sample.smtp, as written:\n"), "{diff}");
    assert!(diff.contains("  C: NOOP\n- S: 250 2.0.0 fine\n+ S: 250 2.0.0 ok\n  C: QUIT\n"), "{diff}");
}

fn transcripts() -> Vec<PathBuf> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "smtp") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Runs one transcript in all ways.
fn check(text: &str, name: &str) -> Result<(), String> {
    let script = Script::parse(text).map_err(|wrong| format!("{name}: {wrong}"))?;
    let mut asked = BTreeMap::new();
    let mut run = |script: &Script, piece: usize, how: &str| {
        let actual = script.play(piece, &mut asked).map_err(|wrong| format!("{name}, {how}: {wrong}"))?;
        compare(&script.expected(), &actual, name, how)
    };
    run(&script, usize::MAX, "as written")?;
    run(&script, 1, "byte by byte")?;
    if script.steps.iter().any(|step| matches!(step, Step::Close(_) | Step::Discard(_))) {
        return Ok(());
    }
    run(&script.in_one_write(), usize::MAX, "in one write")
}

/// What a transcript says, step by step.
#[derive(Clone)]
enum Step {
    /// One write, and its lines as they stand in the file.
    Client { bytes: Vec<u8>, shown: Vec<String> },
    /// A verdict.
    Refuse(Refusal),
    /// The end from the driver's side.
    Close(Refusal),
    /// No place for the content.
    Discard(Refusal),
    /// What must come of it.
    Expect(String),
}

struct Script {
    settings: ServerSettings,
    steps: Vec<Step>,
}

impl Script {
    fn parse(text: &str) -> Result<Self, String> {
        let settings = ServerSettings {
            hostname: "relay.example".to_owned(),
            may_relay: true,
            message_size: 10_000,
            recipients: 10,
            errors: 10,
        };
        let mut script = Self { settings, steps: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            script.line(line).ok_or_else(|| format!("line {} is not understood: {line}", index + 1))?;
        }
        Ok(script)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        if line.is_empty() || line.starts_with('#') {
            return Some(());
        }
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        let step = match mark {
            "set" => return self.set(rest),
            "C:" => return self.client(format!("{rest}\r\n").into_bytes(), line),
            "C~" => return self.client(unescape(rest)?, line),
            "C*" => {
                let (count, text) = rest.split_once(' ')?;
                return self.client(unescape(text)?.repeat(count.parse().ok()?), line);
            }
            "!" => {
                let (verb, refusal) = rest.split_once(' ')?;
                match verb {
                    "refuse" => Step::Refuse(parse_refusal(refusal)?),
                    "close" => Step::Close(parse_refusal(refusal)?),
                    "discard" => Step::Discard(parse_refusal(refusal)?),
                    _ => return None,
                }
            }
            "M*" => {
                let (count, text) = rest.split_once(' ')?;
                Step::Expect(format!("M: {}", text.repeat(count.parse().ok()?)))
            }
            "M~" => Step::Expect(format!("M: {}", String::from_utf8(unescape(rest)?).ok()?)),
            "S:" | "E:" | "M:" | "X:" => Step::Expect(line.to_owned()),
            _ => return None,
        };
        self.steps.push(step);
        Some(())
    }

    fn set(&mut self, rest: &str) -> Option<()> {
        let (key, value) = rest.split_once(' ')?;
        match key {
            "may_relay" => self.settings.may_relay = value.parse().ok()?,
            "message_size" => self.settings.message_size = value.parse().ok()?,
            "recipients" => self.settings.recipients = value.parse().ok()?,
            "errors" => self.settings.errors = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    /// Adds to the write before, or begins one.
    fn client(&mut self, more: Vec<u8>, line: &str) -> Option<()> {
        if let Some(Step::Client { bytes, shown }) = self.steps.last_mut() {
            bytes.extend_from_slice(&more);
            shown.push(line.to_owned());
        } else {
            self.steps.push(Step::Client { bytes: more, shown: vec![line.to_owned()] });
        }
        Some(())
    }

    /// The same dialogue with a client that waits for nothing.
    fn in_one_write(&self) -> Self {
        let mut together = Self { settings: self.settings.clone(), steps: Vec::new() };
        for step in &self.steps {
            if let Step::Client { bytes, .. } = step {
                together.client(bytes.clone(), "C: …");
            }
        }
        // Server lines first, then messages, as they come out of one write.
        for marks in [["S:", "S:", "S:"], ["E:", "M:", "X:"]] {
            together.steps.extend(
                self.steps
                    .iter()
                    .filter(|step| matches!(step, Step::Expect(line) if marks.contains(&&line[..2])))
                    .cloned(),
            );
        }
        together
    }

    fn expected(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut ids = 0;
        for step in &self.steps {
            match step {
                Step::Client { shown, .. } => lines.extend(shown.iter().cloned()),
                Step::Expect(line) if line.contains("<id>") => {
                    ids += 1;
                    lines.push(line.replace("<id>", &format!("id-{ids}")));
                }
                Step::Expect(line) => lines.push(line.clone()),
                Step::Refuse(_) | Step::Close(_) | Step::Discard(_) => {}
            }
        }
        lines
    }

    /// Plays the client's part in pieces of at most `piece` bytes; returns what came of it, in the same form as
    /// [`Script::expected`]. `asked` remembers which question each refusal answers, for the run in one write.
    fn play(&self, piece: usize, asked: &mut BTreeMap<usize, Refusal>) -> Result<Vec<String>, String> {
        let mut driver = Driver::new(self.settings.clone(), piece == 1);
        let mut lines = Vec::new();
        // In one write the greeting comes with everything else.
        let one_write = matches!(self.steps.first(), Some(Step::Client { .. }));
        if !one_write {
            driver.turn(asked)?;
            driver.report(&mut lines);
        }
        for step in &self.steps {
            match step {
                Step::Client { bytes, shown } => {
                    lines.extend(shown.iter().cloned());
                    for piece in bytes.chunks(piece.min(bytes.len()).max(1)) {
                        driver.server.handle_bytes(piece);
                        driver.turn(asked)?;
                    }
                    driver.report(&mut lines);
                }
                Step::Refuse(refusal) => {
                    asked.insert(driver.questions, refusal.clone());
                }
                Step::Close(refusal) => {
                    driver.server.close(refusal.clone());
                    driver.turn(asked)?;
                    driver.report(&mut lines);
                }
                Step::Discard(refusal) => driver.server.refuse_content(refusal.clone()),
                Step::Expect(_) => {}
            }
        }
        driver.end()?;
        Ok(lines)
    }
}

/// The Session actor's part, in a few lines.
struct Driver {
    server: Server,
    /// Takes content as it comes, as for a file.
    streams: bool,
    taken: Vec<u8>,
    /// An allowed transaction that has not ended.
    holds_credit: bool,
    questions: usize,
    accepted: usize,
    written: Vec<u8>,
    messages: Vec<String>,
    closed: bool,
    refused: usize,
    refusals_written: usize,
}

impl Driver {
    fn new(settings: ServerSettings, streams: bool) -> Self {
        Self {
            server: Server::new(settings),
            streams,
            taken: Vec::new(),
            holds_credit: false,
            questions: 0,
            accepted: 0,
            written: Vec::new(),
            messages: Vec::new(),
            closed: false,
            refused: 0,
            refusals_written: 0,
        }
    }

    fn turn(&mut self, asked: &BTreeMap<usize, Refusal>) -> Result<(), String> {
        while let Some(event) = self.server.poll_event() {
            if self.closed {
                return Err(format!("an event behind Close: {event:?}"));
            }
            match event {
                Event::MailWanted | Event::DataWanted => {
                    let mail = event == Event::MailWanted;
                    self.check_credit(!mail)?;
                    match self.verdict(asked) {
                        Some(refusal) => self.server.refuse(refusal),
                        None => {
                            self.holds_credit = true;
                            self.server.allow();
                        }
                    }
                }
                Event::Content if self.streams => {
                    let piece = self.server.content().split();
                    self.taken.extend_from_slice(&piece);
                }
                Event::Content => {}
                Event::MessageEnd(transaction) => self.message_end(&transaction, asked)?,
                Event::Reset => {
                    self.check_credit(true)?;
                    self.holds_credit = false;
                    self.taken.clear();
                    self.server.content().clear();
                }
                Event::Refused { .. } => self.refused += 1,
                Event::Close => self.closed = true,
            }
        }
        let replies = self.server.transmit().split();
        self.written.extend_from_slice(&replies);
        Ok(())
    }

    fn message_end(
        &mut self,
        transaction: &Transaction,
        asked: &BTreeMap<usize, Refusal>,
    ) -> Result<(), String> {
        self.check_credit(true)?;
        self.holds_credit = false;
        let size = self.server.content_size();
        let mut content = std::mem::take(&mut self.taken);
        content.extend_from_slice(&self.server.content().split());
        if size != content.len() as u64 {
            return Err(format!("content_size() is {size} for {} bytes", content.len()));
        }
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            return Err("content that does not end with a line".to_owned());
        }
        match self.verdict(asked) {
            Some(refusal) => self.server.refuse(refusal),
            None => {
                self.accepted += 1;
                self.messages.push(show_envelope(transaction));
                let content = String::from_utf8_lossy(&content).into_owned();
                self.messages.extend(content.split_terminator("\r\n").map(|line| format!("M: {line}")));
                self.server.accepted(format_args!("id-{}", self.accepted));
            }
        }
        Ok(())
    }

    fn verdict(&mut self, asked: &BTreeMap<usize, Refusal>) -> Option<Refusal> {
        self.questions += 1;
        asked.get(&(self.questions - 1)).cloned()
    }

    fn check_credit(&self, held: bool) -> Result<(), String> {
        let state = if self.holds_credit { "is allowed already" } else { "was never allowed" };
        if self.holds_credit == held {
            Ok(())
        } else {
            Err(format!("an event for a transaction that {state}"))
        }
    }

    /// Shows what came since the last time: replies, messages, the end.
    fn report(&mut self, lines: &mut Vec<String>) {
        let replies = String::from_utf8_lossy(&std::mem::take(&mut self.written)).into_owned();
        for line in replies.split_terminator("\r\n") {
            self.refusals_written += usize::from(line.starts_with(['4', '5']) && line.as_bytes()[3] == b' ');
            lines.push(format!("S: {line}"));
        }
        lines.append(&mut self.messages);
        if self.closed && lines.iter().all(|line| line != "X: closed") {
            lines.push("X: closed".to_owned());
        }
    }

    fn end(&mut self) -> Result<(), String> {
        if self.refused != self.refusals_written {
            return Err(format!("{} refusals said, {} told", self.refusals_written, self.refused));
        }
        if self.closed && self.holds_credit {
            return Err("the session ended and its transaction did not".to_owned());
        }
        if self.holds_credit && !self.server.in_transaction() {
            return Err("a transaction ended without a word".to_owned());
        }
        Ok(())
    }
}

fn show_envelope(transaction: &Transaction) -> String {
    let body = match transaction.body {
        BodyParam::SevenBit => "7BIT",
        BodyParam::EightBitMime => "8BITMIME",
    };
    let mut line = format!("E: {} {body}", transaction.reverse_path);
    for path in &transaction.recipients {
        let _ = write!(line, " {path}");
    }
    line
}

fn parse_refusal(text: &str) -> Option<Refusal> {
    let (code, text) = text.split_once(' ')?;
    let (status, text) = text.split_once(' ')?;
    let mut numbers = status.split('.').map(|part| part.parse::<u16>().ok());
    let status = (u8::try_from(numbers.next()??).ok()?, numbers.next()??, numbers.next()??);
    Some(Refusal::new(code.parse().ok()?, status, text.to_owned()))
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match chars.next()? {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '\\' => b'\\',
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// Fails with the lines that differ, in their surroundings.
fn compare(expected: &[String], actual: &[String], name: &str, how: &str) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    let mut text = format!("{name}, {how}:\n");
    for (mark, line) in diff(expected, actual) {
        let line: String = line.chars().take(160).collect();
        let _ = writeln!(text, "{mark} {}", line.escape_debug().to_string().replace("\\\"", "\""));
    }
    Err(text)
}

/// The shortest way from one to the other, by the longest common subsequence.
fn diff<'a>(expected: &'a [String], actual: &'a [String]) -> Vec<(char, &'a str)> {
    let mut common = vec![vec![0usize; actual.len() + 1]; expected.len() + 1];
    for (i, old) in expected.iter().enumerate().rev() {
        for (j, new) in actual.iter().enumerate().rev() {
            common[i][j] = match old == new {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < expected.len() || j < actual.len() {
        if i < expected.len() && j < actual.len() && expected[i] == actual[j] {
            lines.push((' ', expected[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == actual.len() || (i < expected.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', expected[i].as_str()));
            i += 1;
        } else {
            lines.push(('+', actual[j].as_str()));
            j += 1;
        }
    }
    lines
}
