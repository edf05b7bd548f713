//! Rows of the block map in the index: keys and values.
//!
//! ```text
//! Blocks   "b" | volume 16 B | slice u32 BE | chunk u16 BE | block u8 | all ones less era u32 BE     one block
//!          the same key | 0                                  the blocks of a span that have no row of their own (span.rs)
//!          "r" | segment u32 BE | offset u32 BE                blocks of a record that are needed, if it had several
//!          "l" | volume 16 B                                   last position in the order of the volume's writes
//!          "n" | volume 16 B | tag u8 | number u64 BE          a note (note.rs)
//! ```
//!
//! Invariant: rows of one block sort newest era first, blocks of a volume by their place.
//! Invariant: a row decodes to what was encoded, or to [`BadValue`]; never a panic.

use super::place::{ChunkId, Position, Run, SliceId, VolumeId};
use super::span::{SpanRow, span_of};
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
    let mut key = Vec::with_capacity(KEY_BYTES + 1);
    key.push(b'b');
    key.extend_from_slice(&volume.0);
    key.extend_from_slice(&slice.0.to_be_bytes());
    key.extend_from_slice(&chunk.0.to_be_bytes());
    key.push(block);
    key.extend_from_slice(&(!era).to_be_bytes());
    key
}

/// Bytes of [`block_key`].
const KEY_BYTES: usize = 28;
/// Bytes of a [`block_key`] that name the chunk.
pub(super) const CHUNK_KEY: usize = 23;

/// Key of a span's row, `first` its first block: behind that block's row of the same era, before its older ones.
pub(super) fn span_key(volume: VolumeId, slice: SliceId, chunk: ChunkId, first: u8, era: u32) -> Vec<u8> {
    let mut key = block_key(volume, slice, chunk, first, era);
    key.push(0);
    key
}

pub(super) fn is_span_key(key: &[u8]) -> bool {
    key.len() > KEY_BYTES
}

/// One row, or the rows of a span.
pub(super) enum Row {
    Block(BlockRow),
    Span(Box<SpanRow>),
}

impl Row {
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, BadValue> {
        if is_span_key(key) {
            Ok(Self::Span(Box::new(SpanRow::decode(value)?)))
        } else {
            Ok(Self::Block(BlockRow::decode(value)?))
        }
    }

    /// The rows of blocks that it stands for, `at` its own place.
    pub(super) fn blocks(&self, at: BlockPlace) -> impl Iterator<Item = (BlockPlace, BlockRow)> {
        let (one, span) = match self {
            Self::Block(row) => (Some((at, *row)), None),
            Self::Span(span) => (None, Some(span)),
        };
        let many = span.into_iter().flat_map(move |span| {
            let rows = (0..super::span::SPAN_BLOCKS).map(move |nth| (nth, span.block(nth)));
            rows.filter_map(move |(nth, row)| Some((BlockPlace { block: at.block + nth, ..at }, row?)))
        });
        one.into_iter().chain(many)
    }
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

impl BlockPlace {
    /// A block of a run's chunk.
    pub(super) fn of(run: &Run, block: u8) -> Self {
        Self { slice: run.slice, chunk: run.chunk, block }
    }
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

/// The rows of a run, all eras; with those of blocks before it in the same span.
pub(super) fn run_range(volume: VolumeId, run: &Run) -> Range {
    // Era 0 sorts last; only its span's row sorts between it and the next block.
    let mut to = block_key(volume, run.slice, run.chunk, run.last(), 0);
    to.push(1);
    let from = block_key(volume, run.slice, run.chunk, span_of(run.first), u32::MAX);
    Range { from: Some(from), to: Some(to), reverse: false }
}

/// The rows of a volume from a place on, all eras; with those of blocks before it in the same span.
pub(super) fn tail_range(volume: VolumeId, from: BlockPlace) -> Range {
    let key = block_key(volume, from.slice, from.chunk, span_of(from.block), u32::MAX);
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
