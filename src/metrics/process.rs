//! What the system says of this process: memory and open files, read when somebody looks.

use prometheus::{IntGauge, Registry};

use super::Instrument;

/// `VmRSS` is in KiB.
const KIB: i64 = 1024;

/// Gauges of the process itself.
#[derive(Debug)]
pub(super) struct Process {
    resident_bytes: IntGauge,
    open_files: IntGauge,
}

impl Process {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            resident_bytes: IntGauge::make(
                registry,
                "posthaste_process_resident_bytes",
                "Memory of the process. Worry when it grows with the queue: it must not.",
                &[],
            )?,
            open_files: IntGauge::make(
                registry,
                "posthaste_process_open_files",
                "Open file descriptors. Worry near the limit of the system (RLIMIT_NOFILE).",
                &[],
            )?,
        })
    }

    /// Reads both from `/proc`; where there is none they stay at zero.
    pub(super) fn observe(&self) {
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            self.resident_bytes.set(resident_kib(&status).unwrap_or(0) * KIB);
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // The listing itself holds one descriptor.
            self.open_files.set(i64::try_from(entries.count()).unwrap_or(i64::MAX) - 1);
        }
    }
}

fn resident_kib(status: &str) -> Option<i64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status_file() {
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1234));
        assert_eq!(resident_kib("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::new(&Registry::new()).unwrap();
        process.observe();
        assert!(process.resident_bytes.get() > 0 && process.open_files.get() > 0);
    }
}
