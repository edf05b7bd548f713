//! A bounded cache of verified small records, by place and use of the segment.
//!
//! Invariant: its weight never passes the bound it was made with.
//! Invariant: the key holds the segment's sequence, so a recycled segment never hits.

use std::hash::{BuildHasherDefault, DefaultHasher};

use quick_cache::Weighter;
use quick_cache::sync::{Cache as Inner, DefaultLifecycle};

use super::Location;
use super::format::record::StoredRecord;

/// Larger records are not cached: one would push out hundreds of small ones for one saved read.
const MAX_CACHED: usize = 64 << 10;

#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<(u64, Location), StoredRecord> for ByWeight {
    fn weight(&self, _: &(u64, Location), record: &StoredRecord) -> u64 {
        record.weight() as u64 + 64
    }
}

/// The cache of one disk.
#[derive(Debug)]
pub(crate) struct Cache(Inner<(u64, Location), StoredRecord, ByWeight, Hashing>);

/// Without a random key: what is evicted, and so what is read, must follow from the seed of a simulation.
type Hashing = BuildHasherDefault<DefaultHasher>;

impl Cache {
    pub(crate) fn new(bytes: u64) -> Self {
        let items = usize::try_from(bytes / 4096).unwrap_or(usize::MAX).max(16);
        Self(Inner::with(items, bytes, ByWeight, Hashing::default(), DefaultLifecycle::default()))
    }

    pub(crate) fn get(&self, seq: u64, at: Location) -> Option<StoredRecord> {
        self.0.get(&(seq, at))
    }

    pub(crate) fn put(&self, seq: u64, at: Location, record: &StoredRecord) {
        if record.weight() <= MAX_CACHED {
            self.0.insert((seq, at), record.clone());
        }
    }
}
