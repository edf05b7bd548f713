//! Segment header, segment footer and segment table.
//!
//! ```text
//! header, first 4 KiB of a segment        trailer, last 4 KiB of a sealed segment
//!   0   8  magic "QUARRYSG"                 0   8  magic "QUARRYFT"
//!   8   4  version = 1                      8   4  version = 1
//!  12   4  CRC-32 of the block, field zero 12   4  CRC-32 of the block, field zero
//!  16  16  device                          16  16  device
//!  32   4  segment                         32   4  segment
//!  36   1  head class                      36   4  entry count
//!  37   1  state: 1 in use, 2 freed        40   8  segment sequence
//!  38   2  zero                            48   4  offset of the entries in the segment
//!  40   8  segment sequence                52   4  CRC-32 of the entries
//!  48   8  first_lsn                       56   4  end of the last batch
//!  56   8  epoch                           60   8  LSN after the last record
//!
//! footer entry: offset u32 | len u32 | head_len u32 | kind u8 | flags u8 | zero u16      16 bytes
//! ```
//! The footer is the list of a segment's records: a rebuild of the index reads heads by it, not data.
//!
//! Invariant: a segment's sequence number is never used twice on a device, so bytes left from an earlier use of the
//! segment never pass for the present one.
//! Invariant: `freed` is written, and flushed, before the segment may be used again; until then a rebuild counts it.

use super::batch::HeadClass;
use super::bytes::{Put, Reader, Truncated};
use super::record::{DeviceId, FIXED_HEAD, Kind};
use super::superblock::COUNTS;
use crate::disk::Lsn;
use crate::io::BLOCK;

const HEADER_MAGIC: &[u8; 8] = b"QUARRYSG";
const TRAILER_MAGIC: &[u8; 8] = b"QUARRYFT";
const VERSION: u32 = 1;
const CRC_AT: std::ops::Range<usize> = 12..16;
/// Bytes of one footer entry.
pub const FOOTER_ENTRY: usize = 16;

/// Why a block is not the structure it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBlock {
    /// Other bytes, or zeros.
    #[error("magic does not match")]
    Magic,
    /// Written by a newer program.
    #[error("format version {0} is newer than this program")]
    Version(u32),
    /// Checksum.
    #[error("checksum does not match")]
    Crc,
    /// A field no writer produces.
    #[error("field {0} is invalid")]
    Field(&'static str),
}

impl From<Truncated> for BadBlock {
    fn from(_: Truncated) -> Self {
        Self::Field("length")
    }
}

/// CRC-32 of a block whose own CRC field counts as zero.
fn block_crc(block: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(block.get(..CRC_AT.start).unwrap_or_default());
    crc.update(&[0; 4]);
    crc.update(block.get(CRC_AT.end..).unwrap_or_default());
    crc.finalize()
}

/// Pads to a block and fills in the CRC at offset 12.
pub(crate) fn finish_block(mut bytes: Vec<u8>) -> Vec<u8> {
    assert!(bytes.len() <= BLOCK);
    bytes.resize(BLOCK, 0);
    let sum = block_crc(&bytes);
    if let Some(field) = bytes.get_mut(CRC_AT) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// Checks magic, CRC and version of a block; the reader stands behind the CRC, at offset 16.
pub(crate) fn open_block<'a>(block: &'a [u8], magic: &[u8; 8], version: u32) -> Result<Reader<'a>, BadBlock> {
    let block = block.get(..BLOCK).ok_or(BadBlock::Field("length"))?;
    let mut r = Reader::new(block);
    if r.array::<8>()? != *magic {
        return Err(BadBlock::Magic);
    }
    let found = r.u32()?;
    if r.u32()? != block_crc(block) {
        return Err(BadBlock::Crc);
    }
    if found != version {
        return Err(BadBlock::Version(found));
    }
    Ok(r)
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Device it belongs to.
    pub device: DeviceId,
    /// Its number.
    pub segment: u32,
    /// Which head filled it.
    pub class: HeadClass,
    /// Freed: holds nothing any more.
    pub freed: bool,
    /// Order of its opening among all openings on the device, from 1.
    pub seq: u64,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// Opening of the device that opened it.
    pub epoch: u64,
}

impl SegmentHeader {
    /// One block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend_from_slice(HEADER_MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.extend_from_slice(&self.device.0);
        out.put_u32(self.segment);
        out.push(self.class as u8);
        out.push(if self.freed { 2 } else { 1 });
        out.put_u16(0);
        out.put_u64(self.seq);
        out.put_u64(self.first_lsn);
        out.put_u64(self.epoch);
        finish_block(out)
    }

    /// Decodes and checks a block.
    pub fn decode(block: &[u8]) -> Result<Self, BadBlock> {
        let mut r = open_block(block, HEADER_MAGIC, VERSION)?;
        let device = DeviceId(r.array()?);
        let segment = r.u32()?;
        let class = *HeadClass::ALL.get(usize::from(r.u8()?)).ok_or(BadBlock::Field("class"))?;
        let freed = match r.u8()? {
            1 => false,
            2 => true,
            _ => return Err(BadBlock::Field("state")),
        };
        r.u16()?;
        let (seq, first_lsn, epoch) = (r.u64()?, r.u64()?, r.u64()?);
        if seq > COUNTS || first_lsn > COUNTS || epoch > COUNTS {
            return Err(BadBlock::Field("count"));
        }
        Ok(Self { device, segment, class, freed, seq, first_lsn, epoch })
    }
}

/// One record of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FooterEntry {
    /// Bytes from the start of the segment.
    pub offset: u32,
    /// Bytes of the record.
    pub len: u32,
    /// Bytes of its head.
    pub head_len: u32,
    /// Its kind.
    pub kind: Kind,
}

/// The list of a sealed segment's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Device it belongs to.
    pub device: DeviceId,
    /// Its segment.
    pub segment: u32,
    /// Sequence of that segment.
    pub seq: u64,
    /// End of the last batch, in bytes from the start of the segment.
    pub end: u32,
    /// LSN after the last record when it was sealed.
    pub end_lsn: Lsn,
    /// In order of their places.
    pub entries: Vec<FooterEntry>,
}

/// Bytes that a footer takes at the end of a segment: entries padded to a block, and the trailer.
#[must_use]
pub fn footer_len(entries: usize) -> usize {
    (entries * FOOTER_ENTRY).next_multiple_of(BLOCK) + BLOCK
}

/// What the trailer says of the entries, before they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    device: DeviceId,
    segment: u32,
    /// Sequence of the segment.
    pub seq: u64,
    /// Where the entries begin, in bytes from the start of the segment.
    pub offset: u32,
    /// How many there are.
    pub count: u32,
    crc: u32,
    end: u32,
    /// LSN after the last record.
    pub end_lsn: Lsn,
}

impl Footer {
    /// Bytes from [`footer_len`] before the end of a segment up to its end.
    #[must_use]
    pub fn encode(&self, segment_size: u64) -> Vec<u8> {
        let len = footer_len(self.entries.len());
        let mut out = Vec::with_capacity(len);
        for e in &self.entries {
            out.put_u32(e.offset);
            out.put_u32(e.len);
            out.put_u32(e.head_len);
            out.push(e.kind as u8);
            out.push(0);
            out.put_u16(0);
        }
        let entries_crc = crc32fast::hash(&out);
        out.resize(len - BLOCK, 0);
        let offset = u32::try_from(segment_size - len as u64).unwrap_or(u32::MAX);
        let mut trailer = Vec::with_capacity(BLOCK);
        trailer.extend_from_slice(TRAILER_MAGIC);
        trailer.put_u32(VERSION);
        trailer.put_u32(0);
        trailer.extend_from_slice(&self.device.0);
        trailer.put_u32(self.segment);
        trailer.put_u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        trailer.put_u64(self.seq);
        trailer.put_u32(offset);
        trailer.put_u32(entries_crc);
        trailer.put_u32(self.end);
        trailer.put_u64(self.end_lsn);
        out.extend_from_slice(&finish_block(trailer));
        out
    }
}

impl Trailer {
    /// Decodes and checks the last block of a segment.
    pub fn decode(block: &[u8], segment_size: u64) -> Result<Self, BadBlock> {
        let mut r = open_block(block, TRAILER_MAGIC, VERSION)?;
        let device = DeviceId(r.array()?);
        let segment = r.u32()?;
        let count = r.u32()?;
        let seq = r.u64()?;
        let (offset, crc, end, end_lsn) = (r.u32()?, r.u32()?, r.u32()?, r.u64()?);
        let len = footer_len(count as usize) as u64;
        if seq > COUNTS || end_lsn > COUNTS {
            return Err(BadBlock::Field("count"));
        }
        if u64::from(offset).checked_add(len) != Some(segment_size) || end > offset {
            return Err(BadBlock::Field("offset"));
        }
        Ok(Self { device, segment, seq, offset, count, crc, end, end_lsn })
    }

    /// Decodes and checks the entries (bytes from `offset`, at least `count` entries long).
    pub fn entries(&self, bytes: &[u8]) -> Result<Footer, BadBlock> {
        let bytes = bytes.get(..self.count as usize * FOOTER_ENTRY).ok_or(BadBlock::Field("length"))?;
        if crc32fast::hash(bytes) != self.crc {
            return Err(BadBlock::Crc);
        }
        let mut r = Reader::new(bytes);
        let mut entries = Vec::with_capacity(self.count as usize);
        for _ in 0..self.count {
            let (offset, len, head_len) = (r.u32()?, r.u32()?, r.u32()?);
            let kind = Kind::from_u8(r.u8()?).ok_or(BadBlock::Field("kind"))?;
            r.u8()?;
            r.u16()?;
            let fits = offset.checked_add(len).is_some_and(|end| end <= self.end)
                && offset as usize >= BLOCK
                && (FIXED_HEAD..=len as usize).contains(&(head_len as usize));
            if !fits {
                return Err(BadBlock::Field("offset"));
            }
            entries.push(FooterEntry { offset, len, head_len, kind });
        }
        let Self { device, segment, seq, end, end_lsn, .. } = *self;
        Ok(Footer { device, segment, seq, end, end_lsn, entries })
    }

    /// Whether it belongs to this use of this segment.
    #[must_use]
    pub fn belongs_to(&self, device: DeviceId, segment: u32, seq: u64) -> bool {
        (self.device, self.segment, self.seq) == (device, segment, seq)
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
