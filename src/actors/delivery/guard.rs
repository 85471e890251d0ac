//! What can cut an attempt short: silence, and the end of the drain time.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::sync::watch;

/// Tells an attempt that it must report now.
#[derive(Debug)]
pub(super) struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    /// A signal that is raised when the sender says `true`.
    pub(super) fn new(sender: &watch::Sender<bool>) -> Self {
        Self(sender.subscribe())
    }

    async fn raised(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending().await
        }
    }

    /// Works until it is done or the signal is raised.
    pub(super) async fn unless_raised<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.raised() => None,
        }
    }

    /// Works on a socket until it is done, the time is over, or the signal is raised.
    pub(super) async fn guard<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Stop> {
        tokio::select! {
            biased;
            done = work => done.map_err(Stop::Failed),
            () = self.raised() => Err(Stop::Aborted),
            () = tokio::time::sleep(limit) => Err(Stop::Timeout),
        }
    }
}

/// Waits until the attempt with this ticket is asked to make room for others.
pub(super) async fn asked_to_give_way(asked: &mut watch::Receiver<u64>, ticket: u64) {
    if asked.wait_for(|asked| *asked == ticket).await.is_err() {
        std::future::pending().await
    }
}

/// Why work on a socket did not end well.
#[derive(Debug)]
pub(super) enum Stop {
    /// The time is over.
    Timeout,
    /// The attempt must report now.
    Aborted,
    /// The system's answer.
    Failed(io::Error),
}

impl From<watch::Receiver<bool>> for StopSignal {
    fn from(receiver: watch::Receiver<bool>) -> Self {
        Self(receiver)
    }
}
