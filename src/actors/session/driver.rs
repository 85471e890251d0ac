//! The loop that drives one connection: bytes to the machine, events to the Queue, replies to the client.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use super::content::Incoming;
use super::{SessionContext, Start};
use crate::actors::new_queue_id;
use crate::actors::queue::messages::{Enqueue, NotQueued};
use crate::mail::envelope::{BodyType, ContentPlace, Envelope, Origin, Recipient};
use crate::smtp::server::{BodyParam, Event, Refusal, Server, ServerSettings, Transaction};
use crate::spool::space::is_full;

/// How long a session waits for a credit before it answers 452 4.3.1.
const CREDIT_WAIT: Duration = Duration::from_secs(30);
/// How long a closing session reads on, so that a client that is still sending sees the last reply.
const LINGER: Duration = Duration::from_secs(3);
/// Bytes a closing session reads at most.
const LINGER_BYTES: usize = 1 << 20;
const NOT_STORED: &str = "the message can't be stored now, try again later";
/// Bytes read at once.
const READ_SIZE: usize = 64 << 10;

thread_local! {
    /// One read buffer for all sessions of an arbiter: an idle session holds none.
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

/// One connection.
struct Driver {
    stream: TcpStream,
    peer: SocketAddr,
    server: Server,
    context: Arc<SessionContext>,
    drain: watch::Receiver<bool>,
    draining: bool,
    /// What the running transaction holds.
    credits: Vec<OwnedSemaphorePermit>,
    /// The message that is coming in; its envelope is a draft until the final dot.
    draft: Option<Envelope>,
    incoming: Incoming,
    /// When the running envelope, or the running content, must be whole: what a transaction holds is held for so long.
    phase_ends: Option<Instant>,
    /// Since when the client has had every answer, and the next word.
    awaited_since: Instant,
}

/// Drives the connection to its end.
pub(super) async fn drive(start: Start, drain: watch::Receiver<bool>) -> io::Result<()> {
    start.stream.set_nodelay(true)?;
    let stream = TcpStream::from_std(start.stream)?;
    let context = start.context;
    let server = Server::new(ServerSettings {
        hostname: context.hostname.to_string(),
        may_relay: start.may_relay,
        message_size: context.message_size,
        recipients: context.recipients,
        errors: context.errors,
    });
    let awaited_since = context.clock.instant();
    let mut driver = Driver {
        stream,
        peer: start.peer,
        server,
        context,
        drain,
        draining: false,
        credits: Vec::new(),
        draft: None,
        incoming: Incoming::default(),
        phase_ends: None,
        awaited_since,
    };
    driver.run().await
}

impl Driver {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            if self.handle_events().await? {
                self.flush().await?;
                return self.linger().await;
            }
            if (self.draining || *self.drain.borrow()) && !self.server.in_transaction() {
                self.server.close(Refusal::new(421, (4, 3, 2), "the relay is stopping, try again later"));
                self.draining = true;
                continue;
            }
            self.flush().await?;
            if !self.read().await? {
                return Ok(());
            }
        }
    }

    /// Deals with everything the machine has to say; `true` when the connection is to be closed.
    async fn handle_events(&mut self) -> io::Result<bool> {
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::MailWanted => self.mail_wanted().await?,
                Event::DataWanted => self.data_wanted().await?,
                Event::Content => self.content().await?,
                Event::MessageEnd(transaction) => self.message_end(transaction).await?,
                Event::Reset => self.reset(),
                Event::Refused { command, reply, text } => {
                    self.context.metrics.refused(command, reply.get());
                    let text = format!("{} {text}", reply.get());
                    self.context.maillog.refused(self.peer, command, &text, self.context.clock.now_ms());
                }
                Event::Close => return Ok(true),
            }
        }
        Ok(false)
    }

    async fn mail_wanted(&mut self) -> io::Result<()> {
        if *self.drain.borrow() {
            self.draining = true;
            self.server.refuse(Refusal::new(421, (4, 3, 2), "the relay is stopping, try again later"));
            return Ok(());
        }
        if self.context.room.is_short() {
            self.server.refuse(Refusal::new(
                452,
                (4, 3, 1),
                "the relay's disk is nearly full, try again later",
            ));
            return Ok(());
        }
        let messages = self.context.credits.messages.clone();
        self.take_credit(messages, 1).await?;
        self.begin_phase();
        Ok(())
    }

    async fn data_wanted(&mut self) -> io::Result<()> {
        let memory = self.context.credits.memory.clone();
        let budget = u32::try_from(self.context.content_threshold.div_ceil(1024)).unwrap_or(u32::MAX);
        self.take_credit(memory, budget).await?;
        self.begin_phase();
        Ok(())
    }

    fn begin_phase(&mut self) {
        let ends = self.context.clock.instant() + self.context.data_timeout;
        self.phase_ends = self.server.in_transaction().then_some(ends);
    }

    /// Allows what the client asked for once there is room, or answers 452 after a while.
    async fn take_credit(&mut self, from: Arc<tokio::sync::Semaphore>, count: u32) -> io::Result<()> {
        let permit = match from.clone().try_acquire_many_owned(count) {
            Ok(permit) => Some(permit),
            Err(_) => {
                self.context.metrics.credit_waits.inc();
                self.flush().await?;
                tokio::time::timeout(CREDIT_WAIT, from.acquire_many_owned(count))
                    .await
                    .ok()
                    .and_then(Result::ok)
            }
        };
        match permit {
            Some(permit) => {
                self.credits.push(permit);
                self.server.allow();
            }
            None => {
                self.context.metrics.credit_timeouts.inc();
                self.server.refuse(Refusal::new(452, (4, 3, 1), "the relay is busy, try again later"));
            }
        }
        Ok(())
    }

    async fn content(&mut self) -> io::Result<()> {
        let gathered = self.server.content().len();
        if !self.incoming.is_full(gathered, &self.context) {
            return Ok(());
        }
        if let Some(credit) = self.incoming.widen(&self.context) {
            self.credits.push(credit);
            return Ok(());
        }
        let mut draft = match self.draft.take() {
            Some(draft) => draft,
            None => match self.server.transaction() {
                Some(transaction) => self.envelope(transaction),
                None => return Ok(()),
            },
        };
        draft.size = self.server.content_size();
        let piece = self.server.content().split().freeze();
        let spilled = self.incoming.spill(piece, &draft, &self.context).await;
        self.draft = Some(draft);
        if let Err(error) = spilled {
            tracing::error!(%error, "a content file can't be written");
            // Its credits and its time stay until the client has sent the rest.
            (self.draft, self.incoming) = (None, Incoming::default());
            self.server.refuse_content(self.not_stored(&error));
        }
        Ok(())
    }

    async fn message_end(&mut self, transaction: Transaction) -> io::Result<()> {
        self.phase_ends = None;
        let began = self.context.clock.instant();
        let mut envelope = match self.draft.take() {
            Some(draft) => draft,
            None => self.envelope(&transaction),
        };
        let rest = self.server.content().split().freeze();
        let incoming = std::mem::take(&mut self.incoming);
        let credits = std::mem::take(&mut self.credits);
        let content = match incoming.finish(rest, &mut envelope, &self.context).await {
            Ok(content) => content,
            Err(error) => {
                tracing::error!(%error, "content can't be stored");
                self.server.refuse(self.not_stored(&error));
                return Ok(());
            }
        };
        let id = envelope.id;
        let (answer, committed) = oneshot::channel();
        self.context.queue.do_send(Enqueue { envelope, content, credits, answer });
        match committed.await {
            Ok(Ok(())) => {
                self.server.accepted(id);
                let took = self.context.clock.instant().duration_since(began);
                self.context.metrics.acceptance_seconds.observe(took.as_secs_f64());
            }
            Ok(Err(NotQueued::Draining)) => {
                self.server.refuse(Refusal::new(421, (4, 3, 2), "the relay is stopping, try again later"));
            }
            Ok(Err(NotQueued::Spool)) | Err(_) => {
                self.server.refuse(Refusal::new(451, (4, 3, 0), NOT_STORED));
            }
        }
        Ok(())
    }

    fn envelope(&self, transaction: &Transaction) -> Envelope {
        let now_ms = self.context.clock.now_ms();
        Envelope {
            id: new_queue_id(now_ms),
            reverse_path: transaction.reverse_path.clone(),
            body: match transaction.body {
                BodyParam::SevenBit => BodyType::SevenBit,
                BodyParam::EightBitMime => BodyType::EightBitMime,
            },
            arrived_ms: now_ms,
            origin: Origin::Smtp {
                peer: self.peer,
                helo: transaction.helo.clone(),
                extended: transaction.extended,
            },
            size: 0,
            place: ContentPlace::Database,
            recipients: transaction
                .recipients
                .iter()
                .map(|path| Recipient { path: path.clone(), destination: path.domain().clone() })
                .collect(),
        }
    }

    /// What the client is told when its content finds no place; it keeps the message.
    fn not_stored(&self, error: &io::Error) -> Refusal {
        if is_full(error) {
            self.context.room.note_full();
            Refusal::new(452, (4, 3, 1), "the relay's disk is full, try again later")
        } else {
            Refusal::new(451, (4, 3, 0), NOT_STORED)
        }
    }

    /// The transaction is over without a message: what it held is free again.
    fn reset(&mut self) {
        self.credits.clear();
        self.draft = None;
        self.incoming = Incoming::default();
        self.phase_ends = None;
    }

    async fn flush(&mut self) -> io::Result<()> {
        let replies = self.server.transmit();
        if replies.is_empty() {
            return Ok(());
        }
        tokio::time::timeout(self.context.idle_timeout, self.stream.write_all(replies))
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no replies"))
            })?;
        self.server.transmit().clear();
        self.awaited_since = self.context.clock.instant();
        Ok(())
    }

    /// When the client has been silent for too long: content is a sign of life with every byte, a command only when it is
    /// whole and so has its answer; else a byte now and then would keep a session for ever.
    fn silence_ends(&mut self) -> Instant {
        if self.server.in_data() {
            self.awaited_since = self.context.clock.instant();
        }
        let idle_ends = self.awaited_since + self.context.idle_timeout;
        self.phase_ends.map_or(idle_ends, |phase_ends| phase_ends.min(idle_ends))
    }

    /// Reads what is there; `false` at the end of the connection.
    async fn read(&mut self) -> io::Result<bool> {
        // A client that always has bytes ready must not keep the others of this thread waiting.
        tokio::task::consume_budget().await;
        let ends = self.silence_ends();
        let watched = !self.draining && !*self.drain.borrow();
        let ready = tokio::select! {
            ready = tokio::time::timeout_at(ends, self.stream.readable()) => ready,
            changed = self.drain.changed(), if watched => {
                // An error says that the actor is gone: as good as a drain.
                self.draining |= changed.is_err();
                return Ok(true);
            }
        };
        match ready {
            // Bytes that are always there must not outrun the time.
            Ok(ready) if self.context.clock.instant() < ends => ready?,
            _ => {
                self.server.close_now(Refusal::new(421, (4, 4, 2), "the client was silent for too long"));
                return Ok(true);
            }
        }
        let server = &mut self.server;
        let stream = &self.stream;
        READ_BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                server.handle_bytes(&buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        })
    }

    /// Closes so that the client sees the last reply even while it is still sending.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut sink = [0; 4096];
        let drain = async {
            let mut total = 0;
            while total < LINGER_BYTES {
                match self.stream.read(&mut sink).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => total += count,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await;
        Ok(())
    }
}
