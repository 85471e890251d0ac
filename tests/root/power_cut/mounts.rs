//! File systems in files, mounted as long as somebody holds them.
//!
//! The test's thread gets a mount namespace of its own: nothing that is mounted here is seen outside, and when the test
//! is killed the kernel unmounts everything and frees the loop devices with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The programs that the test needs, each with its Debian package.
const PROGRAMS: [(&str, &str); 5] = [
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mount", "mount"),
    ("umount", "mount"),
];

/// Hides what this thread and its children mount from everybody else.
///
/// # Panics
/// Without root, and when a program is missing.
pub fn withdraw() {
    for (program, package) in PROGRAMS {
        let found = Command::new(program).arg("-V").output();
        assert!(found.is_ok(), "this test needs the program {program}: install the Debian package {package}");
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this test needs root");
    let everything = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, everything, None::<&str>).expect("mounts become private");
}

/// Makes a sparse file of `mib` MiB with a file system in it.
pub fn format(image: &Path, mib: u64, mkfs: &[&str]) {
    File::create(image).and_then(|file| file.set_len(mib << 20)).expect("an image file");
    run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(image));
}

/// Checks an ext4 image that is not mounted; changes nothing. What the check found, if it is not clean.
pub fn fault_of(image: &Path) -> Option<String> {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(image).output().expect("e2fsck runs");
    let said = || String::from_utf8_lossy(&output.stdout).into_owned();
    (!output.status.success()).then(said)
}

/// A mounted image. Dropping it unmounts it and frees its loop device.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts a file through a loop device, on a folder that is made for it.
    pub fn image(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("a folder to mount on");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        Self { at }
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The last process to die or the loop device below may take some milliseconds to let go.
        for _ in 0..100 {
            let output = Command::new("umount").arg(&self.at).output();
            if output.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} can't be unmounted: detaching it", self.at.display());
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}
