//! Rebuild of the index from the segments, by their footers where they have one.
//!
//! Invariant: the result does not depend on what was in the old index.
//! Invariant: a record that does not verify is left out and counted; a rebuild never stops for one.

use std::collections::HashSet;

use super::Location;
use super::apply::commit;
use super::batching::Placed;
use super::catalog::{Catalog, Tx};
use super::fence::{Tail, erase, promised, settle, unpromised};
use super::format::record::{DeviceId, RecordView};
use super::format::superblock::Layout;
use super::limits::MAX_RECORD;
use super::recovery::{RecoveryError, max_sequence};
use super::segments::{Position, Segment, SegmentMap, State};
use super::tallies::Tallies;
use super::window::{At, SegmentUse, Window};
use crate::index::Index;
use crate::io::{BLOCK, Disk};

const TX_RECORDS: usize = 1000;
/// Mean record size from which heads are read one by one.
const SEPARATE_READS_FROM: usize = 128 << 10;
const READ_AHEAD: usize = 4 << 20;
const _: () = assert!(READ_AHEAD > MAX_RECORD + BLOCK);

/// What a rebuild came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Segments that hold something.
    pub segments: u32,
    /// Of these, read by their footers.
    pub by_footer: u32,
    /// Records entered.
    pub records: u64,
    /// Records that do not verify, and stretches without a readable batch.
    pub damaged: u64,
}

/// What a rebuild works on. The index is empty.
pub(crate) struct Rebuild<'a> {
    pub(crate) disk: &'a mut dyn Disk,
    pub(crate) layout: Layout,
    pub(crate) device: DeviceId,
    pub(crate) index: &'a dyn Index,
    pub(crate) catalog: &'a dyn Catalog,
    /// All zero.
    pub(crate) tallies: &'a Tallies,
    pub(crate) progress: &'a mut dyn FnMut(u64, u64),
}

impl Rebuild<'_> {
    /// Reads every segment in use and enters its records. Nothing is appended to old segments afterwards.
    pub(crate) fn run(mut self) -> Result<(SegmentMap, Position, Rebuilt), RecoveryError> {
        let mut segments = SegmentMap::new(self.layout);
        let mut position = Position { next_seq: 1, ..Position::default() };
        let mut in_use = self.in_use(&mut position)?;
        in_use.sort_unstable_by_key(|header| header.seq);
        let unfooted = self.drop_unpromised(&in_use, &mut position)?;
        let mut result = Rebuilt::default();
        let total = in_use.len() as u64;
        for (done, header) in in_use.iter().enumerate() {
            (self.progress)(done as u64, total);
            let by_footer = !unfooted.contains(&header.segment);
            self.segment(header, by_footer, &mut segments, &mut position, &mut result)?;
        }
        let mut tx = Tx::new(self.index);
        self.catalog.rebuilt(&mut tx)?;
        let all: Vec<u32> = segments.iter().map(|(segment, _)| segment).collect();
        commit(self.index, &mut segments, self.tallies, tx.finish(), &all)?;
        (self.progress)(total, total);
        Ok((segments, position, result))
    }

    /// The segments that hold something. The sequences of freed ones are used up as well: footers of theirs lie around.
    fn in_use(&mut self, position: &mut Position) -> Result<Vec<SegmentUse>, RecoveryError> {
        let mut out = Vec::new();
        for segment in 0..self.layout.segments {
            let used = Window::new(self.disk, self.layout, self.device, segment).identify()?;
            position.next_seq = used.map_or(0, |used| used.seq + 1).max(position.next_seq);
            out.extend(used.filter(|used| !used.freed));
        }
        Ok(out)
    }

    /// Destroys the batches that replay would not take either: written, but neither acknowledged nor following on what
    /// was. Returns the segments that are to be read batch by batch.
    fn drop_unpromised(
        &mut self,
        in_use: &[SegmentUse],
        position: &mut Position,
    ) -> Result<HashSet<u32>, RecoveryError> {
        let (mut tails, mut footed, mut unfooted) = (Vec::new(), Vec::new(), HashSet::new());
        for used in in_use {
            let mut window = Window::new(self.disk, self.layout, self.device, used.segment);
            match window.trailer(used.seq)? {
                Some(trailer) => footed.push((used, trailer.end_lsn)),
                None => {
                    self.tails(used, &mut tails)?;
                    unfooted.insert(used.segment);
                }
            }
        }
        // A footer is written with the batch after its segment: it says nothing of what was durable.
        let durable = promised(&tails);
        for (used, _) in footed.iter().filter(|(_, end_lsn)| *end_lsn > durable + 1) {
            self.tails(used, &mut tails)?;
            unfooted.insert(used.segment);
        }
        let dropped = unpromised(&tails);
        for tail in dropped.iter().filter_map(|i| tails.get(*i)) {
            erase(self.disk, self.layout, tail.segment, tail.offset)?;
            if footed.iter().any(|(used, _)| used.segment == tail.segment) {
                let trailer = self.layout.segment_size - BLOCK as u64;
                erase(self.disk, self.layout, tail.segment, trailer)?;
            }
        }
        if !dropped.is_empty() {
            settle(self.disk)?;
        }
        position.applied = tails.iter().map(|t| t.end - 1).max().unwrap_or(0).max(durable);
        Ok(unfooted)
    }

    fn tails(&mut self, used: &SegmentUse, tails: &mut Vec<Tail>) -> Result<(), RecoveryError> {
        let SegmentUse { segment, seq, .. } = *used;
        let mut window = Window::new(self.disk, self.layout, self.device, segment);
        window.walk(seq, None, |at, offset| {
            let (header, hash, whole) = match &at {
                At::Whole(found) => (&found.header, found.hash, true),
                At::Flawed { found, .. } => (&found.header, found.hash, false),
                At::Nothing => return,
            };
            tails.push(Tail {
                segment,
                offset,
                first: header.first_lsn,
                end: header.end_lsn(),
                durable: header.durable_lsn,
                epoch: header.epoch,
                hash,
                prev_hash: header.prev_hash,
                whole,
            });
        })?;
        Ok(())
    }

    fn segment(
        &mut self,
        header: &SegmentUse,
        by_footer: bool,
        segments: &mut SegmentMap,
        position: &mut Position,
        result: &mut Rebuilt,
    ) -> Result<(), RecoveryError> {
        let (segment, seq) = (header.segment, header.seq);
        *segments.get_mut(segment) =
            Segment { state: State::Sealed, class: Some(header.class), seq, ..Segment::default() };
        position.next_seq = position.next_seq.max(seq + 1);
        result.segments += 1;
        let mut batch: Vec<Placed> = Vec::new();
        let mut window = Window::new(self.disk, self.layout, self.device, segment);
        let footer = if by_footer { window.footer(seq)? } else { None };
        let (end, end_lsn) = if let Some(footer) = footer {
            result.by_footer += 1;
            // Heads lie close together where records are small: then reading everything in order is faster.
            let mean = footer.end as usize / footer.entries.len().max(1);
            let mut window = None;
            for entry in &footer.entries {
                let at = Location { segment, offset: entry.offset, len: entry.len };
                let head = if mean < SEPARATE_READS_FROM {
                    self.head_in_window(&mut window, at, entry.head_len)?
                } else {
                    self.head(at, entry.head_len)?
                };
                match head {
                    Some(head) => batch.push(Placed { head, at, from: None }),
                    None => result.damaged += 1,
                }
                self.enter(&mut batch, segments, position, result, TX_RECORDS)?;
            }
            (footer.end, footer.end_lsn)
        } else {
            let mut pieces = Vec::new();
            let mut window = Window::new(self.disk, self.layout, self.device, segment);
            let mut damaged = 0;
            let walked = window.walk(seq, None, |at, _| match at {
                At::Whole(found) => pieces.extend(found.records),
                // What has a sound head counts, as by a footer: else an older record of its key would stand in its place.
                At::Flawed { found, damaged: bad } => {
                    damaged += bad.len() as u64;
                    pieces.extend(found.records);
                }
                At::Nothing => {}
            })?;
            result.damaged += damaged + u64::from(walked.skipped > 0);
            for mut placed in pieces {
                placed.from = None;
                batch.push(placed);
                self.enter(&mut batch, segments, position, result, TX_RECORDS)?;
            }
            (u32::try_from(walked.end).unwrap_or(u32::MAX), walked.end_lsn)
        };
        self.enter(&mut batch, segments, position, result, 1)?;
        segments.get_mut(segment).end = end;
        position.applied = position.applied.max(end_lsn.saturating_sub(1));
        Ok(())
    }

    fn head_in_window(
        &mut self,
        held: &mut Option<(u64, crate::io::AlignedBuf)>,
        at: Location,
        head_len: u32,
    ) -> Result<Option<Vec<u8>>, RecoveryError> {
        let (from, to) = (u64::from(at.offset), u64::from(at.offset) + u64::from(head_len));
        let inside =
            |held: &(u64, crate::io::AlignedBuf)| from >= held.0 && to <= held.0 + held.1.len() as u64;
        if !held.as_ref().is_some_and(inside) {
            let start = from / BLOCK as u64 * BLOCK as u64;
            let len = (self.layout.segment_size - start).min(READ_AHEAD as u64);
            let len = usize::try_from(len).unwrap_or(READ_AHEAD);
            let device_at = self.layout.segment_start(at.segment) + start;
            *held = Some((start, super::upkeep::read_what_can_be(self.disk, device_at, len)?));
        }
        let Some((start, bytes)) = held.as_ref() else { return Ok(None) };
        let skip = usize::try_from(from - start).unwrap_or(usize::MAX);
        let head = bytes.get(skip..).and_then(|b| b.get(..head_len as usize));
        Ok(head.filter(|head| sound_head(head, self.device, at)).map(<[u8]>::to_vec))
    }

    /// The verified head of a record, by a read of its own; `None` when it does not verify.
    fn head(&mut self, at: Location, head_len: u32) -> Result<Option<Vec<u8>>, RecoveryError> {
        let start = self.layout.segment_start(at.segment) + u64::from(at.offset);
        let lead = start % BLOCK as u64;
        let lead_len = usize::try_from(lead).unwrap_or(0);
        let len = (lead_len + head_len as usize).next_multiple_of(BLOCK).min(MAX_RECORD + 2 * BLOCK);
        let block = super::upkeep::read_what_can_be(self.disk, start - lead, len)?;
        let head = block.get(lead_len..).and_then(|b| b.get(..head_len as usize));
        Ok(head.filter(|head| sound_head(head, self.device, at)).map(<[u8]>::to_vec))
    }

    fn enter(
        &mut self,
        batch: &mut Vec<Placed>,
        segments: &mut SegmentMap,
        position: &mut Position,
        result: &mut Rebuilt,
        least: usize,
    ) -> Result<(), RecoveryError> {
        if batch.len() < least {
            return Ok(());
        }
        let mut tx = Tx::new(self.index);
        for placed in batch.iter() {
            let Ok(view) = RecordView::parse(&placed.head) else {
                unreachable!("heads were verified when they were read")
            };
            self.catalog.apply(&mut tx, &view, placed.at)?;
        }
        position.max_sequence = position.max_sequence.max(max_sequence(batch));
        result.records += batch.len() as u64;
        commit(self.index, segments, self.tallies, tx.finish(), &[])?;
        batch.clear();
        Ok(())
    }
}

fn sound_head(head: &[u8], device: DeviceId, at: Location) -> bool {
    RecordView::parse(head)
        .is_ok_and(|view| view.stored_len() == at.len as usize && view.check_head(device).is_ok())
}
