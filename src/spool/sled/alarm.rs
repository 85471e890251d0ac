//! Wakes whoever waits for a write that has failed.
//!
//! sled 0.34.7 forgets that in one place: when the write of a buffer fails that `exit_reservation`
//! (`pagecache/logger.rs`) handed to its thread pool, the error is noted, but a flush that waits already is not told, and
//! waits for ever: no answer to the client and no end of the relay. A flush that begins later finds the error, wakes all
//! who wait, and returns at once. So somebody looks from time to time, and begins one.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How often somebody looks: what a failed write may take to be noticed.
const PERIOD: Duration = Duration::from_millis(500);

/// The thread that looks. Dropping it ends the thread, which holds the database until then.
pub(super) struct Alarm {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    /// `config` must be the one that `db` was opened with: they share the note of the error.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn set(config: sled::Config, db: sled::Db) -> io::Result<Self> {
        let (stop, stopped) = sync_channel(0);
        let look = move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if config.global_error().is_err() {
                    // Its result is the error that the waiting flush returns too.
                    let _ = db.flush();
                }
            }
        };
        let thread = Builder::new().name("posthaste-alarm".to_owned()).spawn(look)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there is printed by the panic hook; nothing depends on the thread any more.
            let _ = thread.join();
        }
    }
}
