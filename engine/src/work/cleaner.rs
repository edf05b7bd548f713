//! Reclaims log space of a disk, a few segments a step.
//!
//! Invariant: it goes on at full speed where clients would soon wait for space, and makes room for them before that.
//! Invariant: a segment that cannot be freed (it holds needed records that cannot be read) is not tried again by this run.

use super::{Outcome, Progress, Worker};
use crate::disk::{DiskError, DiskHandle};
use crate::object::BoxFuture;

/// The cleaner of a disk. A unit is 64 KiB moved.
#[derive(Debug)]
pub struct Cleaner {
    name: String,
    disk: DiskHandle,
    skip: Vec<u32>,
    progress: Progress,
}

impl Cleaner {
    /// Of one disk.
    #[must_use]
    pub fn new(disk: DiskHandle) -> Self {
        let name = format!("cleaner {}", disk.device());
        Self { name, disk, skip: Vec::new(), progress: Progress::default() }
    }

    async fn clean(&mut self) -> Result<Outcome, DiskError> {
        let victims = if self.disk.wants_cleaning() { self.disk.victims(&self.skip) } else { Vec::new() };
        if victims.is_empty() {
            self.progress.pass_ended();
            return Ok(Outcome::Idle);
        }
        let mut moved = 0;
        for cleaned in self.disk.clean_together(&victims).await? {
            moved += cleaned.moved;
            self.progress.done += 1;
            let segment = cleaned.segment;
            if !cleaned.retired {
                self.skip.push(segment);
                self.progress.found(format!("segment {segment} holds needed records that cannot be read"));
            }
        }
        Ok(Outcome::Did(u32::try_from(moved >> 16).unwrap_or(u32::MAX).saturating_add(1)))
    }
}

impl Worker for Cleaner {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, _budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            self.clean().await.unwrap_or_else(|e| Outcome::Failed(format!("clean segment: {e}")))
        })
    }

    fn is_urgent(&self) -> bool {
        self.disk.is_pressed_for_space()
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
