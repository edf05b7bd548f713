//! The cleaner: moves what is still needed out of a segment, so that the segment can be used again.
//!
//! Invariant: a move is compare-and-set: what was overwritten or deleted meanwhile stays so.
//! Invariant: a segment is retired only with all its needed records moved durably; a segment with a record that is
//! needed and unreadable is never freed (the auditor reports it, a replica repairs it).

use super::format::batch::BatchHeader;
use super::format::record::{NewRecord, RecordView, StoredRecord};
use super::handle::DiskHandle;
use super::limits::{MAX_BATCH, MAX_GROUP, MAX_GROUP_RECORDS};
use super::segments::{Segment, State};
use super::shared::{Class, DiskError, Item};
use super::{Durability, Location};
use crate::io::BLOCK;

/// What cleaning one segment came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleaned {
    /// The segment.
    pub segment: u32,
    /// Bytes moved.
    pub moved: u64,
    /// It will be free after the next checkpoint. False: it holds needed records that cannot be read.
    pub retired: bool,
}

/// Benefit over cost of cleaning a segment (Rosenblum and Ousterhout, "The Design and Implementation of a
/// Log-Structured File System", 1992): free space gained times age, over bytes read and written.
#[must_use]
pub fn benefit(segment: &Segment, newest_seq: u64, segment_size: u64) -> u64 {
    let used = segment.live.min(segment_size);
    let age = newest_seq.saturating_sub(segment.seq).max(1);
    (segment_size - used).saturating_mul(age) / (segment_size + used).max(1)
}

impl DiskHandle {
    /// Whether cleaning is worth while now: free space is short and some segment has garbage. `eager` cleans whenever a
    /// quarter of the disk is garbage.
    #[must_use]
    pub fn wants_cleaning(&self) -> bool {
        let usage = self.usage();
        let occupied = usage.capacity - usage.free;
        let garbage = occupied.saturating_sub(usage.live);
        let short = usage.free < usage.capacity / 8;
        garbage >= 2 * usage.segment_size && (short || garbage > usage.capacity / 4)
    }

    /// The segment with the most to gain, if any has garbage worth a move.
    #[must_use]
    pub fn victim(&self, skip: &[u32]) -> Option<u32> {
        let size = self.shared.layout.segment_size;
        let segments = self.shared.segments();
        let newest = segments.iter().map(|(_, s)| s.seq).max().unwrap_or(0);
        segments
            .iter()
            .filter(|(number, s)| {
                s.state == State::Sealed && s.live < size - size / 16 && !skip.contains(number)
            })
            .max_by_key(|(number, s)| (benefit(s, newest, size), std::cmp::Reverse(*number)))
            .map(|(number, _)| number)
    }

    /// Cleans one segment; `None` when it is not sealed any more.
    pub async fn clean(&self, segment: u32) -> Result<Option<Cleaned>, DiskError> {
        let size = self.shared.layout.segment_size;
        let before = self.shared.segments().get(segment);
        if before.state != State::Sealed {
            return Ok(None);
        }
        let end = if before.end == 0 { size } else { u64::from(before.end) };
        let mut offset = u64::from(before.retired_to).max(BLOCK as u64);
        let (mut moved, mut epoch) = (0, 0);
        while offset < end {
            let Some(batch) = self.batch_at(segment, before.seq, offset, epoch).await? else {
                offset += BLOCK as u64;
                continue;
            };
            epoch = batch.header.epoch;
            let base = u32::try_from(offset).unwrap_or(u32::MAX);
            let dead = self.move_live(segment, base, &batch, &mut moved).await?;
            offset += u64::from(batch.header.total_len);
            let upto = u32::try_from(offset).unwrap_or(u32::MAX);
            self.forget(segment, before.seq, upto, false, dead).await?;
        }
        let upto = u32::try_from(offset).unwrap_or(u32::MAX);
        let retired = self.forget(segment, before.seq, upto, true, Vec::new()).await?;
        if !retired {
            tracing::error!(device = %self.shared.device, segment, live = self.shared.segments().get(segment).live,
                "segment holds needed records that cannot be read; run `quarry disk audit` and repair from replicas");
        }
        Ok(Some(Cleaned { segment, moved, retired }))
    }

    /// Submits the needed records of a batch to the cold head and waits until they are durable there. Returns the heads of the
    /// others: they are dead, or are so now that they were moved.
    async fn move_live(
        &self,
        segment: u32,
        base: u32,
        batch: &Batch,
        moved: &mut u64,
    ) -> Result<Vec<Vec<u8>>, DiskError> {
        let (mut dead, mut group, mut group_bytes) = (Vec::new(), Vec::new(), 0);
        for d in &batch.header.records {
            let Some(view) = batch.header.record(&batch.bytes, d) else { continue };
            let at = Location { segment, offset: base + d.offset, len: d.len };
            let head = batch.bytes.slice_ref(head_of(&batch.bytes, d.offset, &view));
            if self.shared.catalog.is_live(self.index(), &view, at)? {
                let bytes = batch.bytes.slice(d.offset as usize..(d.offset + d.len) as usize);
                // A record that does not verify stays where it is: `retired` will be false.
                let Ok(stored) = StoredRecord::verify(self.shared.device, bytes) else { continue };
                let record = NewRecord::verbatim(&stored);
                let bytes = record.stored_len() + BLOCK + 32;
                if group.len() == MAX_GROUP_RECORDS || group_bytes + bytes > MAX_GROUP {
                    self.append_items(std::mem::take(&mut group), Durability::Durable, Class::Cleaner)
                        .await?;
                    group_bytes = 0;
                }
                group.push(Item { record, from: Some(at) });
                group_bytes += bytes;
                *moved += u64::from(d.len);
            }
            dead.push(head.to_vec());
        }
        if !group.is_empty() {
            self.append_items(group, Durability::Durable, Class::Cleaner).await?;
        }
        Ok(dead)
    }

    async fn batch_at(
        &self,
        segment: u32,
        seq: u64,
        offset: u64,
        epoch: u64,
    ) -> Result<Option<Batch>, DiskError> {
        const FIRST: u64 = 256 << 10;
        let size = self.shared.layout.segment_size;
        let start = self.shared.layout.segment_start(segment) + offset;
        let place = Location { segment, offset: u32::try_from(offset).unwrap_or(u32::MAX), len: 0 };
        let failed = |e: std::io::Error| DiskError::Io { at: place, kind: e.kind() };
        let len = usize::try_from(FIRST.min(size - offset)).unwrap_or(BLOCK);
        let mut bytes = self.read_raw(start, len).await?.map_err(failed)?;
        let Ok(header) = BatchHeader::decode(&bytes) else { return Ok(None) };
        let total = header.total_len as usize;
        let ours = header.belongs_to(self.shared.device, segment, seq) && header.epoch >= epoch;
        if !ours || total > MAX_BATCH || offset + total as u64 > size {
            return Ok(None);
        }
        if total > bytes.len() {
            bytes = self.read_raw(start, total).await?.map_err(failed)?;
        }
        Ok(Some(Batch { header, bytes }))
    }
}

struct Batch {
    header: BatchHeader,
    bytes: bytes::Bytes,
}

fn head_of<'a>(batch: &'a [u8], offset: u32, view: &RecordView<'_>) -> &'a [u8] {
    batch.get(offset as usize..offset as usize + view.head_len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_empty_beats_young_and_full() {
        let segment = |live, seq| Segment { live, seq, ..Segment::default() };
        let size = 64 << 20;
        let b = |live: u64, seq: u64| benefit(&segment(live, seq), 100, size);
        assert!(b(0, 50) > b(size / 2, 50));
        assert!(b(size / 2, 10) > b(size / 2, 90));
        assert!(b(size / 2, 10) > b(size / 4, 95), "age lets a fuller segment win");
        assert_eq!(b(size, 1), 0);
    }
}
