//! The superblock, and the places that follow from it.
//!
//! ```text
//!   0   8  magic "QUARRYSB"                    56   8  epoch: count of openings
//!   8   4  version = 1                         64   8  capacity in bytes
//!  12   4  CRC-32 of the block, field zero     72   8  segment size in bytes
//!  16  16  device                              80   4  segments
//!  32  16  cluster                             84   4  1: closed cleanly, 0: open or crashed
//!  48   8  generation: count of writes         88   8  index generation: count of rebuilds
//! ```
//! Two copies, at byte 0 and at byte 65,536; generation g is written to copy g mod 2, so one copy is always whole.
//! The segment table (two copies, from 1 MiB on) is a summary for people and tools: entry i is 32 bytes
//! `state u8 | class u8 | flags u16 | end u32 | seq u64 | live u64 | zero u64` behind a header block.
//! Segments begin at the first 1 MiB boundary after the tables.
//!
//! Invariant: `data_start + segments * segment_size <= capacity`.

use super::bytes::Put;
use super::record::DeviceId;
use super::segment::{BadBlock, finish_block, open_block};
use crate::disk::limits::{MAX_SEGMENT, MAX_SEGMENTS, MIN_SEGMENT, MIN_SEGMENTS};
use crate::io::BLOCK;

const MAGIC: &[u8; 8] = b"QUARRYSB";
const VERSION: u32 = 1;
/// No count gets here by counting; so that adding to one that was read never overflows.
pub(crate) const COUNTS: u64 = u64::MAX / 2;
/// Where the copies lie.
pub const COPIES: [u64; 2] = [0, 64 << 10];
const TABLE_START: u64 = 1 << 20;
/// Bytes of one entry of the segment table.
pub const TABLE_ENTRY: u64 = 32;
const ALIGN: u64 = 1 << 20;

/// Identity of a cluster: every device of it carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the device.
    pub device: DeviceId,
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Count of superblock writes.
    pub generation: u64,
    /// Count of openings: fences what an earlier opening left behind.
    pub epoch: u64,
    /// Closed cleanly.
    pub clean: bool,
    /// Count of index rebuilds: an index of another generation is not ours.
    pub index_generation: u64,
    /// Sizes and places.
    pub layout: Layout,
}

/// Sizes and places on a device, all fixed at format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the device.
    pub capacity: u64,
    /// Bytes of a segment, a power of two.
    pub segment_size: u64,
    /// Number of segments.
    pub segments: u32,
}

impl Layout {
    /// The layout of a device of `capacity` bytes; `None` when it is too small.
    #[must_use]
    pub fn plan(capacity: u64) -> Option<Self> {
        let wanted = (capacity / 256).next_power_of_two().clamp(MIN_SEGMENT, 64 << 20);
        let fewest = capacity.div_ceil(MAX_SEGMENTS).next_power_of_two();
        Self::with_segment_size(capacity, wanted.max(fewest).min(MAX_SEGMENT))
    }

    /// The layout with a given segment size; `None` when too few segments would fit.
    #[must_use]
    pub fn with_segment_size(capacity: u64, segment_size: u64) -> Option<Self> {
        if !segment_size.is_power_of_two() || !(MIN_SEGMENT..=MAX_SEGMENT).contains(&segment_size) {
            return None;
        }
        let mut segments = (capacity / segment_size).min(MAX_SEGMENTS);
        while segments >= MIN_SEGMENTS {
            let layout = Self { capacity, segment_size, segments: u32::try_from(segments).ok()? };
            if layout.data_start() + segments * segment_size <= capacity {
                return Some(layout);
            }
            segments -= 1;
        }
        None
    }

    /// Bytes of one copy of the segment table, header block included.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        BLOCK as u64 + (u64::from(self.segments) * TABLE_ENTRY).next_multiple_of(BLOCK as u64)
    }

    /// Where a copy of the segment table begins.
    #[must_use]
    pub fn table_start(&self, copy: u64) -> u64 {
        TABLE_START + (copy % 2) * self.table_len()
    }

    /// Where segment 0 begins.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        (TABLE_START + 2 * self.table_len()).next_multiple_of(ALIGN)
    }

    /// Where a segment begins.
    #[must_use]
    pub fn segment_start(&self, segment: u32) -> u64 {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        self.data_start() + u64::from(segment) * self.segment_size
    }

    /// Bytes in all segments.
    #[must_use]
    pub fn usable(&self) -> u64 {
        u64::from(self.segments) * self.segment_size
    }
}

impl Superblock {
    /// One block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend_from_slice(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.extend_from_slice(&self.device.0);
        out.extend_from_slice(&self.cluster.0);
        out.put_u64(self.generation);
        out.put_u64(self.epoch);
        out.put_u64(self.layout.capacity);
        out.put_u64(self.layout.segment_size);
        out.put_u32(self.layout.segments);
        out.put_u32(u32::from(self.clean));
        out.put_u64(self.index_generation);
        finish_block(out)
    }

    /// Decodes and checks a block.
    pub fn decode(block: &[u8]) -> Result<Self, BadBlock> {
        let mut r = open_block(block, MAGIC, VERSION)?;
        let device = DeviceId(r.array()?);
        let cluster = ClusterId(r.array()?);
        let (generation, epoch) = (r.u64()?, r.u64()?);
        let (capacity, segment_size, segments) = (r.u64()?, r.u64()?, r.u32()?);
        let clean = match r.u32()? {
            0 => false,
            1 => true,
            _ => return Err(BadBlock::Field("clean")),
        };
        let index_generation = r.u64()?;
        let in_range = segment_size.is_power_of_two()
            && (MIN_SEGMENT..=MAX_SEGMENT).contains(&segment_size)
            && (MIN_SEGMENTS..=MAX_SEGMENTS).contains(&u64::from(segments));
        let layout = Layout { capacity, segment_size, segments };
        if generation > COUNTS || epoch > COUNTS || index_generation > COUNTS {
            return Err(BadBlock::Field("count"));
        }
        if !in_range || layout.data_start() + layout.usable() > capacity {
            return Err(BadBlock::Field("layout"));
        }
        Ok(Self { device, cluster, generation, epoch, clean, index_generation, layout })
    }
}

/// What the two copies together say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This one counts. `repair`: the other copy is damaged and should be rewritten.
    Use {
        /// The newest valid copy.
        superblock: Superblock,
        /// The other copy did not decode.
        repair: bool,
    },
    /// Both copies are valid and name different devices: nothing is touched.
    Contradiction,
    /// Written by a newer program.
    Newer(u32),
    /// There is the magic of a superblock, and no valid copy.
    Damaged,
    /// No trace of a superblock.
    Absent,
}

/// The decision table over both copies.
#[must_use]
pub fn choose(a: Result<Superblock, BadBlock>, b: Result<Superblock, BadBlock>) -> Verdict {
    match (a, b) {
        (Ok(a), Ok(b)) if (a.device, a.cluster) != (b.device, b.cluster) => Verdict::Contradiction,
        (Ok(a), Ok(b)) => {
            let superblock = if a.generation >= b.generation { a } else { b };
            Verdict::Use { superblock, repair: false }
        }
        (_, Err(BadBlock::Version(v))) | (Err(BadBlock::Version(v)), _) => Verdict::Newer(v),
        (Ok(superblock), Err(_)) | (Err(_), Ok(superblock)) => Verdict::Use { superblock, repair: true },
        (Err(BadBlock::Magic), Err(BadBlock::Magic)) => Verdict::Absent,
        (Err(_), Err(_)) => Verdict::Damaged,
    }
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
