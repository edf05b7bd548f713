//! What extents of volumes mean in a disk's index: a row for each block, or for the sixteen of a span that one write covered whole
//! (`span.rs`); within an era the newest write counts.
//!
//! An era is the time between two snapshots of a volume. A write ends what the same era wrote to its blocks before it, and
//! nothing older: that is the snapshots'.
//!
//! Invariant: a record of several blocks is needed while one row points at it, and its count says how many do.
//! Invariant: the newest write of an era counts, by (epoch, sequence), then by place; the order of applying is nothing.
//! Invariant: a record that is moved in parts is needed until each of its blocks is in a part, or overwritten.
//! Invariant: nothing of a volume that is gone is ever needed again; rows that it still has are reaped.

use std::collections::HashMap;

use super::extent::{Content, Extent};
use super::marks;
use super::note::was_deleted;
use super::place::{BLOCK_LENGTH, BLOCK_STEP, Position, VolumeId};
use super::remains::gains;
use super::row::{
    BlockPlace, BlockRow, CHUNK_KEY, Row, block_key, blocks_prefix, decode_position, encode_position,
    is_span_key, last_key, parse_block_key, record_key, run_range, span_key,
};
use super::span::{SPAN_BLOCKS, SpanRow, is_whole, span_of, spans};
use crate::catalog::{BadValue, Source, damaged};
use crate::disk::catalog::Tx;
use crate::disk::format::record::RecordView;
use crate::disk::{Location, footprint};
use crate::index::{Index, IndexError, Range, Table};

/// An extent with what its record adds.
pub(super) struct Known {
    pub(super) extent: Extent,
    pub(super) era: u32,
    head_len: usize,
}

impl Known {
    fn key(&self, block: u8) -> Vec<u8> {
        block_key(self.extent.volume, self.extent.run.slice, self.extent.run.chunk, block, self.era)
    }

    fn span_key(&self, block: u8) -> Vec<u8> {
        let run = self.extent.run;
        span_key(self.extent.volume, run.slice, run.chunk, span_of(block), self.era)
    }

    /// The row of one of the record's blocks.
    fn row(&self, block: u8, at: Location) -> BlockRow {
        let nth = usize::from(block - self.extent.run.first);
        let (data, checksum) = match &self.extent.content {
            Content::Zeroes => (0, 0),
            Content::Data(checksums) => {
                let data = self.head_len + nth * BLOCK_LENGTH;
                (u32::try_from(data).unwrap_or(u32::MAX), checksums.get(nth).copied().unwrap_or(0))
            }
        };
        BlockRow { position: self.extent.position(), at, data, checksum }
    }

    /// The row of a whole span of the record's, of the blocks that are not hidden.
    fn span_row(&self, first: u8, hidden: u16, at: Location) -> SpanRow {
        let mut sums = [0; SPAN_BLOCKS as usize];
        if let Content::Data(checksums) = &self.extent.content {
            let own = checksums.iter().skip(usize::from(first - self.extent.run.first));
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum = *own);
        }
        SpanRow::new(self.row(first, at), hidden, sums)
    }
}

pub(super) fn parse(record: &RecordView<'_>) -> Result<Known, BadValue> {
    let extent = Extent::decode(record.meta).map_err(|_| BadValue::Field("extent"))?;
    let known = Known { extent, era: record.number, head_len: record.head_len };
    let expected = match &known.extent.content {
        Content::Zeroes => 0,
        Content::Data(checksums) => checksums.len() * BLOCK_LENGTH,
    };
    let agrees = record.key == known.key(known.extent.run.first)
        && record.sequence == known.extent.sequence
        && record.data_len == expected;
    if agrees { Ok(known) } else { Err(BadValue::Field("extent's key or length")) }
}

fn load(from: &impl Source, key: &[u8]) -> Result<Option<BlockRow>, IndexError> {
    let bytes = from.value(Table::Blocks, key)?;
    bytes.as_deref().map(BlockRow::decode).transpose().map_err(damaged)
}

fn load_span(from: &impl Source, key: &[u8]) -> Result<Option<SpanRow>, IndexError> {
    let bytes = from.value(Table::Blocks, key)?;
    bytes.as_deref().map(SpanRow::decode).transpose().map_err(damaged)
}

fn keep_span(tx: &mut Tx<'_>, key: Vec<u8>, row: &SpanRow) {
    if row.is_done() {
        tx.delete(Table::Blocks, key);
    } else {
        tx.put(Table::Blocks, key, row.encode());
    }
}

pub(super) fn count_of(from: &impl Source, at: Location) -> Result<Option<u16>, IndexError> {
    let Some(bytes) = from.value(Table::Blocks, &record_key(at))? else { return Ok(None) };
    let count = bytes.as_slice().try_into().map_err(|_| damaged(BadValue::Field("count of a record")))?;
    Ok(Some(u16::from_le_bytes(count)))
}

/// Takes blocks from a record: the count, and at its end the record.
fn release(tx: &mut Tx<'_>, at: Location, blocks: u16) -> Result<(), IndexError> {
    // Too short for two blocks; only zeroes are shorter, of any number of blocks.
    if (BLOCK_LENGTH..2 * BLOCK_LENGTH).contains(&(at.len as usize)) {
        tx.died(at);
        return Ok(());
    }
    let Some(count) = count_of(tx, at)? else {
        tx.died(at);
        return Ok(());
    };
    let left = count.saturating_sub(blocks);
    tx.weigh(at.segment, worth(at, left) - worth(at, count));
    match left {
        0 => tx.delete(Table::Blocks, record_key(at)),
        left => tx.put(Table::Blocks, record_key(at), left.to_le_bytes()),
    }
    Ok(())
}

/// What a record of several blocks counts for in its segment while so many of them are needed: where it is moved in parts, what those
/// take but for their heads.
fn worth(at: Location, needed: u16) -> i64 {
    let (whole, blocks) = (footprint(at.len), u64::from(at.len / BLOCK_STEP));
    let bytes = match u64::from(needed) {
        0 => 0,
        needed if gains(needed, blocks) => whole - (blocks - needed) * u64::from(BLOCK_STEP),
        _ => whole,
    };
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Tells how much more or less the records of several blocks count for now than in an index where each counted whole.
pub(crate) fn recount(index: &dyn Index, add: &mut dyn FnMut(u32, i64)) -> Result<(), IndexError> {
    let mut chunk: Box<[u8]> = Box::default();
    let mut needed: HashMap<Location, u16> = HashMap::new();
    let mut tell = |needed: &mut HashMap<Location, u16>| {
        for (at, needed) in needed.drain().filter(|(at, _)| at.len >= 2 * BLOCK_STEP) {
            add(at.segment, worth(at, needed) - worth(at, u16::MAX));
        }
    };
    // A record lies in one chunk, and so do its rows.
    for pair in index.scan(Table::Blocks, Range::prefix(b"b")) {
        let (key, value) = pair?;
        let of = key.get(..CHUNK_KEY).unwrap_or_default();
        if *of != *chunk {
            tell(&mut needed);
            chunk = of.into();
        }
        let (place, _) = parse_block_key(&key).map_err(damaged)?;
        for (_, row) in Row::decode(&key, &value).map_err(damaged)?.blocks(place) {
            *needed.entry(row.at).or_default() += 1;
        }
    }
    tell(&mut needed);
    Ok(())
}

/// The record at `at` is pointed at by so many rows more.
fn claim(tx: &mut Tx<'_>, at: Location, blocks: u16, single: bool) -> Result<(), IndexError> {
    if single {
        tx.born(at);
        return Ok(());
    }
    let before = count_of(tx, at)?.unwrap_or(0);
    tx.weigh(at.segment, worth(at, before + blocks) - worth(at, before));
    tx.put(Table::Blocks, record_key(at), (before + blocks).to_le_bytes());
    Ok(())
}

/// Enters an extent.
pub(crate) fn apply(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), BadOr> {
    let known = parse(record)?;
    let volume = known.extent.volume;
    if was_deleted(tx, volume)? {
        return Ok(());
    }
    let position = known.extent.position();
    if last_of(tx, volume)? < position {
        tx.put(Table::Blocks, last_key(volume), encode_position(position));
    }
    let mut entry = Entry::new(&known, at);
    for blocks in spans(&known.extent.run) {
        if is_whole(blocks) { entry.enter_span(tx, blocks.0)? } else { entry.enter_blocks(tx, blocks)? }
    }
    let Entry { released, taken, fresh, .. } = entry;
    for (old, blocks) in released {
        release(tx, old, blocks)?;
    }
    if fresh {
        marks::put(tx, volume, known.era, &known.extent.run);
    }
    if taken > 0 {
        claim(tx, at, taken, known.extent.run.blocks == 1)?;
    }
    Ok(())
}

/// An extent on its way into the index.
struct Entry<'a> {
    known: &'a Known,
    at: Location,
    /// Blocks that older records lost.
    released: HashMap<Location, u16>,
    /// Blocks that the record got.
    taken: u16,
    /// It was the first of its era to some of its blocks.
    fresh: bool,
    /// Nothing of the whole run was in the index when it was last applied to.
    unknown: Option<bool>,
}

impl<'a> Entry<'a> {
    fn new(known: &'a Known, at: Location) -> Self {
        Self { known, at, released: HashMap::new(), taken: 0, fresh: false, unknown: None }
    }

    /// Some blocks of one span, each with a row of its own.
    fn enter_blocks(&mut self, tx: &mut Tx<'_>, (first, last): (u8, u8)) -> Result<(), IndexError> {
        let span_key = self.known.span_key(first);
        let (mut looked, mut span, mut changed) = (false, None, false);
        for block in first..=last {
            let (key, row) = (self.known.key(block), self.known.row(block, self.at));
            if let Some(old) = load(tx, &key)? {
                if old.rank() >= row.rank() {
                    continue;
                }
                *self.released.entry(old.at).or_default() += 1;
            } else {
                if !looked {
                    span = load_span(tx, &span_key)?;
                    looked = true;
                }
                match &mut span {
                    Some(span) if span.rank() >= row.rank() => continue,
                    Some(span) => {
                        if span.hide(block - span_of(block)) {
                            *self.released.entry(span.first.at).or_default() += 1;
                            changed = true;
                        } else {
                            self.fresh = true;
                        }
                    }
                    None => self.fresh = true,
                }
            }
            tx.put(Table::Blocks, key, row.encode());
            self.taken += 1;
        }
        if let Some(span) = span.filter(|_| changed) {
            keep_span(tx, span_key, &span);
        }
        Ok(())
    }

    /// All blocks of a span: one row, and those that are older go.
    fn enter_span(&mut self, tx: &mut Tx<'_>, first: u8) -> Result<(), IndexError> {
        let key = self.known.span_key(first);
        let old = load_span(tx, &key)?;
        let mut row = self.known.span_row(first, 0, self.at);
        let own_rows = match &old {
            Some(old) if old.rank() >= row.rank() => return Ok(()),
            Some(old) => old.hidden,
            None if self.is_unknown(tx)? => 0,
            None => u16::MAX,
        };
        for nth in (0..SPAN_BLOCKS).filter(|nth| own_rows >> nth & 1 == 1) {
            let key = self.known.key(first + nth);
            let Some(block) = load(tx, &key)? else { continue };
            if block.rank() >= row.rank() {
                row.hide(nth);
            } else {
                *self.released.entry(block.at).or_default() += 1;
                tx.delete(Table::Blocks, key);
            }
        }
        self.taken += row.shown();
        if let Some(old) = old {
            *self.released.entry(old.first.at).or_default() += old.shown();
            keep_span(tx, key, &row);
        } else {
            self.fresh = true;
            if !row.is_done() {
                tx.put(Table::Blocks, key, row.encode());
            }
        }
        Ok(())
    }

    /// Whether nothing of the run is in the index, nor among the changes that are about to come to it: one look instead of one for
    /// each block, where a volume is written for the first time.
    fn is_unknown(&mut self, tx: &Tx<'_>) -> Result<bool, IndexError> {
        if let Some(unknown) = self.unknown {
            return Ok(unknown);
        }
        let run = &self.known.extent.run;
        let range = run_range(self.known.extent.volume, run);
        let unknown = !tx.touches(Table::Blocks, &range)
            && tx.stored(Table::Blocks, range).next().transpose()?.is_none();
        self.unknown = Some(unknown);
        Ok(unknown)
    }
}

/// A record that cannot be read, or an index that failed.
#[derive(Debug)]
pub(crate) enum BadOr {
    Bad(BadValue),
    Index(IndexError),
}

impl From<BadValue> for BadOr {
    fn from(bad: BadValue) -> Self {
        Self::Bad(bad)
    }
}

impl From<IndexError> for BadOr {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

/// Points the rows of a record that was moved at its new place. It may be a part of the one that was there (`remains.rs`).
pub(crate) fn relocate(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    let Ok(known) = parse(record) else { return Ok(false) };
    let blocks = known.extent.run.blocks;
    let wanted = match count_of(tx, from)? {
        Some(count) => count.min(blocks),
        None if blocks == 1 => 1,
        None => return Ok(false),
    };
    let mut shift = Shifting { known: &known, from, to, moved: 0 };
    shift.spans(tx)?;
    shift.blocks(tx, wanted)?;
    shift.parts(tx, wanted)?;
    let moved = shift.moved;
    if moved == 0 {
        return Ok(false);
    }
    release(tx, from, moved)?;
    claim(tx, to, moved, blocks == 1)?;
    Ok(true)
}

/// Rows on their way from one record to its copy.
struct Shifting<'a> {
    known: &'a Known,
    from: Location,
    to: Location,
    moved: u16,
}

impl Shifting<'_> {
    /// Rows of spans that the copy covers whole.
    fn spans(&mut self, tx: &mut Tx<'_>) -> Result<(), IndexError> {
        for (first, _) in spans(&self.known.extent.run).filter(|blocks| is_whole(*blocks)) {
            let key = self.known.span_key(first);
            if let Some(mut row) = load_span(tx, &key)?.filter(|row| row.first.at == self.from) {
                let BlockRow { at, data, .. } = self.known.row(first, self.to);
                row.first = BlockRow { at, data, ..row.first };
                self.moved += row.shown();
                tx.put(Table::Blocks, key, row.encode());
            }
        }
        Ok(())
    }

    /// Rows of their own have the blocks at the ends, those that were cut from a span, and all of a record that was entered before
    /// there were spans.
    fn blocks(&mut self, tx: &mut Tx<'_>, wanted: u16) -> Result<(), IndexError> {
        for block in self.known.extent.run.numbers() {
            if self.moved >= wanted {
                break;
            }
            let key = self.known.key(block);
            if let Some(row) = load(tx, &key)?.filter(|row| row.at == self.from) {
                let BlockRow { at, data, .. } = self.known.row(block, self.to);
                tx.put(Table::Blocks, key, BlockRow { at, data, ..row }.encode());
                self.moved += 1;
            }
        }
        Ok(())
    }

    /// Blocks that the copy takes out of a span of the record: they have rows of their own from now on.
    fn parts(&mut self, tx: &mut Tx<'_>, wanted: u16) -> Result<(), IndexError> {
        for (first, last) in spans(&self.known.extent.run).filter(|blocks| !is_whole(*blocks)) {
            if self.moved >= wanted {
                break;
            }
            let key = self.known.span_key(first);
            let Some(mut span) = load_span(tx, &key)?.filter(|row| row.first.at == self.from) else {
                continue;
            };
            for block in first..=last {
                if span.hide(block - span_of(block)) {
                    tx.put(Table::Blocks, self.known.key(block), self.known.row(block, self.to).encode());
                    self.moved += 1;
                }
            }
            keep_span(tx, key, &span);
        }
        Ok(())
    }
}

/// What a record counts for.
#[cfg(test)]
pub(super) fn live_bytes(index: &dyn Index, record: &RecordView<'_>, at: Location) -> Option<i64> {
    let several = parse(record).is_ok_and(|known| known.extent.run.blocks > 1);
    several.then(|| worth(at, count_of(&index, at).unwrap().unwrap_or(0)))
}

/// Whether a row points at the record.
pub(crate) fn is_live(index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
    let Ok(known) = parse(record) else { return Ok(false) };
    let run = &known.extent.run;
    if run.blocks == 1 {
        Ok(load(&index, &known.key(run.first))?.is_some_and(|row| row.at == at))
    } else {
        Ok(count_of(&index, at)?.is_some())
    }
}

/// The last write of a volume that the index knows.
pub(super) fn last_of(from: &impl Source, volume: VolumeId) -> Result<Position, IndexError> {
    let bytes = from.value(Table::Blocks, &last_key(volume))?;
    bytes.as_deref().map(decode_position).transpose().map_err(damaged).map(Option::unwrap_or_default)
}

/// Keys of blocks that a volume still has, at most so many.
pub(super) fn some_keys(
    index: &dyn Index,
    volume: VolumeId,
    most: usize,
) -> Result<Vec<Box<[u8]>>, IndexError> {
    let rows = index.scan(Table::Blocks, Range::prefix(&blocks_prefix(volume)));
    rows.take(most).map(|pair| pair.map(|(key, _)| key)).collect()
}

/// Drops rows, and the records that nothing needs any more. Safe to repeat.
pub(super) fn drop_rows(tx: &mut Tx<'_>, keys: &[Box<[u8]>]) -> Result<(), IndexError> {
    for key in keys {
        let lost = if is_span_key(key) {
            load_span(tx, key)?.map(|row| (row.first.at, row.shown()))
        } else {
            load(tx, key)?.map(|row| (row.at, 1))
        };
        if let Some((at, blocks)) = lost {
            tx.delete(Table::Blocks, key.to_vec());
            release(tx, at, blocks)?;
        }
    }
    Ok(())
}

/// Drops what an era has of some blocks. Safe to repeat.
pub(super) fn drop_blocks(
    tx: &mut Tx<'_>,
    volume: VolumeId,
    blocks: &[(BlockPlace, u32)],
) -> Result<(), IndexError> {
    for (BlockPlace { slice, chunk, block }, era) in blocks.iter().copied() {
        let key = block_key(volume, slice, chunk, block, era);
        if let Some(row) = load(tx, &key)? {
            tx.delete(Table::Blocks, key);
            release(tx, row.at, 1)?;
            continue;
        }
        let key = span_key(volume, slice, chunk, span_of(block), era);
        if let Some(mut row) = load_span(tx, &key)?
            && row.hide(block - span_of(block))
        {
            keep_span(tx, key, &row);
            release(tx, row.first.at, 1)?;
        }
    }
    Ok(())
}
