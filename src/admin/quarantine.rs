//! `/api/quarantine`: list, show, release, discard.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path, Query};

use super::queue::{PageQuery, page_limit, queue_id, read};
use super::view::{MessageView, QuarantineEntry, QuarantinePage, QuarantineView};
use super::{AdminContext, Failure};
use crate::actors::queue::messages::{CommandResult, InMemory, QuarantineCommand, QuarantineVerb};
use crate::mail::id::QueueId;
use crate::spool::Quarantined;

pub(super) async fn list(
    context: Data<AdminContext>,
    page: Query<PageQuery>,
) -> Result<Json<QuarantinePage>, Failure> {
    let after = page.after.as_deref().map(queue_id).transpose()?;
    let limit = page_limit(&page)?;
    let found = read(&context, move |spool| spool.quarantined(after, limit)).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|(last, _)| last.to_string());
    let entry = |(id, reason): (QueueId, String)| QuarantineEntry { id: id.to_string(), reason };
    Ok(Json(QuarantinePage { messages: found.into_iter().map(entry).collect(), next }))
}

pub(super) async fn show(
    context: Data<AdminContext>,
    id: Path<String>,
) -> Result<Json<QuarantineView>, Failure> {
    let id = queue_id(&id)?;
    let found = read(&context, move |spool| spool.in_quarantine(id)).await?.ok_or_else(|| unknown(id))?;
    let Quarantined { reason, records, bytes, message, obstacle, .. } = found;
    let none = |count| vec![None; count];
    let (message, unreadable) = match message {
        Ok(stored) => {
            let destinations = none(stored.states.len());
            let now_ms = context.clock.now_ms();
            (Some(MessageView::new(&stored, &destinations, &InMemory::default(), now_ms)), obstacle)
        }
        Err(why) => (None, Some(why)),
    };
    Ok(Json(QuarantineView { id: id.to_string(), reason, records, bytes, message, unreadable }))
}

pub(super) async fn release(context: Data<AdminContext>, id: Path<String>) -> Result<HttpResponse, Failure> {
    decide(&context, &id, QuarantineVerb::Release).await
}

pub(super) async fn discard(context: Data<AdminContext>, id: Path<String>) -> Result<HttpResponse, Failure> {
    decide(&context, &id, QuarantineVerb::Discard).await
}

/// No time limit here: the answer comes after a commit, and "done" must never be reported as failed.
async fn decide(context: &AdminContext, id: &str, verb: QuarantineVerb) -> Result<HttpResponse, Failure> {
    let id = queue_id(id)?;
    match context.queue.quarantine.send(QuarantineCommand { id, verb }).await {
        Ok(done @ CommandResult::Done { .. }) => Ok(HttpResponse::Ok().json(done)),
        Ok(CommandResult::NotFound) => Err(unknown(id)),
        Ok(CommandResult::Impossible { reason }) => Err(Failure::new(StatusCode::CONFLICT, reason)),
        Ok(CommandResult::Unavailable) | Err(_) => Err(Failure::unavailable()),
    }
}

fn unknown(id: QueueId) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("no message {id} is in quarantine"))
}
