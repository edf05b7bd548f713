//! Writes that have their place in the log's queue and are not in the index yet. Pure.
//!
//! Invariant: of two writes of a block the later one is seen, and with it how far the log must be durable for it.
//! Invariant: what is kept is bounded, by writes and by bytes.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use quarry_engine::block::{BLOCK_LENGTH, Run};
use quarry_engine::disk::limits::{LONG_QUEUE_BYTES, UNFLUSHED_BYTES};

use crate::geometry::{ChunkId, SliceId};

/// Writes that may be on their way.
pub(super) const MAX_WRITES: usize = 4096;
/// Bytes that may be on their way.
pub(super) const MAX_BYTES: u64 = 32 << 20;
/// Of these a disk leaves fewer in its queue, and unflushed, while nobody asks for a flush.
const HEAVY_BYTES: u64 = 24 << 20;

const _: () = assert!(HEAVY_BYTES >= LONG_QUEUE_BYTES as u64 + UNFLUSHED_BYTES && HEAVY_BYTES < MAX_BYTES);

/// One write to one chunk.
#[derive(Debug)]
struct Late {
    sequence: u64,
    first: u8,
    blocks: u16,
    /// `None`: zeroes.
    data: Option<Bytes>,
}

/// Blocks in a row that one late write holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The first of them in the chunk.
    pub(super) first: u8,
    /// How many.
    pub(super) blocks: u16,
    /// `None`: zeroes.
    pub(super) data: Option<Bytes>,
    /// Which write.
    pub(super) sequence: u64,
}

impl Seen {
    /// Whether a block of the chunk is among them.
    pub(super) fn holds(&self, block: u8) -> bool {
        block.checked_sub(self.first).is_some_and(|nth| u16::from(nth) < self.blocks)
    }
}

/// All late writes of a volume.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    chunks: HashMap<(SliceId, ChunkId), VecDeque<Late>>,
    writes: usize,
    bytes: u64,
}

impl Late {
    fn range(&self) -> std::ops::Range<u16> {
        u16::from(self.first)..u16::from(self.first) + self.blocks
    }

    fn bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| data.len() as u64)
    }
}

impl Overlay {
    /// Whether a write of so many bytes may come.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.writes == 0 || self.writes < MAX_WRITES && self.bytes + bytes <= MAX_BYTES
    }

    /// Whether so much is on its way that the log's disk flushes without being asked.
    pub(super) fn is_heavy(&self) -> bool {
        self.bytes >= HEAVY_BYTES
    }

    /// A write got its place. Sequences only grow.
    pub(super) fn insert(&mut self, sequence: u64, run: Run, data: Option<Bytes>) {
        let late = Late { sequence, first: run.first, blocks: run.blocks, data };
        self.writes += 1;
        self.bytes += late.bytes();
        self.chunks.entry((run.slice, run.chunk)).or_default().push_back(late);
    }

    /// The index has it, or it will never be there.
    pub(super) fn remove(&mut self, sequence: u64, run: Run) {
        let place = (run.slice, run.chunk);
        let Some(writes) = self.chunks.get_mut(&place) else { return };
        let found = writes.iter().position(|late| late.sequence == sequence);
        if let Some(late) = found.and_then(|at| writes.remove(at)) {
            self.writes -= 1;
            self.bytes -= late.bytes();
        }
        if writes.is_empty() {
            self.chunks.remove(&place);
        }
    }

    /// What late writes hold of a run, in order: of each block the newest.
    pub(super) fn look(&self, run: &Run) -> Vec<Seen> {
        let Some(writes) = self.chunks.get(&(run.slice, run.chunk)) else { return Vec::new() };
        let (start, end) = (u16::from(run.first), u16::from(run.first) + run.blocks);
        // For each block of the run the write that holds it.
        let mut holders: Vec<Option<usize>> = vec![None; run.blocks.into()];
        let mut left = holders.len();
        for (at, late) in writes.iter().enumerate().rev() {
            let range = late.range();
            let overlap = usize::from(range.start.max(start) - start)
                ..usize::from(range.end.min(end).saturating_sub(start));
            for holder in holders.get_mut(overlap).unwrap_or_default() {
                if holder.is_none() {
                    *holder = Some(at);
                    left -= 1;
                }
            }
            if left == 0 {
                break;
            }
        }
        let mut seen: Vec<Seen> = Vec::new();
        let mut next = start;
        for same in holders.chunk_by(|a, b| a == b) {
            let blocks = u16::try_from(same.len()).expect("a run lies in one chunk");
            let held = same.first().copied().flatten().and_then(|at| writes.get(at));
            seen.extend(held.map(|late| late.part(next, blocks)));
            next += blocks;
        }
        seen
    }
}

impl Late {
    fn part(&self, first: u16, blocks: u16) -> Seen {
        let skip = usize::from(first - u16::from(self.first)) * BLOCK_LENGTH;
        let data = self.data.as_ref().map(|data| data.slice(skip..skip + usize::from(blocks) * BLOCK_LENGTH));
        let first = u8::try_from(first).expect("a block of a chunk");
        Seen { first, blocks, data, sequence: self.sequence }
    }
}

#[cfg(test)]
#[path = "tests/overlay_tests.rs"]
mod tests;
