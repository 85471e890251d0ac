//! The Listener: accepts connections, spreads them over the worker arbiters, and knows every session.
//!
//! | takes | from | when full |
//! |---|---|---|
//! | `Accepted` | its accept loops, which wait for the answer | over `limits.sessions` the client gets 421 |
//! | [`SessionEnded`] | Session | one per session |
//! | [`Drain`] | main | answered when the last session has ended |

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message, Recipient, ResponseFuture};
use ipnet::IpNet;
use tokio::sync::{oneshot, watch};

use super::session::{self, Session, SessionContext, SessionEnded, Start};

/// How long to wait after accept failed (too many open files): connections wait in the backlog meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Main → Listener: accept nothing more and let every session end. Answered when all have.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Accept loop → Listener: a new connection.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
}

/// A worker arbiter and how many sessions it has.
#[derive(Debug)]
struct Worker {
    arbiter: ArbiterHandle,
    sessions: usize,
}

#[derive(Debug)]
struct Known {
    worker: usize,
    drain: Recipient<session::Drain>,
}

/// The actor.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<std::net::TcpListener>,
    networks: Vec<IpNet>,
    limit: usize,
    context: Arc<SessionContext>,
    workers: Vec<Worker>,
    sessions: HashMap<u64, Known>,
    last_number: u64,
    stop: watch::Sender<bool>,
    drained: Vec<oneshot::Sender<()>>,
}

impl Listener {
    /// A listener over bound sockets. `networks` may relay; at most `limit` sessions at once.
    pub fn new(
        sockets: Vec<std::net::TcpListener>,
        networks: Vec<IpNet>,
        limit: usize,
        context: Arc<SessionContext>,
        workers: Vec<ArbiterHandle>,
    ) -> Self {
        Self {
            sockets,
            networks,
            limit,
            context,
            workers: workers.into_iter().map(|arbiter| Worker { arbiter, sessions: 0 }).collect(),
            sessions: HashMap::new(),
            last_number: 0,
            stop: watch::Sender::new(false),
            drained: Vec::new(),
        }
    }

    fn is_draining(&self) -> bool {
        *self.stop.borrow()
    }

    fn finish_drain(&mut self) {
        if self.is_draining() && self.sessions.is_empty() {
            for waiting in self.drained.drain(..) {
                let _ = waiting.send(());
            }
        }
    }

    fn start_session(
        &mut self,
        stream: std::net::TcpStream,
        peer: SocketAddr,
        ended: Recipient<SessionEnded>,
    ) {
        let Some((index, worker)) =
            self.workers.iter_mut().enumerate().min_by_key(|(_, worker)| worker.sessions)
        else {
            return;
        };
        let may_relay = may_relay(&self.networks, peer);
        worker.sessions += 1;
        self.last_number += 1;
        let number = self.last_number;
        let start = Start { stream, peer, may_relay, number, context: self.context.clone(), ended };
        let session = Session::start_in_arbiter(&worker.arbiter, move |_| Session::new(start));
        self.sessions.insert(number, Known { worker: index, drain: session.recipient() });
        self.context.metrics.sessions_total.inc();
        self.context.metrics.sessions_open.inc();
    }
}

impl Actor for Listener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        for socket in std::mem::take(&mut self.sockets) {
            let stop = self.stop.subscribe();
            let accepted = ctx.address().recipient();
            actix_rt::spawn(async move {
                if let Err(error) = accept(socket, accepted, stop).await {
                    tracing::error!(%error, "a listener can't accept connections");
                }
            });
        }
    }
}

impl Handler<Accepted> for Listener {
    type Result = ();

    fn handle(&mut self, Accepted { stream, peer }: Accepted, ctx: &mut Self::Context) {
        if self.is_draining() {
            return refuse(stream, &self.context.hostname, "4.3.2 the relay is stopping, try again later");
        }
        if self.sessions.len() >= self.limit {
            self.context.metrics.sessions_rejected.inc();
            return refuse(stream, &self.context.hostname, "4.3.2 too many connections, try again later");
        }
        self.start_session(stream, peer, ctx.address().recipient());
    }
}

impl Handler<SessionEnded> for Listener {
    type Result = ();

    fn handle(&mut self, ended: SessionEnded, _: &mut Self::Context) {
        if let Some(known) = self.sessions.remove(&ended.number) {
            self.workers[known.worker].sessions -= 1;
            self.context.metrics.sessions_open.dec();
        }
        self.finish_drain();
    }
}

impl Handler<Drain> for Listener {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.stop.send_replace(true);
        for known in self.sessions.values() {
            known.drain.do_send(session::Drain);
        }
        let (done, wait) = oneshot::channel();
        self.drained.push(done);
        self.finish_drain();
        Box::pin(async move { drop(wait.await) })
    }
}

/// An IPv4 client of a wildcard IPv6 listener counts as the IPv4 client that it is.
fn may_relay(networks: &[IpNet], peer: SocketAddr) -> bool {
    let address = peer.ip().to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Takes connections until told to stop; each waits for the Listener, so a flood waits in the kernel's backlog.
async fn accept(
    socket: std::net::TcpListener,
    accepted: Recipient<Accepted>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let socket = tokio::net::TcpListener::from_std(socket)?;
    loop {
        let connection = tokio::select! {
            connection = socket.accept() => connection,
            _ = stop.changed() => return Ok(()),
        };
        match connection.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => {
                if accepted.send(Accepted { stream, peer }).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed; connections wait");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One line fits any socket buffer, so the write never blocks.
fn refuse(mut stream: std::net::TcpStream, hostname: &str, text: &str) {
    let _ = stream.write_all(format!("421 {hostname} {text}\r\n").as_bytes());
}
