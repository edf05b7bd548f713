//! Rows of the block map in the index: keys and values.
//!
//! ```text
//! Blocks   "b" | volume 16 B | slice u32 BE | chunk u16 BE | block u8 | all ones less era u32 BE     one block
//!          "r" | segment u32 BE | offset u32 BE                blocks of a record that are needed, if it had several
//!          "l" | volume 16 B                                   last position in the order of the volume's writes
//!          "n" | volume 16 B | tag u8 | number u64 BE          a note (note.rs)
//! ```
//!
//! Invariant: rows of one block sort newest era first, blocks of a volume by their place.
//! Invariant: a row decodes to what was encoded, or to [`BadValue`]; never a panic.

use super::place::{ChunkId, Position, Run, SliceId, VolumeId};
use crate::catalog::BadValue;
use crate::disk::Location;
use crate::disk::format::bytes::{Put, Reader};
use crate::index::Range;

const VERSION: u8 = 1;

/// Where one block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRow {
    /// The write that made it.
    pub position: Position,
    /// Its record.
    pub at: Location,
    /// From the start of the record to the block; 0: zeroes that take no space.
    pub data: u32,
    /// Of the block with its identity.
    pub checksum: u32,
}

impl BlockRow {
    /// Zeroes.
    #[must_use]
    pub fn is_zeroes(&self) -> bool {
        self.data == 0
    }

    /// What decides which of two rows of a key counts.
    pub(super) fn rank(&self) -> (Position, Location) {
        (self.position, self.at)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(37);
        out.push(VERSION);
        out.put_u64(self.position.epoch);
        out.put_u64(self.position.sequence);
        for field in [self.at.segment, self.at.offset, self.at.len, self.data, self.checksum] {
            out.put_u32(field);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION {
            return Err(BadValue::Field("version of a block row"));
        }
        let position = Position { epoch: r.u64()?, sequence: r.u64()? };
        let at = Location { segment: r.u32()?, offset: r.u32()?, len: r.u32()? };
        let (data, checksum) = (r.u32()?, r.u32()?);
        if !r.rest().is_empty() {
            return Err(BadValue::Field("block row"));
        }
        Ok(Self { position, at, data, checksum })
    }
}

/// Key of a block in an era; also the key of the record that begins with it.
pub(super) fn block_key(volume: VolumeId, slice: SliceId, chunk: ChunkId, block: u8, era: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(28);
    key.push(b'b');
    key.extend_from_slice(&volume.0);
    key.extend_from_slice(&slice.0.to_be_bytes());
    key.extend_from_slice(&chunk.0.to_be_bytes());
    key.push(block);
    key.extend_from_slice(&(!era).to_be_bytes());
    key
}

/// A block's place and era, from its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockPlace {
    /// Slice of the volume.
    pub slice: SliceId,
    /// Chunk of the slice.
    pub chunk: ChunkId,
    /// Block of the chunk.
    pub block: u8,
}

pub(super) fn parse_block_key(key: &[u8]) -> Result<(BlockPlace, u32), BadValue> {
    let mut r = Reader::new(key);
    let _prefix_and_volume = r.take(17)?;
    let slice = SliceId(u32::from_be_bytes(r.array()?));
    let chunk = ChunkId(u16::from_be_bytes(r.array()?));
    let block = r.u8()?;
    let era = !u32::from_be_bytes(r.array()?);
    Ok((BlockPlace { slice, chunk, block }, era))
}

/// Key prefix of all blocks of a volume.
pub(super) fn blocks_prefix(volume: VolumeId) -> Vec<u8> {
    [&b"b"[..], &volume.0].concat()
}

/// The rows of a run, all eras.
pub(super) fn run_range(volume: VolumeId, run: &Run) -> Range {
    let last = u16::from(run.first) + run.blocks - 1;
    let last = u8::try_from(last).expect("a run lies in one chunk");
    // Era 0 sorts last; nothing sorts between it and the next block.
    let mut to = block_key(volume, run.slice, run.chunk, last, 0);
    to.push(0);
    let from = block_key(volume, run.slice, run.chunk, run.first, u32::MAX);
    Range { from: Some(from), to: Some(to), reverse: false }
}

/// The rows of a volume from a place on, all eras.
pub(super) fn tail_range(volume: VolumeId, from: BlockPlace) -> Range {
    let key = block_key(volume, from.slice, from.chunk, from.block, u32::MAX);
    Range { from: Some(key), ..Range::prefix(&blocks_prefix(volume)) }
}

pub(super) fn record_key(at: Location) -> Vec<u8> {
    [&b"r"[..], &at.segment.to_be_bytes(), &at.offset.to_be_bytes()].concat()
}

pub(super) fn last_key(volume: VolumeId) -> Vec<u8> {
    [&b"l"[..], &volume.0].concat()
}

pub(super) fn encode_position(position: Position) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    out.put_u64(position.epoch);
    out.put_u64(position.sequence);
    out
}

pub(super) fn decode_position(bytes: &[u8]) -> Result<Position, BadValue> {
    let mut r = Reader::new(bytes);
    Ok(Position { epoch: r.u64()?, sequence: r.u64()? })
}
