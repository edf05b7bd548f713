//! The cleaner: moves what is still needed out of a segment, so that the segment can be used again.
//!
//! Invariant: a move is compare-and-set: what was overwritten or deleted meanwhile stays so.
//! Invariant: a segment is retired only with all its needed records moved durably; a segment with a record that is
//! needed and unreadable is never freed (the auditor reports it, a replica repairs it).

use super::format::batch::BatchHeader;
use super::format::record::{NewRecord, RecordView, StoredRecord};
use super::handle::DiskHandle;
use super::limits::{CLIENT_RESERVE, MAX_BATCH, MAX_GROUP, MAX_MOVE_RECORDS, MAX_MOVE_SCAN};
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
    /// Whether cleaning is worth while now: free space is short and garbage can be turned into it, or a quarter of the
    /// disk is garbage. Clients that wait for space wait for this, so it is true whenever they are not refused.
    #[must_use]
    pub fn wants_cleaning(&self) -> bool {
        let (size, total) = (self.shared.layout.segment_size, self.shared.layout.usable());
        let segments = self.shared.segments();
        let short = segments.count(State::Free) <= (segments.len() / 8).max(CLIENT_RESERVE + 2);
        let worth = segments.iter().any(|(_, s)| s.is_worth_cleaning(size));
        worth && (segments.can_make_room(size) && short || segments.reclaimable(size) > total / 4)
    }

    /// The segment with the most to gain, if any has garbage worth a move.
    #[must_use]
    pub fn victim(&self, skip: &[u32]) -> Option<u32> {
        let size = self.shared.layout.segment_size;
        let segments = self.shared.segments();
        let newest = segments.iter().map(|(_, s)| s.seq).max().unwrap_or(0);
        segments
            .iter()
            .filter(|(number, s)| s.is_worth_cleaning(size) && !skip.contains(number))
            .max_by_key(|(number, s)| (benefit(s, newest, size), std::cmp::Reverse(*number)))
            .map(|(number, _)| number)
    }

    /// Cleans one segment; `None` when it is not sealed any more.
    pub async fn clean(&self, segment: u32) -> Result<Option<Cleaned>, DiskError> {
        let size = self.shared.layout.segment_size;
        // Pinned first, looked at then: it is not recycled under our hands, whoever else cleans it.
        let _pinned = self.pin(vec![segment]);
        let before = self.shared.segments().get(segment);
        if before.state != State::Sealed {
            return Ok(None);
        }
        let end = if before.end == 0 { size } else { u64::from(before.end) };
        let mut offset = u64::from(before.retired_to).max(BLOCK as u64);
        let mut moves = Moves::default();
        let (mut epoch, mut forgotten) = (0, offset);
        while offset < end {
            let Some(batch) = self.batch_at(segment, before.seq, offset, epoch).await? else {
                offset += BLOCK as u64;
                continue;
            };
            epoch = batch.header.epoch;
            let base = u32::try_from(offset).unwrap_or(u32::MAX);
            self.move_live(segment, base, &batch, &mut moves).await?;
            offset += u64::from(batch.header.total_len);
            if offset - forgotten >= MAX_MOVE_SCAN {
                self.write_moves(&mut moves).await?;
                let upto = u32::try_from(offset).unwrap_or(u32::MAX);
                self.forget(segment, before.seq, upto, false, std::mem::take(&mut moves.heads)).await?;
                forgotten = offset;
            }
        }
        self.write_moves(&mut moves).await?;
        let upto = u32::try_from(offset).unwrap_or(u32::MAX);
        let retired = self.forget(segment, before.seq, upto, true, moves.heads).await?;
        if !retired {
            tracing::error!(device = %self.shared.device, segment, live = self.shared.segments().get(segment).live,
                "segment holds needed records that cannot be read; run `quarry disk audit` and repair from replicas");
        }
        Ok(Some(Cleaned { segment, moved: moves.bytes, retired }))
    }

    /// Collects the needed records of a batch, to be moved, and the heads of the others: they are dead, or will be once
    /// the moves are written. Needed records of many batches move in one: a lone small record in a batch of its own
    /// would take more room than it gives back.
    async fn move_live(
        &self,
        segment: u32,
        base: u32,
        batch: &Batch,
        moves: &mut Moves,
    ) -> Result<(), DiskError> {
        for d in &batch.header.records {
            let Some(view) = batch.header.record(&batch.bytes, d) else { continue };
            let at = Location { segment, offset: base + d.offset, len: d.len };
            if self.shared.catalog.is_live(self.index(), &view, at)? {
                let bytes = batch.bytes.slice(d.offset as usize..(d.offset + d.len) as usize);
                // A record that does not verify stays where it is: `retired` will be false.
                let Ok(stored) = StoredRecord::verify(self.shared.device, bytes) else { continue };
                let item = Item { record: NewRecord::verbatim(&stored), from: Some(at) };
                let bytes = item.most_bytes();
                if moves.group.len() == MAX_MOVE_RECORDS || moves.group_bytes + bytes > MAX_GROUP {
                    self.write_moves(moves).await?;
                }
                moves.group.push(item);
                moves.group_bytes += bytes;
                moves.bytes += u64::from(d.len);
            }
            moves.heads.push(head_of(&batch.bytes, d.offset, &view).to_vec());
        }
        Ok(())
    }

    /// Appends what was collected to the cold head and waits until it is durable and applied there.
    async fn write_moves(&self, moves: &mut Moves) -> Result<(), DiskError> {
        let group = std::mem::take(&mut moves.group);
        moves.group_bytes = 0;
        if !group.is_empty() {
            self.append_items(group, Durability::Durable, Class::Cleaner).await?;
        }
        Ok(())
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

/// What a cleaning has found and not yet dealt with.
#[derive(Default)]
struct Moves {
    group: Vec<Item>,
    group_bytes: usize,
    /// Heads to be forgotten once the group is written.
    heads: Vec<Vec<u8>>,
    bytes: u64,
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
