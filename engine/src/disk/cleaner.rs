//! The cleaner: moves what is still needed out of a segment, so that the segment can be used again.
//!
//! Invariant: a move is compare-and-set: what was overwritten or deleted meanwhile stays so.
//! Invariant: a segment is retired only with all its needed records moved durably; a segment with a record that is
//! needed and unreadable is never freed (the auditor reports it, a replica repairs it).
//! Invariant: what moves together is written in the order that the catalog gives it: blocks of volumes by volume, era and address.
//! It goes behind the cold head, apart from what clients write.
//! Invariant: at most [`MOVE_MEMORY`] and one batch are held in memory; what is held is written and forgotten before more is read.

use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};

use super::format::batch::BatchHeader;
use super::format::record::{NewRecord, RecordView, StoredRecord};
use super::handle::DiskHandle;
use super::limits::{
    CLIENT_RESERVE, MAX_BATCH, MAX_GROUP, MAX_MOVE_RECORDS, MOST_TOGETHER, MOVE_MEMORY, VOLUME_HIGH_WATER,
};
use super::segments::{Segment, State};
use super::shared::{Class, Counters, DiskError, Item};
use super::upkeep::is_bad_sector;
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

/// Free segments, of so many, at which space is short.
fn short_mark(segments: usize) -> usize {
    (segments / 8).max(CLIENT_RESERVE + 2)
}

impl DiskHandle {
    /// Whether cleaning is worth while now: free space is short and garbage can be turned into it, or a quarter of the
    /// disk is garbage. Clients that wait for space wait for this, so it is true whenever they are not refused.
    #[must_use]
    pub fn wants_cleaning(&self) -> bool {
        let (size, total) = (self.shared.layout.segment_size, self.shared.layout.usable());
        let segments = self.shared.segments();
        let short = segments.count(State::Free) <= short_mark(segments.len());
        let worth = segments.iter().any(|(_, s)| s.is_worth_cleaning(size));
        worth && (segments.can_make_room(size) && short || segments.reclaimable(size) > total / 4)
    }

    /// Whether so few segments are free that clients will soon wait for the cleaner, or wait for each write as nothing is certain to
    /// have a place: half of those at which it begins.
    #[must_use]
    pub fn is_pressed_for_space(&self) -> bool {
        let segments = self.shared.segments();
        let half = (short_mark(segments.len()) + CLIENT_RESERVE) / 2;
        segments.count(State::Free) <= half || !self.has_slack()
    }

    /// Whether there is room to move what is needed for its order alone: free space is not short, and the disk not full.
    #[must_use]
    pub fn has_room_for_order(&self) -> bool {
        let usable = self.shared.layout.usable();
        let full = self.shared.live.load(Ordering::Relaxed) > usable / 100 * VOLUME_HIGH_WATER;
        let segments = self.shared.segments();
        !full && segments.count(State::Free) > short_mark(segments.len()) && self.has_slack()
    }

    /// The segment with the most to gain, if any has garbage worth a move.
    #[must_use]
    pub fn victim(&self, skip: &[u32]) -> Option<u32> {
        self.victims(skip).first().copied()
    }

    /// Segments to clean together: the one with the most to gain, and others of its kind, as long as memory and free space hold
    /// what is needed in all of them. What lies near one another in a volume meets there.
    #[must_use]
    pub fn victims(&self, skip: &[u32]) -> Vec<u32> {
        let size = self.shared.layout.segment_size;
        let segments = self.shared.segments();
        let newest = segments.iter().map(|(_, s)| s.seq).max().unwrap_or(0);
        let worth = |(number, s): &(u32, Segment)| s.is_worth_cleaning(size) && !skip.contains(number);
        let mut worth: Vec<(u32, Segment)> = segments.iter().filter(worth).collect();
        worth.sort_by_key(|(number, s)| (std::cmp::Reverse(benefit(s, newest, size)), *number));
        let Some((first, best)) = worth.first().copied() else { return Vec::new() };
        let spare = segments.count(State::Free).saturating_sub(CLIENT_RESERVE) as u64 * size / 2;
        let most = (segments.len() / 16).clamp(1, MOST_TOGETHER);
        let (mut chosen, mut live) = (vec![first], best.live);
        for (number, s) in worth.into_iter().skip(1).filter(|(_, s)| s.class == best.class) {
            if chosen.len() < most && live + s.live <= spare.min(MOVE_MEMORY as u64) {
                chosen.push(number);
                live += s.live;
            }
        }
        chosen
    }

    /// Cleans one segment; `None` when it is not sealed any more.
    pub async fn clean(&self, segment: u32) -> Result<Option<Cleaned>, DiskError> {
        Ok(self.clean_together(&[segment]).await?.pop())
    }

    /// Cleans segments, and writes what is needed of them in its order; those that are not sealed any more are left out.
    pub async fn clean_together(&self, segments: &[u32]) -> Result<Vec<Cleaned>, DiskError> {
        // Pinned first, looked at then: it is not recycled under our hands, whoever else cleans it.
        let _pinned = self.pin(segments.to_vec());
        let mut moves = Moves::default();
        for segment in segments {
            self.look_through(*segment, &mut moves).await?;
        }
        self.write_moves(&mut moves).await?;
        for Cleaned { segment, .. } in moves.cleaned.iter().filter(|cleaned| !cleaned.retired) {
            tracing::error!(device = %self.shared.device, segment, live = self.shared.segments().get(*segment).live,
                "segment holds needed records that cannot be read; run `quarry disk audit` and repair from replicas");
        }
        Ok(moves.cleaned)
    }

    /// Looks at all batches of a segment.
    async fn look_through(&self, segment: u32, moves: &mut Moves) -> Result<(), DiskError> {
        let size = self.shared.layout.segment_size;
        let before = self.shared.segments().get(segment);
        if before.state != State::Sealed {
            return Ok(());
        }
        let end = if before.end == 0 { size } else { u64::from(before.end) };
        let mut offset = u64::from(before.retired_to).max(BLOCK as u64);
        let mut epoch = 0;
        moves.parts.push(Part { segment, seq: before.seq, ..Part::default() });
        while offset < end {
            let Some(batch) = self.batch_at(segment, before.seq, offset, epoch).await? else {
                offset += BLOCK as u64;
                continue;
            };
            epoch = batch.header.epoch;
            let base = u32::try_from(offset).unwrap_or(u32::MAX);
            self.move_live(segment, base, &batch, moves).await?;
            offset += u64::from(batch.header.total_len);
            moves.looked_to(offset);
            if moves.held >= MOVE_MEMORY {
                self.write_moves(moves).await?;
                moves.parts.push(Part { segment, seq: before.seq, ..Part::default() });
            }
        }
        moves.looked_to(offset);
        if let Some(part) = moves.parts.last_mut() {
            part.last = true;
        }
        Ok(())
    }

    /// Collects the needed records of a batch, to be moved, and the heads of the others: they are dead, or will be once
    /// the moves are written. Needed records of many batches move together: a lone small record in a batch of its own
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
                moves.add(self.moves_of(&stored, at)?);
            }
            moves.forget(head_of(&batch.bytes, d.offset, &view));
        }
        Ok(())
    }

    /// What moves a needed record: the record, or parts of it; each with its place in the order of all.
    pub(crate) fn moves_of(&self, stored: &StoredRecord, at: Location) -> Result<Vec<Move>, DiskError> {
        let catalog = &self.shared.catalog;
        let parts = catalog.remains(self.index(), self.shared.device, stored, at)?;
        let records = match parts {
            Some(parts) => {
                Counters::add(&self.shared.counters.cut_records, 1);
                parts
            }
            // Not a slice of what was read, which is more.
            None => vec![NewRecord::verbatim(&stored.apart())],
        };
        let ordered = |record: NewRecord| (catalog.order(&record.view()), Item { record, from: Some(at) });
        Ok(records.into_iter().map(ordered).collect())
    }

    /// Appends what was collected to the cold head, in its order, and waits until it is durable and applied there; then what was
    /// looked at is forgotten.
    async fn write_moves(&self, moves: &mut Moves) -> Result<(), DiskError> {
        let items = std::mem::take(&mut moves.items);
        self.append_moves(items).await?;
        moves.held = 0;
        for Part { segment, seq, upto, last, heads, bytes } in std::mem::take(&mut moves.parts) {
            moves.bytes += bytes;
            let retired = self.forget(segment, seq, upto, last, heads).await?;
            if last {
                let moved = std::mem::take(&mut moves.bytes);
                moves.cleaned.push(Cleaned { segment, moved, retired });
            }
        }
        Ok(())
    }

    /// Appends moves in their order, as many together as there may be.
    pub(crate) async fn append_moves(&self, mut moves: Vec<Move>) -> Result<(), DiskError> {
        // What has no order stays as it came.
        moves.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (mut group, mut group_bytes) = (Vec::new(), 0);
        for (_, item) in moves {
            let bytes = item.most_bytes();
            if group.len() == MAX_MOVE_RECORDS || group_bytes + bytes > MAX_GROUP {
                let full = std::mem::take(&mut group);
                self.append_items(full, Durability::Durable, Class::Cleaner).await?;
                group_bytes = 0;
            }
            group_bytes += bytes;
            group.push(item);
        }
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
        let mut bytes = self.read_what_is_readable(start, len).await?.map_err(failed)?;
        let Ok(header) = BatchHeader::decode(&bytes) else { return Ok(None) };
        let total = header.total_len as usize;
        let ours = header.belongs_to(self.shared.device, segment, seq) && header.epoch >= epoch;
        if !ours || total > MAX_BATCH || offset + total as u64 > size {
            return Ok(None);
        }
        if total > bytes.len() {
            bytes = self.read_what_is_readable(start, total).await?.map_err(failed)?;
        }
        Ok(Some(Batch { header, bytes }))
    }

    /// As [`DiskHandle::read_raw`], with zeros for the blocks that the medium cannot read: what lies there does not verify, and stays where
    /// it is; all else is moved.
    async fn read_what_is_readable(
        &self,
        start: u64,
        len: usize,
    ) -> Result<std::io::Result<Bytes>, DiskError> {
        match self.read_raw(start, len).await? {
            Err(e) if is_bad_sector(&e) => {}
            other => return Ok(other),
        }
        let (mut whole, mut read, mut failed) = (BytesMut::with_capacity(len), 0, None);
        for at in (0..len).step_by(BLOCK) {
            match self.read_raw(start + at as u64, BLOCK.min(len - at)).await? {
                Ok(block) => {
                    read += 1;
                    whole.extend_from_slice(&block);
                }
                Err(e) if is_bad_sector(&e) => {
                    failed = Some(e);
                    whole.put_bytes(0, BLOCK.min(len - at));
                }
                Err(e) => return Ok(Err(e)),
            }
        }
        // Nothing of it: the device answers nothing now, which is to be tried again, not remembered.
        Ok(failed.filter(|_| read == 0).map_or_else(|| Ok(whole.freeze()), Err))
    }
}

/// A record on the move, and its place in the order of those that move together.
pub(crate) type Move = (Option<Vec<u8>>, Item);

/// What a cleaning has found and not yet dealt with.
#[derive(Default)]
struct Moves {
    items: Vec<Move>,
    /// What has been looked at, segment by segment.
    parts: Vec<Part>,
    /// Bytes of memory in both.
    held: usize,
    /// Moved out of the segment that is at its end next.
    bytes: u64,
    cleaned: Vec<Cleaned>,
}

/// A stretch of a segment that has been looked at.
#[derive(Default)]
struct Part {
    segment: u32,
    seq: u64,
    upto: u32,
    /// The segment ends there.
    last: bool,
    /// Heads to be forgotten once what is needed is written elsewhere.
    heads: Vec<Vec<u8>>,
    /// Bytes to be moved.
    bytes: u64,
}

impl Moves {
    fn add(&mut self, moves: Vec<Move>) {
        for (order, item) in moves {
            let bytes = item.record.stored_len();
            self.held += bytes + order.as_ref().map_or(0, Vec::len) + HELD_AROUND;
            if let Some(part) = self.parts.last_mut() {
                part.bytes += bytes as u64;
            }
            self.items.push((order, item));
        }
    }

    fn forget(&mut self, head: &[u8]) {
        self.held += head.len() + HELD_AROUND;
        if let Some(part) = self.parts.last_mut() {
            part.heads.push(head.to_vec());
        }
    }

    fn looked_to(&mut self, offset: u64) {
        if let Some(part) = self.parts.last_mut() {
            part.upto = u32::try_from(offset).unwrap_or(u32::MAX);
        }
    }
}

/// Bytes that a record takes in memory beside its own.
const HELD_AROUND: usize = 96;

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
