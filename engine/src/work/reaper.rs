//! Removes what lies under accounts that are marked deleted, then the mark.
//!
//! Invariant: only what is under a mark is touched, and the mark goes last.

use super::{Outcome, Progress, Worker};
use crate::object::{
    BoxFuture, Condition, ContainerRow, Deleted, Entry, Listing, ObjectPath, ObjectRow, Result, Store,
};

/// Accounts and containers looked at in one step.
const PAGE: u32 = 100;

/// The reaper of a store. A unit is an object or a container.
#[derive(Debug)]
pub struct Reaper {
    store: Store,
    progress: Progress,
}

impl Reaper {
    /// Over the rows of the store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, progress: Progress::default() }
    }

    async fn reap(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let mut removed = 0;
        if !inner.names.here() {
            return Ok(0);
        }
        for account in inner.marked_accounts(PAGE).await? {
            let page = Listing { limit: PAGE as usize, ..Listing::default() };
            for entry in inner.containers_of(&account, &page, true).await? {
                let Entry::Row(ContainerRow { name, .. }) = entry else { continue };
                removed += self.empty(&account, &name, budget.saturating_sub(removed)).await?;
                if removed >= budget {
                    return Ok(removed);
                }
                if inner.delete_container(&account, &name).await? == Deleted::Gone {
                    removed += 1;
                    self.progress.done += 1;
                }
            }
            if inner.remove_marked_account(&account).await? {
                removed += 1;
                self.progress.done += 1;
                tracing::info!(account, "account reaped");
            }
        }
        Ok(removed)
    }

    async fn empty(&mut self, account: &str, container: &str, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let page = Listing { limit: budget as usize, ..Listing::default() };
        let mut removed = 0;
        for entry in inner.objects_of(account, container, &page).await? {
            let Entry::Row(ObjectRow { name, .. }) = entry else { continue };
            let (account, container) = (account.into(), container.into());
            let path = ObjectPath { account, container, object: name.into() };
            if inner.remove_object(&path, &Condition::default(), true, |_| true).await? == Deleted::Absent {
                inner.remove_line(&path).await?;
            }
            removed += 1;
            self.progress.done += 1;
        }
        Ok(removed)
    }
}

impl Worker for Reaper {
    fn name(&self) -> &str {
        "reaper"
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.reap(budget).await {
                Ok(0) => {
                    self.progress.pass_ended();
                    Outcome::Idle
                }
                Ok(removed) => Outcome::Did(removed),
                Err(e) => Outcome::Failed(format!("reap accounts: {e}")),
            }
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
