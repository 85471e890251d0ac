//! One connection: a socket and the machine that speaks over it.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::DeliveryContext;
use super::content::{Loaded, PieceReader};
use super::guard::{Stop, StopSignal};
use super::slots::AddressSlot;
use super::stream::Stream;
use crate::mail::envelope::{BodyType, Envelope};
use crate::mail::outcome::{Finding, RemoteHost};
use crate::smtp::client::{Client, Event, Facts, MailCommand, Options, Timer, TlsUse, Trouble};
use crate::smtp::framing::{DotStuffer, needs_stuffing};
use crate::spool::SpoolError;
use crate::tls::server_name;

/// Bytes of content that are written at once, under one [`Timer::DataBlock`].
const PIECE: usize = 256 << 10;
/// Bytes read at once; replies are short.
const READ: usize = 4 << 10;

/// A connection to a remote host.
#[derive(Debug)]
pub(super) struct Connection {
    host: RemoteHost,
    stream: Stream,
    machine: Client,
    /// What is being written; kept for its capacity.
    out: Vec<u8>,
    served: usize,
    context: Arc<DeliveryContext>,
    trusted_only: bool,
    /// Given back when QUIT is sent, not when it is answered: the Queue may grant the next connection by then.
    slot: Option<Rc<AddressSlot>>,
    _open: OpenGauge,
}

/// Shows a connection in `connections_open` while it lives.
#[derive(Debug)]
struct OpenGauge(IntGauge);

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Connection {
    /// Connects and speaks until a transaction can begin.
    pub(super) async fn open(
        context: &Arc<DeliveryContext>,
        host: &RemoteHost,
        slot: &Rc<AddressSlot>,
        options: Options,
        signal: &mut StopSignal,
    ) -> Result<Box<Self>, Finding> {
        let tls = options.tls;
        let metrics = &context.metrics;
        let socket = match connect(context, host, signal).await {
            Ok(socket) => socket,
            Err(finding) => {
                metrics.connect_failures.inc();
                return Err(finding);
            }
        };
        metrics.connections_opened.inc();
        metrics.connections_open.inc();
        let mut connection = Box::new(Self {
            host: host.clone(),
            stream: Stream::Plain(socket),
            machine: Client::new(options),
            out: Vec::new(),
            served: 0,
            context: Arc::clone(context),
            trusted_only: tls == TlsUse::Always,
            slot: Some(Rc::clone(slot)),
            _open: OpenGauge(metrics.connections_open.clone()),
        });
        match connection.establish(signal).await {
            Ok(()) => Ok(connection),
            Err(trouble) => Err(Finding::Session { trouble, tls }),
        }
    }

    /// Where it leads.
    pub(super) fn host(&self) -> &RemoteHost {
        &self.host
    }

    /// Whether it runs under TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.machine.is_secure()
    }

    /// Whether it can serve another transaction.
    pub(super) fn is_reusable(&self) -> bool {
        self.machine.is_ready() && self.served < self.context.settings.messages_per_connection
    }

    /// Whether the remote has kept it open and has nothing to say: anything else than silence ends an idle one.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.read().now_or_never().is_none() && self.machine.is_ready()
    }

    /// Runs one transaction. The recipients are those of `envelope` with these numbers.
    pub(super) async fn transact(
        &mut self,
        envelope: &Envelope,
        recipients: &[u16],
        content: &mut Loaded,
        signal: &mut StopSignal,
    ) -> Facts {
        self.served += 1;
        let mail = MailCommand {
            reverse_path: &envelope.reverse_path,
            eight_bit_mime: envelope.body == BodyType::EightBitMime,
            size: envelope.size,
        };
        let paths = recipients.iter().map(|number| &envelope.recipients[usize::from(*number)].path);
        self.machine.begin(mail, paths);
        loop {
            match self.event(signal).await {
                Event::Finished(facts) => return facts,
                Event::SendContent => self.send_content(content, signal).await,
                event => debug_assert!(false, "{event:?} within a transaction"),
            }
        }
    }

    /// Counts no longer as a connection to its address: it is about to be closed.
    pub(super) fn give_back_slot(&mut self) {
        self.slot = None;
    }

    /// Says good-bye; at most [`Timer::Quit`] twice.
    pub(super) async fn quit(mut self: Box<Self>) {
        self.machine.quit();
        let (_never, receiver) = watch::channel(false);
        let mut signal = StopSignal::from(receiver);
        if let Err(stop) = self.transmit(Timer::Quit, &mut signal).await {
            self.stop(stop);
        }
        self.give_back_slot();
        while !self.machine.is_closed() {
            if matches!(self.event(&mut signal).await, Event::Closed) {
                // Under TLS this tells the end, so that nothing looks cut off. Nothing depends on it.
                let _ = signal.guard(Timer::Quit.duration(), self.stream.shutdown()).await;
            }
        }
    }

    async fn establish(&mut self, signal: &mut StopSignal) -> Result<(), Trouble> {
        loop {
            match self.event(signal).await {
                Event::Ready => return Ok(()),
                Event::Broken(trouble) => return Err(trouble),
                Event::StartTls => self.handshake(signal).await,
                event => debug_assert!(false, "{event:?} before a transaction"),
            }
        }
    }

    async fn handshake(&mut self, signal: &mut StopSignal) {
        let metrics = &self.context.metrics;
        let Stream::Plain(socket) = std::mem::replace(&mut self.stream, Stream::Gone) else { return };
        let connector = match self.context.tls.connector(self.trusted_only) {
            Ok(connector) => connector,
            Err(error) => return self.machine.handle_tls_failed(error.to_string()),
        };
        let name = server_name(&self.host.name, self.host.address.ip());
        let handshake = connector.connect(name, socket);
        match signal.guard(Timer::Command.duration(), handshake).await {
            Ok(stream) => {
                metrics.tls_handshakes_ok.inc();
                self.stream = Stream::Tls(Box::new(stream));
                self.machine.handle_tls_ready();
            }
            Err(Stop::Failed(error)) => {
                metrics.tls_handshakes_failed.inc();
                self.machine.handle_tls_failed(error.to_string());
            }
            Err(stop) => {
                metrics.tls_handshakes_failed.inc();
                self.stop(stop);
            }
        }
    }
}

// The driver's loop.
impl Connection {
    /// Writes and reads until the machine has something to tell.
    async fn event(&mut self, signal: &mut StopSignal) -> Event {
        loop {
            if let Some(event) = self.machine.poll_event() {
                return event;
            }
            let timer = self.machine.poll_timeout().unwrap_or(Timer::Command);
            let done = match self.transmit(timer, signal).await {
                Ok(false) => signal.guard(timer.duration(), self.read()).await,
                Ok(true) => Ok(()),
                Err(stop) => Err(stop),
            };
            if let Err(stop) = done {
                self.stop(stop);
            }
        }
    }

    /// Writes what the machine has to send; false when that is nothing.
    async fn transmit(&mut self, timer: Timer, signal: &mut StopSignal) -> Result<bool, Stop> {
        self.out.clear();
        if !self.machine.poll_transmit(&mut self.out) {
            return Ok(false);
        }
        signal.guard(timer.duration(), self.stream.write_both(&self.out, b"")).await?;
        Ok(true)
    }

    /// Reads until a reply is whole.
    async fn read(&mut self) -> io::Result<()> {
        let (stream, machine) = (&mut self.stream, &mut self.machine);
        let before = machine.answers();
        poll_fn(|cx| {
            while machine.answers() == before && !machine.is_closed() {
                let mut space = [MaybeUninit::uninit(); READ];
                let mut buffer = ReadBuf::uninit(&mut space);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Err(io::Error::other("the host closed it")));
                }
                machine.handle_bytes(buffer.filled());
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Tells the machine why reading or writing ended.
    fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Timeout => self.machine.handle_timeout(),
            Stop::Aborted => self.machine.handle_abort(),
            Stop::Failed(error) => {
                // A host that closes while we write has often said why.
                let _ = self.read().now_or_never();
                self.machine.handle_lost(error.to_string());
            }
        }
    }
}

// Content.
impl Connection {
    async fn send_content(&mut self, content: &mut Loaded, signal: &mut StopSignal) {
        let sent = match content {
            Loaded::Whole(bytes) => self.send_whole(bytes, signal).await,
            Loaded::File(reader) => self.send_pieces(reader.as_mut(), signal).await,
        };
        // From here on the remote may have the message; before it can't, for the final dot was not written.
        match sent {
            Ok(()) => self.machine.content_sent(),
            Err(Unsent::Unreadable(error @ SpoolError::Damaged { .. })) => {
                self.machine.handle_damaged_content(error.to_string());
            }
            Err(Unsent::Unreadable(error)) => self.machine.handle_local_failure(error.to_string()),
            Err(Unsent::Stopped(stop)) => self.stop(stop),
        }
    }

    async fn send_whole(&mut self, content: &Bytes, signal: &mut StopSignal) -> Result<(), Unsent> {
        if content.len() <= PIECE && content.ends_with(b"\r\n") && !needs_stuffing(content) {
            let limit = Timer::DataBlock.duration();
            return Ok(signal.guard(limit, self.stream.write_both(content, b".\r\n")).await?);
        }
        let mut stuffer = DotStuffer::default();
        for piece in content.chunks(PIECE) {
            self.send_piece(&mut stuffer, piece, signal).await?;
        }
        self.send_end(stuffer, signal).await
    }

    async fn send_pieces(
        &mut self,
        reader: &mut dyn PieceReader,
        signal: &mut StopSignal,
    ) -> Result<(), Unsent> {
        let mut stuffer = DotStuffer::default();
        loop {
            match signal.unless_raised(reader.next()).await {
                Some(Ok(Some(piece))) => self.send_piece(&mut stuffer, &piece, signal).await?,
                Some(Ok(None)) => return self.send_end(stuffer, signal).await,
                Some(Err(error)) => return Err(Unsent::Unreadable(error)),
                None => return Err(Unsent::Stopped(Stop::Aborted)),
            }
        }
    }

    async fn send_piece(
        &mut self,
        stuffer: &mut DotStuffer,
        piece: &[u8],
        signal: &mut StopSignal,
    ) -> Result<(), Unsent> {
        self.out.clear();
        stuffer.push(piece, &mut self.out);
        Ok(signal.guard(Timer::DataBlock.duration(), self.stream.write_both(&self.out, b"")).await?)
    }

    async fn send_end(&mut self, stuffer: DotStuffer, signal: &mut StopSignal) -> Result<(), Unsent> {
        self.out.clear();
        stuffer.finish(&mut self.out);
        let done = signal.guard(Timer::DataBlock.duration(), self.stream.write_both(&self.out, b"")).await;
        self.out = Vec::new();
        Ok(done?)
    }
}

/// Why content was not sent to its end.
enum Unsent {
    /// Our side can't read it.
    Unreadable(SpoolError),
    /// The connection.
    Stopped(Stop),
}

impl From<Stop> for Unsent {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

async fn connect(
    context: &DeliveryContext,
    host: &RemoteHost,
    signal: &mut StopSignal,
) -> Result<TcpStream, Finding> {
    let connect = async {
        let socket = TcpStream::connect(host.address).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    };
    match signal.guard(context.settings.connect_timeout, connect).await {
        Ok(socket) => Ok(socket),
        Err(Stop::Aborted) => Err(Finding::Aborted),
        Err(Stop::Timeout) => Err(Finding::NotConnected(format!("connecting to {host} timed out"))),
        Err(Stop::Failed(error)) => {
            Err(Finding::NotConnected(format!("connecting to {host} failed: {error}")))
        }
    }
}
