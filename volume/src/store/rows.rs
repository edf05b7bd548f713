//! What a member has, as heads ask for it: bytes of a run, rows from a place on; of a clone with what lies below it.
//!
//! Invariant: what a clone sees of the volume below is told as its first write's ([`FIRST`]): whoever is filled with it has the same
//! rows as a member that shares them. Zeroes below are nothing, also where they were taken over from there: all but the first block, which is
//! the first write itself.

use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::block::{
    BlockPlace, FIRST_PLACE, Fence, Layer, Mapped, Position, Run, find, piece, read, walk,
};
use quarry_engine::net::limits::MAX_WRITES;
use quarry_engine::net::{BlockWrite, VolumeAnswer};

use super::device::{Device, Piece};
use super::error::VolumeError;
use super::fork::FIRST;
use super::seat::Seat;
use crate::geometry::{BLOCK_BYTES, Geometry, MAX_VOLUME_BYTES, SLICE_BYTES};

/// Bytes of rows that are given at once.
pub(super) const ROW_BYTES: u64 = 1 << 20;
/// Blocks that one look at the map covers, of all layers together.
pub(super) const LOOK: usize = MAX_WRITES;

/// What is looked through, as of an era.
pub(super) fn layers(seat: &Seat, below: &[Layer], era: u32) -> Vec<Layer> {
    [&[Layer { volume: seat.volume(), era }], below].concat()
}

pub(super) async fn read_run(
    seat: &Arc<Seat>,
    below: Vec<Layer>,
    fence: Fence,
    run: Run,
    era: u32,
) -> Result<VolumeAnswer, VolumeError> {
    seat.admit(fence)?;
    let geometry = Geometry::new(MAX_VOLUME_BYTES, SLICE_BYTES)?;
    let device = if era == u32::MAX {
        Device::attached(Arc::clone(seat), geometry, fence, below)
    } else {
        // A snapshot lies before all that is not in the index yet, once that which is on its way has come there.
        seat.settle().await?;
        Device::frozen(Arc::clone(seat), geometry, era, below)
    };
    let (found, late) = device.read_run(run).await?;
    // What lies below was durable before there was a clone.
    let (mapped, _pins) = find(seat.disk(), &layers(seat, &[], era), &run)?;
    let newest = mapped.iter().map(|block| block.row.position.sequence).max().unwrap_or(0);
    let newest = late.map_or(0, |late| late.newest).max(newest);
    // Somebody else may have been promised meanwhile.
    seat.admit(fence)?;
    let (mut pieces, mut parts) = (Vec::with_capacity(1), Vec::with_capacity(1));
    for piece in found {
        let (bytes, zeroes) = match &piece {
            Piece::Data(data) => (data.len() as u64, false),
            Piece::Zeroes(zeroes) => (*zeroes, true),
        };
        if bytes > 0 {
            let blocks = u16::try_from(bytes / BLOCK_BYTES).expect("a run lies in one chunk");
            pieces.push((blocks, zeroes));
        }
        if let Piece::Data(data) = piece {
            parts.push(data);
        }
    }
    let data = match <[Bytes; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => parts.concat().into(),
    };
    Ok(VolumeAnswer::Read { newest, pieces, data })
}

/// Rows that one write made, in a row.
pub(super) fn same(blocks: &[Mapped]) -> usize {
    let follows = |a: &Mapped, b: &Mapped| {
        (a.volume, a.row.position) == (b.volume, b.row.position)
            && a.row.is_zeroes()
            && b.row.is_zeroes()
            && (a.place.slice, a.place.chunk) == (b.place.slice, b.place.chunk)
            && a.place.block.checked_add(1) == Some(b.place.block)
    };
    let zeroes = blocks.windows(2).take_while(|pair| matches!(pair, [a, b] if follows(a, b))).count() + 1;
    zeroes.max(piece(blocks))
}

/// The run of blocks that follow one another.
pub(super) fn run_of(group: &[Mapped]) -> Option<Run> {
    let BlockPlace { slice, chunk, block } = group.first()?.place;
    let blocks = u16::try_from(group.len()).expect("a run lies in one chunk");
    Some(Run { slice, chunk, first: block, blocks })
}

/// Where in the order a block counts, and in which era; of what lies below.
fn counted(seat: &Seat, block: &Mapped) -> (Position, u32) {
    if block.volume == seat.volume() { (block.row.position, block.era) } else { (FIRST, 0) }
}

fn is_nothing(seat: &Seat, block: &Mapped) -> bool {
    let taken_over = || (counted(seat, block), block.place == FIRST_PLACE) == ((FIRST, 0), false);
    block.row.is_zeroes() && (block.volume != seat.volume() || taken_over())
}

pub(super) async fn rows(
    seat: &Seat,
    below: &[Layer],
    from: BlockPlace,
    data: bool,
    era: u32,
    wanted: impl Fn(Position, u32) -> bool,
) -> Result<VolumeAnswer, VolumeError> {
    let layers = layers(seat, below, era);
    let (mapped, all) = walk(seat.disk(), &layers, from, (LOOK / layers.len()).max(1))?;
    let mut next = mapped.last().filter(|_| !all).map(|last| after(last.place));
    let (mut out, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut rest = mapped.as_slice();
    while let Some(first) = rest.first() {
        if bytes >= ROW_BYTES {
            next = Some(first.place);
            break;
        }
        let (group, behind) = rest.split_at(same(rest));
        rest = behind;
        let (position, era) = counted(seat, first);
        let Some(run) = run_of(group).filter(|_| wanted(position, era) && !is_nothing(seat, first)) else {
            continue;
        };
        if !data {
            out.push(BlockWrite { position, run, era, zeroes: first.row.is_zeroes() });
            continue;
        }
        // Found again, and held while it is read: it may have moved, or something newer is there.
        let (now, _pins) = find(seat.disk(), &layers, &run)?;
        let mut now = now.as_slice();
        while let Some(first) = now.first() {
            let (group, behind) = now.split_at(same(now));
            now = behind;
            let Some(run) = run_of(group).filter(|_| !is_nothing(seat, first)) else { continue };
            let (position, era) = counted(seat, first);
            let zeroes = first.row.is_zeroes();
            if !zeroes {
                parts.push(read(seat.disk(), group).await?);
                bytes += run.bytes();
            }
            out.push(BlockWrite { position, run, era, zeroes });
        }
    }
    Ok(VolumeAnswer::Rows { rows: out, next, data: parts.concat().into() })
}

/// The place behind a place.
pub(super) fn after(place: BlockPlace) -> BlockPlace {
    use crate::geometry::{ChunkId, SliceId};
    let BlockPlace { slice, chunk, block } = place;
    if let Some(block) = block.checked_add(1) {
        return BlockPlace { slice, chunk, block };
    }
    match chunk.0.checked_add(1) {
        Some(chunk) => BlockPlace { slice, chunk: ChunkId(chunk), block: 0 },
        None => BlockPlace { slice: SliceId(slice.0 + 1), chunk: ChunkId(0), block: 0 },
    }
}
