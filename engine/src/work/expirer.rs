//! Removes objects whose time has come, by the queues of the disks.
//!
//! Nobody who does not ask for it sees an object that has expired; only its removal is this worker's, and may come later: who reads a
//! large object with `X-Open-Expired` finds its parts for a while.
//!
//! Invariant: an object is removed only if it is due when the claim on it is held: one that was given more time stays.

use super::{Outcome, Progress, Worker};
use crate::catalog;
use crate::object::{BoxFuture, Condition, Deleted, Result, Store};

/// The expirer of a store. A unit is an object.
#[derive(Debug)]
pub struct Expirer {
    store: Store,
    /// Seconds for which an object is kept after it expired.
    kept: u64,
    progress: Progress,
}

impl Expirer {
    /// Over all disks of the store; an object is due `kept` seconds after it expired.
    #[must_use]
    pub fn new(store: Store, kept: u64) -> Self {
        Self { store, kept, progress: Progress::default() }
    }

    async fn expire(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let expired = inner.clock.unix_seconds().saturating_sub(self.kept);
        let mut removed = 0;
        for disk in &inner.disks {
            for due in catalog::due(disk.index(), expired, budget as usize)? {
                let still = |version: catalog::Version| version.delete_at.is_some_and(|at| at <= expired);
                if inner.remove_object(&due.path, &Condition::default(), true, still).await? == Deleted::Gone
                {
                    removed += 1;
                    self.progress.done += 1;
                }
            }
        }
        Ok(removed)
    }
}

impl Worker for Expirer {
    fn name(&self) -> &str {
        "expirer"
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.expire(budget).await {
                Ok(0) => {
                    self.progress.pass_ended();
                    Outcome::Idle
                }
                Ok(removed) => Outcome::Did(removed),
                Err(e) => Outcome::Failed(format!("expire objects: {e}")),
            }
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
