//! Accounts and containers: rows of the index group.
//!
//! Invariant: existence, emptiness and deletion are judged under the claim that the change is made under.

use super::group::TotalsOf;
use super::listing::{Names, page};
use super::locks::Claim;
use super::replica::Draft;
use super::store::{Inner, Store};
use super::{
    Account, Container, ContainerRow, Deleted, Entry, Error, Headers, Listing, Made, ObjectRow, Result,
};
use crate::catalog::{
    self, AccountValue, ContainerValue, ListingValue, Row, account_key, container_key, containers_prefix,
    listing_prefix,
};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::disk::format::record::Kind;
use crate::index::{Range, after_prefix};

/// A row's record; `value` is `None` for a tombstone.
pub(crate) fn row_draft(key: Vec<u8>, value: Option<Vec<u8>>, at: Timestamp) -> Draft {
    let deleted = value.is_none();
    let meta = value.unwrap_or_default();
    Draft { kind: Kind::Row, deleted, sequence: at.0, number: 0, key, meta, data: bytes::Bytes::new() }
}

impl Inner {
    pub(crate) fn account_row(&self, account: &str) -> Result<Option<(Row, AccountValue)>> {
        let Some(row) = self.group.row(&account_key(account))? else { return Ok(None) };
        let value = AccountValue::decode(&row.value)?;
        Ok(Some((row, value)))
    }

    pub(crate) fn container_row(
        &self,
        account: &str,
        container: &str,
    ) -> Result<Option<(Row, ContainerValue)>> {
        let Some(row) = self.group.row(&container_key(account, container))? else { return Ok(None) };
        let value = ContainerValue::decode(&row.value)?;
        Ok(Some((row, value)))
    }

    fn account(&self, name: &str) -> Result<Option<Account>> {
        let Some((row, value)) = self.account_row(name)? else { return Ok(None) };
        let totals = self.group.totals(TotalsOf::Account(name))?;
        Ok(Some(Account {
            created: Timestamp(value.created),
            changed: Timestamp(row.sequence),
            deleted: value.marked,
            containers: totals.containers,
            objects: totals.objects,
            bytes: totals.bytes,
            headers: value.headers,
        }))
    }

    fn to_container(&self, row: &Row, value: ContainerValue) -> Result<Container> {
        let totals = self.group.totals(TotalsOf::Container(value.id))?;
        Ok(Container {
            created: Timestamp(value.id),
            changed: Timestamp(row.sequence),
            policy: value.policy,
            objects: totals.objects,
            bytes: totals.bytes,
            headers: value.headers,
        })
    }

    /// The reaper's last step: the mark goes when nothing is left under it.
    pub(crate) async fn remove_marked_account(&self, account: &str) -> Result<bool> {
        let permit = self.claim(Claim::Account(account)).await;
        let marked = self.account_row(account)?.is_some_and(|(_, value)| value.marked);
        if !marked || self.group.totals(TotalsOf::Account(account))?.containers > 0 {
            return Ok(false);
        }
        let row = row_draft(account_key(account), None, self.clock.tick());
        self.commit_rows(vec![row], Class::Delete, permit).await?;
        Ok(true)
    }
}

impl Store {
    /// The account, `None` when it never existed or has been reaped.
    pub async fn account(&self, account: &str) -> Result<Option<Account>> {
        self.count_call();
        self.inner.account(account)
    }

    /// Create the account or change its headers: `edit` sees the current state (under the account's lock) and returns all stored
    /// headers that shall stand afterwards. [`Error::NoAccount`] when it is deleted and not yet reaped.
    pub async fn put_account(
        &self,
        account: &str,
        edit: impl FnOnce(Option<&Account>) -> Result<Headers> + Send,
    ) -> Result<Made> {
        self.count_call();
        let inner = &self.inner;
        let permit = inner.claim(Claim::Account(account)).await;
        let current = inner.account(account)?;
        if current.as_ref().is_some_and(|current| current.deleted) {
            return Err(Error::NoAccount);
        }
        let headers = edit(current.as_ref())?;
        let now = inner.clock.tick();
        let created = current.as_ref().map_or(now, |current| current.created).0;
        let value = AccountValue { created, marked: false, headers };
        let row = row_draft(account_key(account), Some(value.encode()), now);
        inner.commit_rows(vec![row], Class::Client, permit).await?;
        Ok(if current.is_some() { Made::Updated } else { Made::Created })
    }

    /// Mark the account deleted; the reaper removes its containers and objects, then the mark.
    pub async fn delete_account(&self, account: &str) -> Result<Deleted> {
        self.count_call();
        let inner = &self.inner;
        let permit = inner.claim(Claim::Account(account)).await;
        let Some((_, mut value)) = inner.account_row(account)?.filter(|(_, value)| !value.marked) else {
            return Ok(Deleted::Absent);
        };
        value.marked = true;
        let row = row_draft(account_key(account), Some(value.encode()), inner.clock.tick());
        inner.commit_rows(vec![row], Class::Delete, permit).await?;
        Ok(Deleted::Gone)
    }

    /// Containers of an account in name order. [`Error::NoAccount`] when absent.
    pub async fn list_containers(
        &self,
        account: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ContainerRow>>> {
        self.count_call();
        let standing = self.inner.account_row(account)?.is_some_and(|(_, value)| !value.marked);
        if !standing {
            return Err(Error::NoAccount);
        }
        self.inner.containers_of(account, listing)
    }

    /// Every account name, in order, from `marker` on (exclusive); those marked deleted too.
    pub async fn list_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> {
        self.count_call();
        let from = if marker.is_empty() { account_key("") } else { account_key(&format!("{marker}\0")) };
        let range = Range { from: Some(from), to: after_prefix(&account_key("")), reverse: false };
        let name = |pair: Result<(Box<[u8]>, Row)>| Ok(catalog::row_name(&pair?.0)?);
        self.inner.group.scan(range).take(limit).map(name).collect()
    }

    /// The container, `None` when absent.
    pub async fn container(&self, account: &str, container: &str) -> Result<Option<Container>> {
        self.count_call();
        let found = self.inner.container_row(account, container)?;
        found.map(|(row, value)| self.inner.to_container(&row, value)).transpose()
    }

    /// Create the container (with `policy`) or change its headers; the account is created when absent (with no headers).
    /// `edit` as in [`Store::put_account`].
    pub async fn put_container(
        &self,
        account: &str,
        container: &str,
        policy: u16,
        edit: impl FnOnce(Option<&Container>) -> Result<Headers> + Send,
    ) -> Result<Made> {
        self.count_call();
        let inner = &self.inner;
        let mut permit = inner.claim(Claim::Container { account, container }).await;
        let mut owner = inner.account_row(account)?;
        if owner.is_none() {
            drop(permit);
            permit = inner.claim(Claim::ContainerAndAccount { account, container }).await;
            owner = inner.account_row(account)?;
        }
        if owner.as_ref().is_some_and(|(_, value)| value.marked) {
            return Err(Error::NoAccount);
        }
        let found = inner.container_row(account, container)?;
        let current = found.map(|(row, value)| inner.to_container(&row, value)).transpose()?;
        let headers = edit(current.as_ref())?;
        let now = inner.clock.tick();
        let (id, policy) = current.as_ref().map_or((now.0, policy), |c| (c.created.0, c.policy));
        let value = ContainerValue { id, put: now.0, policy, headers };
        let mut rows = Vec::new();
        if owner.is_none() {
            let value = AccountValue { created: now.0, marked: false, headers: Headers::new() };
            rows.push(row_draft(account_key(account), Some(value.encode()), now));
        }
        rows.push(row_draft(container_key(account, container), Some(value.encode()), now));
        inner.commit_rows(rows, Class::Client, permit).await?;
        Ok(if current.is_some() { Made::Updated } else { Made::Created })
    }

    /// Change the headers of an existing container: [`Error::NoContainer`] when absent.
    pub async fn post_container(
        &self,
        account: &str,
        container: &str,
        edit: impl FnOnce(&Container) -> Result<Headers> + Send,
    ) -> Result<()> {
        self.count_call();
        let inner = &self.inner;
        let permit = inner.claim(Claim::Container { account, container }).await;
        let Some((row, value)) = inner.container_row(account, container)? else {
            return Err(Error::NoContainer);
        };
        let headers = edit(&inner.to_container(&row, value.clone())?)?;
        let value = ContainerValue { headers, ..value };
        let row = row_draft(container_key(account, container), Some(value.encode()), inner.clock.tick());
        inner.commit_rows(vec![row], Class::Client, permit).await
    }

    /// Remove an empty container.
    pub async fn delete_container(&self, account: &str, container: &str) -> Result<Deleted> {
        self.count_call();
        self.inner.delete_container(account, container).await
    }

    /// Objects of a container in name order. [`Error::NoContainer`] when absent.
    pub async fn list_objects(
        &self,
        account: &str,
        container: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ObjectRow>>> {
        self.count_call();
        self.inner.objects_of(account, container, listing)
    }
}

impl Inner {
    pub(crate) async fn delete_container(&self, account: &str, container: &str) -> Result<Deleted> {
        let permit = self.claim(Claim::Container { account, container }).await;
        let Some((_, value)) = self.container_row(account, container)? else { return Ok(Deleted::Absent) };
        if self.group.totals(TotalsOf::Container(value.id))?.objects > 0 {
            return Ok(Deleted::NotEmpty);
        }
        let row = row_draft(container_key(account, container), None, self.clock.tick());
        self.commit_rows(vec![row], Class::Delete, permit).await?;
        Ok(Deleted::Gone)
    }

    pub(crate) fn containers_of(&self, account: &str, listing: &Listing) -> Result<Vec<Entry<ContainerRow>>> {
        let decode = |name: String, row: Row| {
            let value = ContainerValue::decode(&row.value)?;
            let totals = self.group.totals(TotalsOf::Container(value.id))?;
            let changed = Timestamp(value.put);
            let (objects, bytes) = (totals.objects, totals.bytes);
            Ok(ContainerRow { name, objects, bytes, changed, policy: value.policy })
        };
        page(&Prefixed { inner: self, prefix: containers_prefix(account), decode }, listing)
    }

    pub(crate) fn objects_of(
        &self,
        account: &str,
        container: &str,
        listing: &Listing,
    ) -> Result<Vec<Entry<ObjectRow>>> {
        let Some((_, value)) = self.container_row(account, container)? else {
            return Err(Error::NoContainer);
        };
        let decode = |name: String, row: Row| {
            let ListingValue { size, etag, content_type } = ListingValue::decode(&row.value)?;
            let timestamp = Timestamp(row.sequence);
            Ok(ObjectRow { name, size, etag: etag.into_text(), content_type, timestamp })
        };
        page(&Prefixed { inner: self, prefix: listing_prefix(value.id), decode }, listing)
    }
}

/// Rows whose keys begin with a prefix, by what follows it.
struct Prefixed<'a, F> {
    inner: &'a Inner,
    prefix: Vec<u8>,
    decode: F,
}

impl<R, F: Fn(String, Row) -> Result<R>> Names for Prefixed<'_, F> {
    type Row = R;

    fn scan(&self, range: Range) -> Box<dyn Iterator<Item = Result<(String, R)>> + '_> {
        let key = |name: Vec<u8>| [self.prefix.as_slice(), &name].concat();
        let to = range.to.map_or_else(|| after_prefix(&self.prefix), |to| Some(key(to)));
        let range = Range { from: range.from.map(key), to, reverse: range.reverse };
        Box::new(self.inner.group.scan(range).map(|pair| {
            let (key, row) = pair?;
            let name = key.get(self.prefix.len()..).unwrap_or_default().to_vec();
            let name = String::from_utf8(name).map_err(|_| catalog::BadValue::Field("name"))?;
            Ok((name.clone(), (self.decode)(name, row)?))
        }))
    }
}
