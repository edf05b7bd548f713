//! Changes of accounts and containers.

use super::{Answer, Ask, Decider, Put, parts};
use crate::catalog::{AccountValue, ContainerValue, account_key, container_key};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::object::group::TotalsOf;
use crate::object::locks::Claim;
use crate::object::{Deleted, Error, Headers, IndexPolicy, Made, Result, row_draft};

/// A container that shall be made or changed.
struct Wanted {
    account: String,
    container: String,
    policy: u16,
    headers: Headers,
    expect: Option<Timestamp>,
    post: bool,
    index: Option<IndexPolicy>,
}

impl Decider {
    pub(super) async fn change(&self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::PutAccount { account, headers, expect } => {
                self.put_account(&account, headers, expect).await.map(Answer::Put)
            }
            Ask::MarkAccount { account, created } => {
                self.mark_account(&account, created).await.map(Answer::Deleted)
            }
            Ask::RemoveMarked { account } => self.remove_marked(&account).await.map(Answer::Deleted),
            Ask::PutContainer { account, container, policy, headers, expect, post, index } => {
                let wanted = Wanted { account, container, policy, headers, expect, post, index };
                self.put_container(wanted).await.map(Answer::Put)
            }
            Ask::DeleteContainer { account, container, created } => {
                self.delete_container(&account, &container, created).await
            }
            _ => Err(Error::Refused("a question is no change".to_owned())),
        }
    }

    async fn put_account(&self, account: &str, headers: Headers, expect: Option<Timestamp>) -> Result<Put> {
        let permit = self.group.claim(Claim::Account(account)).await;
        self.behind_barrier().await?;
        let current = self.account_row(account)?;
        if current.as_ref().is_some_and(|(_, value)| value.marked) {
            return Err(Error::NoAccount);
        }
        if current.as_ref().map(|(row, _)| Timestamp(row.sequence)) != expect {
            return Ok(Put::Changed);
        }
        let now = self.time_after(expect).await?;
        let created = current.as_ref().map_or(now.0, |(_, value)| value.created);
        let value = AccountValue { created, marked: false, headers };
        let row = row_draft(account_key(account), Some(value.encode()), now);
        self.commit(vec![row], Class::Client, permit).await?;
        Ok(Put::Done(if current.is_some() { Made::Updated } else { Made::Created }))
    }

    /// A version time that is greater than what stands.
    async fn time_after(&self, standing: Option<Timestamp>) -> Result<Timestamp> {
        self.time(standing).await
    }

    async fn mark_account(&self, account: &str, created: Timestamp) -> Result<Deleted> {
        let permit = self.group.claim(Claim::Account(account)).await;
        self.behind_barrier().await?;
        let meant = |value: &AccountValue| !value.marked && value.created == created.0;
        let Some((row, mut value)) = self.account_row(account)?.filter(|(_, value)| meant(value)) else {
            return Ok(Deleted::Absent);
        };
        value.marked = true;
        let now = self.time_after(Some(Timestamp(row.sequence))).await?;
        let row = row_draft(account_key(account), Some(value.encode()), now);
        self.commit(vec![row], Class::Delete, permit).await?;
        Ok(Deleted::Gone)
    }

    /// The reaper's last step: the mark goes when nothing is left under it.
    async fn remove_marked(&self, account: &str) -> Result<Deleted> {
        let permit = self.group.claim(Claim::Account(account)).await;
        self.behind_barrier().await?;
        let Some((row, _)) = self.account_row(account)?.filter(|(_, value)| value.marked) else {
            return Ok(Deleted::Absent);
        };
        if self.group.totals(TotalsOf::Account(account))?.containers > 0 {
            return Ok(Deleted::NotEmpty);
        }
        let now = self.time_after(Some(Timestamp(row.sequence))).await?;
        self.commit(vec![row_draft(account_key(account), None, now)], Class::Delete, permit).await?;
        Ok(Deleted::Gone)
    }

    async fn put_container(&self, wanted: Wanted) -> Result<Put> {
        let Wanted { account, container, policy, headers, expect, post, index } = wanted;
        let (account, container) = (account.as_str(), container.as_str());
        let mut permit = self.group.claim(Claim::Container { account, container }).await;
        self.behind_barrier().await?;
        let mut owner = self.account_row(account)?;
        if owner.is_none() {
            drop(permit);
            permit = self.group.claim(Claim::ContainerAndAccount { account, container }).await;
            self.behind_barrier().await?;
            owner = self.account_row(account)?;
        }
        if owner.as_ref().is_some_and(|(_, value)| value.marked) {
            return Err(Error::NoAccount);
        }
        let current = self.container_row(account, container)?;
        if current.as_ref().map(|(row, _)| Timestamp(row.sequence)) != expect {
            return Ok(Put::Changed);
        }
        let now = self.time_after(expect).await?;
        let mut rows = Vec::new();
        if owner.is_none() {
            let value = AccountValue { created: now.0, marked: false, headers: Headers::new() };
            rows.push(row_draft(account_key(account), Some(value.encode()), now));
        }
        let made = if current.is_some() { Made::Updated } else { Made::Created };
        let value = match current {
            Some((_, value)) => {
                let index = self.may_become(&value, index)?;
                let put = if post { value.put } else { now.0 };
                ContainerValue { put, headers, index, ..value }
            }
            None => {
                ContainerValue { id: now.0, put: now.0, policy, index: index.unwrap_or_default(), headers }
            }
        };
        rows.push(row_draft(container_key(account, container), Some(value.encode()), now));
        self.commit(rows, Class::Client, permit).await?;
        Ok(Put::Done(made))
    }

    /// What is eventual stays so: intents may be on their way, and a strict container believes its listing. What is divided stays
    /// strict: a child knows nothing else of the container than its policy.
    fn may_become(&self, value: &ContainerValue, wanted: Option<IndexPolicy>) -> Result<IndexPolicy> {
        let refused = |why: &str| Err(Error::Refused(why.to_owned()));
        match (value.index, wanted.unwrap_or(value.index)) {
            (IndexPolicy::Eventual, IndexPolicy::Strict) => refused("an eventual container stays eventual"),
            (IndexPolicy::Strict, IndexPolicy::Eventual) if !self.children(value.id).is_empty() => {
                refused("a container in several index groups stays strict")
            }
            (_, wanted) => Ok(wanted),
        }
    }

    /// Where other groups have more of the container, they must be asked first: nothing is changed.
    async fn delete_container(&self, account: &str, container: &str, created: Timestamp) -> Result<Answer> {
        let permit = self.group.claim(Claim::Emptiness { account, container }).await;
        self.behind_barrier().await?;
        let found = self.container_row(account, container)?;
        let Some((row, value)) = found.filter(|(_, value)| value.id == created.0) else {
            return Ok(Answer::Deleted(Deleted::Absent));
        };
        if self.group.totals(TotalsOf::Container(value.id))?.objects > 0 {
            return Ok(Answer::Deleted(Deleted::NotEmpty));
        }
        let children = self.children(value.id);
        if !children.is_empty() {
            return Ok(parts::with(Answer::Deleted(Deleted::NotEmpty), children));
        }
        let now = self.time_after(Some(Timestamp(row.sequence))).await?;
        let row = row_draft(container_key(account, container), None, now);
        self.commit(vec![row], Class::Delete, permit).await?;
        Ok(Answer::Deleted(Deleted::Gone))
    }
}
