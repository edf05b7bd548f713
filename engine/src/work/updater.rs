//! Delivers the intents of a disk: the listing is told of versions that were written while its group was away, or whose writers
//! died half-way.
//!
//! Intents lie under a prefix of their own in the disk's index; where there are none, a step is one look at it. What cannot be delivered
//! costs time and no work, so several are waited for together, whatever the budget: steps that wait would get shorter and shorter. A
//! group that is away is waited for once in a pass, and what fails although its group answers is put off ([`PutOff`]).
//!
//! Invariant: an intent goes from the disk only after its group has said what the line is; each disk asks for its own.
//! Invariant: an intent that cannot be delivered while its group answers keeps no other from being delivered.
//! Invariant: so many intents that cannot be delivered delay the others by the shortest patience for each [`AT_ONCE`] of them, once.
//! Invariant: what a disk holds that is not believed is not delivered: it was away, and may have what was deleted meanwhile.

mod put_off;

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;

use self::put_off::PutOff;
use super::{Outcome, Progress, Wall, Worker};
use crate::catalog::{self, Intent, PathHash};
use crate::disk::DiskHandle;
use crate::object::{BoxFuture, Delivered, Error, ObjectPath, Result, Silent, Store};

/// Intents fetched at once.
const PAGE: usize = 64;
/// Intents that are waited for together.
const AT_ONCE: usize = 24;
/// Most that are counted for a status.
const MOST: usize = 100_000;
/// Microseconds for which an intent is left alone: its writer is just making the line.
const YOUNG: u64 = 5_000_000;

/// Who did not answer in this pass, and is not waited for again.
#[derive(Debug, Default)]
struct Away {
    groups: HashSet<u32>,
    /// Of containers whose lines are in groups of their own, which do not answer.
    containers: HashSet<(Arc<str>, Arc<str>)>,
}

/// The updater of a disk. A unit is an intent.
pub struct Updater {
    name: String,
    disk: DiskHandle,
    store: Store,
    wall: Wall,
    after: Option<PathHash>,
    away: Away,
    put_off: PutOff,
    /// Why one was put off, the last time.
    trouble: Option<String>,
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
        let (after, away, put_off) = (None, Away::default(), PutOff::default());
        let (trouble, waits, failed, progress) = (None, None, None, Progress::default());
        Self { name, disk, store, wall, after, away, put_off, trouble, waits, failed, progress }
    }

    async fn update(&mut self, budget: u32) -> Result<Outcome> {
        if !self.disk.believed() {
            return Ok(Outcome::Idle);
        }
        if self.after.is_none() {
            let left = catalog::count_intents(self.disk.index(), MOST)?;
            self.progress.total = left as u64;
        }
        let limit = (budget as usize).clamp(AT_ONCE, PAGE);
        let page = catalog::intents(self.disk.index(), self.after.as_ref(), limit)?;
        let Some(last) = page.last() else { return Ok(self.pass_ended()) };
        let (last, looked) = (last.hash, page.len());
        for some in page.chunks(AT_ONCE) {
            let due = self.due(some);
            self.deliver_all(&due).await?;
            self.after = some.last().map(|intent| intent.hash);
        }
        self.after = Some(last);
        Ok(Outcome::Did(u32::try_from(looked).unwrap_or(u32::MAX)))
    }

    /// Those that are to be tried now.
    fn due<'a>(&mut self, some: &'a [Intent]) -> Vec<&'a Intent> {
        let now = (self.wall)();
        let mut due = Vec::new();
        for intent in some {
            if self.put_off.waits(intent, now) {
                self.waits = self.waits.take().or_else(|| self.trouble.clone());
            } else if !self.is_away(&intent.path) && !is_young(intent, now) {
                due.push(intent);
            }
        }
        due
    }

    async fn deliver_all(&mut self, due: &[&Intent]) -> Result<()> {
        let inner = self.store.inner.clone();
        let deliver = |intent: &&Intent| {
            let (inner, intent, within) = (inner.clone(), (*intent).clone(), self.put_off.patience(intent));
            async move { inner.deliver(&intent, within).await }
        };
        let delivered = join_all(due.iter().map(deliver).collect::<Vec<_>>()).await;
        let mut failed = Vec::new();
        for (intent, delivered) in due.iter().zip(delivered) {
            match delivered {
                Ok(delivered) => self.delivered(intent, delivered).await?,
                Err(error) => failed.push((*intent, error)),
            }
        }
        for (intent, error) in failed {
            self.not_delivered(intent, error).await;
        }
        Ok(())
    }

    async fn delivered(&mut self, intent: &Intent, delivered: Delivered) -> Result<()> {
        if delivered == Delivered::Orphan {
            self.progress.found(format!("{} was written into a container that is gone; buried", intent.path));
        }
        self.store.inner.settle_intent(self.disk.device(), intent).await?;
        self.put_off.forget(intent);
        self.progress.done += 1;
        Ok(())
    }

    async fn not_delivered(&mut self, intent: &Intent, error: Error) {
        let why = format!("{}: {error}", intent.path);
        if matches!(error, Error::Unavailable { .. }) && self.look_who_is_away(&intent.path).await {
            // As soon as it is there again all of its intents are tried.
            self.waits = Some(why);
            return;
        }
        // It may be that object alone of which no device can say anything.
        self.put_off.put_off(intent, (self.wall)());
        self.trouble = Some(why.clone());
        match error {
            Error::Unavailable { .. } | Error::GrantLost { .. } => self.waits = Some(why),
            _ => self.failed = Some(why),
        }
    }

    fn is_away(&self, path: &ObjectPath) -> bool {
        let group = self.store.inner.names.group_of(&path.account);
        let container = (Arc::clone(&path.account), Arc::clone(&path.container));
        self.away.groups.contains(&group) || self.away.containers.contains(&container)
    }

    /// Whether the group of a name is away, with many others' names, or the devices of the object are, which concerns nobody else.
    async fn look_who_is_away(&mut self, path: &ObjectPath) -> bool {
        if self.is_away(path) {
            return true;
        }
        match self.store.inner.who_is_silent(path).await {
            None => return false,
            Some(Silent::Group(group)) => self.away.groups.insert(group),
            Some(Silent::Container) => {
                self.away.containers.insert((Arc::clone(&path.account), Arc::clone(&path.container)))
            }
        };
        true
    }

    fn pass_ended(&mut self) -> Outcome {
        self.after = None;
        self.away = Away::default();
        self.put_off.pass_ended();
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
