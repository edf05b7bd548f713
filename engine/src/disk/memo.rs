//! What readers made of neighbouring rows of the index, kept until one of these changes.
//!
//! To look a row up costs some microseconds even where all of it is in memory: most of that goes into finding which files may have it.
//! A device of 70,000 reads a second has 14 for all that a read needs.
//!
//! Each change of the index first marks the groups of rows that it touches, and is then made. What was made of a group is kept with
//! the mark that this had before its rows were read, and counts as long as it still has that mark.
//!
//! Invariant: what is recalled is what the index said at some moment of the call, or later. So nothing is learned of rows that were
//! read while a change was being made: its mark may have been there before, and its rows not.
//! Invariant: a group that no catalog knows is not kept: nobody would mark it.
//! Invariant: it never weighs more than [`MEMO_BYTES`].

use std::any::Any;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::cache::Hashing;
use super::catalog::Catalog;
use super::limits::MEMO_BYTES;
use crate::index::{Index, IndexError, IndexStats, Pair, Range, Room, Table, WriteSet};

/// Names rows that are remembered together: what their keys begin with, cut to so many bytes.
pub type Group = [u8; 24];

/// Groups share marks: a change of one then makes another one be read again, which is all.
const MARKS: usize = 1 << 14;
/// What an entry takes beside what was made of its rows.
const ENTRY_BYTES: usize = 128;

/// What is kept of a group.
#[derive(Clone)]
struct Kept {
    mark: u64,
    bytes: usize,
    /// `None`: somebody asked for it once, which is no reason to read all of its rows.
    made: Option<Arc<dyn Any + Send + Sync>>,
}

#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<Group, Kept> for ByWeight {
    fn weight(&self, _: &Group, kept: &Kept) -> u64 {
        (kept.bytes + ENTRY_BYTES) as u64
    }
}

/// The memory of one disk's readers.
pub(crate) struct Memo {
    groups: Cache<Group, Kept, ByWeight, Hashing>,
    marks: Box<[AtomicU64]>,
    changing: AtomicBool,
    catalog: Arc<dyn Catalog>,
}

impl std::fmt::Debug for Memo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memo").field("groups", &self.groups.len()).finish_non_exhaustive()
    }
}

/// What a memo says of a group.
pub(crate) enum Recalled<T> {
    /// What was made of its rows.
    Known(Arc<T>),
    /// They are to be read.
    Unknown(Blank),
    /// Nobody remembers such rows.
    Never,
}

/// What it takes to learn a group.
#[derive(Debug)]
pub(crate) struct Blank {
    group: Group,
    /// `None`: it is being changed, perhaps.
    mark: Option<u64>,
    /// Somebody asked for it before, not long ago: it is worth learning.
    pub(crate) again: bool,
}

impl Memo {
    pub(crate) fn new(catalog: Arc<dyn Catalog>) -> Self {
        let items = usize::try_from(MEMO_BYTES).unwrap_or(usize::MAX) / (2 * ENTRY_BYTES);
        let groups =
            Cache::with(items, MEMO_BYTES, ByWeight, Hashing::default(), DefaultLifecycle::default());
        let marks = (0..MARKS).map(|_| AtomicU64::new(0)).collect();
        Self { groups, marks, changing: AtomicBool::new(false), catalog }
    }

    /// What was made of the group that a key belongs to.
    pub(crate) fn recall<T: Any + Send + Sync>(&self, table: Table, key: &[u8]) -> Recalled<T> {
        let Some(group) = self.catalog.group(table, key) else { return Recalled::Never };
        let now = self.mark(&group).load(Ordering::SeqCst);
        let kept = self.groups.get(&group).filter(|kept| kept.mark == now);
        let again = kept.is_some();
        if let Some(made) = kept.and_then(|kept| kept.made)
            && let Ok(made) = made.downcast()
        {
            return Recalled::Known(made);
        }
        // Looked at behind the mark: a change that had marked the group by then is over, and was read; or it is seen here.
        let mark = (!self.changing.load(Ordering::SeqCst)).then_some(now);
        if let Some(mark) = mark.filter(|_| !again) {
            self.groups.insert(group, Kept { mark, bytes: 0, made: None });
        }
        Recalled::Unknown(Blank { group, mark, again })
    }

    /// Keeps what was made of a group's rows, which were read since it was asked for; it takes so many bytes.
    pub(crate) fn learn<T: Any + Send + Sync>(&self, blank: &Blank, made: Arc<T>, bytes: usize) {
        let Blank { group, mark, .. } = *blank;
        if let Some(mark) = mark {
            self.groups.insert(group, Kept { mark, bytes, made: Some(made) });
        }
    }

    fn mark(&self, group: &Group) -> &AtomicU64 {
        let hash = usize::try_from(Hashing::default().hash_one(group)).unwrap_or(usize::MAX);
        &self.marks[hash % self.marks.len()]
    }

    fn change(&self, set: &WriteSet) {
        self.changing.store(true, Ordering::SeqCst);
        for (table, key, _) in &set.changes {
            if let Some(group) = self.catalog.group(*table, key) {
                self.mark(&group).fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// The index of a disk, which tells a memo of each change before it makes it.
pub(crate) struct Told {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) memo: Arc<Memo>,
}

impl Index for Told {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.index.get(table, key)
    }

    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        self.index.get_several(table, keys)
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a> {
        self.index.scan(table, range)
    }

    fn apply(&self, set: WriteSet) -> Result<(), IndexError> {
        self.memo.change(&set);
        self.index.apply(set)?;
        // Behind one that failed nothing is learned any more: what it left, nobody can tell.
        self.memo.changing.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), IndexError> {
        self.index.checkpoint()
    }

    fn stats(&self) -> IndexStats {
        let stats = self.index.stats();
        IndexStats { memory_bytes: stats.memory_bytes.saturating_add(self.memo.groups.weight()), ..stats }
    }

    fn room(&self) -> Option<Room> {
        self.index.room()
    }
}
