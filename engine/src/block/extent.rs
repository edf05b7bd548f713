//! The extent record: one write to one chunk, as the disk engine logs it (record kind VOLUME_EXTENT).
//!
//! FORMAT-blocks.md beside this crate's manifest is its description.
//!
//! Invariant: one sequence number is one extent; a write over several chunks takes several numbers.
//! Invariant: `decode(encode(extent)) == extent`, and every other input is a typed error.

use crate::disk::format::sums::Sums;

use super::place::{BLOCK_LENGTH, BLOCKS_PER_CHUNK, ChunkId, Fence, Position, Run, SliceId, VolumeId};

/// Version of the record that [`Extent::encode`] writes.
pub const EXTENT_VERSION: u8 = 1;
/// A record of no data.
pub const MIN_EXTENT_BYTES: usize = HEADER_BYTES + CHECKSUM_BYTES;
/// A record of a whole chunk.
pub const MAX_EXTENT_BYTES: usize = MIN_EXTENT_BYTES + BLOCKS_PER_CHUNK as usize * 4;

const HEADER_BYTES: usize = 1 + 1 + 2 + 4 + 16 + 8 + 8 + 4 + 1 + 1 + 2;
const CHECKSUM_BYTES: usize = 4;
const _: () = assert!(HEADER_BYTES == 48);

/// What a run of blocks holds from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The payload that follows the record: for each block its [`block_checksum`].
    Data(Vec<u32>),
    /// Zeroes that take no space (WRITE_ZEROES, TRIM). A record of its own, so that no write overtakes it.
    Zeroes,
}

/// A write to one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Whose.
    pub volume: VolumeId,
    /// Where.
    pub run: Run,
    /// Under which promise it was accepted.
    pub fence: Fence,
    /// Its place in the head's order within the slice.
    pub sequence: u64,
    /// What.
    pub content: Content,
}

/// Why bytes are no extent record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// Another length than the record announces.
    #[error("extent record has {0} bytes, which is not what it announces")]
    Length(usize),
    /// Written by a newer Quarry.
    #[error("extent record version {0} is unknown")]
    Version(u8),
    /// Damaged.
    #[error("extent record is damaged: its checksum differs")]
    Checksum,
    /// A kind of content of a newer Quarry.
    #[error("extent content {0} is unknown")]
    Content(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte is not zero")]
    Reserved,
    /// No blocks, or blocks outside of the chunk.
    #[error("{blocks} blocks from {first} do not lie in one chunk")]
    Run {
        /// First block.
        first: u8,
        /// How many.
        blocks: u16,
    },
}

impl Extent {
    /// Its place in the order of its slice.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.fence.epoch, sequence: self.sequence }
    }

    /// The record's bytes.
    ///
    /// Panics if the run leaves its chunk or the checksums are not one for each block: our bug.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Run { slice, chunk, first, blocks } = self.run;
        assert!(in_one_chunk(first, blocks), "{blocks} blocks from {first}");
        let (content, checksums): (u8, &[u32]) = match &self.content {
            Content::Data(checksums) => {
                assert_eq!(checksums.len(), usize::from(blocks), "one checksum for each block");
                (0, checksums)
            }
            Content::Zeroes => (1, &[]),
        };
        let mut out = Vec::with_capacity(MIN_EXTENT_BYTES + checksums.len() * 4);
        out.extend_from_slice(&[EXTENT_VERSION, content]);
        out.extend_from_slice(&chunk.0.to_le_bytes());
        out.extend_from_slice(&slice.0.to_le_bytes());
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.fence.epoch.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.fence.configuration.to_le_bytes());
        out.extend_from_slice(&[first, 0]);
        out.extend_from_slice(&blocks.to_le_bytes());
        for checksum in checksums {
            out.extend_from_slice(&checksum.to_le_bytes());
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The extent of a record's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExtentError> {
        let wrong_length = ExtentError::Length(bytes.len());
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(wrong_length)?;
        let (header, block_checksums) = body.split_first_chunk::<HEADER_BYTES>().ok_or(wrong_length)?;
        let mut fields = Fields(header);
        let [version, content] = fields.take();
        // Before the checksum: a newer version may have another one.
        if version != EXTENT_VERSION {
            return Err(ExtentError::Version(version));
        }
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err(ExtentError::Checksum);
        }
        let chunk = ChunkId(u16::from_le_bytes(fields.take()));
        let slice = SliceId(u32::from_le_bytes(fields.take()));
        let volume = VolumeId(fields.take());
        let epoch = u64::from_le_bytes(fields.take());
        let sequence = u64::from_le_bytes(fields.take());
        let configuration = u32::from_le_bytes(fields.take());
        let [first, reserved] = fields.take();
        let blocks = u16::from_le_bytes(fields.take());
        if reserved != 0 {
            return Err(ExtentError::Reserved);
        }
        if !in_one_chunk(first, blocks) {
            return Err(ExtentError::Run { first, blocks });
        }
        let content = match content {
            0 if block_checksums.len() == usize::from(blocks) * 4 => {
                let numbers =
                    block_checksums.chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]);
                Content::Data(numbers.map(u32::from_le_bytes).collect())
            }
            1 if block_checksums.is_empty() => Content::Zeroes,
            0 | 1 => return Err(wrong_length),
            unknown => return Err(ExtentError::Content(unknown)),
        };
        let run = Run { slice, chunk, first, blocks };
        Ok(Self { volume, run, fence: Fence { epoch, configuration }, sequence, content })
    }

    /// Number of the first block of `payload` that is not what was written: damaged, or another block's, or of
    /// another write. `None`: all are good.
    #[must_use]
    pub fn first_bad_block(&self, payload: &[u8]) -> Option<u16> {
        let Content::Data(checksums) = &self.content else { return (!payload.is_empty()).then_some(0) };
        let mut blocks = payload.chunks(BLOCK_LENGTH);
        for (number, checksum) in (0_u16..).zip(checksums) {
            let block = blocks.next().and_then(|block| <&[u8; BLOCK_LENGTH]>::try_from(block).ok());
            let good = block.is_some_and(|block| self.checksum_of(number, block) == *checksum);
            if !good {
                return Some(number);
            }
        }
        blocks.next().map(|_| self.run.blocks)
    }

    /// With data for its content: the checksums of the run's blocks follow from their sums.
    #[must_use]
    pub fn holding(self, sums: &Sums) -> Self {
        let Run { slice, chunk, first, .. } = self.run;
        let checksum = |(number, nth): (u16, usize)| {
            let before = identity(self.volume, slice, chunk, number, self.position());
            sums.behind(before.finalize(), nth..nth + 1)
        };
        let content = Content::Data((u16::from(first)..).zip(0..sums.blocks()).map(checksum).collect());
        Self { content, ..self }
    }

    /// The checksum of block `number` of this extent's payload.
    #[must_use]
    pub fn checksum_of(&self, number: u16, block: &[u8; BLOCK_LENGTH]) -> u32 {
        let in_chunk = u16::from(self.run.first) + number;
        block_checksum(self.volume, self.run.slice, self.run.chunk, in_chunk, self.position(), block)
    }
}

/// CRC-32 (IEEE) over a block's identity and then its bytes: a block that was written to another place, or by another
/// write to the same place, fails.
///
/// The device is no part of it: members compare and hand on these checksums, and the batch around the record
/// names the device.
#[must_use]
pub fn block_checksum(
    volume: VolumeId,
    slice: SliceId,
    chunk: ChunkId,
    block: u16,
    position: Position,
    bytes: &[u8; BLOCK_LENGTH],
) -> u32 {
    let mut hasher = identity(volume, slice, chunk, block, position);
    hasher.update(bytes);
    hasher.finalize()
}

/// What a block's checksum covers before its bytes.
fn identity(
    volume: VolumeId,
    slice: SliceId,
    chunk: ChunkId,
    block: u16,
    position: Position,
) -> crc32fast::Hasher {
    let mut before = [0; 40];
    before[..16].copy_from_slice(&volume.0);
    before[16..20].copy_from_slice(&slice.0.to_le_bytes());
    before[20..22].copy_from_slice(&chunk.0.to_le_bytes());
    before[22..24].copy_from_slice(&block.to_le_bytes());
    before[24..32].copy_from_slice(&position.epoch.to_le_bytes());
    before[32..].copy_from_slice(&position.sequence.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before);
    hasher
}

fn in_one_chunk(first: u8, blocks: u16) -> bool {
    blocks >= 1 && blocks <= BLOCKS_PER_CHUNK - u16::from(first)
}

/// The fields of a header whose length has been checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("lengths are checked before fields are taken");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
#[path = "extent_tests.rs"]
mod tests;
