//! What the parts of a relay share, and what each of them is made of.

use std::io;
use std::sync::Arc;

use actix::Addr;
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::{Extras, StartError, start, system};
use crate::actors::delivery::{AddressSlots, Deliveries, DeliveryContext, Dials, SpoolContent};
use crate::actors::queue::{MemoryBounds, Queue, QueueParts, QueueSettings};
use crate::actors::session::{Credits, SessionContext};
use crate::actors::space::SpaceWatch;
use crate::admin::{AdminContext, Health, QueueRecipients};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::mail::envelope::{Content, ContentPlace, Envelope};
use crate::maillog::MailLog;
use crate::metrics::Metrics;
use crate::route::plan::PlanSettings;
use crate::route::resolver::Resolve;
use crate::route::table::RouteTable;
use crate::schedule::retry::RetryRules;
use crate::spool::content::ContentFiles;
use crate::spool::front::Front;
use crate::spool::sled::SledSpool;
use crate::spool::space::{Bounds, Room, is_full};
use crate::spool::{Counters, Op, Spool, SpoolError};
use crate::tls::TlsClients;

/// Threads that read the spool.
const READERS: usize = 2;
/// Messages in quarantine that are read at once when they are counted.
const QUARANTINED_PAGE: usize = 1_000;
/// Threads that handle content files. They mostly wait for the device, and those that wait together share its work.
const FILE_THREADS: usize = 8;
/// Messages that may be between sessions and the spool.
const MESSAGE_CREDITS: usize = 2_000;
/// Content that may be between sessions and the spool, in KiB.
const MEMORY_CREDITS: usize = 64 << 10;

/// What the spool holds. Counters that can't be read must not stop the mail: they are counted anew.
fn counters(spool: &dyn Spool, metrics: &Metrics) -> Result<Counters, SpoolError> {
    let error = match spool.counters() {
        Err(error @ SpoolError::Damaged { .. }) => error,
        read => return read,
    };
    tracing::error!(%error, "the counters can't be read: they are counted anew, and all mail is looked through");
    metrics.damaged_records.inc();
    let (mut quarantined, mut last) = (0, None);
    loop {
        let page = spool.quarantined(last, QUARANTINED_PAGE)?;
        quarantined += page.len() as u64;
        match page.last() {
            Some((id, _)) => last = Some(*id),
            None => break,
        }
    }
    let guess = Counters::guess(quarantined);
    spool.commit(&[Op::Counters(guess)])?;
    Ok(guess)
}

/// What all parts share.
pub(super) struct Shared {
    pub hostname: Arc<str>,
    pub clock: SharedClock,
    pub metrics: Arc<Metrics>,
    pub maillog: MailLog,
    pub health: Arc<Health>,
    pub front: Front,
    pub credits: Credits,
    /// Whether the spool has room for new mail.
    pub room: Arc<Room>,
    /// Content up to this many bytes lives in the database.
    pub content_threshold: usize,
    /// Names this run in content files.
    pub instance: String,
    /// New connections per second.
    pub dials: Dials,
}

impl Shared {
    /// Opens the spool and the log; tells what the spool holds.
    pub fn open(config: &Config, extras: Extras) -> Result<(Self, Counters), StartError> {
        let metrics = match extras.metrics {
            Some(metrics) => metrics,
            None => start::metrics(config)?,
        };
        let maillog = MailLog::start(&config.log, extras.log, metrics.log_lines_dropped.clone())
            .map_err(system("can't start the log thread"))?;
        let spool = SledSpool::open(&config.spool, uuid::Uuid::new_v4())?;
        let (counters, instance) = (counters(&spool, &metrics)?, spool.instance().to_owned());
        let files = spool.files();
        let front = Front::threaded(Arc::new(spool), Some(files), READERS, FILE_THREADS)
            .map_err(system("can't start the spool's threads"))?;
        let dials = Dials::new(config.delivery.connects_per_second, extras.clock.clone());
        let shared = Self {
            hostname: config.resolved_hostname().into(),
            clock: extras.clock,
            metrics,
            maillog,
            health: Arc::new(Health::new()),
            front,
            credits: Credits {
                messages: Arc::new(Semaphore::new(MESSAGE_CREDITS)),
                memory: Arc::new(Semaphore::new(MEMORY_CREDITS)),
            },
            room: Arc::default(),
            content_threshold: usize::try_from(config.spool.content_threshold).unwrap_or(usize::MAX),
            instance,
            dials,
        };
        Ok((shared, counters))
    }

    pub fn delivery_context(
        &self,
        config: &Config,
        resolver: Arc<dyn Resolve>,
        plan: PlanSettings,
        tls: TlsClients,
    ) -> DeliveryContext {
        DeliveryContext {
            hostname: self.hostname.clone(),
            settings: config.delivery.clone(),
            resolver,
            plan,
            tls,
            content: Arc::new(SpoolContent::new(self.front.clone())),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            slots: AddressSlots::new(config.delivery.connections_per_address),
            dials: self.dials.clone(),
        }
    }

    pub fn queue_parts(
        &self,
        config: &Config,
        routes: RouteTable,
        connections: usize,
        deliveries: Box<dyn Deliveries>,
        failure: watch::Sender<Option<String>>,
    ) -> QueueParts {
        let per_destination = config.delivery.connections_per_destination;
        QueueParts {
            settings: QueueSettings {
                hostname: self.hostname.clone(),
                retry: RetryRules::new(&config.retry),
                routes,
                connections,
                connections_per_destination: u32::try_from(per_destination).unwrap_or(u32::MAX),
                recipients_per_transaction: config.delivery.recipients_per_transaction,
                memory: MemoryBounds::default(),
            },
            clock: self.clock.clone(),
            front: self.front.clone(),
            deliveries,
            dials: self.dials.clone(),
            metrics: self.metrics.clone(),
            maillog: self.maillog.clone(),
            health: self.health.clone(),
            failure,
        }
    }

    pub fn session_context(&self, config: &Config, queue: &Addr<Queue>) -> SessionContext {
        SessionContext {
            hostname: self.hostname.clone(),
            message_size: config.limits.message_size,
            recipients: config.limits.recipients,
            errors: config.limits.errors,
            idle_timeout: config.limits.idle_timeout,
            data_timeout: config.limits.data_timeout,
            content_threshold: self.content_threshold,
            instance: self.instance.clone(),
            credits: self.credits.clone(),
            room: self.room.clone(),
            queue: queue.clone().recipient(),
            front: self.front.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            maillog: self.maillog.clone(),
        }
    }

    pub fn admin_context(&self, config: &Config, queue: &Addr<Queue>, token: String) -> AdminContext {
        AdminContext {
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            spool: self.front.clone(),
            queue: QueueRecipients {
                inspect: queue.clone().recipient(),
                command: queue.clone().recipient(),
                destinations: queue.clone().recipient(),
                destination: queue.clone().recipient(),
                quarantine: queue.clone().recipient(),
                observe: queue.clone().recipient(),
            },
            token,
            hosts: config.http.hosts.clone(),
            clock: self.clock.clone(),
        }
    }

    pub fn space_watch(&self, config: &Config) -> SpaceWatch {
        SpaceWatch {
            front: self.front.clone(),
            folder: config.spool.path.clone(),
            bounds: Bounds::of(&config.spool),
            room: self.room.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            rest: std::cell::Cell::default(),
        }
    }

    /// Puts the content of an embedder's message where content of its size belongs.
    pub async fn store(&self, envelope: &mut Envelope, content: Bytes) -> io::Result<Content> {
        if content.len() <= self.content_threshold {
            return Ok(Content::Memory(content));
        }
        let (id, instance, bytes) = (envelope.id, self.instance.clone(), content.clone());
        let job = move |files: &ContentFiles| files.create(id, &instance)?.finish_with(&bytes);
        let gone = || Err(io::Error::other("the spool's threads are gone"));
        let stored = self.front.file_job(job).await.unwrap_or_else(gone);
        let (name, size) = stored.inspect_err(|error| {
            if is_full(error) {
                self.room.note_full();
            }
        })?;
        envelope.place = ContentPlace::File(name.clone());
        Ok(Content::File { name, size, whole: Some(content) })
    }
}
