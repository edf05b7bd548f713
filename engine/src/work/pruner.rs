//! Drops tombstones that protect nothing any more from a disk's index, so that their records become garbage.
//!
//! Invariant: a device that was away drops no tombstone of an object until handoffs have had the time to hear of it.
//! Invariant: a tombstone is judged again on the applier, where nothing can come in between.

use super::{Outcome, Progress, Wall, Worker};
use crate::catalog;
use crate::disk::{DiskError, DiskHandle};
use std::sync::Arc;

use crate::object::BoxFuture;
use crate::sync::{Synced, is_rested};

/// Tombstones dropped by one change of the index.
const MAX_CHANGE: usize = 1000;

/// The pruner of a disk. A unit is a tombstone looked at.
pub struct Pruner {
    name: String,
    disk: DiskHandle,
    wall: Wall,
    reclaim_age: u64,
    synced: Arc<Synced>,
    after: Vec<u8>,
    progress: Progress,
}

impl std::fmt::Debug for Pruner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pruner").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Pruner {
    /// Of one disk; tombstones of objects are kept for `reclaim_age` seconds, and until all that shall have them were `synced`.
    #[must_use]
    pub fn new(disk: DiskHandle, wall: Wall, reclaim_age: u64, synced: Arc<Synced>) -> Self {
        let name = format!("pruner {}", disk.device());
        Self { name, disk, wall, reclaim_age, synced, after: Vec::new(), progress: Progress::default() }
    }

    async fn prune(&mut self, budget: u32) -> Result<Outcome, DiskError> {
        let now = (self.wall)();
        let reclaim_age = self.reclaim_age.saturating_mul(1_000_000);
        let rested = is_rested(&self.disk, now, reclaim_age)?;
        let reclaim_before = if rested { now.saturating_sub(reclaim_age) } else { 0 };
        let limit = (budget as usize).min(MAX_CHANGE);
        let graves = catalog::graves(self.disk.index(), &self.after, limit)?;
        let Some(last) = graves.last() else {
            self.after.clear();
            self.progress.pass_ended();
            return Ok(Outcome::Idle);
        };
        let (after, looked) = (last.key.clone(), graves.len());
        let before =
            |grave: &catalog::Grave| match grave.object().filter(|_| grave.head.sequence < reclaim_before) {
                Some(hash) => self.synced.before(&hash).min(reclaim_before),
                None => reclaim_before,
            };
        let keys: Vec<(Vec<u8>, u64)> = graves
            .into_iter()
            .map(|grave| (before(&grave), grave))
            .filter(|(before, grave)| catalog::may_prune(grave, *before))
            .map(|(before, grave)| (grave.key, before))
            .collect();
        if !keys.is_empty() {
            let change = move |tx: &mut crate::disk::catalog::Tx<'_>| {
                keys.iter().try_for_each(|(key, before)| catalog::prune(tx, key, *before))
            };
            self.disk.submit_prune(Box::new(change)).await?;
        }
        self.after = after;
        self.progress.done += looked as u64;
        Ok(Outcome::Did(u32::try_from(looked).unwrap_or(u32::MAX)))
    }
}

impl Worker for Pruner {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            self.prune(budget).await.unwrap_or_else(|e| Outcome::Failed(format!("prune tombstones: {e}")))
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
