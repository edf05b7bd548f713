//! The index seam: an ordered map with atomic batches and explicit durability.
//!
//! Invariant: the index is never the truth. It is derivable from the segments of its disk.
//! Invariant: after a crash it holds an exact prefix of the applied batches, at least all of those applied
//! before the last [`Index::checkpoint`] that returned `Ok` was called.
//! Invariant: one thread applies; any thread reads.

#[cfg(test)]
mod conformance;
mod memory;
mod rocks;

pub use memory::MemoryIndex;
pub use rocks::{RocksIndex, RocksOptions};

/// The tables of an index. Keys are compared as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Newest version of each object, by path hash; point reads only.
    Objects,
    /// Chunks of large objects, by data id and number.
    Chunks,
    /// Live rows of index groups (accounts, containers, listings), in listing order.
    Rows,
    /// Tombstones of objects and rows that must outlive older records in the log.
    Graves,
    /// What the disk engine keeps for itself: applied position, segment states, expiry queue.
    System,
    /// Where the blocks of volumes lie, and notes about volumes.
    Blocks,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Objects, Self::Chunks, Self::Rows, Self::Graves, Self::System, Self::Blocks];
}

/// One change of a [`WriteSet`]: `None` deletes.
pub type Change = (Table, Vec<u8>, Option<Vec<u8>>);

/// Changes that become visible and durable together or not at all. A key appears at most once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct WriteSet {
    /// In no particular order.
    pub changes: Vec<Change>,
}

/// A key and its value.
pub type Pair = (Box<[u8]>, Box<[u8]>);

/// Where a scan begins, where it ends and which way it goes. Bounds: `from` inclusive, `to` exclusive, both in
/// ascending sense whatever the direction; `None` is unbounded.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Smallest key, inclusive.
    pub from: Option<Vec<u8>>,
    /// Smallest key that is too large.
    pub to: Option<Vec<u8>>,
    /// Largest first.
    pub reverse: bool,
}

/// What went wrong in the index. The disk is taken out on any of these during `apply`.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The store below failed.
    #[error("{verb} index: {reason}")]
    Store {
        /// What was tried: "open", "destroy", "read", "apply", "checkpoint".
        verb: &'static str,
        /// The store's own words.
        reason: String,
    },
    /// What the store below kept is damaged. The index may be destroyed: it is derivable.
    #[error("{verb} index: it is damaged ({reason}); at the next start it is made anew from the segments")]
    Damaged {
        /// As of [`Self::Store`].
        verb: &'static str,
        /// The store's own words.
        reason: String,
    },
}

/// Sizes for operators and for the bench.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of memory held (caches, memtables, filters).
    pub memory_bytes: u64,
    /// Estimated number of keys in all tables.
    pub keys: u64,
}

/// How full the file system is on which an index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes of all.
    pub total: u64,
}

/// An ordered map per [`Table`].
pub trait Index: Send + Sync {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// The values of some keys in ascending order, on a consistent snapshot taken now.
    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError>;
    /// Keys of a range, lazily, on a consistent snapshot taken now.
    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a>;
    /// Make a batch visible; not yet durable.
    fn apply(&self, set: WriteSet) -> Result<(), IndexError>;
    /// When this returns, every batch applied before the call is durable. Blocks; other calls go on.
    fn checkpoint(&self) -> Result<(), IndexError>;
    /// Sizes.
    fn stats(&self) -> IndexStats;
    /// How much room it has; `None`: it does not lie on a file system, or that does not say. May wait for the file system.
    fn room(&self) -> Option<Room> {
        None
    }
}

impl Range {
    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { from: Some(prefix.to_vec()), to: after_prefix(prefix), reverse: false }
    }
}

/// The smallest key greater than every key that begins with `prefix`; `None` when there is none.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut next = prefix.get(..=keep)?.to_vec();
    *next.last_mut()? += 1;
    Some(next)
}
