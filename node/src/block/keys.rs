//! What wraps the keys of encrypted volumes: `DATA/volumes.key`, one key on each line in hex, the one that wraps first.
//!
//! A node alone, and one that has the key of its cluster's authority, makes it at its first start; a machine that joins is told it.
//! It lies beside the node's other secrets, in its data directory, and not in the log: who has a disk has no key.
//!
//! Invariant: the file is mode 600, written whole; one that is unreadable is an error, and never replaced.
//! Invariant: a key that was there stays, behind those that come: what it wrapped can be opened.

use std::io;
use std::path::{Path, PathBuf};

use quarry_volume::{KeyRing, WRAPPING_BYTES};

use crate::durable_file;
use crate::storage::random_bytes;

const FILE: &str = "volumes.key";
/// Most keys of a file.
const MAX_KEYS: usize = 64;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is another than it was.
    #[error("{}: a line is no key of 64 hex digits; bring the file back, for no encrypted volume opens without it", .0.display())]
    Unreadable(PathBuf),
}

type Keys = Vec<[u8; WRAPPING_BYTES]>;

fn parse(text: &str) -> Option<Keys> {
    let line = |line: &str| {
        let mut key = [0; WRAPPING_BYTES];
        hex::decode_to_slice(line, &mut key).ok().map(|()| key)
    };
    text.lines().map(line).collect::<Option<Keys>>().filter(|keys| keys.len() <= MAX_KEYS)
}

fn read(data: &Path) -> Result<Option<Keys>, KeyError> {
    let file = data.join(FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => match parse(&text) {
            Some(keys) if !keys.is_empty() => Ok(Some(keys)),
            _ => Err(KeyError::Unreadable(file)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeyError::File { file, source }),
    }
}

fn write(data: &Path, keys: &Keys) -> Result<(), KeyError> {
    let file = data.join(FILE);
    let text: String = keys.iter().map(|key| hex::encode(key) + "\n").collect();
    let written = durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE);
    written.map_err(|source| KeyError::File { file, source })
}

/// The keys in `data`; `makes`: where there are none, one is made.
pub(crate) fn open(data: &Path, makes: bool) -> Result<KeyRing, KeyError> {
    let keys = match read(data)? {
        Some(keys) => keys,
        None if makes => {
            let keys = vec![random_bytes()];
            write(data, &keys)?;
            tracing::info!(file = %data.join(FILE).display(), "the key of encrypted volumes was made; keep a copy of this file");
            keys
        }
        None => Vec::new(),
    };
    Ok(KeyRing::new(keys))
}

/// The file's text, for machines that join.
pub(crate) fn text(data: &Path) -> Option<String> {
    let keys = read(data).ok().flatten()?;
    Some(keys.iter().map(|key| hex::encode(key) + "\n").collect())
}

/// Takes over what a cluster has; the node's own keys stay behind them.
pub(crate) fn adopt(data: &Path, text: &str) -> Result<(), KeyError> {
    let mut keys = parse(text).ok_or_else(|| KeyError::Unreadable(data.join(FILE)))?;
    for own in read(data)?.unwrap_or_default() {
        if !keys.contains(&own) {
            keys.push(own);
        }
    }
    write(data, &keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_kept_private_and_never_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(text(one.path()).is_none());
        open(one.path(), false).unwrap();
        assert!(!one.path().join(FILE).exists(), "a member does not make one of its own");
        open(one.path(), true).unwrap();
        let first = text(one.path()).unwrap();
        open(one.path(), true).unwrap();
        assert_eq!(text(one.path()).unwrap(), first);
        let mode = std::fs::metadata(one.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A machine with volumes of its own joins: it has both keys, the cluster's first.
        open(two.path(), true).unwrap();
        let own = text(two.path()).unwrap();
        for _ in 0..2 {
            adopt(two.path(), &first).unwrap();
            assert_eq!(text(two.path()).unwrap(), format!("{first}{own}"));
        }
        for bad in ["", "00\n", "x\n"] {
            std::fs::write(one.path().join(FILE), bad).unwrap();
            assert!(matches!(open(one.path(), true), Err(KeyError::Unreadable(_))), "{bad:?}");
            assert_eq!(std::fs::read_to_string(one.path().join(FILE)).unwrap(), bad);
        }
    }
}
