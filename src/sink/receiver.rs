//! The listener of a sink, what it took, and its counts.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::behaviour::Behaviour;
use super::connection;
use crate::smtp::address::{ForwardPath, ReversePath};

/// A running SMTP server that keeps what it takes in memory. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    task: JoinHandle<()>,
}

/// A message that the sink answered 250 (or would have, see [`super::Answer::TakeAndDrop`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// The argument of MAIL.
    pub reverse_path: ReversePath,
    /// The arguments of RCPT that were accepted.
    pub recipients: Vec<ForwardPath>,
    /// The content as it came, without dot-stuffing.
    pub content: Bytes,
}

/// What the connections of a sink share.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) behaviour: Arc<dyn Behaviour>,
    messages: Mutex<Vec<ReceivedMessage>>,
    taken: watch::Sender<usize>,
    connections: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Sink {
    /// Listens on `address` (port 0 lets the system pick one) and serves from tasks of the current tokio runtime.
    ///
    /// # Errors
    /// Those of binding the address.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(address: SocketAddr, behaviour: Arc<dyn Behaviour>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let shelf = Arc::new(Shelf {
            behaviour,
            messages: Mutex::default(),
            taken: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(accept(listener, Arc::clone(&shelf))), shelf })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The messages that were taken and kept so far, in the order in which they came.
    pub fn received(&self) -> Vec<ReceivedMessage> {
        self.shelf.messages().clone()
    }

    /// How many messages were taken so far, those that were not kept included.
    pub fn count(&self) -> usize {
        *self.shelf.taken.borrow()
    }

    /// Waits until at least `count` messages were taken. Has no end of its own: put a time limit around it.
    pub async fn wait_for(&self, count: usize) {
        // The sender lives as long as `self`, so this can't fail.
        let _ = self.shelf.taken.subscribe().wait_for(|taken| *taken >= count).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shelf.connections.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> usize {
        self.shelf.open.load(Ordering::Relaxed)
    }

    /// The most connections that were open at once.
    pub fn most_open_connections(&self) -> usize {
        self.shelf.most_open.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shelf {
    fn messages(&self) -> MutexGuard<'_, Vec<ReceivedMessage>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message; answers how many there are now.
    pub(super) fn keep(&self, message: ReceivedMessage) -> usize {
        self.messages().push(message);
        self.count_one()
    }

    /// Counts a message that isn't kept; answers how many there are now.
    pub(super) fn count_one(&self) -> usize {
        let mut count = 0;
        self.taken.send_modify(|taken| {
            *taken += 1;
            count = *taken;
        });
        count
    }
}

/// Counts a connection as open for as long as it lives.
struct OpenConnection<'a>(&'a Shelf);

impl<'a> OpenConnection<'a> {
    fn new(shelf: &'a Shelf) -> Self {
        shelf.connections.fetch_add(1, Ordering::Relaxed);
        let open = shelf.open.fetch_add(1, Ordering::Relaxed) + 1;
        shelf.most_open.fetch_max(open, Ordering::Relaxed);
        Self(shelf)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The set of connections lives in this future: when it is aborted, they all end.
async fn accept(listener: TcpListener, shelf: Arc<Shelf>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((socket, peer)) = listener.accept() => {
                let shelf = Arc::clone(&shelf);
                connections.spawn(async move {
                    let _open = OpenConnection::new(&shelf);
                    // A connection that breaks is the peer's affair; what was taken is on the shelf.
                    let _ = connection::serve(socket, peer, &shelf).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
