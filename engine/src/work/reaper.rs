//! Removes what lies under accounts that are marked deleted, then the mark.
//!
//! Another node may lead meanwhile, reap the account to its end, and a client make it anew. So a container is remembered by its number,
//! then the mark is looked at, and then only what is in the container of that number is removed: nothing is made under a mark, and the
//! mark stays for as long as a container does.
//!
//! Invariant: only what is under a mark is touched, and the mark goes last.
//! Invariant: accounts that cannot be reaped, however many, keep no other from it.

use super::{Outcome, Progress, Worker};
use crate::clock::Timestamp;
use crate::object::{
    BoxFuture, Condition, ContainerRow, Deleted, Entry, Listing, ObjectPath, ObjectRow, Result, Store,
};

/// Accounts and containers looked at in one step.
const PAGE: u32 = 100;

/// The reaper of a store. A unit is an object or a container.
#[derive(Debug)]
pub struct Reaper {
    store: Store,
    /// The account that was looked at last: the next ones are behind it.
    after: String,
    progress: Progress,
}

impl Reaper {
    /// Over the rows of the store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, after: String::new(), progress: Progress::default() }
    }

    async fn reap(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let (mut removed, mut failed) = (0, None);
        if !inner.names.here() {
            return Ok(0);
        }
        let page = inner.marked_accounts(&self.after, PAGE).await?;
        let more = page.len() >= PAGE as usize;
        for account in page {
            match self.reap_account(&account, budget - removed).await {
                Ok(gone) => removed += gone,
                Err(error) => failed = Some(error),
            }
            // There may be more under this one.
            if removed >= budget {
                return Ok(removed);
            }
            self.after = account;
        }
        if !more {
            self.after.clear();
        }
        failed.filter(|_| removed == 0).map_or(Ok(removed), Err)
    }

    async fn reap_account(&mut self, account: &str, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let mut removed = 0;
        let page = Listing { limit: PAGE as usize, ..Listing::default() };
        for entry in inner.containers_of(account, &page, true).await? {
            let Entry::Row(ContainerRow { name, .. }) = entry else { continue };
            let Some(created) = self.marked_container(account, &name).await? else { continue };
            removed += self.empty(account, &name, created, budget.saturating_sub(removed)).await?;
            if removed >= budget {
                return Ok(removed);
            }
            if inner.delete_container(account, &name, created).await? == Deleted::Gone {
                removed += 1;
                self.progress.done += 1;
            }
        }
        if inner.remove_marked_account(account).await? {
            removed += 1;
            self.progress.done += 1;
            tracing::info!(account, "account reaped");
        }
        Ok(removed)
    }

    /// The number of a container that stands under a mark.
    async fn marked_container(&self, account: &str, container: &str) -> Result<Option<Timestamp>> {
        let inner = &self.store.inner;
        let Some(found) = inner.container(account, container).await? else { return Ok(None) };
        let marked = inner.account(account).await?.is_some_and(|account| account.deleted);
        Ok(marked.then_some(found.created))
    }

    async fn empty(
        &mut self,
        account: &str,
        container: &str,
        created: Timestamp,
        budget: u32,
    ) -> Result<u32> {
        let inner = self.store.inner.clone();
        let page = Listing { limit: budget as usize, ..Listing::default() };
        let mut removed = 0;
        for entry in inner.objects_of(account, container, &page).await? {
            let Entry::Row(ObjectRow { name, .. }) = entry else { continue };
            let (account, container) = (account.into(), container.into());
            let path = ObjectPath { account, container, object: name.into() };
            let marked = |_, container| container == Some(created.0);
            if inner.remove_object(&path, &Condition::default(), true, marked).await? == Deleted::Absent {
                inner.remove_line(&path, created.0).await?;
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
                    if self.after.is_empty() {
                        self.progress.pass_ended();
                    }
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
