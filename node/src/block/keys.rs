//! What wraps the keys of encrypted volumes: `DATA/volumes.key`, one key on each line in hex, the one that wraps first.
//!
//! A node alone, and one that has the key of its cluster's authority, makes it at its first start; a machine that joins is told it.
//! It lies beside the node's other secrets, in its data directory, and not in the log: who has a disk has no key. How a key comes in
//! place of another: `rotation.rs`.
//!
//! Invariant: the file is mode 600, written whole; one that is unreadable is an error, and never replaced.
//! Invariant: a key that was there stays, behind those that come, until it is forgotten by name: what it wrapped can be opened. Who puts
//! another file in its place adds keys, and takes none away from a node that runs.
//! Invariant: a key is used only when it is in the file, durably; of the node and `quarry join` one changes it at a time.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use quarry_volume::{KeyName, KeyRing, WRAPPING_BYTES};

use crate::durable_file;
use crate::storage::random_bytes;

const FILE: &str = "volumes.key";
const LOCK: &str = "volumes.key.lock";
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
    /// No room for another.
    #[error("{}: it has {MAX_KEYS} keys, and may have no more", .0.display())]
    Full(PathBuf),
}

type Listed = Vec<[u8; WRAPPING_BYTES]>;

fn parse(text: &str) -> Option<Listed> {
    let line = |line: &str| {
        let mut key = [0; WRAPPING_BYTES];
        hex::decode_to_slice(line, &mut key).ok().map(|()| key)
    };
    text.lines().map(line).collect::<Option<Listed>>().filter(|keys| keys.len() <= MAX_KEYS)
}

fn read(data: &Path) -> Result<Option<Listed>, KeyError> {
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

fn write(data: &Path, keys: &Listed) -> Result<(), KeyError> {
    let file = data.join(FILE);
    let text: String = keys.iter().map(|key| hex::encode(key) + "\n").collect();
    let written = durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE);
    written.map_err(|source| KeyError::File { file, source })
}

/// Until the file is closed nobody else changes the keys.
fn alone(data: &Path) -> Result<std::fs::File, KeyError> {
    let file = data.join(LOCK);
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&file);
    let locked = opened.and_then(|opened| opened.lock().map(|()| opened));
    locked.map_err(|source| KeyError::File { file, source })
}

/// The keys of a node: the file, and the ring that has what was read of it.
#[derive(Debug)]
pub(crate) struct Keys {
    data: PathBuf,
    /// Keys are made here: machines that join are told them.
    makes: bool,
    ring: KeyRing,
}

impl Keys {
    /// The keys in `data`; `makes`: where there are none, one is made.
    pub(crate) fn open(data: &Path, makes: bool) -> Result<Self, KeyError> {
        let keys = Self { data: data.to_owned(), makes, ring: KeyRing::default() };
        keys.edit(|listed| {
            if listed.is_empty() && makes {
                listed.push(random_bytes());
                tracing::info!(file = %data.join(FILE).display(), "the key of encrypted volumes was made; keep a copy of this file");
            }
        })?;
        Ok(keys)
    }

    #[cfg(test)]
    pub(super) fn nowhere() -> Self {
        Self { data: PathBuf::new(), makes: false, ring: KeyRing::default() }
    }

    pub(crate) fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Whether keys are made at this node.
    pub(super) fn makes(&self) -> bool {
        self.makes
    }

    /// Changes the keys: those of the file first, then those that it lost, as the node knows them.
    fn edit(&self, change: impl FnOnce(&mut Listed)) -> Result<(), KeyError> {
        let _alone = alone(&self.data)?;
        let (file, known) = (read(&self.data)?, self.ring.keys());
        let mut keys = file.clone().unwrap_or_default();
        let lost: Listed = known.iter().filter(|key| !keys.contains(key)).copied().collect();
        keys.extend(lost);
        change(&mut keys);
        if keys.len() > MAX_KEYS {
            return Err(KeyError::Full(self.data.join(FILE)));
        }
        // What another program wrote may not be durable.
        if !keys.is_empty() && (file.as_ref() != Some(&keys) || known != keys) {
            write(&self.data, &keys)?;
        }
        self.ring.replace(keys);
        Ok(())
    }

    /// Reads what others put there.
    pub(super) fn read_again(&self) -> Result<(), KeyError> {
        self.edit(|_| ())
    }

    /// Makes a key, behind all others: it wraps nothing yet.
    pub(super) fn make(&self) -> Result<KeyName, KeyError> {
        let key = random_bytes();
        self.edit(|keys| keys.push(key))?;
        Ok(KeyName::of(&key))
    }

    /// Has a key wrap, if it is here.
    pub(super) fn prefer(&self, name: KeyName) -> Result<(), KeyError> {
        if self.ring.names().first() == Some(&name) {
            return Ok(());
        }
        self.edit(|keys| keys.sort_by_key(|key| KeyName::of(key) != name))
    }

    /// Forgets a key that wraps nothing; there is another one.
    pub(super) fn forget(&self, name: KeyName) -> Result<(), KeyError> {
        self.edit(|keys| {
            keys.retain(|key| KeyName::of(key) != name);
            assert!(!keys.is_empty(), "the key that wraps stays");
        })
    }
}

/// The file's text, for machines that join.
pub(crate) fn text(data: &Path) -> Option<String> {
    let keys = read(data).ok().flatten()?;
    Some(keys.iter().map(|key| hex::encode(key) + "\n").collect())
}

/// Takes over what a cluster has; the node's own keys stay behind them.
pub(crate) fn adopt(data: &Path, text: &str) -> Result<(), KeyError> {
    let _alone = alone(data)?;
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
        Keys::open(one.path(), false).unwrap();
        assert!(!one.path().join(FILE).exists(), "a member does not make one of its own");
        Keys::open(one.path(), true).unwrap();
        let first = text(one.path()).unwrap();
        Keys::open(one.path(), true).unwrap();
        assert_eq!(text(one.path()).unwrap(), first);
        let mode = std::fs::metadata(one.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A machine with volumes of its own joins: it has both keys, the cluster's first.
        Keys::open(two.path(), true).unwrap();
        let own = text(two.path()).unwrap();
        for _ in 0..2 {
            adopt(two.path(), &first).unwrap();
            assert_eq!(text(two.path()).unwrap(), format!("{first}{own}"));
        }
        for bad in ["", "00\n", "x\n"] {
            std::fs::write(one.path().join(FILE), bad).unwrap();
            assert!(matches!(Keys::open(one.path(), true), Err(KeyError::Unreadable(_))), "{bad:?}");
            assert_eq!(std::fs::read_to_string(one.path().join(FILE)).unwrap(), bad);
        }
    }

    /// What is put in place of the file of a node that runs may have a key less, or be half there.
    #[test]
    fn keys_come_and_go_by_name_and_a_file_put_there_takes_none_away() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path(), true).unwrap();
        let lines = || text(dir.path()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        let old = keys.ring().names()[0];
        let new = keys.make().unwrap();
        assert_eq!(keys.ring().names(), [old, new], "it wraps nothing yet");
        let both = lines();
        keys.prefer(new).unwrap();
        assert_eq!((keys.ring().names(), lines()), (vec![new, old], vec![both[1].clone(), both[0].clone()]));
        keys.prefer(KeyName([0; 8])).unwrap();
        assert_eq!(keys.ring().names(), [new, old], "it is not here");
        // Somebody copies a file of before.
        std::fs::write(dir.path().join(FILE), format!("{}\n", both[0])).unwrap();
        keys.read_again().unwrap();
        assert_eq!((keys.ring().names(), lines()), (vec![old, new], both.clone()));
        std::fs::write(dir.path().join(FILE), &both[0][..9]).unwrap();
        assert!(matches!(keys.read_again(), Err(KeyError::Unreadable(_))));
        assert!(matches!(keys.make(), Err(KeyError::Unreadable(_))));
        assert_eq!(keys.ring().names(), [old, new]);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        keys.forget(old).unwrap();
        assert_eq!((keys.ring().names(), lines()), (vec![new], vec![both[1].clone()]));
        assert_eq!(Keys::open(dir.path(), true).unwrap().ring().names(), [new]);
        for _ in 1..MAX_KEYS {
            keys.make().unwrap();
        }
        assert!(matches!(keys.make(), Err(KeyError::Full(_))));
        assert_eq!(lines().len(), MAX_KEYS);
    }
}
