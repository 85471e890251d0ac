//! Telling the sender: DSNs for failures, expiries and delays, in the commit that records what they report.

use actix::{Context, Handler, Message};
use bytes::Bytes;

use super::Queue;
use super::residents::Place;
use super::settle::Failed;
use crate::mail::dsn::{HEADERS_MAX, Report, ReportKind, ReportRecipient};
use crate::mail::envelope::{Content, ContentPlace, Envelope, LastReply, Status};
use crate::mail::id::QueueId;
use crate::maillog::RecipientLine;
use crate::metrics::Outcome;
use crate::smtp::address::ReversePath;

/// Spool → Queue: the start of the content of a message that is to be reported.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct HeadRead {
    id: QueueId,
    kind: ReportKind,
    failed: Vec<Failed>,
    head: Bytes,
}

impl Queue {
    /// Settles (or, for a delay, notes) recipients and tells the sender. Reads the original's header first when it is
    /// no longer in memory.
    pub(super) fn report(&mut self, id: QueueId, kind: ReportKind, failed: Vec<Failed>) {
        let failed = self.still_open(id, failed);
        let Some(resident) = self.residents.get(id).filter(|_| !failed.is_empty()) else { return };
        if resident.envelope.reverse_path == ReversePath::Null {
            return self.reported(id, kind, failed, &[]);
        }
        if let Some(content) = resident.content.clone() {
            return self.reported(id, kind, failed, &content);
        }
        for item in &failed {
            self.hold_in_memory(id, item.number);
        }
        let Some(me) = self.me() else { return };
        self.writing += 1;
        let (front, envelope) = (self.parts.front.clone(), resident_envelope(self, id));
        actix_rt::spawn(async move {
            let head = match envelope.as_ref().map(|envelope| envelope.place.clone()) {
                Some(ContentPlace::Database) => {
                    front.read_async(move |spool| spool.content(id).ok()).await.flatten().unwrap_or_default()
                }
                Some(ContentPlace::File(name)) => {
                    let size = envelope.as_ref().map_or(0, |envelope| envelope.size);
                    let read = move |files: &crate::spool::content::ContentFiles| {
                        files
                            .open(&name, size)
                            .and_then(|mut file| file.read_piece(HEADERS_MAX))
                            .ok()
                            .flatten()
                    };
                    front.file_job(read).await.flatten().unwrap_or_default()
                }
                None => Bytes::new(),
            };
            me.do_send(HeadRead { id, kind, failed, head });
        });
    }

    /// Those that are not settled: the others' message went to quarantine meanwhile, and nobody is told of a fate that is
    /// still to come.
    fn still_open(&self, id: QueueId, mut failed: Vec<Failed>) -> Vec<Failed> {
        let states = self.residents.get(id).map(|resident| &resident.states);
        failed.retain(|item| {
            states.is_some_and(|states| !states[usize::from(item.number)].status.is_settled())
        });
        failed
    }

    /// Keeps a recipient (and so its message) in memory while its report is being made.
    fn hold_in_memory(&mut self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get(id) else { return };
        let destination = resident.envelope.recipients[usize::from(number)].destination.clone();
        self.keep_destination(&destination);
        self.residents.put(id, number, Place::InFlight);
    }

    fn reported(&mut self, id: QueueId, kind: ReportKind, failed: Vec<Failed>, head: &[u8]) {
        let now_ms = self.now_ms();
        let failed = self.still_open(id, failed);
        let Some(envelope) = resident_envelope(self, id).filter(|_| !failed.is_empty()) else { return };
        self.send_report(&envelope, kind, &failed, head, now_ms);
        for item in failed {
            match kind {
                ReportKind::Delayed => self.delay_noted(id, item.number),
                ReportKind::Failed => self.failed_for_good(&envelope, item, Status::Bounced, now_ms),
                ReportKind::Expired => self.failed_for_good(&envelope, item, Status::Expired, now_ms),
            }
        }
        self.set_aside_unfit(id);
    }

    fn failed_for_good(&mut self, envelope: &Envelope, failed: Failed, status: Status, now_ms: u64) {
        let Failed { number, cause, host } = failed;
        let Some(resident) = self.residents.get_mut(envelope.id) else { return };
        let state = &mut resident.states[usize::from(number)];
        if status == Status::Bounced {
            state.attempts = state.attempts.saturating_add(1);
        }
        let line = RecipientLine {
            envelope,
            number,
            host: host.as_ref(),
            cause: &cause,
            attempts: state.attempts,
            tls: false,
            now_ms,
        };
        if status == Status::Bounced {
            self.parts.maillog.bounced(&line);
            self.count(envelope.id, number, Outcome::Bounced, cause.class);
        } else {
            self.parts.maillog.expired(&line);
            self.count(envelope.id, number, Outcome::Expired, cause.class);
        }
        let last = LastReply { at_ms: now_ms, host: host.map(|host| host.to_string()), cause };
        self.finish(envelope.id, number, status, Some(last));
    }

    fn delay_noted(&mut self, id: QueueId, number: u16) {
        let Some(resident) = self.residents.get_mut(id) else { return };
        let state = &mut resident.states[usize::from(number)];
        state.delay_notified = true;
        let due_ms = state.due_ms;
        self.reschedule(id, number, due_ms);
        self.grant_wish(id, number);
    }

    /// Queues the report, unless the reverse-path is null.
    fn send_report(
        &mut self,
        about: &Envelope,
        kind: ReportKind,
        failed: &[Failed],
        head: &[u8],
        now_ms: u64,
    ) {
        let hosts: Vec<Option<String>> =
            failed.iter().map(|item| item.host.as_ref().map(ToString::to_string)).collect();
        let recipients: Vec<ReportRecipient<'_>> = failed
            .iter()
            .enumerate()
            .map(|(at, item)| {
                let recipient = &about.recipients[usize::from(item.number)];
                let policy = self.parts.settings.retry.policy_for(&recipient.destination);
                let until = about.arrived_ms.saturating_add(millis(policy.give_up_after));
                ReportRecipient {
                    path: &recipient.path,
                    cause: &item.cause,
                    host: hosts[at].as_deref(),
                    at_ms: now_ms,
                    will_retry_until_ms: (kind == ReportKind::Delayed).then_some(until),
                }
            })
            .collect();
        let report = Report {
            envelope: about,
            reporting_mta: &self.parts.settings.hostname,
            kind,
            recipients: &recipients,
            headers: head,
            now_ms,
            id: crate::actors::new_queue_id(now_ms),
        };
        if recipients.is_empty() {
            return;
        }
        let Some(content) = report.content() else { return };
        let Some(envelope) = report.envelope(content.len() as u64) else { return };
        self.parts.metrics.dsn(kind);
        self.parts.maillog.dsn(about.id, &envelope, kind.word(), now_ms);
        self.enqueue_report(envelope, Content::Memory(content));
    }
}

impl Handler<HeadRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: HeadRead, ctx: &mut Context<Self>) {
        self.writing = self.writing.saturating_sub(1);
        self.reported(read.id, read.kind, read.failed, &read.head);
        self.turn(ctx);
    }
}

fn resident_envelope(queue: &Queue, id: QueueId) -> Option<std::sync::Arc<Envelope>> {
    queue.residents.get(id).map(|resident| resident.envelope.clone())
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
