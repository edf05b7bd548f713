//! A volume, or one of its snapshots, as a block device: byte ranges in, bytes out.
//!
//! Invariant: a write of whole blocks goes to the log as it came; what covers a block in part is read, changed and written
//! while no other write to the volume is under way, by whichever device.
//! Invariant: a write is seen by every read that begins after its answer. What a client was given is durable: a read that meets a
//! write which is not waits for it.
//! Invariant: what was never written, or discarded, reads as zeroes and takes no space.
//! Invariant: a device that is fenced, or frozen, changes nothing; a fenced one reads nothing either.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quarry_engine::block::{
    BLOCK_BYTES, BlockPlace, Fence, Layer, Mapped, Run, find, piece, read_pieces, walk,
};
use quarry_engine::disk::{DiskError, DiskHandle, Lane, Pins};

use super::error::VolumeError;
use super::overlay::Seen;
use super::sealed::{opened, sealed};
use super::seat::Seat;
use super::tail::Placed;
use crate::cipher::Cipher;
use crate::geometry::{CHUNK_BYTES, ChunkId, Geometry, SliceId};
use crate::nbd::limits::extents_of;

/// Reads of one request that are under way together.
const READS: usize = 32;
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
    /// How the disk is read, where not as its seat does.
    reader: Option<DiskHandle>,
}

#[derive(Debug)]
struct Inner {
    seat: Arc<Seat>,
    geometry: Geometry,
    /// `None`: frozen.
    fence: Option<Fence>,
    /// Of the snapshot that it is the view of, if its seat has that: with it goes what is seen.
    snapshot: Option<u32>,
    /// What is looked through, the volume itself first, then what it is a clone of.
    layers: Vec<Layer>,
    /// Of an encrypted volume: between what clients see and what the log has.
    cipher: Option<Cipher>,
}

/// A range in whole blocks around it.
pub(super) struct Around {
    pub(super) offset: u64,
    pub(super) length: u64,
}

pub(super) fn around(offset: u64, length: u64) -> Around {
    let start = offset / BLOCK_BYTES * BLOCK_BYTES;
    Around { offset: start, length: (offset + length).next_multiple_of(BLOCK_BYTES) - start }
}

pub(super) fn aligned(offset: u64, length: u64) -> bool {
    offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES)
}

impl Device {
    /// The device of an attached head; `below`: what its volume is a clone of.
    #[must_use]
    pub fn attached(seat: Arc<Seat>, geometry: Geometry, fence: Fence, below: Vec<Layer>) -> Self {
        Self::new(seat, geometry, Some(fence), u32::MAX, below)
    }

    /// A frozen one: what a snapshot sees.
    #[must_use]
    pub fn frozen(seat: Arc<Seat>, geometry: Geometry, era: u32, below: Vec<Layer>) -> Self {
        Self::new(seat, geometry, None, era, below)
    }

    fn new(seat: Arc<Seat>, geometry: Geometry, fence: Option<Fence>, era: u32, below: Vec<Layer>) -> Self {
        let mut layers = vec![Layer { volume: seat.volume(), era }];
        layers.extend(below);
        Self {
            inner: Arc::new(Inner { seat, geometry, fence, snapshot: None, layers, cipher: None }),
            reader: None,
        }
    }

    /// What a snapshot of its seat sees, for as long as there is that snapshot.
    pub(super) fn of_snapshot(seat: Arc<Seat>, geometry: Geometry, era: u32, below: Vec<Layer>) -> Self {
        let mut device = Self::frozen(seat, geometry, era, below);
        Arc::get_mut(&mut device.inner).expect("nobody has it yet").snapshot = Some(era);
        device
    }

    /// With the cipher of its volume; before it is used.
    #[must_use]
    pub fn with_cipher(mut self, cipher: Option<Cipher>) -> Self {
        Arc::get_mut(&mut self.inner).expect("nobody has it yet").cipher = cipher;
        self
    }

    /// What clients see of pieces that the log has of a run.
    fn opened(&self, run: &Run, pieces: Vec<Piece>) -> Vec<Piece> {
        let place = BlockPlace { slice: run.slice, chunk: run.chunk, block: run.first };
        let cipher = self.inner.cipher.as_ref();
        opened(cipher, self.offset_of(place).filter(|_| cipher.is_some()).unwrap_or(0), pieces)
    }

    /// The same device, read through a lane of its disk, if that has some. Reads of it end only while the lane is looked after
    /// ([`Lane::collect`]).
    pub fn laned(&self) -> std::io::Result<Option<(Self, Arc<Lane>)>> {
        let disk = self.inner.seat.disk();
        Ok(disk.lane()?.map(|lane| {
            let reader = Some(disk.through(lane.clone()));
            (Self { inner: self.inner.clone(), reader }, lane)
        }))
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.inner.layers
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.inner.geometry
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

    pub(super) fn fence(&self) -> Result<Fence, VolumeError> {
        self.inner.fence.ok_or_else(|| crate::member::Refusal::NotPromised.into())
    }

    /// A head that was fenced reads nothing, nor does who looks at a snapshot that was deleted: its blocks are being given back.
    fn admitted(&self) -> Result<(), VolumeError> {
        let Inner { seat, fence, snapshot, .. } = &*self.inner;
        if snapshot.is_some_and(|era| !seat.keeps(era)) {
            return Err(VolumeError::SnapshotGone);
        }
        fence.map_or(Ok(()), |fence| seat.admit(fence))
    }

    /// The bytes of a range, in pieces that cover it in order.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, VolumeError> {
        loop {
            let (pieces, late) = self.gather(offset, length).await?;
            let Some(Span { oldest, newest }) = late else { return Ok(pieces) };
            self.inner.seat.kept(newest).await?;
            if !self.inner.seat.refused_since(oldest) {
                return Ok(pieces);
            }
        }
    }

    /// The bytes of a range, and the writes among them that were not durable.
    async fn gather(&self, offset: u64, length: u64) -> Result<(Vec<Piece>, Option<Span>), VolumeError> {
        self.admitted()?;
        let whole = around(offset, length);
        let runs: Vec<Run> = self.inner.geometry.split(whole.offset, whole.length)?.collect();
        let parts: Vec<(Vec<Piece>, Option<Span>)> = match runs.as_slice() {
            // As a rule: there is nothing to be kept in order.
            [run] => vec![self.read_run(*run).await?],
            _ => {
                let parts: Vec<_> = runs.into_iter().map(|run| self.read_run(run)).collect();
                stream::iter(parts).buffered(READS).try_collect().await?
            }
        };
        // A promise that came meanwhile: another head may have written what this one would miss.
        self.admitted()?;
        let late = Span::over(parts.iter().filter_map(|(_, late)| *late));
        let mut pieces: Vec<Piece> = parts.into_iter().flat_map(|(pieces, _)| pieces).collect();
        trim(&mut pieces, offset - whole.offset, length);
        Ok((pieces, late))
    }

    /// What the index has of a run; `era`: no write belongs to a later one.
    fn find(&self, run: &Run, era: u32) -> Result<(Vec<Mapped>, Option<Pins>), VolumeError> {
        let (seat, layers) = (&self.inner.seat, &self.inner.layers);
        if let ([own], 0) = (layers.as_slice(), era) {
            // Without snapshots, which is the rule, rows are found without a search.
            let found = find(seat.disk(), &[Layer { era, ..*own }], run)?;
            if seat.era() == era {
                return Ok(found);
            }
        }
        Ok(find(seat.disk(), layers, run)?)
    }

    pub(super) async fn read_run(&self, run: Run) -> Result<(Vec<Piece>, Option<Span>), VolumeError> {
        let disk = self.reader.as_ref().unwrap_or(self.inner.seat.disk());
        disk.count_call();
        // First what is late, then the index: what left the one meanwhile is in the other.
        let frozen = self.is_frozen().then(Vec::new);
        let (late, era) = frozen.map_or_else(|| self.inner.seat.late(&run), |none| (none, u32::MAX));
        let span = Span::over(late.iter().map(|Seen { sequence: at, .. }| Span { oldest: *at, newest: *at }));
        let (mut mapped, _pins) = self.find(&run, era)?;
        mapped.retain(|block| !late.iter().any(|seen| seen.holds(block.place.block)));
        let mut parts: Vec<(u16, u16, Source<'_>)> = Vec::with_capacity(1);
        let mut rest = mapped.as_slice();
        while let Some(first) = rest.first() {
            let (group, behind) = rest.split_at(piece(rest));
            let blocks = u16::try_from(group.len()).expect("a run lies in one chunk");
            parts.push((first.place.block.into(), blocks, Source::Mapped(group)));
            rest = behind;
        }
        if !late.is_empty() {
            parts.extend(late.into_iter().map(|Seen { first, blocks, data, .. }| {
                (
                    first.into(),
                    blocks,
                    Source::Late(data.map_or(Piece::Zeroes(bytes_of(blocks)), Piece::Data)),
                )
            }));
            parts.sort_unstable_by_key(|(first, ..)| *first);
        }
        let mut next = u16::from(run.first);
        let mut gaps = Vec::with_capacity(parts.len() + 1);
        for (first, blocks, _) in &parts {
            gaps.push(first - next);
            next = first + blocks;
        }
        let end = u16::from(run.first) + run.blocks - next;
        let groups = parts.iter().map(|(_, _, source)| source.group());
        let mut read = read_pieces(disk, &self.inner.layers, &groups.collect::<Vec<_>>()).await?.into_iter();
        let read: Vec<Piece> = parts
            .into_iter()
            .map(|(_, blocks, source)| match (read.next(), source) {
                (_, Source::Late(piece)) => piece,
                (Some(bytes), Source::Mapped(_)) if !bytes.is_empty() => Piece::Data(bytes),
                (_, Source::Mapped(_)) => Piece::Zeroes(bytes_of(blocks)),
            })
            .collect();
        let mut pieces = Vec::with_capacity(2 * read.len() + 1);
        for (gap, piece) in gaps.into_iter().zip(read) {
            pieces.push(Piece::Zeroes(bytes_of(gap)));
            pieces.push(piece);
        }
        pieces.push(Piece::Zeroes(bytes_of(end)));
        Ok((self.opened(&run, pieces), span))
    }

    /// The bytes of a range in one buffer.
    pub async fn read_whole(&self, offset: u64, length: u64) -> Result<BytesMut, VolumeError> {
        Ok(joined(self.read(offset, length).await?))
    }

    /// Writes bytes: every read sees them, and the next flush makes them durable, with all that was written before.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.write_to(offset, data, false).await
    }

    /// Writes bytes. They are durable when this returns.
    pub async fn write_through(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.write_to(offset, data, true).await
    }

    async fn write_to(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), VolumeError> {
        let length = data.len() as u64;
        let placed = if aligned(offset, length) {
            let _shared = self.inner.seat.edges().read().await;
            self.place_blocks(offset, data).await
        } else {
            let _alone = self.inner.seat.edges().write().await;
            let whole = around(offset, length);
            // Nobody is told what is read here, so that it need not be durable.
            let (pieces, _) = self.gather(whole.offset, whole.length).await?;
            let mut blocks = joined(pieces);
            let from = length_of(offset - whole.offset);
            if let Some(place) = blocks.get_mut(from..from + data.len()) {
                place.copy_from_slice(&data);
            }
            self.place_blocks(whole.offset, blocks.freeze()).await
        };
        self.finish(placed, durable).await
    }

    /// Puts whole blocks in their places, chunk by chunk; of what failed on the way the beginning has its place.
    pub(super) async fn place_blocks(&self, offset: u64, data: Bytes) -> Result<Vec<Placed>, VolumeError> {
        let fence = self.fence()?;
        let mut placed = Vec::with_capacity(1);
        let mut rest = sealed(self.inner.cipher.as_ref(), offset, data);
        for run in self.inner.geometry.split(offset, rest.len() as u64)? {
            let data = rest.split_to(length_of(run.bytes()));
            placed.push(self.inner.seat.put(fence, run, Some(data)).await?);
        }
        Ok(placed)
    }

    pub(super) async fn finish(
        &self,
        placed: Result<Vec<Placed>, VolumeError>,
        durable: bool,
    ) -> Result<(), VolumeError> {
        let mut result = Ok(());
        for one in placed? {
            result = result.and(self.inner.seat.finish(one, durable).await);
        }
        result
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

    /// Writes rows that hold zeroes over a range of whole blocks, whether there was anything or not: a map without bytes.
    pub async fn lay_out_zeroes(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        let fence = self.fence()?;
        for run in self.inner.geometry.split(offset, length)? {
            let placed = self.inner.seat.put(fence, run, None).await?;
            self.inner.seat.finish(placed, false).await?;
        }
        self.flush().await
    }

    /// Gives up the whole blocks of a range: they read as zeroes and take no space.
    pub async fn discard(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        let fence = self.fence()?;
        let from = offset.next_multiple_of(BLOCK_BYTES);
        let to = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        let _shared = self.inner.seat.edges().read().await;
        // The index tells what there is to give up.
        self.inner.seat.settle().await?;
        let mut at = from;
        while at < to {
            let (mapped, all) = self.walk(at, STEP_ROWS)?;
            let data: Vec<&Mapped> = mapped.iter().filter(|block| !block.row.is_zeroes()).collect();
            let runs = runs_of(&data, |place| self.offset_of(place).is_some_and(|offset| offset < to));
            let mut placed = Vec::with_capacity(runs.len());
            for run in runs {
                placed.push(self.inner.seat.put(fence, run, None).await?);
            }
            self.finish(Ok(placed), false).await?;
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
        Ok(walk(seat.disk(), &self.inner.layers, place, most)?)
    }

    pub(super) fn offset_of(&self, place: BlockPlace) -> Option<u64> {
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
    pub async fn stretches(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        self.survey(offset, length, most, |block| !block.row.is_zeroes()).await
    }

    /// As [`Device::stretches`], of what was written since a snapshot: a hole was not.
    pub async fn changes(
        &self,
        snapshot: &str,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        let known = self.inner.seat.snapshots();
        let Some(since) = known.into_iter().find(|known| known.label.name == snapshot && !known.label.going)
        else {
            // It was deleted meanwhile; more than what changed is never wrong.
            return Ok(vec![Stretch { bytes: length, hole: false }]);
        };
        let own = self.inner.seat.volume();
        let changed = |block: &Mapped| block.volume == own && block.era > since.era;
        self.survey(offset, length, most, changed).await
    }

    async fn survey(
        &self,
        offset: u64,
        length: u64,
        most: usize,
        counts: impl Fn(&Mapped) -> bool,
    ) -> Result<Vec<Stretch>, VolumeError> {
        self.admitted()?;
        if !self.is_frozen() {
            self.inner.seat.settle().await?;
        }
        let end = offset + length;
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let (mapped, all) = self.walk(start, most.min(extents_of(length)))?;
        self.admitted()?;
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
        for block in &mapped {
            let Some(place) = self.offset_of(block.place) else {
                add(end, true);
                break;
            };
            add(place, true);
            add(place + BLOCK_BYTES, !counts(block));
        }
        if all {
            add(end, true);
        }
        Ok(stretches)
    }
}

/// The sequences of some writes lie between these.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    oldest: u64,
    pub(super) newest: u64,
}

impl Span {
    fn over(spans: impl Iterator<Item = Self>) -> Option<Self> {
        spans.reduce(|a, b| Self { oldest: a.oldest.min(b.oldest), newest: a.newest.max(b.newest) })
    }
}

/// Where a part of a run comes from.
enum Source<'a> {
    Mapped(&'a [Mapped]),
    Late(Piece),
}

impl<'a> Source<'a> {
    /// What is read for it from the disk.
    fn group(&self) -> &'a [Mapped] {
        match self {
            Self::Mapped(group) => group,
            Self::Late(_) => &[],
        }
    }
}

fn bytes_of(blocks: u16) -> u64 {
    u64::from(blocks) * BLOCK_BYTES
}

/// Pieces in one buffer.
pub(super) fn joined(pieces: Vec<Piece>) -> BytesMut {
    let mut whole = BytesMut::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => whole.extend_from_slice(&data),
            Piece::Zeroes(zeroes) => whole.resize(whole.len() + length_of(zeroes), 0),
        }
    }
    whole
}

/// The runs of blocks that follow one another in a chunk.
pub(super) fn runs_of(blocks: &[&Mapped], wanted: impl Fn(BlockPlace) -> bool) -> Vec<Run> {
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
pub(super) fn trim(pieces: &mut Vec<Piece>, skip: u64, length: u64) {
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
pub(super) fn length_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory has a length")
}

impl From<&VolumeError> for crate::nbd::Errno {
    fn from(error: &VolumeError) -> Self {
        use crate::head::Failure;
        use crate::member::Refusal;
        match error {
            VolumeError::Disk(DiskError::NoSpace) | VolumeError::NoRoom => Self::NoSpace,
            VolumeError::Head(Failure::NoSpace) => Self::NoSpace,
            VolumeError::Disk(DiskError::Closed) | VolumeError::Refused(Refusal::Fenced(_)) => Self::Shutdown,
            VolumeError::Head(Failure::Fenced(_) | Failure::HandedOver) => Self::Shutdown,
            VolumeError::Range(_) => Self::Invalid,
            VolumeError::Refused(Refusal::NotPromised) => Self::Permission,
            _ => Self::Io,
        }
    }
}
