//! Removes objects whose time has come, by the queues of the disks.
//!
//! Nobody who does not ask for it sees an object that has expired; only its removal is this worker's, and may come later: who reads a
//! large object with `X-Open-Expired` finds its parts for a while.
//!
//! What a disk has in its queue need not be removed: of a version that nobody acknowledged nobody decides, and a group may be away. So each
//! queue is walked from its beginning to its end, and what failed is tried again in the next pass.
//!
//! Invariant: an object is removed only if it is due when the claim on it is held: one that was given more time stays.
//! Invariant: nothing that stays in a queue keeps what is behind it from being looked at.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Outcome, Progress, Worker};
use crate::catalog::{self, Due, Version};
use crate::object::names::Ask;
use crate::object::{BoxFuture, Condition, Deleted, Error, ObjectPath, Result, Store};

/// Who did not answer in this pass, and is not waited for again.
#[derive(Debug, Default)]
struct Away {
    groups: HashSet<u32>,
    /// Of containers whose lines are in groups of their own, which do not answer.
    containers: HashSet<(Arc<str>, Arc<str>)>,
}

/// The expirer of a store. A unit is an object that is looked at.
#[derive(Debug)]
pub struct Expirer {
    store: Store,
    /// Seconds for which an object is kept after it expired.
    kept: u64,
    /// How far the queue of each disk was walked.
    after: Vec<Option<Vec<u8>>>,
    away: Away,
    failed: Option<String>,
    progress: Progress,
}

impl Expirer {
    /// Over all disks of the store; an object is due `kept` seconds after it expired.
    #[must_use]
    pub fn new(store: Store, kept: u64) -> Self {
        let after = vec![None; store.disks().len()];
        Self { store, kept, after, away: Away::default(), failed: None, progress: Progress::default() }
    }

    /// How many were looked at.
    async fn expire(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let expired = inner.clock.unix_seconds().saturating_sub(self.kept);
        let mut looked = 0;
        for (n, disk) in inner.disks.iter().enumerate() {
            let after = self.after.get(n).cloned().flatten();
            for due in catalog::due(disk.index(), after.as_deref(), expired, budget as usize)? {
                self.remove(&due, expired).await;
                looked += 1;
                if let Some(after) = self.after.get_mut(n) {
                    *after = Some(due.key);
                }
            }
        }
        Ok(looked)
    }

    /// Removes an object if it is due still; what fails is for the next pass.
    async fn remove(&mut self, due: &Due, expired: u64) {
        if self.is_away(&due.path) {
            return;
        }
        let still = |version: Version, _| version.delete_at.is_some_and(|at| at <= expired);
        match self.store.inner.remove_object(&due.path, &Condition::default(), true, still).await {
            Ok(Deleted::Gone) => self.progress.done += 1,
            Ok(_) => {}
            Err(error) => {
                if matches!(error, Error::Unavailable { .. }) {
                    self.look_who_is_away(&due.path).await;
                }
                self.failed = Some(format!("expire {}: {error}", due.path));
            }
        }
    }

    fn is_away(&self, path: &ObjectPath) -> bool {
        let group = self.store.inner.names.group_of(&path.account);
        let container = (Arc::clone(&path.account), Arc::clone(&path.container));
        self.away.groups.contains(&group) || self.away.containers.contains(&container)
    }

    /// An object could not be removed: its index group may be away, with many others', or its devices are, which concerns nobody else.
    async fn look_who_is_away(&mut self, path: &ObjectPath) {
        let names = Arc::clone(&self.store.inner.names);
        let silent = async |ask: Ask| matches!(names.ask(ask).await, Err(Error::Unavailable { .. }));
        if silent(Ask::Account { account: path.account.to_string() }).await {
            self.away.groups.insert(names.group_of(&path.account));
        } else if silent(Ask::Line { path: path.clone() }).await {
            self.away.containers.insert((Arc::clone(&path.account), Arc::clone(&path.container)));
        }
    }

    fn pass_ended(&mut self) -> Outcome {
        self.after.fill(None);
        self.away = Away::default();
        self.progress.pass_ended();
        self.failed.take().map_or(Outcome::Idle, Outcome::Failed)
    }
}

impl Worker for Expirer {
    fn name(&self) -> &str {
        "expirer"
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.expire(budget).await {
                Ok(0) => self.pass_ended(),
                Ok(looked) => Outcome::Did(looked),
                Err(e) => Outcome::Failed(format!("expire objects: {e}")),
            }
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
