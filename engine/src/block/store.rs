//! Blocks of volumes on one disk: logged, found, read and verified.
//!
//! Invariant: a block leaves [`read`] verified against its place in the volume and the write that made it, or not at all.

use bytes::Bytes;

use super::extent::{Content, Extent, MIN_EXTENT_BYTES, block_checksum};
use super::map;
use super::note::{self, Note, NoteKey};
use super::place::{BLOCK_LENGTH, BLOCK_STEP, Position, Run, VolumeId};
use super::row::{BlockPlace, BlockRow, block_key, parse_block_key, run_range, tail_range};
use crate::catalog::damaged;
use crate::disk::format::record::{BadRecord, Kind, NewRecord, Parts};
use crate::disk::limits::CRC_SPAN;
use crate::disk::{DiskError, DiskHandle, Location, Pins};
use crate::index::{IndexError, Range, Table};
use crate::io::BLOCK;

/// The record of an extent in an era.
#[must_use]
pub fn extent_record(disk: &DiskHandle, extent: &Extent, era: u32, data: Bytes) -> NewRecord {
    let Run { slice, chunk, first, .. } = extent.run;
    disk.record(Parts {
        kind: Kind::VolumeExtent,
        deleted: matches!(extent.content, Content::Zeroes),
        sequence: extent.sequence,
        number: era,
        key: &block_key(extent.volume, slice, chunk, first, era),
        meta: &extent.encode(),
        data,
    })
}

/// Most bytes that the record of an extent of so many blocks adds to the disk's queue.
#[must_use]
pub fn extent_bytes(blocks: u16) -> usize {
    let meta = MIN_EXTENT_BYTES + usize::from(blocks) * 4;
    let spans = (usize::from(blocks) * BLOCK_LENGTH).div_ceil(CRC_SPAN);
    // Key, framing, descriptor, and the padding that brings large data to a block.
    let around = 256 + BLOCK;
    usize::from(blocks) * BLOCK_LENGTH + meta + spans * 4 + around
}

/// The record of a note.
#[must_use]
pub fn note_record(disk: &DiskHandle, key: NoteKey, sequence: u64, meta: Option<&[u8]>) -> NewRecord {
    disk.record(Parts {
        kind: Kind::VolumeMap,
        deleted: meta.is_none(),
        sequence,
        number: 0,
        key: &key.encode(),
        meta: meta.unwrap_or_default(),
        data: Bytes::new(),
    })
}

/// The notes of a volume, or of all volumes.
pub fn notes(disk: &DiskHandle, volume: Option<VolumeId>) -> Result<Vec<Note>, DiskError> {
    Ok(note::notes(disk.index(), volume)?)
}

/// The last write of a volume on this disk.
pub fn last_position(disk: &DiskHandle, volume: VolumeId) -> Result<Position, DiskError> {
    Ok(map::last_of(&disk.index(), volume)?)
}

/// A block that was written, as an era sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Which.
    pub place: BlockPlace,
    /// Where it lies.
    pub row: BlockRow,
}

/// Rows of a range, of each block the newest of `era` or before, at most so many; and whether that was all.
fn mapped(disk: &DiskHandle, range: Range, era: u32, most: usize) -> Result<(Vec<Mapped>, bool), IndexError> {
    let mut found: Vec<Mapped> = Vec::new();
    for pair in disk.index().scan(Table::Blocks, range) {
        let (key, value) = pair?;
        let (place, written) = parse_block_key(&key).map_err(damaged)?;
        if written > era || found.last().is_some_and(|before| before.place == place) {
            continue;
        }
        if found.len() == most {
            return Ok((found, false));
        }
        found.push(Mapped { place, row: BlockRow::decode(&value).map_err(damaged)? });
    }
    Ok((found, true))
}

/// What of a run was written, in order. Keep the pins until it is read.
pub fn find(
    disk: &DiskHandle,
    volume: VolumeId,
    run: &Run,
    era: u32,
) -> Result<(Vec<Mapped>, Option<Pins>), DiskError> {
    let found = disk.lookup(|_| {
        let (mapped, _) = mapped(disk, run_range(volume, run), era, usize::MAX)?;
        let places: Vec<Location> = mapped.iter().map(|block| block.row.at).collect();
        Ok(Some((mapped, places)))
    })?;
    let (mapped, pins) = found.map_or((Vec::new(), None), |(mapped, pins)| (mapped, Some(pins)));
    Ok((mapped, pins))
}

/// What was written from a place on, at most `most` blocks, and whether that was all. Not to be read from.
pub fn walk(
    disk: &DiskHandle,
    volume: VolumeId,
    from: BlockPlace,
    era: u32,
    most: usize,
) -> Result<(Vec<Mapped>, bool), DiskError> {
    Ok(mapped(disk, tail_range(volume, from), era, most)?)
}

/// The longest beginning of `blocks` that lies in one piece: so many, at least one.
#[must_use]
pub fn piece(blocks: &[Mapped]) -> usize {
    let joined = blocks.windows(2).take_while(|pair| match pair {
        [a, b] => {
            let (x, y) = (a.place, b.place);
            a.row.at == b.row.at
                && (x.slice, x.chunk) == (y.slice, y.chunk)
                && x.block.checked_add(1) == Some(y.block)
                && !a.row.is_zeroes()
                && a.row.data.checked_add(BLOCK_STEP) == Some(b.row.data)
        }
        _ => false,
    });
    joined.count() + 1
}

/// The bytes of a [`piece`] of written blocks that are no zeroes.
pub async fn read(disk: &DiskHandle, volume: VolumeId, blocks: &[Mapped]) -> Result<Bytes, DiskError> {
    let Some(first) = blocks.first() else { return Ok(Bytes::new()) };
    let at = first.row.at;
    disk.check_place(at)?;
    let length = blocks.len() * BLOCK_LENGTH;
    let corrupt = |bad| DiskError::Corrupt { at, bad };
    if first.row.data as usize + length > at.len as usize {
        return Err(corrupt(BadRecord::Field("place of a block")));
    }
    let raw = disk.read_within(at, first.row.data as usize, length).await?;
    for (nth, (block, bytes)) in blocks.iter().zip(raw.chunks_exact(BLOCK_LENGTH)).enumerate() {
        let place = block.place;
        let sum = bytes.try_into().map(|bytes: &[u8; BLOCK_LENGTH]| {
            let number = place.block.into();
            block_checksum(volume, place.slice, place.chunk, number, block.row.position, bytes)
        });
        if !sum.is_ok_and(|sum| sum == block.row.checksum) {
            disk.count_corrupt();
            return Err(corrupt(BadRecord::DataCrc { at: nth * BLOCK_LENGTH }));
        }
    }
    if raw.len() == length { Ok(raw) } else { Err(corrupt(BadRecord::Truncated)) }
}

const _: () = assert!(BLOCK_LENGTH == BLOCK);

/// Drops up to `most` rows of a volume that is gone, and the space of what they kept; how many there were.
pub async fn reap(disk: &DiskHandle, volume: VolumeId, most: usize) -> Result<usize, DiskError> {
    if !note::is_gone(&disk.index(), volume)? {
        return Ok(0);
    }
    let keys = map::some_keys(disk.index(), volume, most)?;
    let count = keys.len();
    if count > 0 {
        disk.submit_prune(Box::new(move |tx| map::drop_rows(tx, &keys))).await?;
    }
    Ok(count)
}
