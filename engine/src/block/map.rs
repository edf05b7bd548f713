//! What extents of volumes mean in a disk's index: a row for each block, newest write first within an era.
//!
//! An era is the time between two snapshots of a volume. A write ends what the same era wrote to its blocks before it, and
//! nothing older: that is the snapshots'.
//!
//! Invariant: a record of several blocks is needed while one row points at it, and its count says how many do.
//! Invariant: the newest write of an era counts, by (epoch, sequence), then by place; the order of applying is nothing.
//! Invariant: nothing of a volume that is gone is ever needed again; rows that it still has are reaped.

use std::collections::HashMap;

use super::extent::{Content, Extent};
use super::marks;
use super::note::is_gone;
use super::place::{BLOCK_LENGTH, Position, VolumeId};
use super::row::{
    BlockRow, block_key, blocks_prefix, decode_position, encode_position, last_key, record_key,
};
use crate::catalog::{BadValue, Source, damaged};
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::record::RecordView;
use crate::index::{Index, IndexError, Range, Table};

/// An extent with what its record adds.
struct Known {
    extent: Extent,
    era: u32,
    head_len: usize,
}

impl Known {
    fn key(&self, block: u8) -> Vec<u8> {
        block_key(self.extent.volume, self.extent.run.slice, self.extent.run.chunk, block, self.era)
    }

    /// The row of the record's `nth` block.
    fn row(&self, nth: usize, at: Location) -> BlockRow {
        let (data, checksum) = match &self.extent.content {
            Content::Zeroes => (0, 0),
            Content::Data(checksums) => {
                let data = self.head_len + nth * BLOCK_LENGTH;
                (u32::try_from(data).unwrap_or(u32::MAX), checksums.get(nth).copied().unwrap_or(0))
            }
        };
        BlockRow { position: self.extent.position(), at, data, checksum }
    }
}

fn parse(record: &RecordView<'_>) -> Result<Known, BadValue> {
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

fn count_of(from: &impl Source, at: Location) -> Result<Option<u16>, IndexError> {
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
    match count.saturating_sub(blocks) {
        0 => {
            tx.delete(Table::Blocks, record_key(at));
            tx.died(at);
        }
        left => tx.put(Table::Blocks, record_key(at), left.to_le_bytes()),
    }
    Ok(())
}

/// The record at `at` is pointed at by so many rows more.
fn claim(tx: &mut Tx<'_>, at: Location, blocks: u16, single: bool) -> Result<(), IndexError> {
    if single {
        tx.born(at);
        return Ok(());
    }
    let before = count_of(tx, at)?.unwrap_or(0);
    if before == 0 {
        tx.born(at);
    }
    tx.put(Table::Blocks, record_key(at), (before + blocks).to_le_bytes());
    Ok(())
}

/// Enters an extent.
pub(crate) fn apply(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), BadOr> {
    let known = parse(record)?;
    let volume = known.extent.volume;
    if is_gone(tx, volume)? {
        return Ok(());
    }
    let position = known.extent.position();
    if last_of(tx, volume)? < position {
        tx.put(Table::Blocks, last_key(volume), encode_position(position));
    }
    let mut released: HashMap<Location, u16> = HashMap::new();
    let (mut taken, mut fresh) = (0_u16, false);
    for (nth, block) in known.extent.run.numbers().enumerate() {
        let (key, row) = (known.key(block), known.row(nth, at));
        if let Some(old) = load(tx, &key)? {
            if old.rank() >= row.rank() {
                continue;
            }
            *released.entry(old.at).or_default() += 1;
        } else {
            fresh = true;
        }
        tx.put(Table::Blocks, key, row.encode());
        taken += 1;
    }
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

/// Points the rows of a record that was moved at its new place.
pub(crate) fn relocate(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    let Ok(known) = parse(record) else { return Ok(false) };
    let mut moved = 0_u16;
    for block in known.extent.run.numbers() {
        let key = known.key(block);
        if let Some(row) = load(tx, &key)?.filter(|row| row.at == from) {
            tx.put(Table::Blocks, key, BlockRow { at: to, ..row }.encode());
            moved += 1;
        }
    }
    if moved == 0 {
        return Ok(false);
    }
    release(tx, from, moved)?;
    claim(tx, to, moved, known.extent.run.blocks == 1)?;
    Ok(true)
}

/// Whether a row points at the record.
pub(crate) fn is_live(index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
    let Ok(known) = parse(record) else { return Ok(false) };
    for block in known.extent.run.numbers() {
        if load(&index, &known.key(block))?.is_some_and(|row| row.at == at) {
            return Ok(true);
        }
    }
    Ok(false)
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
        if let Some(row) = load(tx, key)? {
            tx.delete(Table::Blocks, key.to_vec());
            release(tx, row.at, 1)?;
        }
    }
    Ok(())
}
