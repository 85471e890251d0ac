//! A small name server for the loopback interface: it knows one [`Zone`], answers over UDP and TCP, and counts.
//!
//! It plays a resolver: it answers for every name, and follows CNAMEs. It is not meant for a network.

mod zone;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

pub use zone::{Failure, Zone};

/// Largest UDP answer to a query that does not say what it can take (RFC 1035 section 4.2.1).
const UDP_MIN: usize = 512;
/// Tries to find a port that is free for both UDP and TCP.
const PORT_TRIES: usize = 20;

/// The types that queries are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryType {
    /// Mail exchangers.
    Mx,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Anything else.
    Other,
}

/// A running name server; it stops when dropped.
#[derive(Debug)]
pub struct Nameserver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    zone: Zone,
    counts: HashMap<(String, QueryType), usize>,
    over_tcp: usize,
}

impl Nameserver {
    /// Listens on an address, UDP and TCP; with port 0 the system picks one. Runs on the current tokio runtime.
    ///
    /// # Errors
    /// As binding does.
    pub async fn bind(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        let (udp, tcp) = bind_both(address).await?;
        let address = udp.local_addr()?;
        let state = Arc::new(Mutex::new(State { zone, counts: HashMap::new(), over_tcp: 0 }));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, state.clone()));
        tasks.spawn(serve_tcp(tcp, state.clone()));
        Ok(Self { address, state, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Knows another zone from now on; the counts stay.
    pub fn replace(&self, zone: Zone) {
        lock(&self.state).zone = zone;
    }

    /// How often a name was asked for with a type, tries without an answer and CNAME targets asked for included.
    pub fn queries(&self, name: &str, kind: QueryType) -> usize {
        lock(&self.state).counts.get(&(zone::key(name), kind)).copied().unwrap_or(0)
    }

    /// How many queries came over TCP.
    pub fn queries_over_tcp(&self) -> usize {
        lock(&self.state).over_tcp
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if address.port() != 0 || tries == PORT_TRIES => return Err(error),
            Err(_) => {}
        }
    }
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 4096];
    loop {
        // Errors of a datagram socket are about earlier answers that nobody took.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = respond(&buffer[..length], &state, false) {
            socket.send_to(&answer, from).await.ok();
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let state = state.clone();
                connections.spawn(async move { serve_stream(stream, &state).await.ok() });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Queries and answers, each after its length (RFC 1035 section 4.2.2).
async fn serve_stream(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await?;
        let Some(answer) = respond(&query, state, true) else { continue };
        stream.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&answer).await?;
    }
}

/// Counts a query and answers it; `None` is silence, for what is no query too.
fn respond(bytes: &[u8], state: &Mutex<State>, over_tcp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let mut state = lock(state);
    for question in &query.queries {
        let name = zone::key(&question.name().to_ascii());
        *state.counts.entry((name, query_type(question.query_type()))).or_default() += 1;
    }
    state.over_tcp += usize::from(over_tcp);
    let answer = state.zone.answer(&query)?;
    drop(state);
    let bytes = answer.to_vec().ok()?;
    let most = query.edns.as_ref().map_or(UDP_MIN, |edns| usize::from(edns.max_payload()).max(UDP_MIN));
    if over_tcp || bytes.len() <= most { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

fn query_type(kind: RecordType) -> QueryType {
    match kind {
        RecordType::MX => QueryType::Mx,
        RecordType::A => QueryType::A,
        RecordType::AAAA => QueryType::Aaaa,
        _ => QueryType::Other,
    }
}
