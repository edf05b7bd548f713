//! Removes objects whose time has come, by the queues of the disks.
//!
//! Invariant: an object is removed only if it is due when the claim on it is held: one that was given more time stays.

use super::{Outcome, Progress, Worker};
use crate::catalog;
use crate::object::{BoxFuture, Condition, Deleted, Result, Store};

/// The expirer of a store. A unit is an object.
#[derive(Debug)]
pub struct Expirer {
    store: Store,
    progress: Progress,
}

impl Expirer {
    /// Over all disks of the store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, progress: Progress::default() }
    }

    async fn expire(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let now = inner.clock.unix_seconds();
        let mut removed = 0;
        for disk in &inner.disks {
            for due in catalog::due(disk.index(), now, budget as usize)? {
                let still = |version: catalog::Version| version.delete_at.is_some_and(|at| at <= now);
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
