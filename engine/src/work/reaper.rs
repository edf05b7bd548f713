//! Removes what lies under accounts that are marked deleted, then the mark.
//!
//! Another node may lead meanwhile, reap the account to its end, and a client make it anew. So a container is remembered by its number,
//! then the mark is looked at, and then only what is in the container of that number is removed: nothing is made under a mark, and the
//! mark stays for as long as a container does.
//!
//! Invariant: only what is under a mark is touched, and the mark goes last.
//! Invariant: accounts that cannot be reaped, however many, keep no other from it; and neither do objects that cannot be removed.

use std::collections::BTreeMap;

use super::{Outcome, Progress, Worker};
use crate::clock::Timestamp;
use crate::object::{
    BoxFuture, Condition, ContainerRow, Deleted, Entry, Error, Listing, ObjectPath, ObjectRow, Result, Store,
};

/// Accounts and containers looked at in one step.
const PAGE: u32 = 100;
/// What may fail in one step, and of it under one account.
const FAILURES: u32 = 100;
const FAILURES_OF_ONE: u32 = 10;
/// Accounts of which it is remembered where they were left.
const PLACES: usize = 1000;

/// The reaper of a store. A unit is an object or a container.
#[derive(Debug)]
pub struct Reaper {
    store: Store,
    /// The account that was looked at last: the next ones are behind it.
    after: String,
    /// Where accounts were left in which something could not be removed: the next look begins behind that.
    places: BTreeMap<String, Place>,
    progress: Progress,
}

/// The last object that was looked at under an account, and its container.
#[derive(Debug, Clone, Default)]
struct Place {
    container: String,
    object: String,
}

/// What came of a look at an account, and what it may come to.
struct Look {
    budget: u32,
    removed: u32,
    failures: u32,
    failed: Option<Error>,
    /// Nobody answers for the account.
    away: bool,
}

impl Look {
    fn new(budget: u32) -> Self {
        Self { budget, removed: 0, failures: 0, failed: None, away: false }
    }

    fn failed(&mut self, error: Error) {
        self.failures += 1;
        self.failed = Some(error);
    }

    fn is_over(&self) -> bool {
        self.removed >= self.budget || self.failures >= FAILURES_OF_ONE || self.away
    }
}

impl Reaper {
    /// Over the rows of the store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, after: String::new(), places: BTreeMap::new(), progress: Progress::default() }
    }

    async fn reap(&mut self, budget: u32) -> Result<u32> {
        let inner = self.store.inner.clone();
        let (mut removed, mut failures, mut failed) = (0, 0, None);
        if !inner.names.here() {
            return Ok(0);
        }
        let page = inner.marked_accounts(&self.after, PAGE).await?;
        let more = page.len() >= PAGE as usize;
        for account in page {
            let mut look = Look::new(budget - removed);
            if let Err(error) = self.reap_account(&account, &mut look).await {
                look.failed(error);
            }
            removed += look.removed;
            failures += look.failures;
            failed = look.failed.or(failed);
            // There may be more under this one.
            if removed >= budget {
                return Ok(removed);
            }
            self.after = account;
            if failures >= FAILURES {
                return failed.filter(|_| removed == 0).map_or(Ok(removed), Err);
            }
        }
        if !more {
            self.after.clear();
        }
        failed.filter(|_| removed == 0).map_or(Ok(removed), Err)
    }

    async fn reap_account(&mut self, account: &str, look: &mut Look) -> Result<()> {
        let inner = self.store.inner.clone();
        let mut place = self.places.remove(account).unwrap_or_default();
        if !place.container.is_empty() {
            self.reap_container(account, &mut place, look).await?;
        }
        while !look.is_over() {
            let marker = place.container.clone();
            let page = Listing { limit: PAGE as usize, marker, ..Listing::default() };
            let containers = inner.containers_of(account, &page, true).await?;
            if containers.is_empty() {
                return self.remove_mark(account, look).await;
            }
            for entry in containers {
                let Entry::Row(ContainerRow { name, .. }) = entry else { continue };
                place = Place { container: name, object: String::new() };
                self.reap_container(account, &mut place, look).await?;
                if look.is_over() {
                    break;
                }
            }
        }
        if self.places.len() >= PLACES {
            self.places.clear();
        }
        self.places.insert(account.to_owned(), place);
        Ok(())
    }

    /// Removes what is behind a place in its container, and the container, if nothing is left.
    async fn reap_container(&mut self, account: &str, place: &mut Place, look: &mut Look) -> Result<()> {
        let inner = self.store.inner.clone();
        let Some(created) = self.marked_container(account, &place.container).await? else { return Ok(()) };
        let before = look.failures;
        self.empty(account, created, place, look).await?;
        if look.is_over() || look.failures > before {
            return Ok(());
        }
        match inner.delete_container(account, &place.container, created).await {
            Ok(Deleted::Gone) => self.removed(look),
            // Of what could not be removed before.
            Ok(Deleted::Absent | Deleted::NotEmpty) => {}
            Err(error) => look.failed(error),
        }
        Ok(())
    }

    async fn remove_mark(&mut self, account: &str, look: &mut Look) -> Result<()> {
        if self.store.inner.remove_marked_account(account).await? {
            self.removed(look);
            tracing::info!(account, "account reaped");
        }
        Ok(())
    }

    fn removed(&mut self, look: &mut Look) {
        look.removed += 1;
        self.progress.done += 1;
    }

    /// The number of a container that stands under a mark.
    async fn marked_container(&self, account: &str, container: &str) -> Result<Option<Timestamp>> {
        let inner = &self.store.inner;
        let Some(found) = inner.container(account, container).await? else { return Ok(None) };
        let marked = inner.account(account).await?.is_some_and(|account| account.deleted);
        Ok(marked.then_some(found.created))
    }

    /// Removes the objects behind a place in its container, as many as there may be now.
    async fn empty(
        &mut self,
        account: &str,
        created: Timestamp,
        place: &mut Place,
        look: &mut Look,
    ) -> Result<()> {
        let inner = self.store.inner.clone();
        while !look.is_over() {
            let (limit, marker) = (PAGE.min(look.budget) as usize, place.object.clone());
            let page = Listing { limit, marker, ..Listing::default() };
            let objects = inner.objects_of(account, &place.container, &page).await?;
            if objects.is_empty() {
                return Ok(());
            }
            for entry in objects {
                let Entry::Row(ObjectRow { name, .. }) = entry else { continue };
                place.object.clone_from(&name);
                let (account, container) = (account.into(), place.container.as_str().into());
                let path = ObjectPath { account, container, object: name.into() };
                match self.remove(&path, created).await {
                    Ok(()) => self.removed(look),
                    Err(error) => {
                        // The objects' devices may be, which concerns no other.
                        let silent = matches!(error, Error::Unavailable { .. });
                        look.away = silent && inner.is_away(&path.account).await;
                        look.failed(error);
                    }
                }
                if look.is_over() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn remove(&self, path: &ObjectPath, created: Timestamp) -> Result<()> {
        let inner = &self.store.inner;
        let marked = |_, container| container == Some(created.0);
        if inner.remove_object(path, &Condition::default(), true, marked).await? == Deleted::Absent {
            inner.remove_line(path, created.0).await?;
        }
        Ok(())
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
