//! Rows of spans: sixteen blocks that one write covered whole have one row, instead of one each.
//!
//! ```text
//! Blocks   "b" | volume 16 B | slice u32 BE | chunk u16 BE | first block u8 | all ones less era u32 BE | 0
//! ```
//!
//! Invariant: a span begins at a multiple of its length, so that its row is found without a search.
//! Invariant: of one era and one span, a block is in the span's row, or hidden there; only a hidden one has a row of its own, which
//! is newer, or of the same write where that was moved in parts. A span's row with all blocks hidden is not kept.

use super::place::{BLOCK_STEP, Position, Run};
use super::row::{BlockPlace, BlockRow};
use crate::catalog::BadValue;
use crate::disk::Location;
use crate::disk::format::bytes::{Put, Reader};

/// Blocks of a span.
pub(super) const SPAN_BLOCKS: u8 = 16;
/// Another one than that of a block's row: what knows no spans refuses the row instead of overlooking it.
const VERSION: u8 = 2;

const _: () = assert!(SPAN_BLOCKS as u32 == u16::BITS);
const _: () = assert!(super::place::BLOCKS_PER_CHUNK.is_multiple_of(SPAN_BLOCKS as u16));

/// Where the blocks of a span lie, but for those that are hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpanRow {
    /// Its first block.
    pub(super) first: BlockRow,
    /// A bit for each block that a newer write of the same era covers, or that is not needed any more.
    pub(super) hidden: u16,
    /// Of each block; zeroes have none.
    checksums: [u32; SPAN_BLOCKS as usize],
}

/// The first block of the span that a block lies in.
pub(super) fn span_of(block: u8) -> u8 {
    block / SPAN_BLOCKS * SPAN_BLOCKS
}

/// The span of a place.
pub(super) fn span_place(place: BlockPlace) -> BlockPlace {
    BlockPlace { block: span_of(place.block), ..place }
}

/// The blocks of a run, span by span: the first and the last.
pub(super) fn spans(run: &Run) -> impl Iterator<Item = (u8, u8)> + use<> {
    let last = run.last();
    let mut next = Some(run.first);
    std::iter::from_fn(move || {
        let first = next?;
        let upto = (span_of(first) + (SPAN_BLOCKS - 1)).min(last);
        next = (upto < last).then(|| upto + 1);
        Some((first, upto))
    })
}

/// Whether these are all blocks of a span.
pub(super) fn is_whole((first, last): (u8, u8)) -> bool {
    last - first == SPAN_BLOCKS - 1
}

impl SpanRow {
    /// A row of the blocks that are not hidden.
    pub(super) fn new(first: BlockRow, hidden: u16, checksums: [u32; SPAN_BLOCKS as usize]) -> Self {
        Self { first, hidden, checksums }
    }

    pub(super) fn rank(&self) -> (Position, Location) {
        self.first.rank()
    }

    /// How many blocks it still has.
    pub(super) fn shown(&self) -> u16 {
        u16::try_from(self.hidden.count_zeros()).unwrap_or(0)
    }

    /// The row of its `nth` block, if it is not hidden.
    pub(super) fn block(&self, nth: u8) -> Option<BlockRow> {
        if self.hidden >> nth & 1 == 1 {
            return None;
        }
        if self.first.is_zeroes() {
            return Some(self.first);
        }
        let data = self.first.data.checked_add(u32::from(nth) * BLOCK_STEP)?;
        let checksum = self.checksums.get(usize::from(nth)).copied()?;
        Some(BlockRow { data, checksum, ..self.first })
    }

    /// Hides its `nth` block; false: it was.
    pub(super) fn hide(&mut self, nth: u8) -> bool {
        let before = self.hidden;
        self.hidden |= 1 << nth;
        self.hidden != before
    }

    /// All blocks are hidden.
    pub(super) fn is_done(&self) -> bool {
        self.hidden == u16::MAX
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(99);
        out.push(VERSION);
        let BlockRow { position, at, data, .. } = self.first;
        out.put_u64(position.epoch);
        out.put_u64(position.sequence);
        for field in [at.segment, at.offset, at.len, data] {
            out.put_u32(field);
        }
        out.put_u16(self.hidden);
        if !self.first.is_zeroes() {
            self.checksums.iter().for_each(|checksum| out.put_u32(*checksum));
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION {
            return Err(BadValue::Field("version of a span row"));
        }
        let position = Position { epoch: r.u64()?, sequence: r.u64()? };
        let at = Location { segment: r.u32()?, offset: r.u32()?, len: r.u32()? };
        let (data, hidden) = (r.u32()?, r.u16()?);
        let mut checksums = [0; SPAN_BLOCKS as usize];
        if data != 0 {
            for checksum in &mut checksums {
                *checksum = r.u32()?;
            }
        }
        if !r.rest().is_empty() {
            return Err(BadValue::Field("span row"));
        }
        let checksum = checksums.first().copied().unwrap_or(0);
        Ok(Self { first: BlockRow { position, at, data, checksum }, hidden, checksums })
    }
}
