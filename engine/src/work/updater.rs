//! Delivers the intents of a disk: the listing is told of versions that were written while its group was away, or whose writers
//! died half-way.
//!
//! Intents lie under a prefix of their own in the disk's index; where there are none, a step is one look at it. An account whose
//! group is away is left alone for the rest of a pass.
//!
//! Invariant: an intent goes from the disk only after its group has said what the line is; each disk asks for its own.
//! Invariant: an intent that cannot be delivered while its group answers keeps no other from being delivered.
//! Invariant: what a disk holds that is not believed is not delivered: it was away, and may have what was deleted meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Outcome, Progress, Wall, Worker};
use crate::catalog::{self, Intent, PathHash};
use crate::disk::DiskHandle;
use crate::object::{BoxFuture, Delivered, Error, Result, Store};

/// Intents fetched at once.
const PAGE: usize = 64;
/// Most that are counted for a status.
const MOST: usize = 100_000;
/// Microseconds for which an intent is left alone: its writer is just making the line.
const YOUNG: u64 = 5_000_000;

/// The updater of a disk. A unit is an intent.
pub struct Updater {
    name: String,
    disk: DiskHandle,
    store: Store,
    wall: Wall,
    after: Option<PathHash>,
    /// Accounts whose group did not answer in this pass.
    away: HashSet<Arc<str>>,
    waits: Option<String>,
    failed: Option<String>,
    progress: Progress,
}

impl std::fmt::Debug for Updater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updater").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Updater {
    /// Of one disk of a store.
    #[must_use]
    pub fn new(disk: DiskHandle, store: Store, wall: Wall) -> Self {
        let name = format!("updater {}", disk.device());
        let (after, away, waits, failed) = (None, HashSet::new(), None, None);
        Self { name, disk, store, wall, after, away, waits, failed, progress: Progress::default() }
    }

    async fn update(&mut self, budget: u32) -> Result<Outcome> {
        if !self.disk.believed() {
            return Ok(Outcome::Idle);
        }
        if self.after.is_none() {
            let left = catalog::count_intents(self.disk.index(), MOST)?;
            self.progress.total = left as u64;
        }
        let limit = PAGE.min(budget.max(1) as usize);
        let page = catalog::intents(self.disk.index(), self.after.as_ref(), limit)?;
        let Some(last) = page.last() else { return Ok(self.pass_ended()) };
        let (last, looked) = (last.hash, page.len());
        let now = (self.wall)();
        for intent in page {
            if !self.away.contains(&intent.path.account) && !is_young(&intent, now) {
                self.deliver(&intent).await?;
            }
            self.after = Some(intent.hash);
        }
        self.after = Some(last);
        Ok(Outcome::Did(u32::try_from(looked).unwrap_or(u32::MAX)))
    }

    async fn deliver(&mut self, intent: &Intent) -> Result<()> {
        let inner = self.store.inner.clone();
        let delivered = match inner.deliver(intent).await {
            Ok(delivered) => delivered,
            Err(error @ (Error::Unavailable { .. } | Error::GrantLost { .. })) => {
                // It may be that object alone of which no device can say anything.
                if matches!(error, Error::Unavailable { .. }) && inner.is_away(&intent.path.account).await {
                    self.away.insert(intent.path.account.clone());
                }
                self.waits = Some(format!("{}: {error}", intent.path));
                return Ok(());
            }
            Err(error) => {
                self.failed = Some(format!("{}: {error}", intent.path));
                return Ok(());
            }
        };
        if delivered == Delivered::Orphan {
            self.progress.found(format!("{} was written into a container that is gone; buried", intent.path));
        }
        inner.settle_intent(self.disk.device(), intent).await?;
        self.progress.done += 1;
        Ok(())
    }

    fn pass_ended(&mut self) -> Outcome {
        self.after = None;
        self.away.clear();
        self.progress.pass_ended();
        match (self.failed.take(), self.waits.take()) {
            (Some(why), _) => Outcome::Failed(why),
            (None, Some(what)) => Outcome::Waits(what),
            (None, None) => Outcome::Idle,
        }
    }
}

/// Whether its writer may be just at it. One that is far ahead of the clock is not waited for.
fn is_young(intent: &Intent, now: u64) -> bool {
    now.abs_diff(intent.sequence) < YOUNG
}

impl Worker for Updater {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            self.update(budget).await.unwrap_or_else(|e| Outcome::Failed(format!("deliver intents: {e}")))
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
