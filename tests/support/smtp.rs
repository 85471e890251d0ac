//! A small SMTP client: blocking, and rude when a test wants it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A reply: code and text, lines joined by `\n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// What follows them.
    pub text: String,
}

/// One connection to an SMTP server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects without reading the greeting.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn dial(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Connects, reads the greeting, says EHLO.
    ///
    /// # Errors
    /// Those of the socket; `ConnectionRefused` when the server doesn't greet with 220.
    pub fn greet(server: SocketAddr) -> io::Result<Self> {
        let mut client = Self::dial(server)?;
        for step in ["", "EHLO client.test\r\n"] {
            client.send(step.as_bytes())?;
            let reply = client.reply()?;
            if reply.code / 100 != 2 {
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("{reply:?}")));
            }
        }
        Ok(client)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one reply, all its lines.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` when the server hung up; `InvalidData` for what is no reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut text = String::new();
        loop {
            let line = self.line()?;
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("not a reply: {line}"));
            let code = line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
            text.push_str(line.get(4..).unwrap_or(""));
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, text });
            }
            text.push('\n');
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Sends one line (CRLF is added) and reads its reply.
    ///
    /// # Errors
    /// As [`Client::reply`].
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends envelope and DATA. `Ok(None)` when the server waits for the content, else the reply that refused.
    ///
    /// # Errors
    /// As [`Client::reply`].
    pub fn begin(&mut self, from: &str, to: &[String]) -> io::Result<Option<Reply>> {
        let mut commands = format!("MAIL FROM:<{from}> BODY=8BITMIME\r\n");
        for path in to {
            commands.push_str(&format!("RCPT TO:<{path}>\r\n"));
        }
        commands.push_str("DATA\r\n");
        self.send(commands.as_bytes())?;
        let mut refusal = None;
        for _ in 0..=to.len() {
            let reply = self.reply()?;
            if reply.code / 100 != 2 {
                refusal.get_or_insert(reply);
            }
        }
        let data = self.reply()?;
        match refusal {
            None if data.code == 354 => Ok(None),
            // With some recipients taken the server waits for content that the caller will not send: hang up.
            Some(refusal) if data.code == 354 => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{refusal:?}")))
            }
            refusal => Ok(Some(refusal.unwrap_or(data))),
        }
    }

    /// One whole transaction; `wire` is content as [`stuffed`] makes it. The last reply.
    ///
    /// # Errors
    /// As [`Client::reply`].
    pub fn mail(&mut self, from: &str, to: &[String], wire: &[u8]) -> io::Result<Reply> {
        match self.begin(from, to)? {
            Some(refusal) => Ok(refusal),
            None => {
                self.send(wire)?;
                self.reply()
            }
        }
    }

    /// What the server says unasked in some time; empty when it is silent.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn heard_within(&mut self, time: Duration) -> io::Result<String> {
        self.stream.set_read_timeout(Some(time))?;
        let mut heard = [0; 1024];
        match self.stream.read(&mut heard) {
            Ok(count) => Ok(heard[..count].escape_ascii().to_string()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(String::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the server has closed the connection; waits for it, and reads away what it still says.
    pub fn is_closed(&mut self, within: Duration) -> bool {
        let end = std::time::Instant::now() + within;
        let mut buffer = [0; 4096];
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }
}

/// Content as it goes over the wire: dots doubled, with the final dot (RFC 5321 section 4.5.2).
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.first() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    if !content.is_empty() && !content.ends_with(b"\r\n") {
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b".\r\n");
    wire
}
