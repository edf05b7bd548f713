//! [`Index`] in memory, for simulations: what it forgets at a crash is decided by the harness.
//!
//! Invariant: the batches since the last checkpoint can all be undone, newest first; what a crash leaves is
//! the checkpoint and a prefix of the batches after it, as RocksDB may have flushed on its own.
//! Invariant: a scan never sees a batch applied after it began (tables are copied on write while one is alive).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Change, Index, IndexError, IndexStats, Pair, Range, Room, Table, WriteSet};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The index of a simulated disk. Shared by `Arc`; it outlives the crashes of the engine that uses it.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: [Arc<Map>; Table::ALL.len()],
    /// For each batch since the checkpoint, the changes that take it back.
    undo: Vec<Vec<Change>>,
    /// Applies and checkpoints that still succeed; `None`: all.
    healthy_calls: Option<u64>,
    room: Option<Room>,
}

impl MemoryIndex {
    /// Empty, and durable so.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Batches applied since the last checkpoint: those that a crash may take.
    #[must_use]
    pub fn unsaved(&self) -> usize {
        self.lock().undo.len()
    }

    /// Lose every batch since the last checkpoint.
    pub fn crash(&self) {
        self.crash_at(0);
    }

    /// Lose all but the first `kept` batches since the last checkpoint (all are kept if there are fewer). What
    /// remains is durable. Also heals [`MemoryIndex::fail_after`].
    pub fn crash_at(&self, kept: usize) {
        let mut state = self.lock();
        while state.undo.len() > kept {
            if let Some(batch) = state.undo.pop() {
                state.exchange(batch);
            }
        }
        state.undo.clear();
        state.healthy_calls = None;
    }

    /// [`MemoryIndex::crash_at`] a point drawn from `seed`: equal seeds and histories lose the same batches.
    pub fn crash_by(&self, seed: u64) {
        let choices = u64::try_from(self.unsaved()).unwrap_or(u64::MAX).saturating_add(1);
        // One round of splitmix64, so that neighbouring seeds differ.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.crash_at(usize::try_from((z ^ (z >> 31)) % choices).unwrap_or(usize::MAX));
    }

    /// Let `calls` more applies and checkpoints succeed, then none until the next crash.
    pub fn fail_after(&self, calls: u64) {
        self.lock().healthy_calls = Some(calls);
    }

    /// Let it say that it has so much room.
    pub fn set_room(&self, room: Room) {
        self.lock().room = Some(room);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic leaves a half-made change: assertions stand before the first one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Make the changes and return those that take them back.
    fn exchange(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let exchange_one = |(table, key, value): Change| {
            let map = Arc::make_mut(&mut self.tables[table as usize]);
            let before = match value {
                Some(value) => map.insert(key.clone(), value),
                None => map.remove(&key),
            };
            (table, key, before)
        };
        changes.into_iter().map(exchange_one).collect()
    }

    fn spend_call(&mut self, verb: &'static str) -> Result<(), IndexError> {
        match &mut self.healthy_calls {
            None => Ok(()),
            Some(0) => Err(IndexError::Store { verb, reason: "simulated failure".to_owned() }),
            Some(calls) => {
                *calls -= 1;
                Ok(())
            }
        }
    }
}

impl Index for MemoryIndex {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.lock().tables[table as usize].get(key).cloned())
    }

    fn get_several(&self, table: Table, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, IndexError> {
        let map = Arc::clone(&self.lock().tables[table as usize]);
        Ok(keys.iter().map(|key| map.get(key).cloned()).collect())
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        range: Range,
    ) -> Box<dyn Iterator<Item = Result<Pair, IndexError>> + Send + 'a> {
        let map = Arc::clone(&self.lock().tables[table as usize]);
        Box::new(Scan {
            map,
            from: range.from.map_or(Bound::Unbounded, Bound::Included),
            to: range.to.map_or(Bound::Unbounded, Bound::Excluded),
            reverse: range.reverse,
        })
    }

    fn apply(&self, set: WriteSet) -> Result<(), IndexError> {
        let mut keys: Vec<_> = set.changes.iter().map(|(table, key, _)| (table, key)).collect();
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "a key appears twice in a write set");
        drop(keys);
        let mut state = self.lock();
        state.spend_call("apply")?;
        let undo = state.exchange(set.changes);
        state.undo.push(undo);
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), IndexError> {
        let mut state = self.lock();
        state.spend_call("checkpoint")?;
        state.undo.clear();
        Ok(())
    }

    fn stats(&self) -> IndexStats {
        let state = self.lock();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let pairs = || state.tables.iter().flat_map(|map| map.iter());
        let bytes = pairs().map(|(key, value)| count(key.len() + value.len())).sum();
        IndexStats { disk_bytes: bytes, memory_bytes: bytes, keys: count(pairs().count()) }
    }

    fn room(&self) -> Option<Room> {
        self.lock().room
    }
}

/// What is left of a range, over the table as it was when the scan began.
struct Scan {
    map: Arc<Map>,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    reverse: bool,
}

impl Iterator for Scan {
    type Item = Result<Pair, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if is_empty(&self.from, &self.to) {
            return None;
        }
        let bounds = (self.from.as_ref().map(Vec::as_slice), self.to.as_ref().map(Vec::as_slice));
        let mut rest = self.map.range::<[u8], _>(bounds);
        let (key, value) = if self.reverse { rest.next_back() } else { rest.next() }?;
        let pair: Pair = (key.as_slice().into(), value.as_slice().into());
        let edge = if self.reverse { &mut self.to } else { &mut self.from };
        *edge = Bound::Excluded(key.clone());
        Some(Ok(pair))
    }
}

/// `BTreeMap::range` panics on ranges that end before they begin.
fn is_empty(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
