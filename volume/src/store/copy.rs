//! Content that is written anew within a volume: a clone that takes over what it sees of its parent, a volume that goes back to a
//! snapshot.
//!
//! Invariant: both can be cut off anywhere and begun again. What is read of a clone, and of its snapshots, is the same before, while
//! and after it takes over.
//! Invariant: what has taken over has a row of its own wherever there is one below, zeroes included: whoever still looks through it to what
//! lies below, which changes from then on, does not see that.
//! Invariant: going back costs what changed since the snapshot, taking over what is seen of the parent.

use quarry_engine::block::{BLOCK_BYTES, FIRST_PLACE, Layer, Mapped, Mark, Run, find, marks, walk};

use super::device::{Device, Piece, length_of, runs_of};
use super::error::VolumeError;

/// Blocks of the parent that are looked at together.
const STEP_ROWS: usize = 4096;
/// Marks that are looked at together.
const STEP_MARKS: usize = 64;

impl Device {
    /// Makes all that is seen of the layers below the volume's own.
    pub(super) async fn take_over(&self) -> Result<(), VolumeError> {
        let below = self.layers().get(1..).unwrap_or_default();
        let disk = self.seat().disk();
        let mut from = FIRST_PLACE;
        loop {
            let (mapped, all) = walk(disk, below, from, STEP_ROWS)?;
            let all_seen: Vec<&Mapped> = mapped.iter().collect();
            for run in runs_of(&all_seen, |place| self.offset_of(place).is_some()) {
                self.take_over_run(run).await?;
            }
            let next = mapped.last().and_then(|last| self.offset_of(last.place)).map(|at| at + BLOCK_BYTES);
            let next = next.filter(|at| !all && *at < self.bytes());
            let Some(next) = next else { return self.seat().settle().await };
            let run = self.geometry().split(next, BLOCK_BYTES)?.next();
            let Some(run) = run else { return self.seat().settle().await };
            (from.slice, from.chunk, from.block) = (run.slice, run.chunk, run.first);
        }
    }

    async fn take_over_run(&self, run: Run) -> Result<(), VolumeError> {
        let (seat, fence) = (self.seat(), self.fence()?);
        // Nobody writes meanwhile, and the index tells all that was written.
        let _alone = seat.edges().write().await;
        seat.settle().await?;
        // What no view sees of the parent is the volume's own from its oldest snapshot on.
        let oldest = seat.snapshots().first().map_or(u32::MAX, |snapshot| snapshot.era);
        let (own, _) = find(seat.disk(), &[Layer { volume: seat.volume(), era: oldest }], &run)?;
        let below = self.layers().get(1..).unwrap_or_default();
        let (seen, _pins) = find(seat.disk(), below, &run)?;
        let missing: Vec<&Mapped> =
            seen.iter().filter(|block| !own.iter().any(|own| own.place == block.place)).collect();
        let (zeroes, missing): (Vec<&Mapped>, Vec<&Mapped>) =
            missing.into_iter().partition(|block| block.row.is_zeroes());
        for part in runs_of(&zeroes, |_| true) {
            let placed = seat.put_below(fence, part, None).await?;
            seat.finish(placed, false).await?;
        }
        for part in runs_of(&missing, |_| true) {
            let blocks: Vec<Mapped> = missing
                .iter()
                .filter(|block| block.place.block >= part.first)
                .take(part.blocks.into())
                .map(|block| **block)
                .collect();
            let mut data = bytes::BytesMut::with_capacity(length_of(part.bytes()));
            let mut rest = blocks.as_slice();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(quarry_engine::block::piece(rest));
                data.extend_from_slice(&quarry_engine::block::read(seat.disk(), piece).await?);
                rest = behind;
            }
            let placed = seat.put_below(fence, part, Some(data.freeze())).await?;
            seat.finish(placed, false).await?;
        }
        Ok(())
    }

    /// Makes the volume what `then`, its state at the end of an era, is. Nobody else may be writing.
    pub(super) async fn go_back_to(&self, then: &Self, era: u32) -> Result<(), VolumeError> {
        let seat = self.seat();
        let began = seat.next_sequence();
        let mut last: Option<Mark> = None;
        loop {
            let changed = marks(seat.disk(), seat.volume(), Some(era), u32::MAX, last.as_ref(), STEP_MARKS)?;
            for mark in &changed {
                self.go_back(then, mark.run, began).await?;
            }
            seat.settle().await?;
            if changed.len() < STEP_MARKS {
                return Ok(());
            }
            last = changed.into_iter().last();
        }
    }

    async fn go_back(&self, then: &Self, run: Run, began: u64) -> Result<(), VolumeError> {
        let (seat, fence) = (self.seat(), self.fence()?);
        let (now, _) = find(seat.disk(), self.layers(), &run)?;
        let (before, _) = find(seat.disk(), then.layers(), &run)?;
        let differs = |block: &&Mapped| {
            // What this writes is the newest of its block, and as it was.
            let returned = block.volume == seat.volume() && block.row.position.sequence >= began;
            let same = before
                .iter()
                .any(|b| b.place == block.place && (b.volume, b.row) == (block.volume, block.row));
            !returned && !same
        };
        let changed: Vec<&Mapped> = now.iter().filter(differs).collect();
        for part in runs_of(&changed, |_| true) {
            let place =
                quarry_engine::block::BlockPlace { slice: part.slice, chunk: part.chunk, block: part.first };
            let Some(mut at) = self.offset_of(place) else { continue };
            for piece in then.read(at, part.bytes()).await? {
                let (bytes, placed) = match piece {
                    Piece::Data(data) => (data.len() as u64, self.place_blocks(at, data).await),
                    Piece::Zeroes(bytes) => {
                        let mut placed = Vec::new();
                        for run in self.geometry().split(at, bytes)? {
                            placed.push(seat.put(fence, run, None).await?);
                        }
                        (bytes, Ok(placed))
                    }
                };
                self.finish(placed, false).await?;
                at += bytes;
            }
        }
        Ok(())
    }
}
