//! Recovery: from the index's position to the end of the log.
//!
//! | what lies at the expected place                          | what lies further on              | action                     |
//! |----------------------------------------------------------|-----------------------------------|----------------------------|
//! | the next batch, whole, chained to the last               | -                                 | apply it, go on            |
//! | nothing, or a batch that is damaged or not chained        | no batch claims durability past it | torn tail: the log ends, leftovers are destroyed |
//! | the next batch, chained to the last, all heads sound      | a batch that claims its durability | report what has damaged data, apply all |
//! | nothing, or a batch that is damaged or not chained        | a batch that claims durability     | rot: report the gap, resume|
//!
//! Invariant: recovery applies exactly what live operation would have applied, batch by batch with its position.
//! Invariant: a record that was acknowledged as durable is applied or reported lost; never dropped in silence.

use std::collections::HashMap;
use std::ops::Range;

use super::apply::apply_records;
use super::batching::{Head, Placed};
use super::catalog::Catalog;
use super::fence::{erase, fence_tail, settle};
use super::format::batch::{BatchHeader, HeadClass};
use super::format::record::{DeviceId, RecordView};
use super::format::superblock::Layout;
use super::segments::{HeadPosition, Position, SegmentMap, State};
use super::tallies::Tallies;
use super::upkeep::{is_bad_sector, read_now};
use super::window::{At, Damaged, Found, Held, Window, entry};
use super::{Location, Lsn};
use crate::index::{Index, IndexError};
use crate::io::{BLOCK, Disk};

/// What recovery did, for the log line and for tests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed.
    pub records: u64,
    /// Acknowledged records that cannot be read any more, by LSN. Empty unless the disk lied or rotted.
    pub lost: Vec<Range<Lsn>>,
    /// Of some of these not even the heads can be read: whose they were nobody can say, and whoever looks for them finds that they never were.
    pub nameless: bool,
    /// The log ended in a batch that was never acknowledged.
    pub torn_tail: bool,
    /// Records that a rebuild found damaged, and stretches in which it found nothing readable.
    pub damaged: u64,
    /// The index was made anew from the segments.
    pub rebuilt: Option<&'static str>,
}

/// Why recovery gave up. The device is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The device could not be read.
    #[error("read log: {0}")]
    Io(#[from] std::io::Error),
    /// The index could not be read or changed.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// The decision at a place where the expected batch is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Nothing was promised past here.
    TornTail,
    /// Resume at the batch that begins with this LSN; what lies between is lost.
    Rot {
        /// First LSN that can be read again.
        resume: Lsn,
    },
}

/// Decides over a gap at `expected`: the batches beyond it claim that everything up to `promised` was durable (the word of
/// a batch whose header verifies counts, even where a record of it does not), and `whole` ones begin at these LSNs.
#[must_use]
pub fn judge_gap(expected: Lsn, promised: Lsn, whole: &[Lsn]) -> Gap {
    if promised < expected {
        return Gap::TornTail;
    }
    let resume = whole.iter().copied().filter(|first| *first > expected).min();
    Gap::Rot { resume: resume.unwrap_or(promised + 1) }
}

/// Windows kept at a time.
const HELD: usize = 3;

/// What lies behind the places where the next batch could lie.
#[derive(Default)]
struct Beyond {
    /// Up to here everything was durable, they say.
    promised: Lsn,
    /// Where whole ones begin.
    whole: Vec<Lsn>,
    /// There is anything at all of this use of those segments.
    leftovers: bool,
}

/// State of a replay.
pub(crate) struct Replay<'a> {
    pub(crate) disk: &'a mut dyn Disk,
    pub(crate) layout: Layout,
    pub(crate) device: DeviceId,
    pub(crate) index: &'a dyn Index,
    pub(crate) catalog: &'a dyn Catalog,
    pub(crate) segments: &'a mut SegmentMap,
    pub(crate) tallies: &'a Tallies,
    pub(crate) position: Position,
    /// It was closed: nothing was on its way.
    pub(crate) clean: bool,
    /// What was read of the segments that the heads stand in.
    pub(crate) held: HashMap<u32, Held>,
}

/// A batch that could be next, and the segment it opens if it does.
struct Candidate {
    class: HeadClass,
    seq: u64,
    opens: bool,
    found: Found,
}

impl Replay<'_> {
    /// Replays up to the end of the log.
    pub(crate) fn run(&mut self) -> Result<Report, RecoveryError> {
        let mut report = Report::default();
        loop {
            let expected = self.position.applied + 1;
            let hash = self.position.prev_hash;
            if let Some(next) = self.find(|f| f.header.first_lsn == expected && f.header.prev_hash == hash)? {
                self.replay(&next, &mut report)?;
                continue;
            }
            let Beyond { promised, whole, leftovers } = self.beyond(expected)?;
            match judge_gap(expected, promised, &whole) {
                Gap::TornTail => {
                    report.torn_tail = self.something_lies_at_a_head()?;
                    let unreadable = self.unreadable_heads()?;
                    if !unreadable.is_empty() && !self.clean {
                        // It may have been promised: who could have said so cannot be read either.
                        report.lost.push(expected..expected + 1);
                        report.nameless = true;
                    }
                    self.fence(leftovers, &unreadable)?;
                    return Ok(report);
                }
                Gap::Rot { resume } => {
                    if let Some((next, damaged)) = self.find_flawed(expected, promised)? {
                        report.lost.extend(damaged.iter().map(|record| record.lsn..record.lsn + 1));
                        self.replay(&next, &mut report)?;
                        continue;
                    }
                    report.lost.push(expected..resume);
                    report.nameless = true;
                    match self.find_further(resume)? {
                        Some(next) => self.replay(&next, &mut report)?,
                        // Nothing whole comes behind: the log ends here, its lost numbers are not given out again.
                        None => self.position.applied = resume - 1,
                    }
                }
            }
        }
    }

    /// The places where the next batch can lie: where the heads stand, and the start of each reserved segment.
    fn places(&mut self) -> Result<Vec<(HeadClass, HeadPosition, bool)>, RecoveryError> {
        let mut places: Vec<_> = HeadClass::ALL
            .into_iter()
            .filter_map(|class| self.position.heads[class as usize].map(|head| (class, head, false)))
            .collect();
        for segment in self.position.reserved.clone() {
            let used = Window::new(self.disk, self.layout, self.device, segment).in_use()?;
            if let Some(used) = used.filter(|used| used.seq >= self.position.next_seq) {
                let offset = u32::try_from(BLOCK).unwrap_or(u32::MAX);
                places.push((used.class, HeadPosition { segment, seq: used.seq, offset }, true));
            }
        }
        Ok(places)
    }

    fn find(&mut self, wanted: impl Fn(&Found) -> bool) -> Result<Option<Candidate>, RecoveryError> {
        // The heads first: only a head that has nothing more makes a look at the reserved segments worth its reads.
        for class in HeadClass::ALL {
            let Some(head) = self.position.heads[class as usize] else { continue };
            if let Some(found) = self.look(head, &wanted)? {
                return Ok(Some(Candidate { class, seq: head.seq, opens: false, found }));
            }
        }
        for (class, place, opens) in self.places()?.into_iter().filter(|(_, _, opens)| *opens) {
            if let Some(found) = self.look(place, &wanted)? {
                return Ok(Some(Candidate { class, seq: place.seq, opens, found }));
            }
        }
        Ok(None)
    }

    fn look(
        &mut self,
        place: HeadPosition,
        wanted: &impl Fn(&Found) -> bool,
    ) -> Result<Option<Found>, RecoveryError> {
        let held = self.held.remove(&place.segment);
        let mut window = Window::new(self.disk, self.layout, self.device, place.segment).resume(held);
        let found = window.at(u64::from(place.offset), place.seq)?;
        if self.held.len() >= HELD {
            self.held.clear();
        }
        self.held.insert(place.segment, window.hold());
        match found {
            At::Whole(found) if wanted(&found) => Ok(Some(*found)),
            _ => Ok(None),
        }
    }

    /// What the batches behind the places where the next one could lie claim as durable, and where whole ones begin.
    fn beyond(&mut self, expected: Lsn) -> Result<Beyond, RecoveryError> {
        let mut out = Beyond::default();
        for (_, place, _) in self.places()? {
            self.scan(place, |header, is_whole| {
                out.leftovers = true;
                if header.first_lsn > expected {
                    out.promised = out.promised.max(header.durable_lsn);
                    out.whole.extend(is_whole.then_some(header.first_lsn));
                }
                false
            })?;
        }
        Ok(out)
    }

    /// Destroys what lies behind the end of the log.
    /// `unreadable`: blocks that the medium could not read, segments and offsets. Written over, they are told of once.
    fn fence(&mut self, leftovers: bool, unreadable: &[(u32, u64)]) -> Result<(), RecoveryError> {
        let mut fenced = !unreadable.is_empty();
        for (segment, offset) in unreadable {
            match erase(self.disk, self.layout, *segment, *offset) {
                // It is told of again, and whatever is written there fails.
                Err(e) if is_bad_sector(&e) => {
                    tracing::warn!(device = %self.device, segment, offset, "a bad sector takes no write; replace the disk");
                }
                written => written?,
            }
        }
        for head in self.position.heads.into_iter().flatten() {
            let place = (head.segment, head.seq);
            let end = self.layout.segment_size - BLOCK as u64;
            let from = if leftovers { u64::from(head.offset) } else { end };
            fenced |= fence_tail(self.disk, self.layout, self.device, place, from)?;
        }
        if fenced {
            settle(self.disk)?;
        }
        self.held.clear();
        Ok(())
    }

    /// The batch that comes next, where others vouch for all of it and only data of some records is damaged. What has a sound head counts:
    /// else older records would stand in its place. Where a head is damaged nobody knows what it belongs to: records that were written together
    /// are applied together or not at all.
    fn find_flawed(
        &mut self,
        expected: Lsn,
        promised: Lsn,
    ) -> Result<Option<(Candidate, Vec<Damaged>)>, RecoveryError> {
        for (class, place, opens) in self.places()? {
            let mut window = Window::new(self.disk, self.layout, self.device, place.segment);
            if let At::Flawed { found, damaged } = window.at(u64::from(place.offset), place.seq)? {
                let header = &found.header;
                let follows = header.first_lsn == expected && header.prev_hash == self.position.prev_hash;
                let known = damaged.iter().all(|record| record.known);
                if follows && known && header.end_lsn() <= promised + 1 {
                    return Ok(Some((Candidate { class, seq: place.seq, opens, found: *found }, damaged)));
                }
            }
        }
        Ok(None)
    }

    fn find_further(&mut self, resume: Lsn) -> Result<Option<Candidate>, RecoveryError> {
        for (class, place, opens) in self.places()? {
            if let Some(found) =
                self.scan(place, |header, is_whole| is_whole && header.first_lsn == resume)?
            {
                return Ok(Some(Candidate { class, seq: place.seq, opens, found }));
            }
        }
        Ok(None)
    }

    /// Looks at every block from a place to the end of its segment; stops at the first batch that `stop` likes.
    fn scan(
        &mut self,
        place: HeadPosition,
        mut stop: impl FnMut(&BatchHeader, bool) -> bool,
    ) -> Result<Option<Found>, RecoveryError> {
        let mut window = Window::new(self.disk, self.layout, self.device, place.segment);
        let mut offset = u64::from(place.offset);
        while offset < self.layout.segment_size {
            match window.at(offset, place.seq)? {
                At::Whole(found) => {
                    offset += u64::from(found.header.total_len);
                    if stop(&found.header, true) {
                        return Ok(Some(*found));
                    }
                }
                At::Flawed { found, .. } => {
                    offset += BLOCK as u64;
                    stop(&found.header, false);
                }
                At::Nothing => offset += BLOCK as u64,
            }
        }
        Ok(None)
    }

    fn something_lies_at_a_head(&mut self) -> Result<bool, RecoveryError> {
        for head in self.position.heads.into_iter().flatten() {
            let mut window = Window::new(self.disk, self.layout, self.device, head.segment);
            if !matches!(window.at(u64::from(head.offset), head.seq)?, At::Nothing) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first blocks of what the medium cannot read at the heads: of the next batch, or the one where it would begin. What was torn can be
    /// read.
    fn unreadable_heads(&mut self) -> Result<Vec<(u32, u64)>, RecoveryError> {
        let mut unreadable = Vec::new();
        for (_, place, _) in self.places()? {
            let offset = u64::from(place.offset);
            let mut window = Window::new(self.disk, self.layout, self.device, place.segment);
            let len = match window.at(offset, place.seq)? {
                At::Flawed { found, .. } => found.header.total_len as usize,
                At::Nothing => BLOCK,
                At::Whole(_) => continue,
            };
            if offset + len as u64 > self.layout.segment_size {
                continue;
            }
            match read_now(self.disk, self.layout.segment_start(place.segment) + offset, len) {
                Err(e) if is_bad_sector(&e) => unreadable.push((place.segment, offset)),
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
        }
        Ok(unreadable)
    }

    fn replay(&mut self, next: &Candidate, report: &mut Report) -> Result<(), RecoveryError> {
        let Candidate { class, seq, opens, found } = next;
        let segment = found.header.segment;
        let mut sealed = None;
        if *opens {
            if let Some(old) = self.position.heads[*class as usize] {
                let s = self.segments.get_mut(old.segment);
                (s.state, s.end) = (State::Sealed, old.offset);
                sealed = Some(old.segment);
            }
            let s = self.segments.get_mut(segment);
            (s.state, s.class, s.seq) = (State::Open, Some(*class), *seq);
            self.position.next_seq = self.position.next_seq.max(seq + 1);
        }
        let offset = found.offset + u64::from(found.header.total_len);
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        self.position.heads[*class as usize] = Some(HeadPosition { segment, seq: *seq, offset });
        self.position.applied = found.header.end_lsn() - 1;
        self.position.prev_hash = found.hash;
        let start = u32::try_from(found.offset).unwrap_or(u32::MAX);
        self.position.last = Some(Location { segment, offset: start, len: found.header_len });
        self.position.max_sequence = self.position.max_sequence.max(max_sequence(&found.records));
        self.position.reserved = self.segments.reserve(&self.position.reserved);
        apply_records(
            self.index,
            self.catalog,
            self.segments,
            self.tallies,
            &found.records,
            &self.position,
            sealed,
        )?;
        report.batches += 1;
        report.records += found.records.len() as u64;
        Ok(())
    }

    /// The heads, ready to append: their footers' entries are read from the segments.
    pub(crate) fn heads(&mut self) -> Result<[Option<Head>; 2], RecoveryError> {
        let mut heads = [None, None];
        for class in HeadClass::ALL {
            let Some(p) = self.position.heads[class as usize] else { continue };
            let (mut entries, mut flawed) = (Vec::new(), false);
            let mut window = Window::new(self.disk, self.layout, self.device, p.segment);
            let walked = window.walk(p.seq, Some(u64::from(p.offset)), |at, _| match at {
                At::Whole(found) => entries.extend(found.records.iter().filter_map(entry)),
                At::Flawed { .. } => flawed = true,
                At::Nothing => {}
            })?;
            let lists_all = !flawed && walked.skipped == 0;
            let Position { heads: positions, .. } = &self.position;
            let offset = positions[class as usize].map_or(0, |h| u64::from(h.offset));
            heads[class as usize] = Some(Head { segment: p.segment, seq: p.seq, offset, entries, lists_all });
        }
        Ok(heads)
    }
}

pub(crate) fn max_sequence(records: &[Placed]) -> u64 {
    records
        .iter()
        .filter_map(|p| RecordView::parse(&p.head).ok())
        .map(|view| view.sequence)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_tail_and_rot_are_told_apart_by_what_later_batches_promise() {
        for (promised, whole, verdict) in [
            (0, vec![], Gap::TornTail),
            // Written behind the gap but never flushed: nothing was promised.
            (9, vec![12], Gap::TornTail),
            // A later batch knew that 10 was durable.
            (11, vec![12], Gap::Rot { resume: 12 }),
            (13, vec![14, 12], Gap::Rot { resume: 12 }),
            // So did one that is itself torn: nothing can be resumed, yet the loss is known.
            (11, vec![], Gap::Rot { resume: 12 }),
        ] {
            assert_eq!(judge_gap(10, promised, &whole), verdict, "{promised} {whole:?}");
        }
    }
}
