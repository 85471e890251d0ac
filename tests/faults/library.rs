//! The preload library: built once, one state file for each run of the script.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use tempfile::TempDir;

/// The size of `struct state` in `preload.c`.
const STATE: usize = 256;

/// A kind of call, how it fails, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// As `preload.c` calls it.
    pub kind: &'static str,
    /// What the call says.
    pub errno: Errno,
    /// For how long.
    pub lasts: Lasts,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lasts {
    /// One.
    Once,
    /// Each from the chosen one on.
    FromThenOn,
    /// The one at odd places, the other at even ones: half the runs.
    OnceAtOdd,
    /// The other way round.
    OnceAtEven,
}

impl Fault {
    fn stays(self, at: u64) -> bool {
        match self.lasts {
            Lasts::Once => false,
            Lasts::FromThenOn => true,
            Lasts::OnceAtOdd => at.is_multiple_of(2),
            Lasts::OnceAtEven => !at.is_multiple_of(2),
        }
    }

    /// How it was broken at this place, in words.
    pub fn at(self, at: u64) -> String {
        let how_long = if self.stays(at) { "from then on" } else { "once" };
        format!("{} {:?}, call {at} {how_long}", self.kind, self.errno)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lasts = match self.lasts {
            Lasts::Once => " once",
            Lasts::FromThenOn => " from then on",
            Lasts::OnceAtOdd | Lasts::OnceAtEven => "",
        };
        write!(f, "{} {:?}{lasts}", self.kind, self.errno)
    }
}

/// The built library. Dropping it removes it.
pub struct Library {
    folder: TempDir,
}

impl Library {
    /// Compiles `preload.c`.
    ///
    /// # Panics
    /// Without a C compiler called `cc`.
    pub fn build() -> Self {
        let folder = tempfile::Builder::new().prefix("posthaste-faults-").tempdir().expect("a folder");
        let library = Self { folder };
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o"])
            .arg(library.path())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload.c"))
            .arg("-ldl")
            .output()
            .expect("this test needs the C compiler cc");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "preload.c: {said}");
        library
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("preload.so")
    }

    /// The environment in which the `at`-th call below the spool fails (0: none does). The count begins anew.
    pub fn variables(&self, home: &Path, fault: Fault, at: u64) -> Vec<(&'static str, OsString)> {
        let home = home.canonicalize().expect("the folder is there");
        fs::write(state_in(&home), [0; STATE]).expect("the state can be written");
        vec![
            ("LD_PRELOAD", self.path().into()),
            ("FAULT_FOLDER", home.join("spool").into()),
            ("FAULT_KIND", fault.kind.into()),
            ("FAULT_AT", at.to_string().into()),
            ("FAULT_ERRNO", (fault.errno as i32).to_string().into()),
            ("FAULT_STAYS", u8::from(fault.stays(at)).to_string().into()),
            ("FAULT_STATE", state_in(&home).into()),
        ]
    }
}

/// What the library has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls of the chosen kind.
    pub calls: u64,
    /// What failed first, if anything did.
    pub failed: Option<String>,
}

impl Seen {
    /// Reads the state beside the spool in `folder`.
    pub fn read(folder: &Path) -> Self {
        let bytes = fs::read(state_in(folder)).expect("the state can be read");
        assert_eq!(bytes.len(), STATE);
        let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let text = bytes[16..].split(|byte| *byte == 0).next().unwrap_or_default();
        let failed = (number(8) > 0).then(|| String::from_utf8_lossy(text).into_owned());
        Self { calls: number(0), failed }
    }
}

fn state_in(folder: &Path) -> PathBuf {
    folder.join("fault-state")
}
