//! The threads in front of a [`Spool`]: the writer, which commits and does nothing else, and two small pools, one for
//! reads and one for content files, so that a cold read or a large file never delays a 250.

#[cfg(test)]
pub(crate) mod by_hand;
mod pool;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use self::pool::Pool;
use super::content::ContentFiles;
use super::{Op, Spool, SpoolError};
use crate::clock::{Clock, SystemClock};
use crate::mail::envelope::ContentPlace;

/// Commits that may wait for the writer. The Queue keeps one under way at most.
const COMMITS_WAITING: usize = 2;

/// What a commit took.
#[derive(Clone, Copy, Debug)]
pub struct CommitStats {
    /// From the start of the commit until it was durable.
    pub took: Duration,
    /// Operations in it.
    pub ops: usize,
}

/// What is told when a commit is done.
pub type Committed = Box<dyn FnOnce(Result<CommitStats, SpoolError>) + Send>;

/// A spool with its threads. Cheap to clone; the threads end with the last clone or with [`Front::close`].
#[derive(Clone)]
pub struct Front {
    inner: Arc<Inner>,
}

struct Inner {
    spool: Arc<dyn Spool>,
    files: Option<ContentFiles>,
    threads: Option<Threads>,
    #[cfg(test)]
    hands: Option<by_hand::Hands>,
}

struct Threads {
    /// `None` once closed.
    commits: Mutex<Option<SyncSender<Commit>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Ends with the writer.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    reads: Pool,
    /// Closed by the writer when it ends.
    files: Arc<Pool>,
}

struct Commit {
    ops: Vec<Op>,
    done: Committed,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Front")
    }
}

impl Front {
    /// Starts one writer thread, `readers` threads for reads, and `writers` for content files (at least one each).
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn threaded(
        spool: Arc<dyn Spool>,
        files: Option<ContentFiles>,
        readers: usize,
        writers: usize,
    ) -> io::Result<Self> {
        let reads = Pool::start("posthaste-read", readers.max(1))?;
        let file_pool = Arc::new(Pool::start("posthaste-file", writers.max(1))?);
        let (commits, queue) = sync_channel::<Commit>(COMMITS_WAITING);
        let (end, ended) = oneshot::channel::<()>();
        let writer = {
            let (spool, files, pool) = (spool.clone(), files.clone(), file_pool.clone());
            let work = move || {
                let _end = end;
                queue.iter().for_each(|commit| run(&*spool, commit, files.as_ref().zip(Some(&*pool))));
                // Not earlier: it takes the removals of the last commits.
                pool.close();
                spool.settle();
            };
            std::thread::Builder::new().name("posthaste-spool".to_owned()).spawn(|| or_abort(work))?
        };
        let threads = Threads {
            commits: Mutex::new(Some(commits)),
            writer: Mutex::new(Some(writer)),
            ended: Mutex::new(Some(ended)),
            reads,
            files: file_pool,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                spool,
                files,
                threads: Some(threads),
                #[cfg(test)]
                hands: None,
            }),
        })
    }

    /// Everything runs on the calling thread at once: for simulated time. There are no content files.
    pub fn inline(spool: Arc<dyn Spool>) -> Self {
        Self {
            inner: Arc::new(Inner {
                spool,
                files: None,
                threads: None,
                #[cfg(test)]
                hands: None,
            }),
        }
    }

    /// The spool, for callers that may block.
    pub fn spool(&self) -> &Arc<dyn Spool> {
        &self.inner.spool
    }

    /// Commits the operations and calls `done`, on the writer thread. Does not block as long as the caller waits for
    /// `done` before it commits again.
    pub fn commit(&self, ops: Vec<Op>, done: Committed) {
        let commit = Commit { ops, done };
        #[cfg(test)]
        if let Some(hands) = &self.inner.hands {
            return hands.commit(&self.inner.spool, commit);
        }
        let Some(threads) = &self.inner.threads else {
            return run(&*self.inner.spool, commit, None);
        };
        let sender = threads.commits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = match sender {
            Some(sender) => sender.send(commit).err().map(|error| error.0),
            None => Some(commit),
        };
        if let Some(commit) = refused {
            (commit.done)(Err(SpoolError::Closed("it was closed".to_owned())));
        }
    }

    /// Runs `job` on a thread for reads, then `done` there, with [`SpoolError::Failed`] when the job panicked: who waits
    /// must not wait for ever. Never blocks, so callers bound how much they ask for. After [`Front::close`] nothing is
    /// read any more, and `done` is dropped.
    pub fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Spool) -> Result<T, SpoolError> + Send + 'static,
        done: impl FnOnce(Result<T, SpoolError>) + Send + 'static,
    ) {
        let panicked = || Err(SpoolError::Failed("a read panicked; this is a bug of the relay".to_owned()));
        self.do_read(job, move |result| done(result.unwrap_or_else(panicked)));
    }

    /// As [`Front::read`], for async callers. `None` when the job panicked or the pool is gone.
    pub async fn read_async<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Spool) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.do_read(job, |result| drop(answer.send(result)));
        answered.await.ok().flatten()
    }

    /// `done` gets `None` when the job panicked.
    fn do_read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Spool) -> T + Send + 'static,
        done: impl FnOnce(Option<T>) + Send + 'static,
    ) {
        let spool = self.inner.spool.clone();
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(|| job(&*spool)));
            result.inspect_err(|_| tracing::error!("a read of the spool panicked")).ok()
        };
        #[cfg(test)]
        if let Some(hands) = &self.inner.hands {
            let result = job();
            return hands.read(Box::new(move || done(result)));
        }
        let work = move || done(job());
        match &self.inner.threads {
            Some(threads) => threads.reads.run(Box::new(work)),
            None => work(),
        }
    }

    /// Runs `job` on a thread for content files. `None` when it panicked, the pool is gone, or there are no files.
    pub async fn file_job<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ContentFiles) -> T + Send + 'static,
    ) -> Option<T> {
        let files = self.inner.files.clone()?;
        let pool = &self.inner.threads.as_ref()?.files;
        let (answer, answered) = oneshot::channel();
        pool.run(Box::new(move || drop(answer.send(job(&files)))));
        answered.await.ok()
    }

    /// Removes content files that crashes left behind ([`ContentFiles::sweep`]), on a thread for files.
    pub fn sweep(&self, instance: &str) {
        let (Some(files), Some(threads)) = (self.inner.files.clone(), &self.inner.threads) else { return };
        let (spool, instance) = (self.inner.spool.clone(), instance.to_owned());
        threads.files.run(Box::new(move || match files.sweep(&*spool, &instance) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed content files that nothing names any more"),
            Err(error) => tracing::warn!(%error, "left-over content files stay until the next start"),
        }));
    }

    /// Ends the threads after what is queued; does not wait. Later commits fail with [`SpoolError::Closed`].
    pub fn close(&self) {
        if let Some(threads) = &self.inner.threads {
            threads.close();
        }
    }

    /// Comes back when the writer has ended, after [`Front::close`].
    pub async fn closed(&self) {
        let Some(threads) = &self.inner.threads else { return };
        let ended = threads.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            // It is dropped, never sent.
            let _ = ended.await;
        }
    }

    /// As [`Front::close`], and waits for the threads. Must not be called from one of them.
    pub fn close_and_wait(&self) {
        self.close();
        if let Some(threads) = &self.inner.threads {
            threads.wait();
        }
    }
}

impl Threads {
    fn close(&self) {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.reads.close();
    }

    fn wait(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the spool writer ended with a panic");
        }
        self.reads.wait();
        self.files.wait();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(threads) = &self.threads {
            threads.close();
        }
    }
}

/// A panic in the writer ends the process: the spool recovers, a half-dead relay would not.
fn or_abort(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!(
            "the spool writer panicked: ending at once; what was accepted is on disk, start again"
        );
        std::process::abort();
    }
}

/// Commits, answers, and has the content files of removed messages removed (S4 → S0).
fn run(spool: &dyn Spool, commit: Commit, clean_up: Option<(&ContentFiles, &Pool)>) {
    let start = SystemClock.instant();
    let result = spool.commit(&commit.ops);
    let stats = CommitStats { took: start.elapsed(), ops: commit.ops.len() };
    let committed = result.is_ok();
    (commit.done)(result.map(|()| stats));
    if let Some((files, pool)) = clean_up.filter(|_| committed) {
        let names = content_files_of_removed(&commit.ops);
        if !names.is_empty() {
            let files = files.clone();
            pool.run(Box::new(move || remove(&files, &names)));
        }
    }
}

fn content_files_of_removed(ops: &[Op]) -> Vec<String> {
    ops.iter()
        .filter_map(|op| match op {
            Op::Discard(_, file) => file.clone(),
            Op::RemoveMessage { envelope, .. } => match &envelope.place {
                ContentPlace::File(name) => Some(name.clone()),
                ContentPlace::Database => None,
            },
            _ => None,
        })
        .collect()
}

fn remove(files: &ContentFiles, names: &[String]) {
    for name in names {
        if let Err(error) = files.remove(name) {
            tracing::warn!(name, %error, "can't remove the content of a finished message; the next start tries again");
        }
    }
}

#[cfg(test)]
mod tests;
