//! A bounded cache of verified records, by place and use of the segment.
//!
//! Small and large records are kept apart, each kind within its own bound: a large one would push out hundreds of small
//! ones for one saved read. A large record is kept when it is read for the second time, as far as the cache remembers: a
//! pass over many large objects costs no copies and pushes nothing out.
//!
//! Invariant: the weight of each kind never passes the bound it was made with.
//! Invariant: the key holds the segment's sequence, so a recycled segment never hits.
//! Invariant: what is kept is a copy of its own where a read's buffer would be kept from its pool.

use std::hash::{BuildHasherDefault, DefaultHasher};

use quick_cache::Weighter;
use quick_cache::sync::{Cache as Inner, DefaultLifecycle};

use super::Location;
use super::format::record::StoredRecord;

/// The largest of the small records.
const SMALL: usize = 64 << 10;
/// Large records that are remembered as read once, for each that the cache can hold.
const REMEMBERED: u64 = 4;

/// Bytes that the cache of a disk may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheBytes {
    /// For records of up to 64 KiB.
    pub small: u64,
    /// For larger ones: chunks of bodies.
    pub large: u64,
}

type Key = (u64, Location);
type Records = Inner<Key, StoredRecord, ByWeight, Hashing>;

#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<Key, StoredRecord> for ByWeight {
    fn weight(&self, _: &Key, record: &StoredRecord) -> u64 {
        record.weight() as u64 + 64
    }
}

/// The cache of one disk.
#[derive(Debug)]
pub(crate) struct Cache {
    small: Records,
    large: Records,
    /// Large records that were read once; none when no large ones are kept.
    seen: Option<Inner<Key, (), quick_cache::UnitWeighter, Hashing>>,
}

/// Without a random key: what is evicted, and so what is read, must follow from the seed of a simulation.
pub(super) type Hashing = BuildHasherDefault<DefaultHasher>;

fn records(bytes: u64, of: u64) -> Records {
    let items = usize::try_from(bytes / of).unwrap_or(usize::MAX).max(16);
    Inner::with(items, bytes, ByWeight, Hashing::default(), DefaultLifecycle::default())
}

impl CacheBytes {
    /// All for small records.
    #[must_use]
    pub fn small(small: u64) -> Self {
        Self { small, large: 0 }
    }
}

impl Cache {
    pub(crate) fn new(bytes: CacheBytes) -> Self {
        let large_records = bytes.large >> 20;
        let seen = (large_records > 0).then(|| {
            let items = (large_records * REMEMBERED).max(64);
            let count = usize::try_from(items).unwrap_or(usize::MAX);
            let (weigher, hashing) = (quick_cache::UnitWeighter, Hashing::default());
            Inner::with(count, items, weigher, hashing, DefaultLifecycle::default())
        });
        Self { small: records(bytes.small, 4096), large: records(bytes.large, 1 << 20), seen }
    }

    fn of(&self, at: Location) -> &Records {
        if at.len as usize <= SMALL { &self.small } else { &self.large }
    }

    pub(crate) fn get(&self, seq: u64, at: Location) -> Option<StoredRecord> {
        self.of(at).get(&(seq, at))
    }

    pub(crate) fn put(&self, seq: u64, at: Location, record: &StoredRecord) {
        let key = (seq, at);
        if at.len as usize <= SMALL {
            self.small.insert(key, record.clone());
        } else if let Some(seen) = &self.seen {
            if seen.remove(&key).is_some() {
                self.large.insert(key, record.apart());
            } else {
                seen.insert(key, ());
            }
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
