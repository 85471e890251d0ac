//! How late this machine wakes a thread: what a busy one makes the relay wait for, however it is written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A thread asks to be woken after this, again and again.
const NAP: Duration = Duration::from_millis(1);
/// So long it remembers how late it was.
const MEMORY: Duration = Duration::from_secs(1);

/// Measures until it is dropped.
pub struct Scheduling {
    late: Arc<Mutex<VecDeque<(Instant, Duration)>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduling {
    pub fn measure() -> Self {
        let late: Arc<Mutex<VecDeque<(Instant, Duration)>>> = Arc::default();
        let over: Arc<AtomicBool> = Arc::default();
        let (noted, end) = (Arc::clone(&late), Arc::clone(&over));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let before = Instant::now();
                thread::sleep(NAP);
                let now = Instant::now();
                let mut noted = noted.lock().unwrap();
                noted.push_back((now, now - before - NAP));
                while noted.front().is_some_and(|(at, _)| now - *at > MEMORY) {
                    noted.pop_front();
                }
            }
        });
        Self { late, over, thread: Some(thread) }
    }

    /// The longest that a thread was woken too late in the last second.
    pub fn longest(&self) -> Duration {
        self.late.lock().unwrap().iter().map(|(_, late)| *late).max().unwrap_or_default()
    }
}

impl Drop for Scheduling {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
