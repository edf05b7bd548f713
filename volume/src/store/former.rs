//! A member that begins anew, beside what it was.
//!
//! ```text
//! generation 1 whole          begin anew       generation 1 whole, 2 not         join        generation 2 whole; 1 is void
//!                          ---------------->                                 ------------>
//!                          <----------------
//!                 another promise, or the power fails
//! ```
//!
//! Invariant: a member that began anew is what it was until it is whole: whatever cuts the filling off, it has lost nothing.
//! Invariant: what it was is void only when it is durable that its successor is whole.
//! Invariant: where the disk has no room for both, it stays what it was, and is not filled: it may be all that there is of the volume. A disk has
//! that room as long as volumes are placed there: between that mark and the one at which clients write no more is what other volumes grow into.
//! Invariant: no generation begins where another one was: its number is above all that ever were.

use std::sync::Arc;

use quarry_engine::block::{Fence, Layer, VolumeId};

use super::error::VolumeError;
use super::label::{MemberLabel, encode_promise};
use super::replica::Life;
use super::seat::Seat;

/// What a member was before it began anew, and is again when it is not filled to the end.
#[derive(Debug)]
pub(super) struct Former {
    seat: Arc<Seat>,
    below: Vec<Layer>,
    label: MemberLabel,
}

/// Generations of a member, beside the one that it is.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// The highest number that was given.
    pub(super) begun: u32,
    /// What the member is when it is not filled to the end.
    pub(super) former: Option<Former>,
    /// One that was not filled to the end, and is to be ended.
    pub(super) astray: Option<Arc<Seat>>,
    /// Ids that were ended.
    pub(super) ended: Vec<VolumeId>,
}

impl Life {
    /// Has nothing from now on, under another id; what it was stays beside it.
    pub(super) async fn begin_anew(&mut self, fence: Fence) -> Result<(), VolumeError> {
        let had = self.history();
        let generation = self.generations.begun.checked_add(1).ok_or(VolumeError::Eras)?;
        let (turns, end) = (had.turns().to_vec(), had.end());
        let former = Some(self.label.generation);
        let label = MemberLabel { generation, whole: false, turns, end, kept: false, former, ..self.label };
        let fresh = Arc::new(Seat::open(self.seat.disk().clone(), label.id())?);
        self.generations.begun = generation;
        fresh.follow_notes(&self.seat).await;
        fresh.promise(fence, &encode_promise(fence)).await?;
        let was = Former {
            seat: std::mem::replace(&mut self.seat, fresh),
            // All is sent to it, also what the volume below has.
            below: std::mem::take(&mut self.below),
            label: std::mem::replace(&mut self.label, label),
        };
        self.generations.former = Some(was);
        self.filled_by = None;
        self.note().await
    }

    /// Is again what it was before it began anew, if it is not whole. What it was sent is void.
    pub(super) async fn turn_back(&mut self) -> Result<(), VolumeError> {
        if let Some(Former { seat, below, label }) = self.generations.former.take() {
            self.generations.astray = Some(std::mem::replace(&mut self.seat, seat));
            (self.below, self.label) = (below, label);
        }
        let Some(astray) = self.generations.astray.clone() else { return Ok(()) };
        // A seat that is out says nothing any more. What it was is sound all the same.
        if let Err(error) = astray.settle().await {
            tracing::debug!(%error, "leave what a member was filled with");
        }
        astray.state().fail();
        Seat::open(astray.disk().clone(), astray.volume())?.label(None).await?;
        self.generations.astray = None;
        self.generations.ended.push(astray.volume());
        Ok(())
    }
}
