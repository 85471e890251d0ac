//! A few threads and one queue of jobs.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub(super) type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    pub fn start(name: &str, threads: usize) -> io::Result<Self> {
        let pool = Self { queue: Arc::default(), threads: Mutex::default() };
        for number in 0..threads {
            let queue = pool.queue.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                while let Some(job) = queue.next() {
                    run(job)
                }
            });
            match thread {
                Ok(thread) => pool.threads().push(thread),
                Err(error) => {
                    pool.close();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Queues a job; drops it when the pool is closed.
    pub fn run(&self, job: Job) {
        let mut state = self.queue.state();
        if !state.closed {
            state.jobs.push_back(job);
            self.queue.changed.notify_one();
        }
    }

    /// The threads end when the queue is empty.
    pub fn close(&self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
    }

    /// Waits until the threads of a closed pool have ended.
    pub fn wait(&self) {
        let threads = std::mem::take(&mut *self.threads());
        // Jobs do not panic out of `run`, so there is nothing to learn from the result.
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job; `None` when the pool is closed and the queue empty.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A job that panics ends alone.
fn run(job: Job) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a job of the spool's pool panicked");
    }
}
