//! Where a byte of a volume lies: slice, chunk, block.
//!
//! Invariant: a run lies in one chunk, and a chunk in one slice. The runs of a byte range cover it exactly once, in
//! ascending order.
//! Invariant: BLOCK_BYTES <= CHUNK_BYTES <= slice_bytes <= SLICE_BYTES, each a power of two.

pub use quarry_engine::block::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkId, Run, SliceId};

/// Unit of placement, unless the cluster is tiny.
pub const SLICE_BYTES: u64 = 1 << 30;
/// Largest volume: 2 PiB.
pub const MAX_VOLUME_BYTES: u64 = 1 << 51;

const _: () = assert!(SLICE_BYTES / CHUNK_BYTES <= u16::MAX as u64 + 1);
// Even cut into the smallest slices, the largest volume's slices have 32-bit numbers.
const _: () = assert!(MAX_VOLUME_BYTES / CHUNK_BYTES <= u32::MAX as u64);

/// How a volume is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    volume_bytes: u64,
    slice_bytes: u64,
}

/// Why a volume cannot be cut so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Nothing, too much, or no whole number of blocks.
    #[error("volume size {0} is not a multiple of {BLOCK_BYTES} from {BLOCK_BYTES} to {MAX_VOLUME_BYTES}")]
    VolumeSize(u64),
    /// No power of two in the range.
    #[error("slice size {0} is not a power of two from {CHUNK_BYTES} to {SLICE_BYTES}")]
    SliceSize(u64),
}

/// Why a byte range cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Not on block boundaries.
    #[error("range of {length} bytes at {offset} is not aligned to {BLOCK_BYTES}")]
    Unaligned {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// No bytes.
    #[error("range at {offset} is empty")]
    Empty {
        /// Where it begins.
        offset: u64,
    },
    /// Past the end.
    #[error("range of {length} bytes at {offset} ends past the volume's {volume_bytes}")]
    PastEnd {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Size of the volume.
        volume_bytes: u64,
    },
}

impl Geometry {
    /// A volume of `volume_bytes` in slices of `slice_bytes`; the last slice may be shorter.
    pub fn new(volume_bytes: u64, slice_bytes: u64) -> Result<Self, GeometryError> {
        let whole_blocks = volume_bytes.is_multiple_of(BLOCK_BYTES);
        if !(BLOCK_BYTES..=MAX_VOLUME_BYTES).contains(&volume_bytes) || !whole_blocks {
            return Err(GeometryError::VolumeSize(volume_bytes));
        }
        if !(CHUNK_BYTES..=SLICE_BYTES).contains(&slice_bytes) || !slice_bytes.is_power_of_two() {
            return Err(GeometryError::SliceSize(slice_bytes));
        }
        Ok(Self { volume_bytes, slice_bytes })
    }

    /// Size of the volume.
    #[must_use]
    pub fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Size of its slices.
    #[must_use]
    pub fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    /// Number of slices.
    #[must_use]
    pub fn slices(&self) -> u32 {
        narrow(self.volume_bytes.div_ceil(self.slice_bytes))
    }

    /// Where a block of a run begins in the volume: the way back. `None` past the volume's end.
    #[must_use]
    pub fn offset_of(&self, slice: SliceId, chunk: ChunkId, block: u8) -> Option<u64> {
        let in_slice = u64::from(chunk.0) * CHUNK_BYTES + u64::from(block) * BLOCK_BYTES;
        let offset = u64::from(slice.0) * self.slice_bytes + in_slice;
        (in_slice < self.slice_bytes && offset < self.volume_bytes).then_some(offset)
    }

    /// Where the volume goes on at a place or behind it: what lies behind the last chunk of a slice is the beginning of the next one.
    /// `None` past the volume's end.
    #[must_use]
    pub fn offset_from(&self, slice: SliceId, chunk: ChunkId, block: u8) -> Option<u64> {
        self.offset_of(slice, chunk, block).or_else(|| {
            let in_slice = u64::from(chunk.0) * CHUNK_BYTES;
            let next = SliceId(slice.0.checked_add(1).filter(|_| in_slice >= self.slice_bytes)?);
            self.offset_of(next, ChunkId(0), 0)
        })
    }

    /// The runs of a byte range, one for each chunk that it touches.
    pub fn split(&self, offset: u64, length: u64) -> Result<impl Iterator<Item = Run> + use<>, SplitError> {
        self.check(offset, length)?;
        let slice_bytes = self.slice_bytes;
        let pieces = cut(offset, length, CHUNK_BYTES);
        Ok(pieces.map(move |(offset, length)| Run {
            slice: SliceId(narrow(offset / slice_bytes)),
            chunk: ChunkId(narrow(offset % slice_bytes / CHUNK_BYTES)),
            first: narrow(offset % CHUNK_BYTES / BLOCK_BYTES),
            blocks: narrow(length / BLOCK_BYTES),
        }))
    }

    /// The byte range in parts by slice: (slice, offset in it, length).
    pub fn split_by_slice(
        &self,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = (SliceId, u64, u64)> + use<>, SplitError> {
        self.check(offset, length)?;
        let slice_bytes = self.slice_bytes;
        let parts = cut(offset, length, slice_bytes);
        Ok(parts.map(move |(at, length)| (SliceId(narrow(at / slice_bytes)), at % slice_bytes, length)))
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), SplitError> {
        if !offset.is_multiple_of(BLOCK_BYTES) || !length.is_multiple_of(BLOCK_BYTES) {
            return Err(SplitError::Unaligned { offset, length });
        }
        if length == 0 {
            return Err(SplitError::Empty { offset });
        }
        if offset.checked_add(length).is_none_or(|end| end > self.volume_bytes) {
            return Err(SplitError::PastEnd { offset, length, volume_bytes: self.volume_bytes });
        }
        Ok(())
    }
}

/// Cut a range at the multiples of `unit`. The range's end does not overflow.
fn cut(offset: u64, length: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut next = offset;
    std::iter::from_fn(move || {
        let at = next;
        next = end.min((at / unit + 1) * unit);
        (at < end).then(|| (at, next - at))
    })
}

/// A number that the bounds above keep small.
fn narrow<N: TryFrom<u64>>(number: u64) -> N {
    N::try_from(number).ok().expect("a number within the geometry's limits")
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
mod tests;
