//! Drops tombstones that protect nothing any more from a disk's index, so that their records become garbage.
//!
//! Invariant: a tombstone is judged again on the applier, where nothing can come in between.

use super::{Outcome, Progress, Worker};
use crate::catalog;
use crate::disk::{DiskError, DiskHandle};
use crate::object::{BoxFuture, Store};

/// Tombstones dropped by one change of the index.
const MAX_CHANGE: usize = 1000;

/// The pruner of a disk. A unit is a tombstone looked at.
#[derive(Debug)]
pub struct Pruner {
    name: String,
    disk: DiskHandle,
    store: Store,
    reclaim_age: u64,
    after: Vec<u8>,
    progress: Progress,
}

impl Pruner {
    /// Of one disk; tombstones of objects are kept for `reclaim_age` seconds.
    #[must_use]
    pub fn new(disk: DiskHandle, store: Store, reclaim_age: u64) -> Self {
        let name = format!("pruner {}", disk.device());
        Self { name, disk, store, reclaim_age, after: Vec::new(), progress: Progress::default() }
    }

    async fn prune(&mut self, budget: u32) -> Result<Outcome, DiskError> {
        let now = self.store.inner.clock.unix_seconds();
        let reclaim_before = now.saturating_sub(self.reclaim_age).saturating_mul(1_000_000);
        let limit = (budget as usize).min(MAX_CHANGE);
        let graves = catalog::graves(self.disk.index(), &self.after, limit)?;
        let Some(last) = graves.last() else {
            self.after.clear();
            self.progress.pass_ended();
            return Ok(Outcome::Idle);
        };
        let (after, looked) = (last.key.clone(), graves.len());
        let keys: Vec<Vec<u8>> = graves
            .into_iter()
            .filter(|grave| catalog::may_prune(grave, reclaim_before))
            .map(|grave| grave.key)
            .collect();
        if !keys.is_empty() {
            let change = move |tx: &mut crate::disk::catalog::Tx<'_>| {
                keys.iter().try_for_each(|key| catalog::prune(tx, key, reclaim_before))
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
