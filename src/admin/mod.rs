//! HTTP: metrics, health and the queue API. Questions become messages to the Queue and reads of the spool, answers
//! become JSON; nothing is decided here.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /livez` | 200 while the process answers |
//! | `GET /readyz` | 200 when mail is taken, else 503 with the reasons |
//! | `GET /api/queue?after=ID&limit=N` | a [`view::QueuePage`] |
//! | `GET /api/queue/{id}` | a [`view::MessageView`] |
//! | `POST /api/queue/{id}/retry?recipient=N` | what came of it: a `CommandResult` |
//! | `POST /api/queue/{id}/hold?recipient=N`, `…/release` | the same |
//! | `DELETE /api/queue/{id}?recipient=N` | the same |
//! | `GET /api/destinations?after=DOMAIN&limit=N` | a [`view::destinations::DestinationsPage`] |
//! | `POST /api/destinations/{domain}/suspend?seconds=N`, `…/resume` | what came of it |
//!
//! Everything under `/api` needs the [`token`]; every request must name this relay in `Host`.

mod destinations;
mod guard;
mod health;
mod quarantine;
mod queue;
pub mod token;
pub mod view;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer, ResponseError};

use crate::actors::queue::messages::{
    Command, DestinationCommand, Inspect, InspectDestinations, Observe, QuarantineCommand,
};
use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::spool::front::Front;

pub use actix_web::dev::ServerHandle as Handle;
pub use health::Health;
use view::{ErrorView, HealthView};

/// How long an answer of the Queue is waited for. A busy one answers in microseconds; one that does not is stuck,
/// and the metrics must still be served.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time a client has for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once: some scrapers and people.
const CONNECTIONS: usize = 100;

/// What the HTTP side knows.
#[derive(Clone)]
pub struct AdminContext {
    /// Served at `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Served at `/readyz`.
    pub health: Arc<Health>,
    /// Where records are read.
    pub spool: Front,
    /// The Queue.
    pub queue: QueueRecipients,
    /// The secret of the API.
    pub token: String,
    /// Names that `Host` may carry besides addresses and `localhost` (`http.hosts`).
    pub hosts: Vec<String>,
    /// Wall time for ages.
    pub clock: SharedClock,
}

/// The Queue, as the HTTP side knows it.
#[derive(Clone, Debug)]
pub struct QueueRecipients {
    /// Answers what it has of a message in memory.
    pub inspect: Recipient<Inspect>,
    /// Does what an operator asks.
    pub command: Recipient<Command>,
    /// Answers what it has of destinations in memory.
    pub destinations: Recipient<InspectDestinations>,
    /// Suspends and resumes destinations.
    pub destination: Recipient<DestinationCommand>,
    /// Decides on messages in quarantine.
    pub quarantine: Recipient<QuarantineCommand>,
    /// Refreshes the gauges.
    pub observe: Recipient<Observe>,
}

/// Serves HTTP on a listener, with one worker thread and no signal handling. The server that is returned must be
/// awaited or spawned; its `handle()` stops it.
///
/// # Errors
/// The listener can't be used.
pub fn serve(listener: TcpListener, context: AdminContext) -> io::Result<Server> {
    let context = Data::new(context);
    let app = move || {
        App::new()
            .app_data(Data::clone(&context))
            .wrap(from_fn(guard::check_host))
            .route("/metrics", web::get().to(metrics))
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(readyz))
            .service(queue::api())
            .default_service(web::to(nothing_here))
    };
    let server = HttpServer::new(app)
        .workers(1)
        .max_connections(CONNECTIONS)
        .client_request_timeout(REQUEST_TIMEOUT)
        .shutdown_timeout(1)
        .disable_signals()
        .listen(listener)?
        .run();
    Ok(server)
}

async fn metrics(context: Data<AdminContext>) -> HttpResponse {
    let answered = tokio::time::timeout(PATIENCE, context.queue.observe.send(Observe)).await;
    context.metrics.queue_unresponsive.set(i64::from(!matches!(answered, Ok(Ok(())))));
    HttpResponse::Ok()
        .insert_header(("content-type", "text/plain; version=0.0.4; charset=utf-8"))
        .body(context.metrics.encode())
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(HealthView { ready: true, reasons: Vec::new() })
}

async fn readyz(context: Data<AdminContext>) -> HttpResponse {
    match context.health.ready() {
        Ok(()) => HttpResponse::Ok().json(HealthView { ready: true, reasons: Vec::new() }),
        Err(reasons) => HttpResponse::ServiceUnavailable().json(HealthView { ready: false, reasons }),
    }
}

async fn nothing_here() -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "nothing here; there are /metrics, /livez, /readyz and the queue API under /api/queue, /api/destinations and /api/quarantine",
    )
}

/// An answer that is an error: a status and a sentence, sent as [`ErrorView`].
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// The Queue is stopping, stopped or stuck.
    fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping, or its spool failed; see /readyz")
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.insert_header(ContentType::json());
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header(("www-authenticate", "Bearer"));
        }
        response.json(ErrorView { error: self.text.clone() })
    }
}

impl actix_web::Responder for Failure {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _: &actix_web::HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

#[cfg(test)]
pub(crate) mod tests;
