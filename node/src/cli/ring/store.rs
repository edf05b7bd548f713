//! Builder and ring files: read whole, replaced whole, one editor at a time.
//!
//! Invariant: nothing larger than its format permits is read.
//! Invariant: the lock is a file of its own, because the builder's file is replaced.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use quarry_ring::{Builder, Ring, decode, decode_builder, encode, encode_builder};
use rustix::fs::{FlockOperation, flock};

use super::Failure;
use crate::durable_file;

/// Longest file: 2^24 partitions of 32 replicas, with their hours and devices.
const MAX_FILE: u64 = (1 << 30) + (1 << 28);
/// Rings hold no secrets.
const MODE: u32 = 0o644;
/// Extension of rings.
const RING: &str = "ring";

/// A builder that nobody else edits.
#[derive(Debug)]
pub(super) struct Editing {
    pub(super) builder: Builder,
    file: PathBuf,
    /// Unlocked when closed.
    _lock: File,
}

impl Editing {
    /// Lock and read a builder.
    pub(super) fn open(file: &Path) -> Result<Self, Failure> {
        let lock = lock(file)?;
        Ok(Self { builder: load(file)?, file: file.to_owned(), _lock: lock })
    }

    /// Make the file of a new builder.
    pub(super) fn create(file: &Path, builder: Builder) -> Result<Self, Failure> {
        let what = || format!("make builder {}", file.display());
        if file.extension().is_some_and(|extension| extension == RING) {
            return Err(Failure::new(what(), "its ring would have the same name; name it .builder"));
        }
        let lock = lock(file)?;
        if file.try_exists().map_err(|e| Failure::new(what(), e))? {
            return Err(Failure::new(what(), "it is there already; remove it, or give another name"));
        }
        let editing = Self { builder, file: file.to_owned(), _lock: lock };
        editing.save()?;
        Ok(editing)
    }

    /// Make the file what the builder is.
    pub(super) fn save(&self) -> Result<(), Failure> {
        write(&self.file, &encode_builder(&self.builder))
    }

    /// Write the ring beside the builder, unless it is there; its name.
    pub(super) fn save_ring(&self) -> Result<PathBuf, Failure> {
        let file = ring_name(&self.file);
        let bytes = encode(&ring_of(&self.file, &self.builder)?);
        if std::fs::read(&file).ok().as_ref() != Some(&bytes) {
            write(&file, &bytes)?;
        }
        Ok(file)
    }
}

/// Where the ring of a builder goes.
pub(super) fn ring_name(builder: &Path) -> PathBuf {
    builder.with_extension(RING)
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    durable_file::replace(file, bytes, MODE).map_err(|e| Failure::new(format!("write {}", file.display()), e))
}

fn lock(file: &Path) -> Result<File, Failure> {
    let mut name = file.as_os_str().to_owned();
    name.push(".lock");
    let failed =
        |reason: &dyn std::fmt::Display| Failure::new(format!("lock builder {}", file.display()), reason);
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(|e| failed(&e))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => failed(&"somebody else is editing it; try again when they are done"),
        error => failed(&std::io::Error::from(error)),
    })?;
    Ok(lock)
}

/// The bytes of a file, if it is not too long.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |reason: &dyn std::fmt::Display| Failure::new(format!("read {}", file.display()), reason);
    let opened = File::open(file).map_err(|e| failed(&e))?;
    let mut bytes = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(&format!("longer than {MAX_FILE} bytes; is it a ring or builder?")));
    }
    Ok(bytes)
}

/// Read a builder.
pub(super) fn load(file: &Path) -> Result<Builder, Failure> {
    let advice = "`quarry ring create` makes a builder, `quarry ring import` makes one of Swift's";
    decode_builder(&read(file)?).map_err(|error| {
        Failure::new(format!("read builder {}", file.display()), format!("{error}; {advice}"))
    })
}

/// Read a ring.
pub(super) fn load_ring(file: &Path) -> Result<Ring, Failure> {
    decode(&read(file)?).map_err(|error| Failure::new(format!("read ring {}", file.display()), error))
}

/// The ring of a ring or builder file.
pub(super) fn load_either(file: &Path) -> Result<Ring, Failure> {
    let bytes = read(file)?;
    match decode(&bytes) {
        Ok(ring) => Ok(ring),
        Err(quarry_ring::DecodeError::Magic) => ring_of(file, &load(file)?),
        Err(error) => Err(Failure::new(format!("read ring {}", file.display()), error)),
    }
}

fn ring_of(file: &Path, builder: &Builder) -> Result<Ring, Failure> {
    let what = || format!("make ring of {}", file.display());
    let ring = builder.ring().map_err(|error| Failure::new(what(), error))?;
    ring.ok_or_else(|| Failure::new(what(), "replicas have no device yet; run `quarry ring rebalance` first"))
}

/// Hours since 1970.
pub(super) fn hour() -> Result<u32, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| Failure::new("read clock", e))?;
    u32::try_from(since.as_secs() / 3600).map_err(|e| Failure::new("read clock", e))
}
