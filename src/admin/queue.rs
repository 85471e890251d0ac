//! `/api/queue`: list, show, retry, hold, release, remove; and the routes of the whole API.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, Json, Path, Query};
use actix_web::{HttpResponse, Scope, dev};
use serde::Deserialize;

use super::view::{MessageSummary, MessageView, QueuePage};
use super::{AdminContext, Failure, PATIENCE, destinations, guard, quarantine};
use crate::actors::queue::messages::{Command, CommandResult, CommandVerb, InMemory, Inspect};
use crate::mail::envelope::StoredMessage;
use crate::mail::id::QueueId;
use crate::smtp::address::Domain;
use crate::spool::{DestinationRecord, Spool, SpoolError};

/// Messages on a page when nothing is said, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// The routes, behind the token.
pub(super) fn api() -> Scope<
    impl dev::ServiceFactory<
        dev::ServiceRequest,
        Config = (),
        Response = dev::ServiceResponse<impl actix_web::body::MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    web::scope("/api")
        .wrap(from_fn(guard::check_token))
        .route("/queue", web::get().to(list))
        .route("/queue/{id}", web::get().to(show))
        .route("/queue/{id}", web::delete().to(remove))
        .route("/queue/{id}/retry", web::post().to(retry))
        .route("/queue/{id}/hold", web::post().to(hold))
        .route("/queue/{id}/release", web::post().to(release))
        .route("/destinations", web::get().to(destinations::list))
        .route("/destinations/{name}/suspend", web::post().to(destinations::suspend))
        .route("/destinations/{name}/resume", web::post().to(destinations::resume))
        .route("/quarantine", web::get().to(quarantine::list))
        .route("/quarantine/{id}", web::get().to(quarantine::show))
        .route("/quarantine/{id}", web::delete().to(quarantine::discard))
        .route("/quarantine/{id}/release", web::post().to(quarantine::release))
}

#[derive(Debug, Deserialize)]
pub(super) struct PageQuery {
    pub after: Option<String>,
    pub limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct RecipientQuery {
    recipient: Option<u16>,
}

async fn list(context: Data<AdminContext>, page: Query<PageQuery>) -> Result<Json<QueuePage>, Failure> {
    let after = page.after.as_deref().map(queue_id).transpose()?;
    let limit = page_limit(&page)?;
    let messages = read(&context, move |spool| page_of(spool, after, limit)).await?;
    let now_ms = context.clock.now_ms();
    let next =
        messages.last().filter(|_| messages.len() == limit).map(|(last, _)| last.envelope.id.to_string());
    let messages = messages
        .iter()
        .map(|(message, destinations)| MessageSummary::new(message, destinations, now_ms))
        .collect();
    Ok(Json(QueuePage { messages, next }))
}

/// How many entries a page has. A page of none would say that there is nothing.
pub(super) fn page_limit(page: &PageQuery) -> Result<usize, Failure> {
    match page.limit.unwrap_or(PAGE) {
        0 => Err(Failure::new(StatusCode::BAD_REQUEST, "limit is 0; write 1 or more".to_owned())),
        limit => Ok(limit.min(PAGE_MAX)),
    }
}

async fn show(context: Data<AdminContext>, id: Path<String>) -> Result<Json<MessageView>, Failure> {
    let id = queue_id(&id)?;
    let memory = in_memory(&context, id).await;
    let found = read(&context, move |spool| match spool.message(id)? {
        Some(message) => with_destinations(spool, message, &mut HashMap::new()).map(Some),
        None => Ok(None),
    });
    let (message, destinations) = found.await?.ok_or_else(|| unknown(id))?;
    Ok(Json(MessageView::new(&message, &destinations, &memory, context.clock.now_ms())))
}

async fn retry(
    context: Data<AdminContext>,
    id: Path<String>,
    query: Query<RecipientQuery>,
) -> Result<HttpResponse, Failure> {
    command(&context, &id, query.recipient, CommandVerb::Retry).await
}

async fn hold(
    context: Data<AdminContext>,
    id: Path<String>,
    query: Query<RecipientQuery>,
) -> Result<HttpResponse, Failure> {
    command(&context, &id, query.recipient, CommandVerb::Hold).await
}

async fn release(
    context: Data<AdminContext>,
    id: Path<String>,
    query: Query<RecipientQuery>,
) -> Result<HttpResponse, Failure> {
    command(&context, &id, query.recipient, CommandVerb::Release).await
}

async fn remove(
    context: Data<AdminContext>,
    id: Path<String>,
    query: Query<RecipientQuery>,
) -> Result<HttpResponse, Failure> {
    command(&context, &id, query.recipient, CommandVerb::Remove).await
}

/// No time limit here: the answer comes after a commit, and "done" must never be reported as failed.
async fn command(
    context: &AdminContext,
    id: &str,
    recipient: Option<u16>,
    verb: CommandVerb,
) -> Result<HttpResponse, Failure> {
    let id = queue_id(id)?;
    match context.queue.command.send(Command { id, recipient, verb }).await {
        Ok(done @ CommandResult::Done { .. }) => Ok(HttpResponse::Ok().json(done)),
        Ok(CommandResult::NotFound) => Err(unknown(id)),
        Ok(CommandResult::Impossible { reason }) => Err(Failure::new(StatusCode::CONFLICT, reason)),
        Ok(CommandResult::Unavailable) | Err(_) => Err(Failure::unavailable()),
    }
}

/// What the Queue has in memory; nothing when it does not answer in time: the records still tell the rest.
async fn in_memory(context: &AdminContext, id: QueueId) -> InMemory {
    match tokio::time::timeout(PATIENCE, context.queue.inspect.send(Inspect { id })).await {
        Ok(Ok(memory)) => memory,
        _ => InMemory::default(),
    }
}

/// Reads on a thread of the spool's.
pub(super) async fn read<T: Send + 'static>(
    context: &AdminContext,
    job: impl FnOnce(&dyn Spool) -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, Failure> {
    match context.spool.read_async(job).await {
        Some(Ok(found)) => Ok(found),
        Some(Err(error)) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        None => Err(Failure::unavailable()),
    }
}

type WithDestinations = (StoredMessage, Vec<Option<DestinationRecord>>);

/// A page of messages with the records of their destinations.
fn page_of(
    spool: &dyn Spool,
    after: Option<QueueId>,
    limit: usize,
) -> Result<Vec<WithDestinations>, SpoolError> {
    let mut seen = HashMap::new();
    let messages = spool.list(after, limit)?.into_iter();
    messages.map(|message| with_destinations(spool, message, &mut seen)).collect()
}

/// A message and, for each recipient, the record of its destination; `seen` spares reading one twice.
fn with_destinations(
    spool: &dyn Spool,
    message: StoredMessage,
    seen: &mut HashMap<Domain, Option<DestinationRecord>>,
) -> Result<WithDestinations, SpoolError> {
    let mut records = Vec::with_capacity(message.envelope.recipients.len());
    for recipient in &message.envelope.recipients {
        let record = match seen.get(&recipient.destination) {
            Some(record) => record.clone(),
            None => {
                let record = spool.destination(&recipient.destination)?;
                seen.insert(recipient.destination.clone(), record.clone());
                record
            }
        };
        records.push(record);
    }
    Ok((message, records))
}

pub(super) fn queue_id(text: &str) -> Result<QueueId, Failure> {
    text.parse().map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("\"{text}\" is {error}")))
}

fn unknown(id: QueueId) -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        format!(
            "no message {id} (or no such recipient) is queued; it may have been delivered or bounced: see the mail log"
        ),
    )
}
