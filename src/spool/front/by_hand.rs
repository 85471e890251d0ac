//! A front whose commits and reads end when a test says so, or after simulated time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Commit, CommitStats, Front, Inner, Op, Spool, SpoolError, run};

/// What holds back a [`Front`]'s answers. Reads see the spool as it is when they are asked for; only their answers wait.
#[derive(Clone, Default)]
pub(crate) struct Hands(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    dead: bool,
    hold_commits: bool,
    hold_reads: bool,
    commits: VecDeque<Commit>,
    reads: VecDeque<Box<dyn FnOnce() + Send>>,
    /// Draws how long (milliseconds) the next commit or read takes.
    delays: Option<Box<dyn FnMut() -> u64 + Send>>,
}

impl Front {
    /// As [`Front::inline`], held back by these hands.
    pub(crate) fn by_hand(spool: Arc<dyn Spool>, hands: &Hands) -> Self {
        Self { inner: Arc::new(Inner { spool, files: None, threads: None, hands: Some(hands.clone()) }) }
    }
}

impl Hands {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hold_commits(&self, hold: bool) {
        self.lock().hold_commits = hold;
    }

    pub(crate) fn hold_reads(&self, hold: bool) {
        self.lock().hold_reads = hold;
    }

    /// The process dies: what is under way never happens.
    pub(crate) fn die(&self) {
        self.lock().dead = true;
    }

    /// Commits and reads take as many milliseconds as this draws.
    pub(crate) fn delay(&self, draw: impl FnMut() -> u64 + Send + 'static) {
        self.lock().delays = Some(Box::new(draw));
    }

    /// The operations of the commit that waits.
    pub(crate) fn waiting(&self) -> Option<Vec<Op>> {
        self.lock().commits.front().map(|commit| commit.ops.clone())
    }

    /// Lets the oldest commit that waits happen.
    pub(crate) fn finish_commit(&self, spool: &dyn Spool) {
        let commit = self.lock().commits.pop_front().expect("a commit is under way");
        run(spool, commit, None);
    }

    pub(crate) fn fail_commit(&self) {
        let commit = self.lock().commits.pop_front().expect("a commit is under way");
        (commit.done)(Err(SpoolError::Closed("the test says so".to_owned())));
    }

    /// Lets the oldest answer that waits come; false when there is none.
    pub(crate) fn finish_read(&self) -> bool {
        let read = self.lock().reads.pop_front();
        read.map(|read| read()).is_some()
    }

    pub(super) fn commit(&self, spool: &Arc<dyn Spool>, commit: Commit) {
        let mut held = self.lock();
        if held.hold_commits {
            return held.commits.push_back(commit);
        }
        let delay = held.delays.as_mut().map(|draw| draw());
        drop(held);
        match delay {
            None => run(&**spool, commit, None),
            Some(delay) => {
                let (spool, hands) = (spool.clone(), self.clone());
                drop(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(delay / 2)).await;
                    if hands.lock().dead {
                        return;
                    }
                    let result = spool.commit(&commit.ops);
                    tokio::time::sleep(Duration::from_millis(delay.div_ceil(2))).await;
                    let stats = CommitStats { took: Duration::ZERO, ops: commit.ops.len() };
                    (commit.done)(result.map(|()| stats));
                }));
            }
        }
    }

    pub(super) fn read(&self, answer: Box<dyn FnOnce() + Send>) {
        let mut held = self.lock();
        if held.hold_reads {
            return held.reads.push_back(answer);
        }
        let delay = held.delays.as_mut().map(|draw| draw());
        drop(held);
        match delay {
            None => answer(),
            Some(delay) => drop(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                answer();
            })),
        }
    }
}
