//! Chunks that are read much and lie scattered, and how they are brought into order: what a reader sees of one is written anew,
//! by address, in one piece.
//!
//! Random writes leave a chunk in as many places as it has blocks, and cleaning brings together only what happens to be moved at
//! the same time. So readers keep account: who reads a stretch of a chunk and needs many requests for it leaves a hint. A hint is
//! looked at when it is taken ([`lie`]), after a rest again, and only a chunk that nobody wrote to meanwhile is moved ([`bring`]).
//!
//! Invariant: nothing here walks a map. Without readers that met scattered chunks there is no work.
//! Invariant: a chunk is moved only when that at least halves the requests that its reader needs; so two readers that see different
//! snapshots of it do not move it to and fro.
//! Invariant: a record is moved only when its reader sees half of what is needed of it: at most twice a chunk is written.
//! Invariant: moves are the cleaner's: the same records, compare-and-set; what is written or trimmed meanwhile stays so, and eras
//! keep their blocks.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::near;
use super::place::{BLOCK_LENGTH, BLOCKS_PER_CHUNK, ChunkId, Position, Run, SliceId, VolumeId};
use super::remains::needed_of;
use super::store::{Layer, Mapped, mapped, piece};
use crate::disk::format::bytes::Reader;
use crate::disk::{DiskError, DiskHandle, Location};
use crate::index::{Index, IndexError};

/// Fewest blocks of a read that tells something of order.
const LEAST_BLOCKS: usize = 16;
/// Blocks for which one request is not too much.
const BLOCKS_PER_REQUEST: usize = 32;
/// Blocks that have been read, scattered, before a chunk is worth a look: all of it once.
const WORTH: u32 = BLOCKS_PER_CHUNK as u32;
/// Fewest requests of a chunk that is scattered.
const SCATTERED: usize = BLOCKS_PER_CHUNK as usize / BLOCKS_PER_REQUEST;
/// Records of a chunk that are read together.
const READS: usize = 32;

/// A chunk as one view of a volume sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The volume, and the last era that is seen.
    pub layer: Layer,
    /// Which slice.
    pub slice: SliceId,
    /// Which chunk of it.
    pub chunk: ChunkId,
}

impl View {
    fn encode(&self) -> Vec<u8> {
        let Self { layer, slice, chunk } = self;
        let numbers = [&layer.era.to_le_bytes()[..], &slice.0.to_le_bytes(), &chunk.0.to_le_bytes()].concat();
        [&layer.volume.0[..], &numbers].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let volume = VolumeId(r.array().ok()?);
        let layer = Layer { volume, era: r.u32().ok()? };
        let slice = SliceId(r.u32().ok()?);
        Some(Self { layer, slice, chunk: ChunkId(u16::from_le_bytes(r.array().ok()?)) })
    }

    fn run(&self) -> Run {
        Run { slice: self.slice, chunk: self.chunk, first: 0, blocks: BLOCKS_PER_CHUNK }
    }
}

/// Takes note of a read of so many requests, if it needed too many.
pub(super) fn note(disk: &DiskHandle, layers: &[Layer], pieces: &[&[Mapped]], requests: usize) {
    let blocks: usize = pieces.iter().map(|piece| piece.len()).sum();
    if blocks < LEAST_BLOCKS || requests <= (blocks / BLOCKS_PER_REQUEST).max(1) {
        return;
    }
    for layer in layers {
        let own = |piece: &&&[Mapped]| piece.first().is_some_and(|first| first.volume == layer.volume);
        let own: Vec<_> = pieces.iter().filter(own).collect();
        let Some(first) = own.first().and_then(|piece| piece.first()) else { continue };
        let view = View { layer: *layer, slice: first.place.slice, chunk: first.place.chunk };
        let blocks: usize = own.iter().map(|piece| piece.len()).sum();
        disk.give_hint(&view.encode(), u32::try_from(blocks).unwrap_or(u32::MAX), WORTH);
    }
}

/// A chunk that a reader found scattered.
#[must_use]
pub fn take_hint(disk: &DiskHandle) -> Option<View> {
    View::decode(&disk.take_hint()?)
}

/// How a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lie {
    /// Requests for all of it.
    pub requests: usize,
    /// And after it was brought into order.
    pub after: usize,
    /// The newest write that is seen in it.
    pub newest: Position,
}

impl Lie {
    /// Whether it pays to move it.
    #[must_use]
    pub fn is_scattered(&self) -> bool {
        self.requests >= SCATTERED && self.after * 2 <= self.requests
    }
}

/// A chunk's rows as they are now.
struct Look {
    lie: Lie,
    /// Records to be moved.
    records: Vec<Location>,
}

fn look(index: &dyn Index, view: &View) -> Result<Option<Look>, IndexError> {
    let blocks: Vec<Mapped> = mapped(index, &view.run(), view.layer)?;
    let blocks: Vec<Mapped> = blocks.into_iter().filter(|block| !block.row.is_zeroes()).collect();
    let Some(newest) = blocks.iter().map(|block| block.row.position).max() else { return Ok(None) };
    let requests = near::gather(&pieces(&blocks)).len();
    let lie = Lie { requests, after: requests, newest };
    if requests < SCATTERED {
        return Ok(Some(Look { lie, records: Vec::new() }));
    }
    let mut seen: BTreeMap<Location, u16> = BTreeMap::new();
    for block in &blocks {
        *seen.entry(block.row.at).or_default() += 1;
    }
    let mut records = Vec::with_capacity(seen.len());
    for (at, seen) in seen {
        // One that is too short for two blocks has no count.
        let needed = if (at.len as usize) < 2 * BLOCK_LENGTH { 1 } else { needed_of(index, at)? };
        if seen * 2 >= needed {
            records.push(at);
        }
    }
    let stay: Vec<Mapped> =
        blocks.iter().filter(|block| records.binary_search(&block.row.at).is_err()).copied().collect();
    let after = near::gather(&pieces(&stay)).len() + usize::from(!records.is_empty());
    Ok(Some(Look { lie: Lie { after, ..lie }, records }))
}

fn pieces(blocks: &[Mapped]) -> Vec<&[Mapped]> {
    let mut rest = blocks;
    std::iter::from_fn(|| {
        let (group, behind) = rest.split_at_checked(if rest.is_empty() { 0 } else { piece(rest) })?;
        rest = behind;
        (!group.is_empty()).then_some(group)
    })
    .collect()
}

/// How a chunk lies; `None`: there is nothing in it.
pub fn lie(disk: &DiskHandle, view: &View) -> Result<Option<Lie>, DiskError> {
    Ok(look(disk.index(), view)?.map(|look| look.lie))
}

/// Brings a chunk into order, if it lies scattered and nobody wrote to it after `newest`; how many bytes were moved.
pub async fn bring(disk: &DiskHandle, view: &View, newest: Position) -> Result<u64, DiskError> {
    let found = disk.lookup(|index| {
        let Some(look) = look(index, view)? else { return Ok(None) };
        let places = look.records.clone();
        Ok(Some((look, places)))
    })?;
    // Pinned until the moves are applied: another record in one of these places would be taken for the one that was read.
    let Some((look, _pins)) = found else { return Ok(0) };
    if !look.lie.is_scattered() || look.lie.newest > newest {
        return Ok(0);
    }
    let reads: Vec<_> = look
        .records
        .iter()
        .map(|at| async move {
            match disk.read_uncached(*at).await {
                Ok(record) => disk.moves_of(&record, *at),
                // It stays; who reads it is told.
                Err(DiskError::Corrupt { .. } | DiskError::Io { .. }) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        })
        .collect();
    let moves: Vec<_> = stream::iter(reads).buffered(READS).try_collect().await?;
    let moves: Vec<_> = moves.into_iter().flatten().collect();
    let bytes = moves.iter().map(|(_, item)| item.record.stored_len() as u64).sum();
    disk.append_moves(moves).await?;
    disk.count_ordered(bytes);
    Ok(bytes)
}
