//! The cleaner: moves what is still needed out of a segment, so that the segment can be used again.
//!
//! Invariant: a move is compare-and-set: what was overwritten or deleted meanwhile stays so.
//! Invariant: a segment is retired only with all its needed records moved durably; a segment with a record that is
//! needed and unreadable is never freed (the auditor reports it, a replica repairs it).
//! Invariant: dead records of a segment are forgotten only when nothing in it is needed: they are in the log until it goes.
//! Invariant: a block that cannot be read is tried once or twice in one cleaning, not for each block before it.
//! Invariant: what moves together is written in the order that the catalog gives it: blocks of volumes by volume, era and address.
//! It goes behind the cold head, apart from what clients write.
//! Invariant: at most [`MOVE_MEMORY`] and one batch are held in memory; what is to be moved is written before more is read.

use bytes::Bytes;

use super::format::batch::{BatchHeader, header_len};
use super::format::record::{NewRecord, RecordView, StoredRecord};
use super::format::superblock::COPIES;
use super::handle::DiskHandle;
use super::limits::{
    CLIENT_RESERVE, MAX_BATCH, MAX_BATCH_RECORDS, MAX_GROUP, MAX_MOVE_RECORDS, MOST_TOGETHER, MOVE_MEMORY,
};
use super::segments::{Segment, State};
use super::shared::{Class, Counters, DiskError, Item};
use super::stretch::Stretch;
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
        worth && (segments.can_make_room(size) && short || segments.garbage(size) > total / 4)
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
        let segments = self.shared.segments();
        !self.above_volume_mark()
            && segments.count(State::Free) > short_mark(segments.len())
            && self.has_slack()
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
        self.clean_within(segments, MOVE_MEMORY).await
    }

    /// As [`DiskHandle::clean_together`], in so much memory.
    pub(super) async fn clean_within(
        &self,
        segments: &[u32],
        memory: usize,
    ) -> Result<Vec<Cleaned>, DiskError> {
        // Pinned first, looked at then: it is not recycled under our hands, whoever else cleans it.
        let _pinned = self.pin(segments.to_vec());
        let mut moves = Moves { memory, ..Moves::default() };
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
        moves.parts.push(Part { segment, seq: before.seq, ..Part::default() });
        let mut walk = Walk::of(segment, before, size);
        while let Some((base, batch)) = self.next_batch(&mut walk).await? {
            self.move_live(segment, base, &batch, moves)?;
            if moves.held >= moves.memory {
                self.write_moves(moves).await?;
                moves.shed_heads();
            }
        }
        if let Some(part) = moves.parts.last_mut() {
            part.end = Some(walk.place());
        }
        Ok(())
    }

    /// The next batch of a segment that is walked through, and where it begins.
    async fn next_batch(&self, walk: &mut Walk) -> Result<Option<(u32, Batch)>, DiskError> {
        while walk.offset < walk.end {
            let base = walk.place();
            match self.batch_at(walk).await? {
                Some(batch) => {
                    walk.epoch = batch.header.epoch;
                    walk.offset += u64::from(batch.header.total_len);
                    return Ok(Some((base, batch)));
                }
                None => walk.offset += BLOCK as u64,
            }
        }
        Ok(None)
    }

    /// Collects the needed records of a batch, to be moved, and the heads of the others: they are dead, or will be once
    /// the moves are written. Needed records of many batches move together: a lone small record in a batch of its own
    /// would take more room than it gives back.
    fn move_live(&self, segment: u32, base: u32, batch: &Batch, moves: &mut Moves) -> Result<(), DiskError> {
        for d in &batch.header.records {
            let Some(view) = batch.header.record(&batch.bytes, d) else { continue };
            let at = Location { segment, offset: base + d.offset, len: d.len };
            if self.shared.catalog.is_live(self.index(), &view, at)? {
                let bytes = batch.bytes.slice(d.offset as usize..(d.offset + d.len) as usize);
                // A record that does not verify stays where it is, and the segment with it.
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

    /// Appends what was collected to the cold head, in its order, and waits until it is durable and applied there; then the segments that
    /// were looked through are retired.
    async fn write_moves(&self, moves: &mut Moves) -> Result<(), DiskError> {
        let items = std::mem::take(&mut moves.items);
        self.append_moves(items).await?;
        moves.held = 0;
        for part in std::mem::take(&mut moves.parts) {
            match part.end {
                Some(end) => {
                    let (segment, moved) = (part.segment, part.bytes);
                    let retired = self.retire(part, end).await?;
                    moves.cleaned.push(Cleaned { segment, moved, retired });
                }
                None => {
                    moves.held += part.head_bytes;
                    moves.parts.push(part);
                }
            }
        }
        Ok(())
    }

    /// Forgets the dead records of a segment out of which all was moved that could be read, and retires it, unless something in it is
    /// needed still.
    async fn retire(&self, part: Part, end: u32) -> Result<bool, DiskError> {
        let Part { segment, seq, heads, .. } = part;
        let heads = match heads {
            Some(heads) => heads,
            None => {
                self.forget_anew(segment, seq).await?;
                Vec::new()
            }
        };
        self.forget(segment, seq, end, true, heads).await
    }

    /// Reads a segment once more that has more heads than are kept, and forgets its records bit by bit.
    async fn forget_anew(&self, segment: u32, seq: u64) -> Result<(), DiskError> {
        let before = self.shared.segments().get(segment);
        if before.seq != seq || before.state != State::Sealed || before.live > 0 {
            return Ok(());
        }
        let mut walk = Walk::of(segment, before, self.shared.layout.segment_size);
        let (mut heads, mut bytes) = (Vec::new(), 0);
        while let Some((_, batch)) = self.next_batch(&mut walk).await? {
            for d in &batch.header.records {
                if let Some(view) = batch.header.record(&batch.bytes, d) {
                    let head = head_of(&batch.bytes, d.offset, &view);
                    bytes += head.len() + HELD_AROUND;
                    heads.push(head.to_vec());
                }
            }
            if bytes >= MOVE_MEMORY / 2 {
                self.forget(segment, seq, walk.place(), false, std::mem::take(&mut heads)).await?;
                bytes = 0;
            }
        }
        self.forget(segment, seq, walk.place(), false, heads).await.map(drop)
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

    /// The batch where a walk is, if there is one.
    async fn batch_at(&self, walk: &mut Walk) -> Result<Option<Batch>, DiskError> {
        let size = self.shared.layout.segment_size;
        let Walk { segment, seq, offset, epoch, .. } = *walk;
        let mut bytes = match walk.known() {
            Some(bytes) => bytes,
            None => {
                let len = usize::try_from(READ_AHEAD.min(size - offset)).unwrap_or(BLOCK);
                walk.read = (offset, self.read_what_is_readable(segment, offset, len).await?);
                walk.read.1.clone()
            }
        };
        let Ok(header) = BatchHeader::decode(&bytes) else { return Ok(None) };
        let total = header.total_len as usize;
        let ours = header.belongs_to(self.shared.device, segment, seq) && header.epoch >= epoch;
        if !ours || total > MAX_BATCH || offset + total as u64 > size {
            return Ok(None);
        }
        if total > bytes.len() {
            bytes = self.read_what_is_readable(segment, offset, total).await?;
        }
        Ok(Some(Batch { header, bytes }))
    }

    /// As [`DiskHandle::read_raw`], with zeros for the blocks that the medium cannot read: what lies there does not verify, and stays where
    /// it is; all else is moved.
    async fn read_what_is_readable(&self, segment: u32, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let start = self.shared.layout.segment_start(segment);
        let failed = |e: std::io::Error| {
            let at = Location { segment, offset: u32::try_from(offset).unwrap_or(u32::MAX), len: 0 };
            DiskError::Io { at, kind: e.kind() }
        };
        match self.read_raw(start + offset, len).await? {
            Err(e) if is_bad_sector(&e) => {}
            other => return other.map_err(failed),
        }
        let mut stretch = Stretch::new(len);
        while let Some(at) = stretch.next() {
            let block = BLOCK.min(len - at);
            match self.read_raw(start + offset + at as u64, block).await? {
                Ok(block) => stretch.read(at, &block),
                Err(e) if is_bad_sector(&e) => stretch.failed(at),
                Err(e) => return Err(failed(e)),
            }
        }
        if stretch.nothing_read() {
            // Either a long bad stretch, or the device answers nothing now, which is to be tried again, not remembered: then neither superblock
            // can be read, or by now it answers here.
            let [first, second] = COPIES;
            if self.read_raw(first, BLOCK).await?.is_err() {
                self.read_raw(second, BLOCK).await?.map_err(failed)?;
            }
            if self.read_raw(start + offset, BLOCK).await?.is_ok() {
                return Err(failed(std::io::Error::other("it can be read again")));
            }
        }
        Ok(stretch.bytes.freeze())
    }
}

/// A walk through the batches of a segment.
struct Walk {
    segment: u32,
    seq: u64,
    offset: u64,
    end: u64,
    /// Opening of the device that wrote the last batch.
    epoch: u64,
    /// What was read last, and from where on.
    read: (u64, Bytes),
}

impl Walk {
    /// From where its records were not forgotten.
    fn of(segment: u32, known: Segment, size: u64) -> Self {
        let end = if known.end == 0 { size } else { u64::from(known.end) };
        let offset = u64::from(known.retired_to).max(BLOCK as u64);
        Self { segment, seq: known.seq, offset, end, epoch: 0, read: (0, Bytes::new()) }
    }

    fn place(&self) -> u32 {
        u32::try_from(self.offset).unwrap_or(u32::MAX)
    }

    /// What was read of where it is, unless a header begins there of which only a part was.
    fn known(&self) -> Option<Bytes> {
        let (from, bytes) = &self.read;
        let at = usize::try_from(self.offset.checked_sub(*from)?).ok()?;
        let known = bytes.get(at..).filter(|known| !known.is_empty())?;
        let whole = BatchHeader::stated_len(known).is_none_or(|header| header <= known.len());
        whole.then(|| bytes.slice(at..))
    }
}

/// A record on the move, and its place in the order of those that move together.
pub(crate) type Move = (Option<Vec<u8>>, Item);

/// What a cleaning has found and not yet dealt with.
#[derive(Default)]
struct Moves {
    items: Vec<Move>,
    /// Segments that are looked through, or were and are not retired yet.
    parts: Vec<Part>,
    /// Bytes of memory in both, and how many there may be.
    held: usize,
    memory: usize,
    cleaned: Vec<Cleaned>,
}

/// A segment that is looked through.
struct Part {
    segment: u32,
    seq: u64,
    /// Where it ends, once all of it was looked at.
    end: Option<u32>,
    /// Heads to be forgotten once what is needed is written elsewhere; `None`: they are too many, and are read again then.
    heads: Option<Vec<Vec<u8>>>,
    head_bytes: usize,
    /// Bytes to be moved.
    bytes: u64,
}

impl Default for Part {
    fn default() -> Self {
        Self { segment: 0, seq: 0, end: None, heads: Some(Vec::new()), head_bytes: 0, bytes: 0 }
    }
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
        if let Some(part) = self.parts.last_mut()
            && let Some(heads) = &mut part.heads
        {
            let bytes = head.len() + HELD_AROUND;
            self.held += bytes;
            part.head_bytes += bytes;
            heads.push(head.to_vec());
        }
    }

    /// Lets go of heads that would leave too little room for what is moved.
    fn shed_heads(&mut self) {
        if let Some(part) = self.parts.last_mut()
            && part.head_bytes >= self.memory / 2
        {
            self.held -= part.head_bytes;
            (part.heads, part.head_bytes) = (None, 0);
        }
    }
}

/// Bytes of a segment that are read at once.
const READ_AHEAD: u64 = 256 << 10;
const _: () = assert!(READ_AHEAD >= header_len(MAX_BATCH_RECORDS, MAX_BATCH_RECORDS) as u64);

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
