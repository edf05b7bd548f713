//! Tallies: a fixed number of sums modulo 2^128 that a catalog shifts, exact at the applied LSN.
//!
//! All of them are in memory. A write set carries what it shifts as one row, and now and then a page of sums as they then are,
//! the pages taking turns; so a change costs no read, and opening reads the pages and adds the rows behind each.
//!
//! ```text
//! System row "T" 00:                   version u8 | bits u8
//! System row "T" 01 | page u16 BE:     counter u64 | bitmap of the page's sums 32 B | each sum that is not zero, 16 B
//! System row "T" 02 | counter u64 BE:  (tally u32 | shift 16 B)*
//! ```
//!
//! Invariant: a page as of counter c, plus the shifts of the rows after c, is the page now. Rows are kept while a page needs them.
//! Invariant: memory is ahead of the index by at most the write set that is being applied.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::format::bytes::{Put, Reader, Truncated};
use crate::index::{Index, IndexError, Range as Keys, Table, WriteSet};

/// A space of tallies has 2 to the power of this many.
pub const TALLY_BITS: u8 = 20;
/// Spaces that there are.
const SPACES: u32 = 16;
/// How many tallies there are.
pub const TALLIES: u32 = SPACES << TALLY_BITS;
/// What a transaction does to one.
pub type Shift = (u32, u128);

const VERSION: u8 = 1;
const PAGE: usize = 256;
const PAGES: usize = TALLIES as usize / PAGE;
/// Memory is taken by so many pages.
const STEP: usize = PAGES / SPACES as usize;
/// Shifts after which a page is written: 16 bytes for each, and all pages within a million.
const SHIFTS_PER_PAGE: u64 = 256;
/// Rows of shifts removed by one write set.
const MAX_REMOVED: u64 = 1024;
const SHIFT_BYTES: usize = 4 + 16;

const MARKER: [u8; 2] = [b'T', 0];
const PAGE_ROWS: [u8; 2] = [b'T', 1];
const SHIFT_ROWS: [u8; 2] = [b'T', 2];

const _: () = assert!(PAGES * PAGE == TALLIES as usize && PAGES <= u16::MAX as usize + 1);

type Sums = [u128; PAGE];

/// The tallies of a disk.
#[derive(Debug)]
pub struct Tallies {
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    pages: Vec<Page>,
    /// Counter of the next row of shifts; the first has 1.
    next: u64,
    /// First row of shifts that is still in the index.
    kept_from: u64,
    /// Shifts since the last page was written.
    owed: u64,
    /// The page whose turn it is.
    hand: usize,
}

#[derive(Debug, Clone, Default)]
struct Page {
    /// Absent: all zero.
    sums: Option<Box<Sums>>,
    /// First row of shifts that the page in the index lacks.
    lacks_from: Option<u64>,
}

fn page_key(page: usize) -> Vec<u8> {
    [&PAGE_ROWS[..], &u16::try_from(page).unwrap_or(u16::MAX).to_be_bytes()].concat()
}

fn shift_key(counter: u64) -> Vec<u8> {
    [&SHIFT_ROWS[..], &counter.to_be_bytes()].concat()
}

fn place(tally: u32) -> (usize, usize) {
    assert!(tally < TALLIES, "a tally that there is not");
    (tally as usize / PAGE, tally as usize % PAGE)
}

impl Page {
    fn add(&mut self, slot: usize, by: u128) {
        let sums = self.sums.get_or_insert_with(|| Box::new([0; PAGE]));
        sums[slot] = sums[slot].wrapping_add(by);
    }

    fn encode(&self, counter: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + PAGE / 8);
        out.put_u64(counter);
        let sums = self.sums.as_deref().unwrap_or(&[0; PAGE]);
        out.extend(sums.chunks(8).map(|eight| {
            eight.iter().enumerate().fold(0, |byte, (bit, sum)| byte | u8::from(*sum != 0) << bit)
        }));
        for sum in sums.iter().filter(|sum| **sum != 0) {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<(u64, Self), Truncated> {
        let mut r = Reader::new(bytes);
        let counter = r.u64()?;
        let bitmap: [u8; PAGE / 8] = r.array()?;
        let mut page = Self::default();
        for slot in (0..PAGE).filter(|slot| bitmap[slot / 8] >> (slot % 8) & 1 == 1) {
            page.add(slot, u128::from_le_bytes(r.array()?));
        }
        if r.rest().is_empty() { Ok((counter, page)) } else { Err(Truncated) }
    }
}

fn decode_shifts(bytes: &[u8]) -> Result<Vec<Shift>, Truncated> {
    let mut r = Reader::new(bytes);
    let mut shifts = Vec::with_capacity(bytes.len() / SHIFT_BYTES);
    while !r.rest().is_empty() {
        let tally = r.u32()?;
        if tally >= TALLIES {
            return Err(Truncated);
        }
        shifts.push((tally, u128::from_le_bytes(r.array()?)));
    }
    Ok(shifts)
}

fn number<const N: usize>(key: &[u8]) -> Result<[u8; N], Truncated> {
    key.get(2..).and_then(|rest| rest.try_into().ok()).ok_or(Truncated)
}

fn damaged(_: Truncated) -> IndexError {
    IndexError::Store { verb: "decode", reason: "rows of tallies are damaged".to_owned() }
}

/// The page of a number, where there may be none yet.
fn page_mut(pages: &mut Vec<Page>, n: usize) -> &mut Page {
    if n >= pages.len() {
        pages.resize((n / STEP + 1) * STEP, Page::default());
    }
    &mut pages[n]
}

impl Default for Tallies {
    fn default() -> Self {
        let pages = Vec::new();
        Self { state: RwLock::new(State { pages, next: 1, kept_from: 1, owed: 0, hand: 0 }) }
    }
}

impl Tallies {
    /// As an index has them; `None`: it was made before there were any, or by another version.
    pub(crate) fn load(index: &dyn Index) -> Result<Option<Self>, IndexError> {
        if index.get(Table::System, &MARKER)?.as_deref() != Some(&[VERSION, TALLY_BITS]) {
            return Ok(None);
        }
        let mut pages = Vec::new();
        let mut as_of = vec![0; PAGES];
        let mut last = 0;
        for pair in index.scan(Table::System, Keys::prefix(&PAGE_ROWS)) {
            let (key, value) = pair?;
            let n = usize::from(u16::from_be_bytes(number(&key).map_err(damaged)?));
            let (counter, page) = Page::decode(&value).map_err(damaged)?;
            *page_mut(&mut pages, n) = page;
            as_of[n] = counter;
            last = last.max(counter);
        }
        let mut kept_from = None;
        for pair in index.scan(Table::System, Keys::prefix(&SHIFT_ROWS)) {
            let (key, value) = pair?;
            let counter = u64::from_be_bytes(number(&key).map_err(damaged)?);
            kept_from.get_or_insert(counter);
            last = last.max(counter);
            for (tally, by) in decode_shifts(&value).map_err(damaged)? {
                let (n, slot) = place(tally);
                if as_of[n] < counter {
                    let page = page_mut(&mut pages, n);
                    page.add(slot, by);
                    page.lacks_from.get_or_insert(counter);
                }
            }
        }
        let next = last + 1;
        let state = State { pages, next, kept_from: kept_from.unwrap_or(next), owed: 0, hand: 0 };
        Ok(Some(Self { state: RwLock::new(state) }))
    }

    /// Counted anew: adds what `count` gives, and returns the rows that say so.
    pub(crate) fn counted(
        index: &dyn Index,
        count: impl FnOnce(&mut dyn FnMut(Shift)) -> Result<(), IndexError>,
    ) -> Result<(Self, WriteSet), IndexError> {
        let mut rows = BTreeMap::new();
        for pair in index.scan(Table::System, Keys::prefix(b"T")) {
            rows.insert(pair?.0.into_vec(), None);
        }
        let mut pages = Vec::new();
        count(&mut |(tally, by)| {
            let (n, slot) = place(tally);
            page_mut(&mut pages, n).add(slot, by);
        })?;
        for (n, page) in pages.iter().enumerate().filter(|(_, page)| page.sums.is_some()) {
            rows.insert(page_key(n), Some(page.encode(0)));
        }
        rows.remove(&MARKER[..]);
        let changes = rows.into_iter().map(|(key, value)| (Table::System, key, value));
        let set = WriteSet { changes: changes.chain([Self::marker()]).collect() };
        Ok((Self { state: RwLock::new(State { pages, next: 1, kept_from: 1, owed: 0, hand: 0 }) }, set))
    }

    /// The row that says that an index has tallies.
    pub(crate) fn marker() -> crate::index::Change {
        (Table::System, MARKER.to_vec(), Some(vec![VERSION, TALLY_BITS]))
    }

    /// Makes the shifts of one write set, and adds to it what the index must know of them.
    pub(crate) fn shift(&self, shifts: &[Shift], set: &mut WriteSet) {
        if shifts.is_empty() {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let counter = state.next;
        state.next += 1;
        let mut row = Vec::with_capacity(shifts.len() * SHIFT_BYTES);
        for (tally, by) in shifts {
            row.put_u32(*tally);
            row.extend_from_slice(&by.to_le_bytes());
            let (n, slot) = place(*tally);
            let page = page_mut(&mut state.pages, n);
            page.add(slot, *by);
            page.lacks_from.get_or_insert(counter);
        }
        set.changes.push((Table::System, shift_key(counter), Some(row)));
        state.owed += shifts.len() as u64;
        while state.owed >= SHIFTS_PER_PAGE {
            state.owed -= SHIFTS_PER_PAGE;
            state.write_page(counter, set);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every tally of a range that is not zero. The applier may shift between two pages.
    pub fn visit(&self, range: Range<u32>, mut tell: impl FnMut(u32, u128)) {
        let mut from = range.start;
        while from < range.end {
            let (n, slot) = place(from);
            let end =
                (from - u32::try_from(slot).unwrap_or(0) + u32::try_from(PAGE).unwrap_or(0)).min(range.end);
            if let Some(sums) = self.read().pages.get(n).and_then(|page| page.sums.as_ref()) {
                for tally in from..end {
                    let sum = sums[tally as usize % PAGE];
                    if sum != 0 {
                        tell(tally, sum);
                    }
                }
            }
            from = end;
        }
    }

    /// The sum of a range.
    #[must_use]
    pub fn sum(&self, range: Range<u32>) -> u128 {
        let mut sum = 0_u128;
        self.visit(range, |_, tally| sum = sum.wrapping_add(tally));
        sum
    }
}

impl State {
    /// Writes the next page that the index has not as it is, and removes rows that no page needs any more.
    fn write_page(&mut self, counter: u64, set: &mut WriteSet) {
        let turn =
            (self.hand..self.pages.len()).chain(0..self.hand).find(|n| self.pages[*n].lacks_from.is_some());
        let Some(n) = turn else { return };
        set.changes.push((Table::System, page_key(n), Some(self.pages[n].encode(counter))));
        self.pages[n].lacks_from = None;
        self.hand = (n + 1) % self.pages.len();
        let needed_from = self.pages.iter().filter_map(|page| page.lacks_from).min().unwrap_or(counter);
        // The row of this very write set is in it already.
        let end = needed_from.min(counter).min(self.kept_from + MAX_REMOVED);
        for old in self.kept_from..end {
            set.changes.push((Table::System, shift_key(old), None));
        }
        self.kept_from = self.kept_from.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::MemoryIndex;
    use crate::io::SplitMix64;

    fn all(tallies: &Tallies) -> Vec<(u32, u128)> {
        let mut out = Vec::new();
        tallies.visit(0..TALLIES, |tally, sum| out.push((tally, sum)));
        out
    }

    fn start(index: &MemoryIndex) -> Tallies {
        let (tallies, set) = Tallies::counted(index, |_| Ok(())).unwrap();
        index.apply(set).unwrap();
        tallies
    }

    fn shifts(rng: &mut SplitMix64, spread: u64) -> Vec<Shift> {
        let one = |rng: &mut SplitMix64| {
            (
                u32::try_from(rng.below(spread) * 97 % u64::from(TALLIES)).unwrap(),
                u128::from(rng.next_u64()) << 60,
            )
        };
        (0..rng.below(60)).map(|_| one(rng)).collect()
    }

    #[test]
    fn what_is_loaded_is_what_was_shifted_at_every_prefix() {
        for seed in 0..8 {
            let mut rng = SplitMix64::new(seed);
            let index = MemoryIndex::new();
            let mut tallies = start(&index);
            let spread = [3, 900, 1 << 30][rng.index(3)];
            for round in 0..300 {
                let mut set = WriteSet::default();
                tallies.shift(&shifts(&mut rng, spread), &mut set);
                index.apply(set).unwrap();
                if round % 20 == 7 {
                    let loaded = Tallies::load(&index).unwrap().unwrap();
                    assert_eq!(all(&loaded), all(&tallies), "seed {seed} round {round}");
                    if rng.chance(500) {
                        tallies = loaded;
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_shifts_are_removed_when_no_page_needs_them() {
        let index = MemoryIndex::new();
        let tallies = start(&index);
        let mut rng = SplitMix64::new(5);
        for _ in 0..20_000 {
            let mut set = WriteSet::default();
            tallies.shift(&shifts(&mut rng, 4000), &mut set);
            index.apply(set).unwrap();
        }
        let rows = index.scan(Table::System, Keys::prefix(&SHIFT_ROWS)).count();
        // Each page has its turn after (pages in use) x 256 shifts, of which a row has 30.
        assert!(rows < 20_000, "{rows} rows are left");
        assert_eq!(all(&Tallies::load(&index).unwrap().unwrap()), all(&tallies));
    }

    #[test]
    fn an_index_without_the_marker_or_of_another_version_has_none() {
        let index = MemoryIndex::new();
        assert!(Tallies::load(&index).unwrap().is_none());
        start(&index);
        assert!(Tallies::load(&index).unwrap().is_some());
        index.apply(WriteSet { changes: vec![(Table::System, MARKER.to_vec(), Some(vec![9, 9]))] }).unwrap();
        assert!(Tallies::load(&index).unwrap().is_none());
        let (counted, set) = Tallies::counted(&index, |add| {
            add((7, u128::MAX));
            add((7, 3));
            add((TALLIES - 1, 1));
            Ok(())
        })
        .unwrap();
        index.apply(set).unwrap();
        assert_eq!(all(&counted), [(7, 2), (TALLIES - 1, 1)]);
        assert_eq!(all(&Tallies::load(&index).unwrap().unwrap()), all(&counted));
        assert_eq!((counted.sum(0..8), counted.sum(0..7), counted.sum(0..TALLIES)), (2, 0, 3));
    }

    #[test]
    fn damaged_rows_are_errors() {
        let index = MemoryIndex::new();
        start(&index);
        for (key, value) in
            [(page_key(1), vec![0; 39]), (shift_key(1), vec![0xff; 20]), (shift_key(1), vec![0; 7])]
        {
            index.apply(WriteSet { changes: vec![(Table::System, key.clone(), Some(value))] }).unwrap();
            assert!(Tallies::load(&index).is_err());
            index.apply(WriteSet { changes: vec![(Table::System, key, None)] }).unwrap();
        }
    }
}
