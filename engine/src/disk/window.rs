//! Reads one segment front to back through a window, for openings and checks: nothing else uses the disk then.
//!
//! Invariant: memory is bounded by the window or the largest batch, whatever the segment's size.
//! Invariant: along a segment the epoch of its batches never falls: a batch of an earlier opening behind one of a later
//! opening is a leftover, not part of the log.

use super::batching::Placed;
use super::format::batch::{BatchHeader, Descriptor, HeadClass, hash};
use super::format::record::{DeviceId, RecordView};
use super::format::segment::{Footer, FooterEntry, SegmentHeader, Trailer};
use super::format::superblock::Layout;
use super::limits::MAX_BATCH;
use super::upkeep::read_what_can_be;
use super::{Location, Lsn};
use crate::io::{AlignedBuf, BLOCK, Disk};

/// What is read first; a longer batch is read whole.
const FIRST: u64 = 2 << 20;
/// Each window that goes on where the last one ended is twice as long, up to the longest batch: a batch that is cut off by the end of a window
/// is read again from its start, and who asks for much at once gets a share of a device that others keep busy.
const MOST: u64 = MAX_BATCH as u64;

/// A batch that was found whole.
pub(crate) struct Found {
    pub(crate) header: BatchHeader,
    pub(crate) hash: u64,
    pub(crate) header_len: u32,
    pub(crate) offset: u64,
    pub(crate) records: Vec<Placed>,
}

/// A record that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged {
    pub(crate) lsn: Lsn,
    /// Its head verifies.
    pub(crate) known: bool,
    /// In its segment.
    pub(crate) offset: u32,
}

/// What lies at an offset of a segment.
pub(crate) enum At {
    /// A batch of this use of the segment, every record verified.
    Whole(Box<Found>),
    /// One with records that do not verify. Those whose heads do are given, but for copies that the cleaner made: what they were made of
    /// may be whole.
    Flawed { found: Box<Found>, damaged: Vec<Damaged> },
    /// Nothing of this use of the segment.
    Nothing,
}

/// What a window has read so far, kept between looks at the same segment.
pub(crate) struct Held {
    start: u64,
    bytes: Option<AlignedBuf>,
}

/// A segment that holds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentUse {
    pub(crate) segment: u32,
    pub(crate) class: HeadClass,
    pub(crate) seq: u64,
    pub(crate) header_damaged: bool,
    /// Freed: its sequence is used up, and it holds nothing.
    pub(crate) freed: bool,
}

/// A segment being read.
pub(crate) struct Window<'a> {
    pub(crate) disk: &'a mut dyn Disk,
    layout: Layout,
    device: DeviceId,
    pub(crate) segment: u32,
    start: u64,
    bytes: Option<AlignedBuf>,
}

impl<'a> Window<'a> {
    pub(crate) fn new(disk: &'a mut dyn Disk, layout: Layout, device: DeviceId, segment: u32) -> Self {
        Self { disk, layout, device, segment, start: 0, bytes: None }
    }

    /// At least `len` bytes from `offset` on, or what is left of the segment.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> std::io::Result<&[u8]> {
        let len = (len as u64).min(self.layout.segment_size.saturating_sub(offset));
        let held = self.bytes.as_ref().map_or(0, |b| b.len() as u64);
        if self.bytes.is_none() || offset < self.start || offset + len > self.start + held {
            let start = offset / BLOCK as u64 * BLOCK as u64;
            let goes_on = (self.start + 1..=self.start + held).contains(&start);
            let window = if goes_on { (held * 2).clamp(FIRST, MOST) } else { FIRST };
            let end = (start + window.max(len + BLOCK as u64)).next_multiple_of(BLOCK as u64);
            let end = end.min(self.layout.segment_size);
            let at = self.layout.segment_start(self.segment) + start;
            let size = usize::try_from(end - start).unwrap_or(0);
            self.bytes = Some(read_what_can_be(self.disk, at, size)?);
            self.start = start;
        }
        let skip = usize::try_from(offset - self.start).unwrap_or(0);
        let bytes: &[u8] = self.bytes.as_deref().unwrap_or_default();
        Ok(bytes.get(skip..).unwrap_or_default())
    }

    /// A window that goes on with what an earlier one on the same segment had read.
    pub(crate) fn resume(mut self, held: Option<Held>) -> Self {
        if let Some(held) = held {
            (self.start, self.bytes) = (held.start, held.bytes);
        }
        self
    }

    /// Gives up the disk and keeps what was read.
    pub(crate) fn hold(self) -> Held {
        Held { start: self.start, bytes: self.bytes }
    }

    /// How the segment is in use, if it is.
    pub(crate) fn in_use(&mut self) -> std::io::Result<Option<SegmentUse>> {
        Ok(self.identify()?.filter(|used| !used.freed))
    }

    /// The last use of the segment: by its header, or by its first batch where the header is damaged (freeing a segment
    /// destroys both).
    pub(crate) fn identify(&mut self) -> std::io::Result<Option<SegmentUse>> {
        let blocks = read_what_can_be(self.disk, self.layout.segment_start(self.segment), 2 * BLOCK)?;
        let (first, second) = blocks.split_at(BLOCK);
        if let Ok(h) = SegmentHeader::decode(first) {
            let ours = (h.device, h.segment) == (self.device, self.segment);
            let SegmentHeader { segment, class, seq, freed, .. } = h;
            return Ok(ours.then_some(SegmentUse { segment, class, seq, header_damaged: false, freed }));
        }
        let Some(len) = BatchHeader::stated_len(second) else { return Ok(None) };
        let batch = BatchHeader::decode(self.bytes(BLOCK as u64, len)?);
        let ours = batch.ok().filter(|b| (b.device, b.segment) == (self.device, self.segment));
        Ok(ours.map(|b| SegmentUse {
            segment: self.segment,
            // Only the cleaner's batches hold records that were moved, and nothing else.
            class: if b.records.iter().any(|r| r.from.is_some()) { HeadClass::Cold } else { HeadClass::Hot },
            seq: b.segment_seq,
            header_damaged: true,
            freed: false,
        }))
    }

    /// The trailer of the use `seq`, if there is one that verifies.
    pub(crate) fn trailer(&mut self, seq: u64) -> std::io::Result<Option<Trailer>> {
        let size = self.layout.segment_size;
        let at = self.layout.segment_start(self.segment) + size - BLOCK as u64;
        let block = read_what_can_be(self.disk, at, BLOCK)?;
        let ours = |t: &Trailer| t.belongs_to(self.device, self.segment, seq);
        Ok(Trailer::decode(&block, size).ok().filter(ours))
    }

    /// The footer of the use `seq`, if there is one that verifies.
    pub(crate) fn footer(&mut self, seq: u64) -> std::io::Result<Option<Footer>> {
        let Some(trailer) = self.trailer(seq)? else { return Ok(None) };
        let offset = u64::from(trailer.offset);
        let len = usize::try_from(self.layout.segment_size - offset).unwrap_or(0);
        let start = self.layout.segment_start(self.segment);
        let bytes = read_what_can_be(self.disk, start + offset, len)?;
        Ok(trailer.entries(&bytes).ok())
    }

    /// What lies at `offset`, for the use `seq` of the segment.
    pub(crate) fn at(&mut self, offset: u64, seq: u64) -> std::io::Result<At> {
        let (device, segment) = (self.device, self.segment);
        let bytes = self.bytes(offset, BLOCK)?;
        let Some(header_len) = BatchHeader::stated_len(bytes) else { return Ok(At::Nothing) };
        let bytes = self.bytes(offset, header_len)?;
        let header = match BatchHeader::decode(bytes) {
            Ok(header) if header.belongs_to(device, segment, seq) => header,
            _ => return Ok(At::Nothing),
        };
        let total = header.total_len as usize;
        if offset + total as u64 > self.layout.segment_size {
            return Ok(At::Nothing);
        }
        let batch = self.bytes(offset, total)?;
        let Some(batch) = batch.get(..total) else { return Ok(At::Nothing) };
        let hash = hash(batch.get(..header_len).unwrap_or_default());
        let base = u32::try_from(offset).unwrap_or(u32::MAX);
        let (mut records, mut damaged) = (Vec::with_capacity(header.records.len()), Vec::new());
        for (lsn, d) in (header.first_lsn..).zip(&header.records) {
            let at = Location { segment, offset: base + d.offset, len: d.len };
            let (head, sound) = read_record(&header, batch, d, device);
            if !sound {
                damaged.push(Damaged { lsn, known: head.is_some(), offset: at.offset });
            }
            let head = head.filter(|_| sound || d.from.is_none());
            records.extend(head.map(|head| Placed { head, at, from: d.from }));
        }
        let header_len = u32::try_from(header_len).unwrap_or(u32::MAX);
        let found = Box::new(Found { header, hash, header_len, offset, records });
        Ok(if damaged.is_empty() { At::Whole(found) } else { At::Flawed { found, damaged } })
    }

    /// Walks the batches from the start of the segment up to `end` (or as far as they go), handing each to `visit` in order;
    /// stretches that hold no readable batch are skipped block by block and counted. Returns where it stopped.
    pub(crate) fn walk(
        &mut self,
        seq: u64,
        end: Option<u64>,
        mut visit: impl FnMut(At, u64),
    ) -> std::io::Result<Walked> {
        let limit = end.unwrap_or(self.layout.segment_size);
        let mut walked = Walked { end: BLOCK as u64, skipped: 0, end_lsn: 0 };
        let (mut offset, mut epoch, mut pending_skip) = (BLOCK as u64, 0, 0);
        while offset < limit {
            let at = self.at(offset, seq)?;
            let header = match &at {
                At::Whole(found) => Some(&found.header),
                At::Flawed { found, .. } => Some(&found.header),
                At::Nothing => None,
            };
            let Some(header) = header.filter(|h| h.epoch >= epoch) else {
                offset += BLOCK as u64;
                pending_skip += BLOCK as u64;
                continue;
            };
            epoch = header.epoch;
            walked.skipped += std::mem::take(&mut pending_skip);
            walked.end_lsn = walked.end_lsn.max(header.end_lsn());
            let len = u64::from(header.total_len);
            visit(at, offset);
            offset += len;
            walked.end = offset;
        }
        if end.is_some() {
            walked.skipped += pending_skip;
        }
        Ok(walked)
    }
}

/// What a walk over a segment came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Walked {
    /// End of the last batch.
    pub(crate) end: u64,
    /// Bytes before that with no readable batch in them.
    pub(crate) skipped: u64,
    /// LSN after the last record seen.
    pub(crate) end_lsn: u64,
}

/// The head of a record, if it verifies, and whether all of it does.
fn read_record(
    header: &BatchHeader,
    batch: &[u8],
    d: &Descriptor,
    device: DeviceId,
) -> (Option<Vec<u8>>, bool) {
    let Some(view) = header.record(batch, d) else { return (None, false) };
    let rest = batch.get(d.offset as usize..).unwrap_or_default();
    let data = rest.get(view.head_len..).and_then(|rest| rest.get(..view.data_len));
    let sound = data.is_some_and(|data| view.check_data(device, data).is_ok());
    (rest.get(..view.head_len).map(<[u8]>::to_vec), sound)
}

/// The footer entry of a record.
pub(crate) fn entry(placed: &Placed) -> Option<FooterEntry> {
    let kind = RecordView::parse(&placed.head).ok()?.kind;
    let head_len = u32::try_from(placed.head.len()).ok()?;
    Some(FooterEntry { offset: placed.at.offset, len: placed.at.len, head_len, kind })
}
