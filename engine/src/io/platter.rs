//! The contents of a simulated disk: sparse 4 KiB blocks, cheap to copy, torn at sectors.
//!
//! Invariant: a block that is absent reads as zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BLOCK;
use super::random::SplitMix64;

/// What a drive writes atomically.
pub(super) const SECTOR: usize = 512;

pub(super) type Block = Arc<[u8; BLOCK]>;

/// Cut a buffer whose length is a multiple of [`BLOCK`] into blocks.
pub(super) fn blocks_of(bytes: &[u8]) -> Vec<Block> {
    bytes.as_chunks::<BLOCK>().0.iter().map(|block| Arc::new(*block)).collect()
}

/// Which sectors of a torn write reached the platter: a prefix, a suffix, or any subset.
pub(super) fn torn_sectors(sectors: usize, rng: &mut SplitMix64) -> Vec<bool> {
    let cut = rng.index(sectors + 1);
    match rng.below(3) {
        0 => (0..sectors).map(|sector| sector < cut).collect(),
        1 => (0..sectors).map(|sector| sector >= cut).collect(),
        _ => (0..sectors).map(|_| rng.chance(500)).collect(),
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Platter {
    blocks: BTreeMap<u64, Block>,
}

impl Platter {
    /// Copy out from any byte offset.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        Self::cut(offset, out.len(), |block, within, at, len| match self.blocks.get(&block) {
            Some(data) => out[at..at + len].copy_from_slice(&data[within..within + len]),
            None => out[at..at + len].fill(0),
        });
    }

    /// Put whole blocks at an aligned offset.
    pub(super) fn put(&mut self, offset: u64, blocks: &[Block]) {
        for (index, block) in (offset / BLOCK as u64..).zip(blocks) {
            self.blocks.insert(index, Arc::clone(block));
        }
    }

    /// Those blocks as they would read with only some of their sectors written over what is here.
    pub(super) fn merged(&self, offset: u64, blocks: &[Block], sectors: &[bool]) -> Vec<Block> {
        let mut bytes = vec![0; blocks.len() * BLOCK];
        self.read(offset, &mut bytes);
        for (index, written) in sectors.iter().enumerate() {
            if *written {
                let (block, within) = (index * SECTOR / BLOCK, index * SECTOR % BLOCK);
                bytes[index * SECTOR..][..SECTOR].copy_from_slice(&blocks[block][within..within + SECTOR]);
            }
        }
        blocks_of(&bytes)
    }

    /// Overwrite bytes at any offset.
    pub(super) fn patch(&mut self, offset: u64, bytes: &[u8]) {
        let blocks = &mut self.blocks;
        Self::cut(offset, bytes.len(), |block, within, at, len| {
            let data = Arc::make_mut(blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK])));
            data[within..within + len].copy_from_slice(&bytes[at..at + len]);
        });
    }

    /// Bytes of memory that the contents take.
    pub(super) fn resident(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// Calls `act(block, offset within it, offset within the range, length)` for each block that a range touches.
    fn cut(offset: u64, len: usize, mut act: impl FnMut(u64, usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK as u64).unwrap_or(0);
            let step = (BLOCK - within).min(len - done);
            act(at / BLOCK as u64, within, done, step);
            done += step;
        }
    }
}
