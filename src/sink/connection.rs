//! One connection of a sink: bytes to the machine, its questions to the behaviour.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::behaviour::Answer;
use super::receiver::{ReceivedMessage, Shelf};
use crate::smtp::address::ForwardPath;
use crate::smtp::server::{Event, Refusal, Server, ServerSettings, Transaction};

/// Bytes read at once.
const READ_SIZE: usize = 16 << 10;

/// How a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Write the replies, read more.
    Talk,
    /// Write the replies, then close.
    Close,
    /// Write nothing any more.
    Hang,
    /// Close at once.
    Drop,
}

struct Connection<'a> {
    server: Server,
    shelf: &'a Shelf,
    /// What the behaviour wants of a recipient and the machine knows no word for.
    at_recipient: Arc<Mutex<Next>>,
    /// The connection breaks when content comes in.
    drops_content: bool,
}

/// Serves a client until it leaves or the behaviour has enough of it.
pub(super) async fn serve(mut socket: TcpStream, peer: SocketAddr, shelf: &Arc<Shelf>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = Connection::new(shelf);
    let mut next = connection.greet(peer);
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match next {
            Next::Drop => return Ok(()),
            Next::Hang => return wait_for_the_end(&mut socket, &mut buffer).await,
            Next::Talk | Next::Close => socket.write_all_buf(connection.server.transmit()).await?,
        }
        if next == Next::Close {
            return socket.shutdown().await;
        }
        let count = socket.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        connection.server.handle_bytes(&buffer[..count]);
        next = connection.handle_events();
    }
}

async fn wait_for_the_end(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    while socket.read(buffer).await? > 0 {}
    Ok(())
}

impl<'a> Connection<'a> {
    fn new(shelf: &'a Arc<Shelf>) -> Self {
        let mut server = Server::new(ServerSettings {
            hostname: "sink.example".to_owned(),
            may_relay: true,
            message_size: 1 << 30,
            recipients: 1000,
            errors: 1000,
        });
        let at_recipient = Arc::new(Mutex::new(Next::Talk));
        let (shared, verdict) = (Arc::clone(shelf), Arc::clone(&at_recipient));
        server.on_recipient(move |path: &ForwardPath| {
            let next = match shared.behaviour.on_recipient(path) {
                Answer::Accept | Answer::Discard => return None,
                Answer::Refuse(refusal) => return Some(refusal),
                Answer::Hang => Next::Hang,
                Answer::Drop | Answer::TakeAndDrop => Next::Drop,
            };
            *verdict.lock().unwrap_or_else(PoisonError::into_inner) = next;
            // Never written.
            Some(Refusal::new(451, (4, 3, 0), ""))
        });
        Self { server, shelf, at_recipient, drops_content: false }
    }

    fn greet(&mut self, peer: SocketAddr) -> Next {
        match self.shelf.behaviour.on_connect(peer) {
            Answer::Accept | Answer::Discard => Next::Talk,
            Answer::Refuse(refusal) => {
                self.server.transmit().clear();
                self.server.close_now(refusal);
                Next::Close
            }
            Answer::Hang => Next::Hang,
            Answer::Drop | Answer::TakeAndDrop => Next::Drop,
        }
    }

    fn handle_events(&mut self) -> Next {
        loop {
            let at_recipient = *self.at_recipient.lock().unwrap_or_else(PoisonError::into_inner);
            if at_recipient != Next::Talk {
                return at_recipient;
            }
            let next = match self.server.poll_event() {
                None => return Next::Talk,
                Some(Event::MailWanted) => {
                    self.server.allow();
                    Next::Talk
                }
                Some(Event::DataWanted) => self.data_wanted(),
                Some(Event::Content) if self.drops_content => Next::Drop,
                Some(Event::MessageEnd(transaction)) => self.message_end(transaction),
                Some(Event::Close) => Next::Close,
                Some(Event::Content | Event::Reset | Event::Refused { .. }) => Next::Talk,
            };
            if next != Next::Talk {
                return next;
            }
        }
    }

    fn data_wanted(&mut self) -> Next {
        let recipients = self.server.transaction().map_or(&[][..], |transaction| &transaction.recipients);
        match self.shelf.behaviour.on_data(recipients) {
            Answer::Accept | Answer::Discard => self.server.allow(),
            Answer::Refuse(refusal) => self.server.refuse(refusal),
            Answer::Hang => return Next::Hang,
            Answer::Drop | Answer::TakeAndDrop => {
                self.drops_content = true;
                self.server.allow();
            }
        }
        Next::Talk
    }

    fn message_end(&mut self, transaction: Transaction) -> Next {
        if self.drops_content {
            return Next::Drop;
        }
        let message = ReceivedMessage {
            reverse_path: transaction.reverse_path,
            recipients: transaction.recipients,
            content: self.server.content().split().freeze(),
        };
        match self.shelf.behaviour.on_message(&message) {
            Answer::Accept => {
                let number = self.shelf.keep(message);
                self.server.accepted(number);
            }
            Answer::Discard => {
                let number = self.shelf.count_one();
                self.server.accepted(number);
            }
            Answer::Refuse(refusal) => self.server.refuse(refusal),
            Answer::Hang => return Next::Hang,
            Answer::Drop => return Next::Drop,
            Answer::TakeAndDrop => {
                self.shelf.keep(message);
                return Next::Drop;
            }
        }
        Next::Talk
    }
}
