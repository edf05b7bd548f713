//! Brings chunks of volumes into order of address that readers found scattered (`block::order`).
//!
//! Invariant: a chunk is moved after a rest in which nobody wrote to it; what is written all the time is left to the cleaner.
//! Invariant: nothing is moved while free space is short, or above the mark at which no volumes are placed: the reserve is for
//! cleaning.
//! Invariant: memory is bounded, and so is the work of an hour, by the pacer.

use std::collections::VecDeque;

use super::{Outcome, Progress, Wall, Worker};
use crate::block::{self, Lie, Position, View};
use crate::disk::{DiskError, DiskHandle};
use crate::object::BoxFuture;

/// Bytes of a unit.
const UNIT: u64 = 64 << 10;
/// Microseconds for which nobody writes to a chunk before it is moved.
const REST: u64 = 30_000_000;
/// Chunks that rest.
const MOST_RESTING: usize = 8192;

/// A chunk that rests.
#[derive(Debug)]
struct Resting {
    view: View,
    newest: Position,
    since: u64,
}

/// The orderer of a disk. A unit is 64 KiB moved, or a chunk looked at.
pub struct Orderer {
    name: String,
    disk: DiskHandle,
    wall: Wall,
    /// Those that came first rest longest.
    resting: VecDeque<Resting>,
    progress: Progress,
}

impl std::fmt::Debug for Orderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orderer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Orderer {
    /// Of one disk.
    #[must_use]
    pub fn new(disk: DiskHandle, wall: Wall) -> Self {
        let name = format!("orderer {}", disk.device());
        Self { name, disk, wall, resting: VecDeque::new(), progress: Progress::default() }
    }

    async fn order(&mut self, budget: u32) -> Result<Outcome, DiskError> {
        if !self.disk.has_room_for_order() {
            return Ok(Outcome::Idle);
        }
        let now = (self.wall)();
        let mut units = self.take_hints(budget, now)?;
        while units < budget
            && let Some(Resting { view, newest, .. }) =
                self.resting.pop_front_if(|first| now.saturating_sub(first.since) >= REST)
        {
            let moved = self.bring(&view, newest, now).await?;
            units = units.saturating_add(u32::try_from(moved / UNIT).unwrap_or(u32::MAX)).saturating_add(1);
        }
        self.progress.total = self.progress.done + self.resting.len() as u64;
        if units > 0 {
            return Ok(Outcome::Did(units));
        }
        if self.resting.is_empty() {
            self.progress.pass_ended();
        }
        Ok(Outcome::Idle)
    }

    /// Has chunks rest that readers found scattered.
    fn take_hints(&mut self, budget: u32, now: u64) -> Result<u32, DiskError> {
        let mut looked = 0;
        while looked < budget && self.resting.len() < MOST_RESTING {
            let Some(view) = block::take_hint(&self.disk) else { break };
            looked += 1;
            if self.resting.iter().all(|resting| resting.view != view) {
                self.rest(view, now)?;
            }
        }
        Ok(looked)
    }

    /// Has a chunk rest, if it is scattered.
    fn rest(&mut self, view: View, since: u64) -> Result<(), DiskError> {
        let lie = block::lie(&self.disk, &view)?.filter(Lie::is_scattered);
        self.resting.extend(lie.map(|lie| Resting { view, newest: lie.newest, since }));
        Ok(())
    }

    async fn bring(&mut self, view: &View, newest: Position, now: u64) -> Result<u64, DiskError> {
        let moved = block::bring(&self.disk, view, newest).await?;
        if moved > 0 {
            self.progress.done += 1;
        } else {
            // Written to meanwhile: from now on it rests again. Or it is not scattered any more.
            self.rest(*view, now)?;
        }
        Ok(moved)
    }
}

impl Worker for Orderer {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let ordered = self.order(budget).await;
            ordered.unwrap_or_else(|e| Outcome::Failed(format!("bring a chunk into order: {e}")))
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
