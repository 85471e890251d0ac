//! Time, handed in. The only file that asks the system for it.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where the relay gets the time from.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall time in milliseconds since the Unix epoch. May jump.
    fn now_ms(&self) -> u64;

    /// Monotonic time for intervals within a run; follows tokio's paused time in tests.
    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// The clock as the actors hold it.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A clock for simulated time: a start plus what tokio's (paused) time has advanced plus jumps.
#[derive(Debug)]
pub struct SimulatedClock {
    origin: Instant,
    base_ms: AtomicU64,
}

impl SimulatedClock {
    /// A clock that shows `start_ms` now.
    pub fn new(start_ms: u64) -> Self {
        Self { origin: Instant::now(), base_ms: AtomicU64::new(start_ms) }
    }

    /// Moves wall time, and only wall time, by `delta_ms`, as an operator or NTP would.
    pub fn jump(&self, delta_ms: i64) {
        self.base_ms.fetch_add(delta_ms.cast_unsigned(), Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now_ms(&self) -> u64 {
        let passed = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base_ms.load(Ordering::Relaxed).wrapping_add(passed)
    }
}
