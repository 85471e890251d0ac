//! `/api/destinations`: list, suspend, resume.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path, Query};
use serde::Deserialize;

use super::queue::{PageQuery, page_limit, read};
use super::view::destinations::{DestinationView, DestinationsPage, Known};
use super::{AdminContext, Failure, PATIENCE};
use crate::actors::queue::messages::{
    CommandResult, DestinationCommand, DestinationVerb, DestinationsInMemory, InspectDestinations,
};
use crate::smtp::address::Domain;
use crate::spool::{Spool, SpoolError, UNTIL_RESUMED};

/// Longer than this nobody plans.
const SUSPENDED_MAX_S: u64 = 10 * 365 * 86_400;

#[derive(Debug, Deserialize)]
pub(super) struct SuspendQuery {
    /// For how long; without it until it is resumed.
    seconds: Option<u64>,
}

pub(super) async fn list(
    context: Data<AdminContext>,
    page: Query<PageQuery>,
) -> Result<Json<DestinationsPage>, Failure> {
    let after = page.after.as_deref().map(domain).transpose()?;
    let limit = page_limit(&page)?;
    let ask = InspectDestinations { after: after.clone(), limit };
    let memory = match tokio::time::timeout(PATIENCE, context.queue.destinations.send(ask)).await {
        Ok(Ok(memory)) => memory,
        _ => DestinationsInMemory::default(),
    };
    let mut known = read(&context, move |spool| stored(spool, after.as_ref(), limit)).await?;
    for (name, memory) in memory.0 {
        known.entry(name).or_default().memory = memory;
    }
    let now_ms = context.clock.now_ms();
    // Each of the three lists has the first `limit` names, so their union has those, too.
    let next = known.keys().nth(limit - 1).map(ToString::to_string);
    let views = known.iter().take(limit).map(|(name, known)| DestinationView::new(name, known, now_ms));
    Ok(Json(DestinationsPage { destinations: views.collect(), next }))
}

/// What the spool knows of the first destinations after a name: those with mail and those with a record.
fn stored(
    spool: &dyn Spool,
    after: Option<&Domain>,
    limit: usize,
) -> Result<BTreeMap<Domain, Known>, SpoolError> {
    let mut known: BTreeMap<Domain, Known> = BTreeMap::new();
    for (name, waiting) in spool.queued(after, limit)? {
        known.entry(name).or_default().waiting = waiting;
    }
    for (name, record) in spool.destinations(after, limit)? {
        known.entry(name).or_default().record = record;
    }
    Ok(known)
}

pub(super) async fn suspend(
    context: Data<AdminContext>,
    name: Path<String>,
    query: Query<SuspendQuery>,
) -> Result<HttpResponse, Failure> {
    if query.seconds == Some(0) {
        let text = "seconds is 0, so it would end at once; write 1 or more, or leave it out".to_owned();
        return Err(Failure::new(StatusCode::BAD_REQUEST, text));
    }
    if query.seconds.is_some_and(|seconds| seconds > SUSPENDED_MAX_S) {
        let text = format!(
            "seconds is more than {SUSPENDED_MAX_S}, ten years; leave it out to suspend without an end"
        );
        return Err(Failure::new(StatusCode::BAD_REQUEST, text));
    }
    let until_ms = query
        .seconds
        .map_or(UNTIL_RESUMED, |seconds| context.clock.now_ms().saturating_add(seconds.saturating_mul(1000)));
    command(&context, &name, DestinationVerb::Suspend { until_ms }).await
}

pub(super) async fn resume(context: Data<AdminContext>, name: Path<String>) -> Result<HttpResponse, Failure> {
    command(&context, &name, DestinationVerb::Resume).await
}

/// No time limit here: the answer comes after a commit, and "done" must never be reported as failed.
async fn command(context: &AdminContext, name: &str, verb: DestinationVerb) -> Result<HttpResponse, Failure> {
    let command = DestinationCommand { destination: domain(name)?, verb };
    match context.queue.destination.send(command).await {
        Ok(done @ CommandResult::Done { .. }) => Ok(HttpResponse::Ok().json(done)),
        Ok(CommandResult::Impossible { reason }) => Err(Failure::new(StatusCode::CONFLICT, reason)),
        Ok(CommandResult::NotFound | CommandResult::Unavailable) | Err(_) => Err(Failure::unavailable()),
    }
}

fn domain(text: &str) -> Result<Domain, Failure> {
    Domain::parse(text)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("\"{text}\" is no domain: {error}")))
}
