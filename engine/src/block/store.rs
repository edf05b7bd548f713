//! Blocks of volumes on one disk: logged, found, read and verified.
//!
//! Invariant: a block leaves [`read`] verified against its place in the volume and the write that made it, or not at all.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::extent::{Content, Extent, MIN_EXTENT_BYTES, block_checksum};
use super::note::{self, Note, NoteKey};
use super::place::{BLOCK_LENGTH, BLOCK_STEP, Position, Run, VolumeId};
use super::recall::first_era_known;
use super::row::{BlockPlace, BlockRow, Row, block_key, parse_block_key, run_range, span_key, tail_range};
use super::span::{SPAN_BLOCKS, span_of, span_place, spans};
use super::{map, marks, near, order};
use crate::catalog::damaged;
use crate::disk::catalog::Tx;
use crate::disk::format::record::{BadRecord, DeviceId, Kind, NewRecord, Parts};
use crate::disk::format::sums::Sums;
use crate::disk::limits::CRC_SPAN;
use crate::disk::memo::Memo;
use crate::disk::{DiskError, DiskHandle, Location, Pins};
use crate::index::{Index, IndexError, Table};
use crate::io::BLOCK;

/// Blocks that are looked up one by one where that is possible.
const FEW_BLOCKS: u16 = 8;

/// The record of an extent in an era.
#[must_use]
pub fn extent_record(disk: &DiskHandle, extent: &Extent, era: u32, data: Bytes) -> NewRecord {
    extent_record_of(disk.device(), extent, era, data)
}

/// As [`extent_record`], of an extent that has no content yet: it is this data.
#[must_use]
pub fn data_record(disk: &DiskHandle, extent: Extent, era: u32, data: Bytes) -> NewRecord {
    let sums = Sums::of(&data);
    build(&extent.holding(&sums), era, data, |parts| NewRecord::summed(disk.device(), parts, &sums))
}

/// As [`extent_record`], of a device.
pub(super) fn extent_record_of(device: DeviceId, extent: &Extent, era: u32, data: Bytes) -> NewRecord {
    build(extent, era, data, |parts| NewRecord::new(device, parts))
}

fn build(extent: &Extent, era: u32, data: Bytes, make: impl FnOnce(Parts<'_>) -> NewRecord) -> NewRecord {
    let Run { slice, chunk, first, .. } = extent.run;
    make(Parts {
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

/// A volume as an era sees it: one of the layers that a device looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Which volume.
    pub volume: VolumeId,
    /// The last era that is seen.
    pub era: u32,
}

/// A block that was written, as a view sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Which.
    pub place: BlockPlace,
    /// In which volume it was written: the viewed one, or one below it.
    pub volume: VolumeId,
    /// In which of its eras.
    pub era: u32,
    /// Where it lies.
    pub row: BlockRow,
}

/// The blocks of one span as a layer sees them, while their rows go by.
struct Gather {
    layer: Layer,
    from: BlockPlace,
    span: BlockPlace,
    best: [Option<(u32, BlockRow)>; SPAN_BLOCKS as usize],
    found: Vec<Mapped>,
}

impl Gather {
    fn new(layer: Layer, from: BlockPlace) -> Self {
        Self { layer, from, span: span_place(from), best: [None; SPAN_BLOCKS as usize], found: Vec::new() }
    }

    /// Takes a row, where `at` is its key's place; true: the block there has been found.
    fn take(&mut self, at: BlockPlace, era: u32, row: &Row) -> bool {
        if span_place(at) != self.span {
            self.turn(span_place(at));
        }
        if era > self.layer.era {
            return false;
        }
        for (place, row) in row.blocks(at) {
            let nth = usize::from(place.block - self.span.block);
            if let Some(best) = self.best.get_mut(nth)
                && best.is_none_or(|(known, _)| known < era)
            {
                *best = Some((era, row));
            }
        }
        self.best.get(usize::from(at.block - self.span.block)).is_some_and(Option::is_some)
    }

    /// The next span begins.
    fn turn(&mut self, span: BlockPlace) {
        let Self { layer, from, .. } = *self;
        for (nth, best) in (0..).zip(&mut self.best) {
            let place = BlockPlace { block: self.span.block + nth, ..self.span };
            if let Some((era, row)) = best.take()
                && place >= from
            {
                self.found.push(Mapped { place, volume: layer.volume, era, row });
            }
        }
        self.span = span;
    }

    /// What was found up to a block.
    fn end(mut self, last: BlockPlace) -> Vec<Mapped> {
        self.turn(last);
        self.found.retain(|block| block.place <= last);
        self.found
    }
}

/// Of each block of a run what a layer sees, in order.
pub(super) fn mapped(index: &dyn Index, run: &Run, layer: Layer) -> Result<Vec<Mapped>, IndexError> {
    let (first, last) = (BlockPlace::of(run, run.first), BlockPlace::of(run, run.last()));
    let mut gather = Gather::new(layer, first);
    for pair in index.scan(Table::Blocks, run_range(layer.volume, run)) {
        let (key, value) = pair?;
        let (place, era) = parse_block_key(&key).map_err(damaged)?;
        let seen = gather.take(place, era, &Row::decode(&key, &value).map_err(damaged)?);
        // Behind it are only older rows of the last block, of which there may be many.
        if seen && place == last {
            break;
        }
    }
    Ok(gather.end(last))
}

/// As [`mapped`] of a layer that sees the first era alone: its keys are known, and need no search.
pub(super) fn first_era(index: &dyn Index, run: &Run, volume: VolumeId) -> Result<Vec<Mapped>, IndexError> {
    let mut gather = Gather::new(Layer { volume, era: 0 }, BlockPlace::of(run, run.first));
    first_rows(index, run, volume, |place, row| {
        gather.take(place, 0, &row);
    })?;
    Ok(gather.end(BlockPlace::of(run, run.last())))
}

/// The rows of a run's blocks in the first era, and of their spans, in the order of their keys.
pub(super) fn first_rows(
    index: &dyn Index,
    run: &Run,
    volume: VolumeId,
    mut each: impl FnMut(BlockPlace, Row),
) -> Result<(), IndexError> {
    // All in one look: a write may move a block between its own row and its span's.
    let mut keys: Vec<Vec<u8>> = Vec::with_capacity(usize::from(run.blocks) + 2);
    for (first, last) in spans(run) {
        let own = (first..=last).map(|block| block_key(volume, run.slice, run.chunk, block, 0));
        keys.extend(own);
        keys.push(span_key(volume, run.slice, run.chunk, span_of(first), 0));
    }
    // The span's key lies behind that of its first block.
    keys.sort_unstable();
    for (key, value) in keys.iter().zip(index.get_several(Table::Blocks, &keys)?) {
        let Some(value) = value else { continue };
        let (place, _) = parse_block_key(key).map_err(damaged)?;
        each(place, Row::decode(key, &value).map_err(damaged)?);
    }
    Ok(())
}

/// What was written from a place on, as a layer sees it, at most so many blocks; and whether that was certainly all.
pub(super) fn mapped_from(
    index: &dyn Index,
    from: BlockPlace,
    layer: Layer,
    most: usize,
) -> Result<(Vec<Mapped>, bool), IndexError> {
    let mut gather = Gather::new(layer, from);
    for pair in index.scan(Table::Blocks, tail_range(layer.volume, from)) {
        let (key, value) = pair?;
        let (place, era) = parse_block_key(&key).map_err(damaged)?;
        gather.take(place, era, &Row::decode(&key, &value).map_err(damaged)?);
        if gather.found.len() > most {
            break;
        }
    }
    gather.turn(from);
    let mut found = gather.found;
    let whole = found.len() <= most;
    found.truncate(most);
    Ok((found, whole))
}

/// What of a run was written, in order, each block by the first layer that has it. Keep the pins until it is read.
pub fn find(
    disk: &DiskHandle,
    layers: &[Layer],
    run: &Run,
) -> Result<(Vec<Mapped>, Option<Pins>), DiskError> {
    let found = disk.lookup(|index| {
        let mapped = through(index, disk.memo(), layers, run)?;
        let places: Vec<Location> = mapped.iter().map(|block| block.row.at).collect();
        Ok(Some((mapped, places)))
    })?;
    let (mapped, pins) = found.map_or((Vec::new(), None), |(mapped, pins)| (mapped, Some(pins)));
    Ok((mapped, pins))
}

fn through(index: &dyn Index, memo: &Memo, layers: &[Layer], run: &Run) -> Result<Vec<Mapped>, IndexError> {
    let mut all: Vec<Mapped> = Vec::new();
    for layer in layers {
        if all.len() == usize::from(run.blocks) {
            break;
        }
        let below = if layer.era == 0 && run.blocks <= FEW_BLOCKS {
            first_era_known(index, memo, run, layer.volume)?
        } else {
            mapped(index, run, *layer)?
        };
        if all.is_empty() {
            all = below;
        } else {
            let known = all.len();
            let hidden = |block: &Mapped| all.iter().take(known).any(|above| above.place == block.place);
            let more: Vec<Mapped> = below.into_iter().filter(|block| !hidden(block)).collect();
            all.extend(more);
            all.sort_unstable_by_key(|block| block.place);
        }
    }
    Ok(all)
}

/// What was written from a place on, at most `most` blocks of each layer, and whether that was certainly all. Not to be read
/// from.
pub fn walk(
    disk: &DiskHandle,
    layers: &[Layer],
    from: BlockPlace,
    most: usize,
) -> Result<(Vec<Mapped>, bool), DiskError> {
    let mut all: BTreeMap<BlockPlace, Mapped> = BTreeMap::new();
    let mut end: Option<BlockPlace> = None;
    for layer in layers {
        let (below, whole) = mapped_from(disk.index(), from, *layer, most)?;
        if let Some(last) = below.last().filter(|_| !whole) {
            end = Some(end.map_or(last.place, |end| end.min(last.place)));
        }
        for block in below {
            all.entry(block.place).or_insert(block);
        }
    }
    let known = all.into_values().take_while(|block| end.is_none_or(|end| block.place <= end));
    Ok((known.collect(), end.is_none()))
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
pub async fn read(disk: &DiskHandle, blocks: &[Mapped]) -> Result<Bytes, DiskError> {
    let Some(first) = blocks.first() else { return Ok(Bytes::new()) };
    check(disk, blocks)?;
    let raw = disk.read_within(first.row.at, first.row.data as usize, blocks.len() * BLOCK_LENGTH).await?;
    verify(disk, blocks, &raw)?;
    Ok(raw)
}

/// The bytes of several [`piece`]s that a reader of these layers asked for, in their order; none of zeroes. Keeps account of
/// chunks that are read much and lie scattered.
pub async fn read_pieces(
    disk: &DiskHandle,
    layers: &[Layer],
    pieces: &[&[Mapped]],
) -> Result<Vec<Bytes>, DiskError> {
    let near = near::gather(pieces);
    order::note(disk, layers, pieces, near.len());
    near::read_gathered(disk, pieces, near).await
}

/// Whether a piece can lie where its rows say.
pub(super) fn check(disk: &DiskHandle, blocks: &[Mapped]) -> Result<(), DiskError> {
    let Some(first) = blocks.first().filter(|first| !first.row.is_zeroes()) else { return Ok(()) };
    let at = first.row.at;
    disk.check_place(at)?;
    if first.row.data as usize + blocks.len() * BLOCK_LENGTH > at.len as usize {
        return Err(DiskError::Corrupt { at, bad: BadRecord::Field("place of a block") });
    }
    Ok(())
}

/// Whether these are the bytes of a piece.
pub(super) fn verify(disk: &DiskHandle, blocks: &[Mapped], raw: &[u8]) -> Result<(), DiskError> {
    let Some(first) = blocks.first() else { return Ok(()) };
    let (at, volume) = (first.row.at, first.volume);
    let corrupt = |bad| DiskError::Corrupt { at, bad };
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
    if raw.len() == blocks.len() * BLOCK_LENGTH { Ok(()) } else { Err(corrupt(BadRecord::Truncated)) }
}

const _: () = assert!(BLOCK_LENGTH == BLOCK);

/// Drops up to `most` rows of a volume that is gone, and the space of what they kept; how many there were.
pub async fn reap(disk: &DiskHandle, volume: VolumeId, most: usize) -> Result<usize, DiskError> {
    if !note::is_gone(&disk.index(), volume)? {
        return Ok(0);
    }
    let keys = map::some_keys(disk.index(), volume, most)?;
    let marks = marks::some_keys(disk.index(), volume, most - keys.len())?;
    let count = keys.len() + marks.len();
    if count > 0 {
        let change = move |tx: &mut Tx<'_>| {
            map::drop_rows(tx, &keys)?;
            marks.into_iter().for_each(|key| tx.delete(Table::Blocks, key));
            Ok(())
        };
        disk.submit_prune(Box::new(change)).await?;
    }
    Ok(count)
}
