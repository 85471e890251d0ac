//! The threads in front of the spool: who answers where, a job that panics, and what is still done at the close.

use std::sync::mpsc;

use super::super::memory::MemorySpool;
use super::super::{Counters, SpoolError};
use super::*;

fn counters(messages: u64) -> Vec<Op> {
    vec![Op::Counters(Counters { messages, ..Counters::default() })]
}

fn threaded() -> Front {
    Front::threaded(Arc::new(MemorySpool::new()), None, 2, 2).expect("threads")
}

#[test]
fn commits_and_reads_are_answered_on_other_threads() {
    let front = threaded();
    let (tell, told) = mpsc::channel();
    let caller = std::thread::current().id();
    front.commit(
        counters(7),
        Box::new(move |result| {
            tell.send((std::thread::current().id(), result)).expect("listened to");
        }),
    );
    let (thread, result) = told.recv().expect("answered");
    assert_ne!(thread, caller);
    assert_eq!(result.expect("committed").ops, 1);

    let (tell, told) = mpsc::channel();
    front.read(|spool| spool.counters(), move |counters| tell.send(counters).expect("listened to"));
    assert_eq!(told.recv().expect("answered").expect("read").messages, 7);
    front.close_and_wait();
}

#[test]
fn inline_everything_is_done_before_the_call_returns() {
    let front = Front::inline(Arc::new(MemorySpool::new()));
    let (tell, told) = mpsc::channel();
    front.commit(counters(7), Box::new(move |result| tell.send(result.is_ok()).expect("listened to")));
    assert_eq!(told.try_recv(), Ok(true));
    let (tell, told) = mpsc::channel();
    front.read(
        |spool| spool.counters(),
        move |read| tell.send(read.expect("read").messages).expect("listened to"),
    );
    assert_eq!(told.try_recv(), Ok(7));
}

#[tokio::test]
async fn a_job_that_panics_answers_none_and_the_pool_goes_on() {
    let front = threaded();
    for _ in 0..5 {
        assert_eq!(front.read_async(|_| -> u8 { panic!("a bad job, on purpose") }).await, None);
    }
    assert_eq!(front.read_async(|_| 1).await, Some(1));
    assert_eq!(front.file_job(|_| 1).await, None, "there are no files");
    let (tell, told) = mpsc::channel();
    let bad = |_: &dyn Spool| -> Result<(), SpoolError> { panic!("a bad job, on purpose") };
    front.read(bad, move |read| tell.send(read).expect("listened to"));
    assert!(matches!(told.recv().expect("who waits is told"), Err(SpoolError::Failed(_))));
}

#[tokio::test]
async fn after_close_commits_fail_and_reads_answer_none() {
    let front = threaded();
    front.close_and_wait();
    let (tell, told) = mpsc::channel();
    front.commit(counters(1), Box::new(move |result| tell.send(result).expect("listened to")));
    assert!(matches!(told.recv().expect("answered"), Err(SpoolError::Closed(_))));
    assert_eq!(front.read_async(|_| 1).await, None);
}

#[tokio::test]
async fn closed_comes_back_after_the_last_commit() {
    let front = threaded();
    front.commit(counters(7), Box::new(|result| assert_eq!(result.expect("committed").ops, 1)));
    front.close();
    front.closed().await;
    assert_eq!(front.spool().counters().expect("readable").messages, 7);
    front.closed().await;
}

#[test]
fn what_is_queued_at_close_is_still_done() {
    let front = threaded();
    let (tell, told) = mpsc::channel();
    for number in 0..2 {
        let tell = tell.clone();
        front.commit(
            counters(number),
            Box::new(move |result| tell.send(result.is_ok()).expect("listened to")),
        );
    }
    drop(tell);
    front.close_and_wait();
    assert_eq!(told.iter().collect::<Vec<_>>(), [true, true]);
}

#[tokio::test]
async fn file_jobs_run_when_there_are_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = ContentFiles::new(folder.path().to_owned());
    let front = Front::threaded(Arc::new(MemorySpool::new()), Some(files), 1, 1).expect("threads");
    let path = front.file_job(|files| files.folder().to_owned()).await;
    assert_eq!(path.as_deref(), Some(folder.path()));
}
