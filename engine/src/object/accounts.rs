//! Accounts and containers, as callers change and read them.
//!
//! Invariant: a change of headers is made on what the caller's edit saw, or the edit is asked again.
//! Invariant: a delete removes what stood when it was asked for: asked twice, also late, it leaves alone what was made anew meanwhile.

use super::names::{Answer, Ask, Page, Put};
use super::replica::Draft;
use super::store::{Inner, Store};
use super::{
    Account, Container, ContainerRow, Deleted, Entry, Error, Headers, IndexPolicy, Listing, Made, ObjectRow,
    Result,
};
use crate::clock::Timestamp;
use crate::disk::format::record::Kind;

/// How often a change of headers is tried on what somebody else has just changed.
const MAX_EDITS: usize = 64;

/// A row's record; `value` is `None` for a tombstone.
pub(crate) fn row_draft(key: Vec<u8>, value: Option<Vec<u8>>, at: Timestamp) -> Draft {
    let deleted = value.is_none();
    let meta = value.unwrap_or_default();
    Draft { kind: Kind::Row, deleted, sequence: at.0, number: 0, key, meta, data: bytes::Bytes::new() }
}

/// An answer of another kind than was asked for.
pub(crate) fn odd<T>(_: Answer) -> Result<T> {
    Err(Error::Unavailable { reason: "the leader answered another question".to_owned() })
}

fn contended<T>() -> Result<T> {
    Err(Error::Unavailable { reason: "others change it all the time; try again".to_owned() })
}

impl Inner {
    async fn put(&self, ask: Ask) -> Result<Put> {
        match self.names.ask(ask).await? {
            Answer::Put(put) => Ok(put),
            other => odd(other),
        }
    }

    async fn deleted(&self, ask: Ask) -> Result<Deleted> {
        match self.names.ask(ask).await? {
            Answer::Deleted(deleted) => Ok(deleted),
            other => odd(other),
        }
    }

    pub(crate) async fn account(&self, account: &str) -> Result<Option<Account>> {
        match self.names.ask(Ask::Account { account: account.to_owned() }).await? {
            Answer::Account(found) => Ok(found),
            other => odd(other),
        }
    }

    pub(crate) async fn container(&self, account: &str, container: &str) -> Result<Option<Container>> {
        let (account, container) = (account.to_owned(), container.to_owned());
        match self.names.ask(Ask::Container { account, container }).await? {
            Answer::Container(found) => Ok(found),
            other => odd(other),
        }
    }

    /// Only a line names a body that is kept in fragments: without lines nothing would be found.
    fn may_be(&self, policy: u16, index: Option<IndexPolicy>) -> Result<()> {
        if index == Some(IndexPolicy::Eventual) && self.policies().code(policy).is_some() {
            return Err(Error::Refused("a container of a policy of fragments is strict".to_owned()));
        }
        Ok(())
    }

    async fn account_names(&self, ask: Ask) -> Result<Vec<String>> {
        match self.names.ask(ask).await? {
            Answer::Accounts(names) => Ok(names),
            other => odd(other),
        }
    }

    /// Accounts that are marked deleted, behind `marker` and in order, if this node is the one to reap them.
    pub(crate) async fn marked_accounts(&self, marker: &str, limit: u32) -> Result<Vec<String>> {
        self.account_names(Ask::MarkedAccounts { marker: marker.to_owned(), limit }).await
    }

    /// The reaper's last step: the mark goes when nothing is left under it.
    pub(crate) async fn remove_marked_account(&self, account: &str) -> Result<bool> {
        let ask = Ask::RemoveMarked { account: account.to_owned() };
        Ok(self.deleted(ask).await? == Deleted::Gone)
    }

    /// Removes an empty container, if it is the one that was made then.
    pub(crate) async fn delete_container(
        &self,
        account: &str,
        container: &str,
        created: Timestamp,
    ) -> Result<Deleted> {
        let (account, container) = (account.to_owned(), container.to_owned());
        self.deleted(Ask::DeleteContainer { account, container, created }).await
    }

    /// Containers of an account; `marked`: also when it is marked deleted.
    pub(crate) async fn containers_of(
        &self,
        account: &str,
        listing: &Listing,
        marked: bool,
    ) -> Result<Vec<Entry<ContainerRow>>> {
        let ask = |listing: Listing| Ask::Containers { account: account.to_owned(), listing, marked };
        let mut gathered = Gathered::new(listing);
        while let Some(listing) = gathered.rest() {
            match self.names.ask(ask(listing)).await? {
                Answer::Containers(page) => gathered.take(page, |row| &row.name),
                other => return odd(other),
            }
        }
        Ok(gathered.entries)
    }

    pub(crate) async fn objects_of(
        &self,
        account: &str,
        container: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ObjectRow>>> {
        let (account, container) = (account.to_owned(), container.to_owned());
        let mut gathered = Gathered::new(listing);
        while let Some(listing) = gathered.rest() {
            let (account, container) = (account.clone(), container.clone());
            match self.names.ask(Ask::Objects { account, container, listing }).await? {
                Answer::Objects(page) => gathered.take(page, |row| &row.name),
                other => return odd(other),
            }
        }
        Ok(gathered.entries)
    }
}

/// A listing that comes in pages.
struct Gathered<R> {
    entries: Vec<Entry<R>>,
    listing: Listing,
    more: bool,
}

impl<R> Gathered<R> {
    fn new(listing: &Listing) -> Self {
        Self { entries: Vec::new(), listing: listing.clone(), more: true }
    }

    /// What is still to be asked for.
    fn rest(&self) -> Option<Listing> {
        self.more.then(|| self.listing.clone())
    }

    /// A page ends with the last name that the next one begins behind, as a client would ask.
    fn take(&mut self, page: Page<R>, name: impl Fn(&R) -> &String) {
        let Page { entries, cut } = page;
        self.listing.limit = self.listing.limit.saturating_sub(entries.len());
        self.more = false;
        if let Some(last) = entries.last().filter(|_| cut && self.listing.limit > 0) {
            self.more = true;
            self.listing.marker = match last {
                Entry::Row(row) => name(row).clone(),
                Entry::Subdir(name) => name.clone(),
            };
        }
        self.entries.extend(entries);
    }
}

impl Store {
    /// The account, `None` when it never existed or has been reaped. While its index group is away, what was last known of it, if it
    /// has eventual containers.
    pub async fn account(&self, account: &str) -> Result<Option<Account>> {
        self.count_call();
        self.inner.account_soon(account).await
    }

    /// Create the account or change its headers: `edit` sees the current state and returns all stored headers that shall
    /// stand afterwards; asked again when somebody else changes it meanwhile. [`Error::NoAccount`] when it is deleted and
    /// not yet reaped.
    pub async fn put_account(
        &self,
        account: &str,
        edit: impl Fn(Option<&Account>) -> Result<Headers> + Send,
    ) -> Result<Made> {
        self.count_call();
        for _ in 0..MAX_EDITS {
            let current = self.inner.account(account).await?;
            if current.as_ref().is_some_and(|current| current.deleted) {
                return Err(Error::NoAccount);
            }
            let headers = edit(current.as_ref())?;
            let expect = current.map(|current| current.changed);
            let ask = Ask::PutAccount { account: account.to_owned(), headers, expect };
            if let Put::Done(made) = self.inner.put(ask).await? {
                return Ok(made);
            }
        }
        contended()
    }

    /// Mark the account deleted; the reaper removes its containers and objects, then the mark.
    pub async fn delete_account(&self, account: &str) -> Result<Deleted> {
        self.count_call();
        let Some(found) = self.inner.account(account).await? else { return Ok(Deleted::Absent) };
        let ask = Ask::MarkAccount { account: account.to_owned(), created: found.created };
        self.inner.deleted(ask).await
    }

    /// Containers of an account in name order. [`Error::NoAccount`] when absent.
    pub async fn list_containers(
        &self,
        account: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ContainerRow>>> {
        self.count_call();
        self.inner.containers_of(account, listing, false).await
    }

    /// Every account name, in order, from `marker` on (exclusive); those marked deleted too.
    pub async fn list_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> {
        self.count_call();
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        self.inner.account_names(Ask::Accounts { marker: marker.to_owned(), limit }).await
    }

    /// The container, `None` when absent. While its index group is away, what was last known of it, if it is eventual.
    pub async fn container(&self, account: &str, container: &str) -> Result<Option<Container>> {
        self.count_call();
        self.inner.container_soon(account, container).await
    }

    /// Create the container (with `policy`) or change its headers; the account is created when absent (with no headers).
    /// `edit` as in [`Store::put_account`].
    pub async fn put_container(
        &self,
        account: &str,
        container: &str,
        policy: u16,
        edit: impl Fn(Option<&Container>) -> Result<Headers> + Send,
    ) -> Result<Made> {
        self.put_container_with(account, container, policy, None, edit).await
    }

    /// The same, with what shall hold while its index group has no leader; `None`: as it is, or strict.
    pub async fn put_container_with(
        &self,
        account: &str,
        container: &str,
        policy: u16,
        index: Option<IndexPolicy>,
        edit: impl Fn(Option<&Container>) -> Result<Headers> + Send,
    ) -> Result<Made> {
        self.count_call();
        for _ in 0..MAX_EDITS {
            let current = self.inner.container(account, container).await?;
            let headers = edit(current.as_ref())?;
            self.inner.may_be(current.as_ref().map_or(policy, |current| current.policy), index)?;
            let expect = current.map(|current| current.changed);
            let (account, container) = (account.to_owned(), container.to_owned());
            let ask = Ask::PutContainer { account, container, policy, headers, expect, post: false, index };
            if let Put::Done(made) = self.inner.put(ask).await? {
                return Ok(made);
            }
        }
        contended()
    }

    /// Change the headers of an existing container: [`Error::NoContainer`] when absent.
    pub async fn post_container(
        &self,
        account: &str,
        container: &str,
        edit: impl Fn(&Container) -> Result<Headers> + Send,
    ) -> Result<()> {
        self.post_container_with(account, container, None, edit).await
    }

    /// The same, with what shall hold while its index group has no leader; `None`: as it is.
    pub async fn post_container_with(
        &self,
        account: &str,
        container: &str,
        index: Option<IndexPolicy>,
        edit: impl Fn(&Container) -> Result<Headers> + Send,
    ) -> Result<()> {
        self.count_call();
        for _ in 0..MAX_EDITS {
            let Some(current) = self.inner.container(account, container).await? else {
                return Err(Error::NoContainer);
            };
            let headers = edit(&current)?;
            let (account, container) = (account.to_owned(), container.to_owned());
            let (policy, expect) = (current.policy, Some(current.changed));
            self.inner.may_be(policy, index)?;
            let ask = Ask::PutContainer { account, container, policy, headers, expect, post: true, index };
            if let Put::Done(_) = self.inner.put(ask).await? {
                return Ok(());
            }
        }
        contended()
    }

    /// Remove an empty container.
    pub async fn delete_container(&self, account: &str, container: &str) -> Result<Deleted> {
        self.count_call();
        let Some(found) = self.inner.container(account, container).await? else {
            return Ok(Deleted::Absent);
        };
        self.inner.delete_container(account, container, found.created).await
    }

    /// Objects of a container in name order. [`Error::NoContainer`] when absent.
    pub async fn list_objects(
        &self,
        account: &str,
        container: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ObjectRow>>> {
        self.count_call();
        self.inner.objects_of(account, container, listing).await
    }
}
