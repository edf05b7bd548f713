//! Where a block of a volume lies, and its place in the order of writes.
//!
//! Invariant: a run lies in one chunk, and a chunk in one slice.

/// Smallest unit that is written and checksummed.
pub const BLOCK_BYTES: u64 = 4 << 10;
/// [`BLOCK_BYTES`] as a length in memory.
pub const BLOCK_LENGTH: usize = 4 << 10;
/// [`BLOCK_BYTES`] within a record.
pub(super) const BLOCK_STEP: u32 = 4 << 10;
/// Unit of the block map and of resync.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Blocks are counted by a byte within their chunk.
pub const BLOCKS_PER_CHUNK: u16 = 256;

const _: () = assert!(BLOCK_LENGTH as u64 == BLOCK_BYTES && BLOCK_STEP as u64 == BLOCK_BYTES);
const _: () =
    assert!(CHUNK_BYTES / BLOCK_BYTES == BLOCKS_PER_CHUNK as u64 && BLOCKS_PER_CHUNK == u8::MAX as u16 + 1);

/// Identity of a volume; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// Number of a slice in its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u32);

/// Number of a chunk in its slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u16);

/// Consecutive blocks within one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Slice of the volume.
    pub slice: SliceId,
    /// Chunk of the slice.
    pub chunk: ChunkId,
    /// First block in the chunk.
    pub first: u8,
    /// Blocks, 1 to [`BLOCKS_PER_CHUNK`] less `first`.
    pub blocks: u16,
}

impl Run {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES
    }

    /// Number of its last block in the chunk.
    pub(crate) fn last(&self) -> u8 {
        let last = u16::from(self.first) + self.blocks - 1;
        u8::try_from(last).expect("a run lies in one chunk")
    }

    /// Numbers of its blocks in the chunk.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        self.first..=self.last()
    }
}

/// What a head acts under. Both numbers only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fence {
    /// Of the volume: rises with every attachment.
    pub epoch: u64,
    /// Of the slice: rises with every change of its members.
    pub configuration: u32,
}

/// A place in the history of a slice: the last write in it, and the epoch that wrote that. Zeroes: no write yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// Epoch of the last write.
    pub epoch: u64,
    /// Its sequence.
    pub sequence: u64,
}
