//! A host that says exactly what its script says, for what a good server never does.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running host. It serves one connection after the other.
pub struct Peer {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
}

/// How a peer spoils STARTTLS.
#[derive(Clone, Copy, Debug)]
pub enum Spoil {
    /// It says no.
    Refuse,
    /// It hangs up.
    HangUp,
    /// It answers the handshake with something else.
    Garbage,
    /// It goes on in clear text before the handshake.
    TalkOn,
}

/// What a peer was told.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Command lines without CRLF, over all connections.
    pub commands: Vec<String>,
    /// Contents as they came over the wire, with doubled dots and without the final one.
    pub contents: Vec<Vec<u8>>,
}

impl Peer {
    /// Listens here and offers these extensions.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start(address: SocketAddr, offers: &'static [&'static str], spoil: Spoil) -> Self {
        let listener =
            TcpListener::bind(address).unwrap_or_else(|error| panic!("no peer at {address}: {error}"));
        let (stopped, heard) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Heard>>::default());
        let (ends, hears) = (Arc::clone(&stopped), Arc::clone(&heard));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ends.load(SeqCst) {
                    break;
                }
                // A client that goes away is what some scripts are about.
                let _ = serve(stream, offers, spoil, &hears);
            }
        });
        Self { address, stopped, heard }
    }

    /// What it has been told so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stopped.store(true, SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
    }
}

fn serve(mut stream: TcpStream, offers: &[&str], spoil: Spoil, heard: &Mutex<Heard>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.write_all(b"220 peer.test\r\n")?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_owned();
        heard.lock().unwrap().commands.push(line.clone());
        match line.get(..4).unwrap_or("") {
            "EHLO" => {
                let all: Vec<&str> = ["peer.test"].into_iter().chain(offers.iter().copied()).collect();
                for (number, offer) in all.iter().enumerate() {
                    let dash = if number + 1 < all.len() { '-' } else { ' ' };
                    stream.write_all(format!("250{dash}{offer}\r\n").as_bytes())?;
                }
            }
            "STAR" => match spoil {
                Spoil::Refuse => stream.write_all(b"454 not today\r\n")?,
                Spoil::HangUp => return stream.write_all(b"220 go\r\n"),
                Spoil::TalkOn => return stream.write_all(b"220 go\r\n250 as before\r\n"),
                Spoil::Garbage => {
                    stream.write_all(b"220 go\r\n")?;
                    reader.fill_buf()?;
                    return stream.write_all(b"this is no handshake\r\n");
                }
            },
            "DATA" => {
                stream.write_all(b"354 go\r\n")?;
                let content = read_content(&mut reader)?;
                heard.lock().unwrap().contents.push(content);
                stream.write_all(b"250 taken\r\n")?;
            }
            "QUIT" => return stream.write_all(b"221 bye\r\n"),
            _ => stream.write_all(b"250 ok\r\n")?,
        }
    }
}

fn read_content(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        if reader.read_until(b'\n', &mut content)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if &content[start..] == b".\r\n" {
            content.truncate(start);
            return Ok(content);
        }
    }
}
