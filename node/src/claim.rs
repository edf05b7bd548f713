//! The claim of a process on its data directory: `DATA/lock`, locked for as long as the process runs.
//!
//! Two nodes over one directory would each write its files whole from its own memory: what one revoked, the other would forget.
//!
//! Invariant: of processes that keep what is in a data directory in memory there is one at a time. Commands beside a running node
//! (`quarry cluster token`, `quarry join` for another certificate) write files that the node reads again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::durable_file::PRIVATE;

const FILE: &str = "lock";
/// How long is waited for a process that was just killed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Held until it is dropped, or the process is gone.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

/// Claims a directory, which is there; waits so long for whoever has it.
pub(crate) fn claim(data: &Path, patience: Duration) -> io::Result<Claim> {
    let path = data.join(FILE);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
    let mut file = options.open(path)?;
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, who(&mut file)));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    // For whoever is refused; nothing depends on it.
    let _unknown = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(Claim { _file: file })
}

/// What is said of who has it.
fn who(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(20).read_to_string(&mut text));
    match text.trim().parse::<u32>() {
        Ok(process) if read.is_ok() => format!("process {process} has it"),
        _ => "another process has it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A copied configuration with other ports made two nodes over one directory, and revocations of one were lost by the other.
    #[test]
    fn a_directory_is_of_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let claimed = claim(dir.path(), Duration::ZERO).unwrap();
        let error = claim(dir.path(), Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(error.to_string(), format!("process {} has it", std::process::id()));
        let waiting = std::thread::spawn({
            let data = dir.path().to_owned();
            move || claim(&data, Duration::from_secs(60)).map(drop)
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(claimed);
        waiting.join().unwrap().unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join(FILE), "4294967295").unwrap();
        assert!(claim(dir.path(), Duration::ZERO).is_ok(), "what is written in it is of no account");
    }
}
