//! A batch: what is written and flushed together. Atomic: all of its records exist after a crash, or none.
//!
//! ```text
//! offset  size  field                     offset  size  field
//!      0     4  magic "QBAT"                  48     8  durable_lsn: flushed when this was written
//!      4     2  version = 1                   56     8  prev_hash: of the batch before, on either head
//!      6     2  zero                          64     4  header_len
//!      8    16  device                        68     4  total_len, a multiple of 4096
//!     24     4  segment                       72     8  epoch: count of openings of this device
//!     28     4  record count                  80     4  CRC-32 of header[0..header_len] with this field zero
//!     32     8  segment sequence              84     4  zero
//!     40     8  first_lsn                     88     …  descriptors
//!
//! descriptor:  offset u32 | len u32 | head_crc u32 | kind u8 | flags u8 | zero u16     16 bytes
//!              flags bit 0, relocated: then from: segment u32 | offset u32 | len u32    12 more
//! ```
//! Records follow at their offsets (from the start of the batch), zeros between them and up to `total_len`.
//!
//! Invariant: the header's CRC covers each record's head CRC, and each head covers its data's CRCs; so a header that
//! verifies, with records that verify, is the batch that was written. `hash()` of the header stands for all of it.
//! Invariant: a batch's `durable_lsn` is below its `first_lsn`.

use super::bytes::{Put, Reader, Truncated};
use super::record::{DeviceId, Kind, RecordView};
use super::superblock::COUNTS;
use crate::disk::limits::{MAX_BATCH, MAX_BATCH_RECORDS};
use crate::disk::{Location, Lsn};
use crate::io::BLOCK;

const MAGIC: &[u8; 4] = b"QBAT";
const VERSION: u16 = 1;
/// Bytes before the descriptors.
pub const FIXED_HEADER: usize = 88;
const CRC_AT: std::ops::Range<usize> = 80..84;
const DESCRIPTOR: usize = 16;
const FROM: usize = 12;
const FLAG_RELOCATED: u8 = 1;

/// Which append position of the disk a segment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HeadClass {
    /// Client writes.
    Hot = 0,
    /// What the cleaner moved: it has survived, so it is likely to survive longer.
    Cold = 1,
}

impl HeadClass {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Hot, Self::Cold];
}

/// One record of a batch, as its header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes from the start of the batch.
    pub offset: u32,
    /// Bytes of the record.
    pub len: u32,
    /// CRC of its head.
    pub head_crc: u32,
    /// Its kind.
    pub kind: Kind,
    /// Where the cleaner copied it from.
    pub from: Option<Location>,
}

/// A batch header: checked when it came out of [`BatchHeader::decode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// Device it was written for.
    pub device: DeviceId,
    /// Segment it was written into.
    pub segment: u32,
    /// That segment's sequence number at the time.
    pub segment_seq: u64,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// Everything up to here was durable when this batch was composed.
    pub durable_lsn: Lsn,
    /// [`hash`] of the previous batch's header.
    pub prev_hash: u64,
    /// Opening of the device that wrote it.
    pub epoch: u64,
    /// Bytes of the whole batch.
    pub total_len: u32,
    /// Its records, in LSN order.
    pub records: Vec<Descriptor>,
}

/// Why bytes are no batch header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
    /// Too short for what it states.
    #[error("batch header is cut short")]
    Truncated,
    /// Other bytes, or zeros.
    #[error("no batch here")]
    Magic,
    /// Written by a newer program.
    #[error("batch has version {0}, newer than this program")]
    Version(u16),
    /// Checksum.
    #[error("batch header fails its checksum")]
    Crc,
    /// A field no writer produces.
    #[error("batch field {0} is invalid")]
    Field(&'static str),
}

impl From<Truncated> for BadBatch {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// Bytes of a header with these descriptors.
#[must_use]
pub const fn header_len(records: usize, relocated: usize) -> usize {
    FIXED_HEADER + records * DESCRIPTOR + relocated * FROM
}

/// Stands for a batch in the chain: the first 8 bytes of its header's BLAKE3.
#[must_use]
pub fn hash(header: &[u8]) -> u64 {
    let digest = blake3::hash(header);
    digest.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

fn crc(header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header.get(..CRC_AT.start).unwrap_or_default());
    crc.update(&[0; 4]);
    crc.update(header.get(CRC_AT.end..).unwrap_or_default());
    crc.finalize()
}

impl BatchHeader {
    /// Bytes of this header when encoded.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        header_len(self.records.len(), self.records.iter().filter(|r| r.from.is_some()).count())
    }

    /// Whether it was written into this use of this segment.
    #[must_use]
    pub fn belongs_to(&self, device: DeviceId, segment: u32, seq: u64) -> bool {
        (self.device, self.segment, self.segment_seq) == (device, segment, seq)
    }

    /// LSN after the last record.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.first_lsn + self.records.len() as u64
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = self.encoded_len();
        assert!(self.records.len() <= MAX_BATCH_RECORDS && self.total_len as usize <= MAX_BATCH);
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.extend_from_slice(&self.device.0);
        out.put_u32(self.segment);
        out.put_u32(u32::try_from(self.records.len()).unwrap_or(u32::MAX));
        out.put_u64(self.segment_seq);
        out.put_u64(self.first_lsn);
        out.put_u64(self.durable_lsn);
        out.put_u64(self.prev_hash);
        out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        out.put_u32(self.total_len);
        out.put_u64(self.epoch);
        out.put_u64(0); // CRC and zero
        for r in &self.records {
            out.put_u32(r.offset);
            out.put_u32(r.len);
            out.put_u32(r.head_crc);
            out.push(r.kind as u8);
            out.push(if r.from.is_some() { FLAG_RELOCATED } else { 0 });
            out.put_u16(0);
            if let Some(from) = r.from {
                out.put_u32(from.segment);
                out.put_u32(from.offset);
                out.put_u32(from.len);
            }
        }
        let sum = crc(&out);
        if let Some(field) = out.get_mut(CRC_AT) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        out
    }

    /// How long a header at the start of `bytes` says it is, before anything was checked; `None` when there is none.
    #[must_use]
    pub fn stated_len(bytes: &[u8]) -> Option<usize> {
        if !bytes.starts_with(MAGIC) {
            return None;
        }
        let len = u32::from_le_bytes(*bytes.get(64..)?.first_chunk::<4>()?) as usize;
        (FIXED_HEADER..=header_len(MAX_BATCH_RECORDS, MAX_BATCH_RECORDS)).contains(&len).then_some(len)
    }

    /// Decodes and checks a header at the start of `bytes`; more may follow.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBatch> {
        if !bytes.starts_with(MAGIC) {
            return Err(BadBatch::Magic);
        }
        let stated = Self::stated_len(bytes).ok_or(BadBatch::Field("header_len"))?;
        let header = bytes.get(..stated).ok_or(BadBatch::Truncated)?;
        let mut r = Reader::new(header);
        r.take(MAGIC.len())?;
        let version = r.u16()?;
        r.u16()?;
        let device = DeviceId(r.array()?);
        let segment = r.u32()?;
        let count = r.u32()? as usize;
        let (segment_seq, first_lsn) = (r.u64()?, r.u64()?);
        let (durable_lsn, prev_hash) = (r.u64()?, r.u64()?);
        r.u32()?;
        let total_len = r.u32()?;
        let epoch = r.u64()?;
        if r.u32()? != crc(header) {
            return Err(BadBatch::Crc);
        }
        if version != VERSION {
            return Err(BadBatch::Version(version));
        }
        r.u32()?;
        let total = total_len as usize;
        if count > MAX_BATCH_RECORDS || total > MAX_BATCH || !total.is_multiple_of(BLOCK) || total < stated {
            return Err(BadBatch::Field("total_len"));
        }
        if first_lsn > COUNTS || segment_seq > COUNTS || epoch > COUNTS {
            return Err(BadBatch::Field("count"));
        }
        if durable_lsn >= first_lsn {
            return Err(BadBatch::Field("durable_lsn"));
        }
        let mut records = Vec::with_capacity(count);
        let mut end = stated;
        for _ in 0..count {
            let record = decode_descriptor(&mut r, end, total)?;
            end = record.offset as usize + record.len as usize;
            records.push(record);
        }
        if !r.rest().is_empty() {
            return Err(BadBatch::Field("header_len"));
        }
        Ok(Self {
            device,
            segment,
            segment_seq,
            first_lsn,
            durable_lsn,
            prev_hash,
            epoch,
            total_len,
            records,
        })
    }

    /// Checks every record of the batch whose whole bytes are `batch`; the first flaw, or none.
    #[must_use]
    pub fn flaw(&self, batch: &[u8]) -> Option<Flaw> {
        self.records.iter().enumerate().find_map(|(index, d)| {
            let sound = self.record(batch, d).is_some_and(|view| {
                let data =
                    batch.get(d.offset as usize + view.head_len..).and_then(|rest| rest.get(..view.data_len));
                data.is_some_and(|data| view.check_data(self.device, data).is_ok())
            });
            (!sound).then_some(Flaw { record: index })
        })
    }

    /// The head of one record of this batch, verified; `None` when it does not verify.
    #[must_use]
    pub fn record<'a>(&self, batch: &'a [u8], d: &Descriptor) -> Option<RecordView<'a>> {
        let bytes = batch.get(d.offset as usize..)?.get(..d.len as usize)?;
        let view = RecordView::parse(bytes).ok()?;
        let matches = view.stored_len() == d.len as usize
            && view.kind == d.kind
            && view.stated_head_crc() == d.head_crc
            && view.check_head(self.device).is_ok();
        matches.then_some(view)
    }
}

/// Which record of a batch does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw {
    /// Its index in the batch.
    pub record: usize,
}

fn decode_descriptor(r: &mut Reader<'_>, after: usize, total: usize) -> Result<Descriptor, BadBatch> {
    let (offset, len, head_crc) = (r.u32()?, r.u32()?, r.u32()?);
    let kind = Kind::from_u8(r.u8()?).ok_or(BadBatch::Field("kind"))?;
    let flags = r.u8()?;
    r.u16()?;
    let from = match flags {
        0 => None,
        FLAG_RELOCATED => Some(Location { segment: r.u32()?, offset: r.u32()?, len: r.u32()? }),
        _ => return Err(BadBatch::Field("flags")),
    };
    let end = (offset as usize).checked_add(len as usize).ok_or(BadBatch::Field("offset"))?;
    if (offset as usize) < after || end > total || !offset.is_multiple_of(8) || !len.is_multiple_of(8) {
        return Err(BadBatch::Field("offset"));
    }
    Ok(Descriptor { offset, len, head_crc, kind, from })
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
