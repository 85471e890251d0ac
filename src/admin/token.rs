//! The secret of the queue API: a file in the spool folder that only its owner can read.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Fewer characters than this are no token: what a crash in the first write leaves.
const SHORTEST: usize = 32;

/// Where the token of a spool is.
pub fn path(spool: &Path) -> PathBuf {
    spool.join("api-token")
}

/// The token of a spool, for a client.
///
/// # Errors
/// The file is missing, unreadable or too short.
pub fn read(spool: &Path) -> io::Result<String> {
    let token = fs::read_to_string(path(spool))?.trim().to_owned();
    if token.len() < SHORTEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no token"));
    }
    Ok(token)
}

/// The token of a spool, for the relay: the first start writes a random one, readable by its owner only.
///
/// # Errors
/// The file can't be read or written.
pub fn read_or_create(spool: &Path) -> io::Result<String> {
    match read(spool) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            create(spool)
        }
        read => read,
    }
}

fn create(spool: &Path) -> io::Result<String> {
    // Two UUIDs of version 4 are 244 random bits.
    let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let draft = spool.join("api-token.new");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(format!("{token}\n").as_bytes())?;
    fs::rename(&draft, path(spool))?;
    Ok(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_start_writes_a_token_that_the_next_one_finds() {
        let spool = tempfile::tempdir().unwrap();
        assert_eq!(read(spool.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let token = read_or_create(spool.path()).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(read_or_create(spool.path()).unwrap(), token);
        assert_eq!(read(spool.path()).unwrap(), token);
        let mode = fs::metadata(path(spool.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_empty_file_is_written_anew() {
        let spool = tempfile::tempdir().unwrap();
        fs::write(path(spool.path()), "").unwrap();
        assert_eq!(read_or_create(spool.path()).unwrap().len(), 64);
    }
}
