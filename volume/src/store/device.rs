//! A volume, or one of its snapshots, as a block device: byte ranges in, bytes out.
//!
//! Invariant: a write of whole blocks goes to the log as it came; what covers a block in part is read, changed and written
//! while no other write to the volume is under way, by whichever device.
//! Invariant: what was never written, or discarded, reads as zeroes and takes no space.
//! Invariant: a device that is fenced, or frozen, changes nothing; a fenced one reads nothing either.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quarry_engine::block::{BLOCK_BYTES, BlockPlace, BlockRow, Fence, Mapped, Run, find, piece, read, walk};
use quarry_engine::disk::DiskError;

use super::error::VolumeError;
use super::seat::Seat;
use crate::geometry::{CHUNK_BYTES, ChunkId, Geometry, SliceId};

/// Reads of one request that are under way together.
const READS: usize = 32;
/// Writes of one request that are under way together.
const WRITES: usize = 32;
/// Rows of the map that one step of a long discard looks at.
const STEP_ROWS: usize = 4096;

/// A part of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// As many zeroes.
    Zeroes(u64),
}

/// Bytes in a row that take space, or do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// How many.
    pub bytes: u64,
    /// Takes no space, and reads as zeroes.
    pub hole: bool,
}

/// A view of a volume that reads and, unless it is frozen, writes.
#[derive(Debug, Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    seat: Arc<Seat>,
    geometry: Geometry,
    /// `None`: frozen.
    fence: Option<Fence>,
    /// The last era that is seen.
    era: u32,
}

/// A range in whole blocks around it.
struct Around {
    offset: u64,
    length: u64,
}

fn around(offset: u64, length: u64) -> Around {
    let start = offset / BLOCK_BYTES * BLOCK_BYTES;
    Around { offset: start, length: (offset + length).next_multiple_of(BLOCK_BYTES) - start }
}

fn aligned(offset: u64, length: u64) -> bool {
    offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES)
}

impl Device {
    /// The device of an attached head.
    #[must_use]
    pub fn attached(seat: Arc<Seat>, geometry: Geometry, fence: Fence) -> Self {
        Self::new(seat, geometry, Some(fence), u32::MAX)
    }

    /// A frozen one: what a snapshot sees.
    #[must_use]
    pub fn frozen(seat: Arc<Seat>, geometry: Geometry, era: u32) -> Self {
        Self::new(seat, geometry, None, era)
    }

    fn new(seat: Arc<Seat>, geometry: Geometry, fence: Option<Fence>, era: u32) -> Self {
        Self { inner: Arc::new(Inner { seat, geometry, fence, era }) }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.geometry.volume_bytes()
    }

    /// Nothing is written.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.inner.fence.is_none()
    }

    /// Where it is written.
    #[must_use]
    pub fn seat(&self) -> &Arc<Seat> {
        &self.inner.seat
    }

    fn fence(&self) -> Result<Fence, VolumeError> {
        self.inner.fence.ok_or_else(|| crate::member::Refusal::NotPromised.into())
    }

    /// A head that was fenced reads nothing.
    fn admitted(&self) -> Result<(), VolumeError> {
        self.inner.fence.map_or(Ok(()), |fence| self.inner.seat.admit(fence))
    }

    /// The bytes of a range, in pieces that cover it in order.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, VolumeError> {
        self.admitted()?;
        let whole = around(offset, length);
        let runs = self.inner.geometry.split(whole.offset, whole.length)?;
        let parts: Vec<_> = runs.map(|run| self.read_run(run)).collect();
        let parts: Vec<Vec<Piece>> = stream::iter(parts).buffered(READS).try_collect().await?;
        // A promise that came meanwhile: another head may have written what this one would miss.
        self.admitted()?;
        let mut pieces: Vec<Piece> = parts.into_iter().flatten().collect();
        trim(&mut pieces, offset - whole.offset, length);
        Ok(pieces)
    }

    async fn read_run(&self, run: Run) -> Result<Vec<Piece>, VolumeError> {
        let disk = self.inner.seat.disk();
        let volume = self.inner.seat.volume();
        let (mapped, _pins) = find(disk, volume, &run, self.inner.era)?;
        let mut gaps = Vec::new();
        let mut groups: Vec<&[Mapped]> = Vec::new();
        let mut rest = mapped.as_slice();
        let mut next = u64::from(run.first);
        while let Some(first) = rest.first() {
            let count = piece(rest);
            let (group, behind) = rest.split_at(count);
            let at = u64::from(first.place.block);
            gaps.push(at - next);
            groups.push(group);
            next = at + count as u64;
            rest = behind;
        }
        let end = u64::from(run.first) + u64::from(run.blocks) - next;
        let reads = groups.into_iter().map(|group| async move {
            if group.iter().all(|block| block.row.is_zeroes()) {
                return Ok::<_, VolumeError>(Piece::Zeroes(group.len() as u64 * BLOCK_BYTES));
            }
            Ok(Piece::Data(read(disk, volume, group).await?))
        });
        let reads: Vec<_> = reads.collect();
        let read: Vec<Piece> = stream::iter(reads).buffered(READS).try_collect().await?;
        let mut pieces = Vec::new();
        for (gap, piece) in gaps.into_iter().zip(read) {
            pieces.push(Piece::Zeroes(gap * BLOCK_BYTES));
            pieces.push(piece);
        }
        pieces.push(Piece::Zeroes(end * BLOCK_BYTES));
        Ok(pieces)
    }

    /// The bytes of a range in one buffer.
    pub async fn read_whole(&self, offset: u64, length: u64) -> Result<BytesMut, VolumeError> {
        let mut whole = BytesMut::new();
        for piece in self.read(offset, length).await? {
            match piece {
                Piece::Data(data) => whole.extend_from_slice(&data),
                Piece::Zeroes(zeroes) => whole.resize(whole.len() + length_of(zeroes), 0),
            }
        }
        Ok(whole)
    }

    /// Writes bytes. They are durable when this returns.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        let length = data.len() as u64;
        if aligned(offset, length) {
            let _shared = self.inner.seat.edges().read().await;
            return self.write_blocks(offset, data).await;
        }
        let _alone = self.inner.seat.edges().write().await;
        let whole = around(offset, length);
        let mut blocks = self.read_whole(whole.offset, whole.length).await?;
        let from = length_of(offset - whole.offset);
        if let Some(place) = blocks.get_mut(from..from + data.len()) {
            place.copy_from_slice(&data);
        }
        self.write_blocks(whole.offset, blocks.freeze()).await
    }

    async fn write_blocks(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        let fence = self.fence()?;
        let runs = self.inner.geometry.split(offset, data.len() as u64)?;
        let mut rest = data;
        let pieces = runs.map(|run| (run, rest.split_to(length_of(run.bytes()))));
        all_of(pieces.map(|(run, data)| self.inner.seat.write(fence, run, Some(data))).collect()).await
    }

    /// Zeroes a range. With `allocate` it takes its space.
    pub async fn zero(&self, offset: u64, length: u64, allocate: bool) -> Result<(), VolumeError> {
        if allocate {
            return self.write_zeroes(offset, length).await;
        }
        let inner_from = offset.next_multiple_of(BLOCK_BYTES);
        let inner_to = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        if inner_from >= inner_to {
            return self.write_zeroes(offset, length).await;
        }
        if inner_from > offset {
            self.write_zeroes(offset, inner_from - offset).await?;
        }
        self.discard(inner_from, inner_to - inner_from).await?;
        let tail = offset + length - inner_to;
        if tail > 0 { self.write_zeroes(inner_to, tail).await } else { Ok(()) }
    }

    /// Writes zeroes as if they were data.
    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        let mut at = offset;
        while at < offset + length {
            let end = (at / CHUNK_BYTES + 1) * CHUNK_BYTES;
            let step = end.min(offset + length) - at;
            self.write(at, Bytes::from(vec![0; length_of(step)])).await?;
            at += step;
        }
        Ok(())
    }

    /// Gives up the whole blocks of a range: they read as zeroes and take no space.
    pub async fn discard(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        let fence = self.fence()?;
        let from = offset.next_multiple_of(BLOCK_BYTES);
        let to = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        let _shared = self.inner.seat.edges().read().await;
        let mut at = from;
        while at < to {
            let (mapped, all) = self.walk(at, STEP_ROWS)?;
            let data: Vec<&Mapped> = mapped.iter().filter(|block| !block.row.is_zeroes()).collect();
            let runs = runs_of(&data, |place| self.offset_of(place).is_some_and(|offset| offset < to));
            all_of(runs.into_iter().map(|run| self.inner.seat.write(fence, run, None)).collect()).await?;
            at = match mapped.last().and_then(|last| self.offset_of(last.place)) {
                Some(last) if !all => last + BLOCK_BYTES,
                _ => to,
            };
        }
        Ok(())
    }

    fn walk(&self, offset: u64, most: usize) -> Result<(Vec<Mapped>, bool), VolumeError> {
        let seat = &self.inner.seat;
        let Some(run) = self.inner.geometry.split(offset, BLOCK_BYTES)?.next() else {
            return Ok((Vec::new(), true));
        };
        let place = BlockPlace { slice: run.slice, chunk: run.chunk, block: run.first };
        Ok(walk(seat.disk(), seat.volume(), place, self.inner.era, most)?)
    }

    fn offset_of(&self, place: BlockPlace) -> Option<u64> {
        self.inner.geometry.offset_of(place.slice, place.chunk, place.block)
    }

    /// All writes that were answered are durable when this returns.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        match self.inner.fence {
            Some(fence) => self.inner.seat.flush(fence).await,
            None => Ok(()),
        }
    }

    /// What takes space from an offset on: stretches that end at the range's end or before, after at most `most` blocks.
    pub fn stretches(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Stretch>, VolumeError> {
        self.admitted()?;
        let end = offset + length;
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let (mapped, all) = self.walk(start, most)?;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = offset;
        let mut add = |upto: u64, hole: bool| {
            let bytes = upto.min(end).saturating_sub(at);
            if bytes > 0 {
                at += bytes;
                match stretches.last_mut() {
                    Some(last) if last.hole == hole => last.bytes += bytes,
                    _ => stretches.push(Stretch { bytes, hole }),
                }
            }
        };
        for Mapped { place, row } in &mapped {
            let Some(block) = self.offset_of(*place) else { break };
            add(block, true);
            add(block + BLOCK_BYTES, BlockRow::is_zeroes(row));
        }
        if all {
            add(end, true);
        }
        Ok(stretches)
    }
}

/// Drives all writes to their end, whatever becomes of one: a seat does not forgive one that is dropped.
async fn all_of(writes: Vec<impl Future<Output = Result<(), VolumeError>>>) -> Result<(), VolumeError> {
    let mut writes = stream::iter(writes).buffered(WRITES);
    let mut result = Ok(());
    while let Some(one) = writes.next().await {
        result = result.and(one);
    }
    result
}

/// The runs of blocks that follow one another in a chunk.
fn runs_of(blocks: &[&Mapped], wanted: impl Fn(BlockPlace) -> bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for BlockPlace { slice, chunk, block } in blocks.iter().map(|block| block.place) {
        if !wanted(BlockPlace { slice, chunk, block }) {
            break;
        }
        match runs.last_mut() {
            Some(run) if follows(run, slice, chunk, block) => run.blocks += 1,
            _ => runs.push(Run { slice, chunk, first: block, blocks: 1 }),
        }
    }
    runs
}

fn follows(run: &Run, slice: SliceId, chunk: ChunkId, block: u8) -> bool {
    (run.slice, run.chunk) == (slice, chunk) && u16::from(run.first) + run.blocks == u16::from(block)
}

/// Cuts pieces to `length` bytes from `skip` on, and drops what is empty.
fn trim(pieces: &mut Vec<Piece>, skip: u64, length: u64) {
    let (mut skip, mut left) = (skip, length);
    for piece in pieces.iter_mut() {
        let bytes = match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeroes(zeroes) => *zeroes,
        };
        let from = skip.min(bytes);
        let kept = (bytes - from).min(left);
        skip -= from;
        left -= kept;
        *piece = match std::mem::replace(piece, Piece::Zeroes(0)) {
            Piece::Data(data) => Piece::Data(data.slice(length_of(from)..length_of(from + kept))),
            Piece::Zeroes(_) => Piece::Zeroes(kept),
        };
    }
    pieces.retain(|piece| match piece {
        Piece::Data(data) => !data.is_empty(),
        Piece::Zeroes(zeroes) => *zeroes > 0,
    });
}

/// A length of something that is in memory.
fn length_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory has a length")
}

impl From<&VolumeError> for crate::nbd::Errno {
    fn from(error: &VolumeError) -> Self {
        use crate::member::Refusal;
        match error {
            VolumeError::Disk(DiskError::NoSpace) | VolumeError::NoRoom => Self::NoSpace,
            VolumeError::Disk(DiskError::Closed) | VolumeError::Refused(Refusal::Fenced(_)) => Self::Shutdown,
            VolumeError::Range(_) => Self::Invalid,
            VolumeError::Refused(Refusal::NotPromised) => Self::Permission,
            _ => Self::Io,
        }
    }
}
