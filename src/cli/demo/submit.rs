//! The application that hands mail to the relay: a client that waits for each reply, and shows the dialogue.

use std::io::{self, Write};
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::DemoError;

/// A message to submit.
#[derive(Debug)]
pub(super) struct Letter {
    /// Its place in the demo, in a sentence; also its subject.
    pub what: &'static str,
    pub sender: &'static str,
    pub recipients: &'static [&'static str],
}

impl Letter {
    fn content(&self) -> String {
        format!(
            "From: <{}>\r\nTo: <{}>\r\nSubject: {}\r\n\r\nHello.\r\n",
            self.sender,
            self.recipients.join(">, <"),
            self.what
        )
    }
}

/// Submits a letter over a connection of its own and returns its queue id, from the final 250.
pub(super) async fn submit(
    out: &mut dyn Write,
    relay: SocketAddr,
    letter: &Letter,
) -> Result<String, DemoError> {
    let stream = TcpStream::connect(relay).await?;
    stream.set_nodelay(true)?;
    let mut dialogue = Dialogue { stream: BufReader::new(stream), out };
    dialogue.expect("(connected)", '2').await?;
    dialogue.say("EHLO app.demo.example", '2').await?;
    dialogue.say(&format!("MAIL FROM:<{}>", letter.sender), '2').await?;
    for recipient in letter.recipients {
        dialogue.say(&format!("RCPT TO:<{recipient}>"), '2').await?;
    }
    dialogue.say("DATA", '3').await?;
    dialogue.send(&letter.content()).await?;
    let accepted = dialogue.say(".", '2').await?;
    dialogue.say("QUIT", '2').await?;
    let id = accepted.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 32);
    id.map(str::to_owned).ok_or(DemoError::Answer { command: ".".to_owned(), answer: accepted })
}

struct Dialogue<'a> {
    stream: BufReader<TcpStream>,
    out: &'a mut dyn Write,
}

impl Dialogue<'_> {
    async fn say(&mut self, command: &str, expected: char) -> Result<String, DemoError> {
        writeln!(self.out, "     > {command}")?;
        self.send(&format!("{command}\r\n")).await?;
        self.expect(command, expected).await
    }

    async fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).await
    }

    /// Reads one reply and returns its last line.
    async fn expect(&mut self, command: &str, expected: char) -> Result<String, DemoError> {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).await?;
            let line = line.trim_end();
            if line.as_bytes().get(3) == Some(&b'-') {
                continue;
            }
            writeln!(self.out, "     < {line}")?;
            return if line.starts_with(expected) {
                Ok(line.to_owned())
            } else {
                Err(DemoError::Answer { command: command.to_owned(), answer: line.to_owned() })
            };
        }
    }
}
