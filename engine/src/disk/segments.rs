//! What the disk engine knows of its segments, and the rows of the index that keep it.
//!
//! ```text
//! System row "s" + segment u32 BE:  state u8 | class u8 | flags u16 | end u32 | seq u64 | live u64 | retired_to u32
//!                                   flags bit 0, stuck
//! System row "p": see Position
//! ```
//!
//! Invariant: `live` counts the footprints of exactly those records that the index points at, as of the last applied
//! batch (those of volumes that will be moved in parts, for what is needed of them); so `segment_size - live` is what cleaning the segment gains, and a disk of small records is full when it is.
//! Invariant: a segment leaves `Sealed` only with `live == 0`.
//! Invariant: of a segment that is stuck nothing was forgotten: its dead records are still in the log.

use super::format::batch::HeadClass;
use super::format::bytes::{Put, Reader, Truncated};
use super::format::superblock::Layout;
use super::limits::{ALIGN_FROM, RECORD_OVERHEAD, RESERVED_SEGMENTS};
use super::{Location, Lsn};
use crate::io::BLOCK;

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// Holds nothing; may be opened when a durable checkpoint names it as reserved.
    #[default]
    Free = 0,
    /// A head appends to it.
    Open = 1,
    /// Full, with a footer.
    Sealed = 2,
    /// Nothing in it is needed; waits for the checkpoint that makes this durable and for its last reader.
    Retired = 3,
    /// Its header is being overwritten as freed (in memory only; `Retired` in the index).
    Freeing = 4,
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Where it is in its life.
    pub state: State,
    /// Which head filled it.
    pub class: Option<HeadClass>,
    /// End of its last batch, once sealed.
    pub end: u32,
    /// Order of its opening.
    pub seq: u64,
    /// Bytes that its needed records would take elsewhere (`footprint`).
    pub live: u64,
    /// Up to here its dead records have been forgotten.
    pub retired_to: u32,
    /// All that could be read was moved out of it, and something in it is needed still.
    pub stuck: bool,
}

/// Flag of a row.
const STUCK: u16 = 1;

/// Most bytes that a record of `len` bytes takes in a segment: its descriptor and footer entry count, and the padding that
/// brings large data to a block.
#[must_use]
pub(crate) fn footprint(len: u32) -> u64 {
    let padding = if len as usize >= ALIGN_FROM { BLOCK } else { 0 };
    u64::from(len) + (padding + RECORD_OVERHEAD) as u64
}

/// Key of a segment's row.
#[must_use]
pub(crate) fn segment_key(segment: u32) -> Vec<u8> {
    let mut key = vec![b's'];
    key.extend_from_slice(&segment.to_be_bytes());
    key
}

impl Segment {
    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let state = if self.state == State::Freeing { State::Retired } else { self.state };
        let mut out = Vec::with_capacity(28);
        out.push(state as u8);
        out.push(self.class.map_or(0, |class| class as u8));
        out.put_u16(if self.stuck { STUCK } else { 0 });
        out.put_u32(self.end);
        out.put_u64(self.seq);
        out.put_u64(self.live);
        out.put_u32(self.retired_to);
        out
    }

    /// Whether moving what is needed out of it gains enough. A segment that was cleaned to its end and is still needed
    /// holds something unreadable: cleaning it again gains nothing.
    #[must_use]
    pub fn is_worth_cleaning(&self, segment_size: u64) -> bool {
        // Rows of before there was a flag say it by the place alone.
        let stuck = self.live > 0 && (self.stuck || self.end > 0 && self.retired_to >= self.end);
        self.state == State::Sealed && self.live < segment_size - segment_size / 16 && !stuck
    }

    /// Decodes a row's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, Truncated> {
        let mut r = Reader::new(bytes);
        let state = match r.u8()? {
            0 => State::Free,
            1 => State::Open,
            2 => State::Sealed,
            3 => State::Retired,
            _ => return Err(Truncated),
        };
        let class = HeadClass::ALL.get(usize::from(r.u8()?)).copied();
        let stuck = r.u16()? & STUCK != 0;
        let (end, seq, live, retired_to) = (r.u32()?, r.u64()?, r.u64()?, r.u32()?);
        Ok(Self { state, class, end, seq, live, retired_to, stuck })
    }
}

/// All segments of a disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SegmentMap {
    all: Vec<Segment>,
}

impl SegmentMap {
    /// Every segment free.
    #[must_use]
    pub(crate) fn new(layout: Layout) -> Self {
        Self { all: vec![Segment::default(); layout.segments as usize] }
    }

    /// One segment. Panics when there is none of that number.
    #[must_use]
    pub(crate) fn get(&self, segment: u32) -> Segment {
        self.all[segment as usize]
    }

    /// One segment, to change.
    pub(crate) fn get_mut(&mut self, segment: u32) -> &mut Segment {
        &mut self.all[segment as usize]
    }

    /// Every segment with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Segment)> + '_ {
        (0u32..).zip(self.all.iter().copied())
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many are in a state.
    #[must_use]
    pub(crate) fn count(&self, state: State) -> usize {
        self.all.iter().filter(|s| s.state == state).count()
    }

    /// Bytes of needed records on the whole disk.
    #[must_use]
    pub(crate) fn live(&self) -> u64 {
        self.all.iter().map(|s| s.live).sum()
    }

    /// Bytes that cleaning would give back.
    #[must_use]
    pub(crate) fn garbage(&self, segment_size: u64) -> u64 {
        let gives = |s: &&Segment| s.is_worth_cleaning(segment_size);
        self.all.iter().filter(gives).map(|s| segment_size.saturating_sub(s.live)).sum()
    }

    /// Bytes that cleaning, a checkpoint, or the end of a reader would give back.
    #[must_use]
    pub(crate) fn reclaimable(&self, segment_size: u64) -> u64 {
        let cleaned = self.count(State::Retired) + self.count(State::Freeing);
        self.garbage(segment_size) + cleaned as u64 * segment_size
    }

    /// Whether cleaning will free a segment for others than the cleaner. Moving costs headers and padding again: less
    /// than two segments of garbage may free nothing.
    #[must_use]
    pub(crate) fn can_make_room(&self, segment_size: u64) -> bool {
        self.reclaimable(segment_size) >= 2 * segment_size
    }

    /// Adds the live bytes that a batch moved. Panics when a count would fall below zero: that is our bug.
    pub(crate) fn shift_live(&mut self, segment: u32, delta: i64) {
        let s = self.get_mut(segment);
        s.live = s.live.checked_add_signed(delta).unwrap_or_else(|| {
            panic!("live bytes of segment {segment} would fall below zero: {} {delta}", s.live)
        });
    }

    /// Segments to name as reserved: those of `first` that are still free, then other free ones.
    #[must_use]
    pub(crate) fn reserve(&self, first: &[u32]) -> Vec<u32> {
        let free = |segment: &u32| self.get(*segment).state == State::Free;
        let mut out: Vec<u32> = first.iter().copied().filter(free).collect();
        let more = self.iter().map(|(segment, _)| segment).filter(free).filter(|s| !first.contains(s));
        out.extend(more.take(RESERVED_SEGMENTS.saturating_sub(out.len())));
        out
    }
}

/// Where a head stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadPosition {
    /// Its open segment.
    pub(crate) segment: u32,
    /// That segment's sequence.
    pub(crate) seq: u64,
    /// Where the next batch goes, in bytes from the start of the segment.
    pub(crate) offset: u32,
}

/// The exact place in the log up to which the index is applied. Written with every applied batch.
///
/// ```text
/// applied u64 | prev_hash u64 | next_seq u64 | max_sequence u64
/// last batch: segment u32 | offset u32 | len u32
/// 2 heads: present u8 | segment u32 | offset u32 | seq u64
/// reserved: count u16, segment u32 each
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// LSN of the last applied record.
    pub(crate) applied: Lsn,
    /// Chain hash of the last applied batch.
    pub(crate) prev_hash: u64,
    /// Sequence that the next opened segment gets.
    pub(crate) next_seq: u64,
    /// Largest record sequence (version time) seen.
    pub(crate) max_sequence: u64,
    /// Header of the last applied batch (`len` of the header), to see whether log and index belong together.
    pub(crate) last: Option<Location>,
    /// The heads, hot and cold.
    pub(crate) heads: [Option<HeadPosition>; 2],
    /// Segments that may be opened after this position.
    pub(crate) reserved: Vec<u32>,
}

/// Key of the position row.
pub(crate) const POSITION_KEY: &[u8] = b"p";
/// Key of the row that says that records of which little is needed do not count whole.
pub(crate) const PARTS_KEY: &[u8] = b"P";
/// Key of the row that binds an index to a device.
pub(crate) const IDENTITY_KEY: &[u8] = b"i";

impl Position {
    /// Whether every place it names exists.
    #[must_use]
    pub(crate) fn fits(&self, layout: Layout) -> bool {
        let heads = self.heads.iter().flatten();
        let mut named = heads.clone().map(|head| head.segment).chain(self.reserved.iter().copied());
        named.all(|segment| segment < layout.segments)
            && heads.clone().all(|head| u64::from(head.offset).is_multiple_of(BLOCK as u64))
            && self.applied < Lsn::MAX / 2
            && self.next_seq < u64::MAX / 2
    }

    /// The row's value.
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.reserved.len() * 4);
        out.put_u64(self.applied);
        out.put_u64(self.prev_hash);
        out.put_u64(self.next_seq);
        out.put_u64(self.max_sequence);
        let last = self.last.unwrap_or(Location { segment: 0, offset: 0, len: 0 });
        out.put_u32(last.segment);
        out.put_u32(last.offset);
        out.put_u32(last.len);
        for head in self.heads {
            let h = head.unwrap_or(HeadPosition { segment: 0, seq: 0, offset: 0 });
            out.push(u8::from(head.is_some()));
            out.put_u32(h.segment);
            out.put_u32(h.offset);
            out.put_u64(h.seq);
        }
        out.put_u16(u16::try_from(self.reserved.len()).unwrap_or(u16::MAX));
        for segment in &self.reserved {
            out.put_u32(*segment);
        }
        out
    }

    /// Decodes the row's value.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Truncated> {
        let mut r = Reader::new(bytes);
        let (applied, prev_hash, next_seq, max_sequence) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let last = Location { segment: r.u32()?, offset: r.u32()?, len: r.u32()? };
        let mut heads = [None; 2];
        for head in &mut heads {
            let present = r.u8()? == 1;
            let position = HeadPosition { segment: r.u32()?, offset: r.u32()?, seq: r.u64()? };
            *head = present.then_some(position);
        }
        let count = usize::from(r.u16()?);
        let reserved = (0..count).map(|_| r.u32()).collect::<Result<_, _>>()?;
        let last = (last.len > 0).then_some(last);
        Ok(Self { applied, prev_hash, next_seq, max_sequence, last, heads, reserved })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let segment = Segment {
            state: State::Sealed,
            class: Some(HeadClass::Cold),
            end: 77,
            seq: 9,
            live: 1 << 40,
            retired_to: 5,
            stuck: true,
        };
        assert_eq!(Segment::decode(&segment.encode()), Ok(segment));
        let position = Position {
            applied: 7,
            prev_hash: 8,
            next_seq: 9,
            max_sequence: 10,
            last: Some(Location { segment: 1, offset: 4096, len: 120 }),
            heads: [Some(HeadPosition { segment: 1, seq: 2, offset: 8192 }), None],
            reserved: vec![3, 4, 5],
        };
        assert_eq!(Position::decode(&position.encode()), Ok(position.clone()));
        for cut in 0..position.encode().len() {
            assert!(Position::decode(&position.encode()[..cut]).is_err());
        }
    }

    /// Segments that were cleaned and wait for a reader counted as garbage: while they did, all was moved of which a sixteenth was dead.
    #[test]
    fn what_was_cleaned_is_no_garbage_though_its_space_will_come() {
        let mut map = SegmentMap { all: vec![Segment::default(); 8] };
        let size = 1 << 20;
        for segment in 0..3 {
            map.get_mut(segment).state = if segment == 0 { State::Freeing } else { State::Retired };
        }
        *map.get_mut(3) = Segment { state: State::Sealed, live: size / 2, ..Segment::default() };
        assert_eq!(map.garbage(size), size / 2);
        assert_eq!(map.reclaimable(size), 3 * size + size / 2);
        assert!(map.can_make_room(size));
    }

    /// Not even when nothing was forgotten, so that it begins at its beginning.
    #[test]
    fn what_is_stuck_is_cleaned_when_nothing_in_it_is_needed() {
        let size = 1 << 20;
        let segment = |live, stuck| Segment { state: State::Sealed, live, stuck, ..Segment::default() };
        assert!(segment(8, false).is_worth_cleaning(size) && !segment(8, true).is_worth_cleaning(size));
        assert!(segment(0, true).is_worth_cleaning(size));
        let before = Segment { end: 100, retired_to: 100, ..segment(8, false) };
        assert!(!before.is_worth_cleaning(size), "as rows of before said it");
    }

    #[test]
    fn freeing_is_kept_as_retired_because_the_overwrite_is_repeated_after_a_crash() {
        let segment = Segment { state: State::Freeing, class: Some(HeadClass::Hot), ..Segment::default() };
        assert_eq!(Segment::decode(&segment.encode()).map(|s| s.state), Ok(State::Retired));
    }
}
