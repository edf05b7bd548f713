//! A container whose lines are in several groups: what its groups say of it.
//!
//! The account's group, the parent, knows whether the container stands. A child has a range of its lines and what it must know to
//! decide about them. A container that is to go is *shut* in its children first; a child that is shut decides nothing. So is a child
//! whose lines shall be its parent's again ([`super::back`]).
//!
//! Invariant: a child that is shut by an attempt is opened only after the parent has forgotten that attempt; a container goes only
//! by an attempt that the parent remembers. So what a child took in before it was shut is counted, and after that it takes in
//! nothing while the container may go.
//! Invariant: an attempt that shuts a child is named by a time of the account's group, so attempts have an order; a child is shut by the
//! latest that it heard of, and says by which.
//! Invariant: before a child of a child is opened, its parent has forgotten what it was about to take back.
//! Invariant: what a group counts and lists is its own; whoever asks adds up.

use super::{Answer, Ask, Decider};
use crate::catalog::{Belongs, ContainerValue, PartValue, going_key, going_value, part_key};
use crate::clock::Timestamp;
use crate::consensus::{Given, Part};
use crate::disk::Class;
use crate::object::group::TotalsOf;
use crate::object::locks::Claim;
use crate::object::replica::Draft;
use crate::object::{Deleted, Error, Result, row_draft};

/// Where lines are decided, when not here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Elsewhere {
    /// Another group has taken them over.
    #[error("index group {group} has taken the lines over")]
    Moved {
        /// That one.
        group: u32,
        /// The first name of what it took over.
        from: String,
        /// The name behind the last.
        to: Option<String>,
    },
    /// Nowhere for the moment: the container may be about to go.
    #[error("the container is being deleted")]
    Shut {
        /// The attempt.
        at: Timestamp,
    },
    /// This group has nothing of the container; its account's group knows who has.
    #[error("this index group has nothing of the container")]
    Unknown,
}

/// A group that has a range of a container's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The container.
    pub container: String,
    /// Its storage policy.
    pub policy: u16,
    /// The first name of the range.
    pub from: String,
    /// The group.
    pub group: u32,
}

/// What a group has of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holding {
    /// Lines.
    pub objects: u64,
    /// Their listed sizes.
    pub bytes: u64,
    /// The attempt by which it is shut: to delete the container, or to take the lines back.
    pub at: Option<Timestamp>,
    /// No version time that it gave is greater.
    pub above: Timestamp,
    /// Who has more of it.
    pub children: Vec<Child>,
}

fn part_row(part: Part, shut: Option<u64>, now: Timestamp) -> Draft {
    let value = PartValue { shut, ..part.value };
    row_draft(part_key(part.id), Some(value.encode()), now)
}

impl From<Elsewhere> for Error {
    fn from(elsewhere: Elsewhere) -> Self {
        Self::Elsewhere(elsewhere)
    }
}

fn child(given: Given) -> Child {
    let Given { from, group, of: Belongs { container, policy, .. }, .. } = given;
    Child { container, policy, from, group }
}

/// An answer, with who has more of it.
pub(super) fn with(answer: Answer, children: Vec<Child>) -> Answer {
    if children.is_empty() { answer } else { Answer::Split { answer: Box::new(answer), children } }
}

impl Decider {
    /// Who has more of a container, by its number; in name order.
    pub(super) fn children(&self, id: u64) -> Vec<Child> {
        let mut all: Vec<Child> =
            self.group.given().into_iter().filter(|given| given.id == id).map(child).collect();
        all.sort_by(|one, other| one.from.cmp(&other.from));
        all
    }

    /// Who has more of the containers of an account that stand.
    pub(super) fn children_of(&self, account: &str) -> Result<Vec<Child>> {
        let mut all = Vec::new();
        for given in self.group.given().into_iter().filter(|given| given.of.account == account) {
            let stands = self.container_row(account, &given.of.container)?;
            if stands.is_some_and(|(_, value)| value.id == given.id) {
                all.push(child(given));
            }
        }
        Ok(all)
    }

    /// Of a child: its part of a container, shut or not.
    pub(super) fn own_part(&self, account: &str, container: &str) -> Result<Option<Part>> {
        match self.group.part() {
            Some(part) if part.value.of.account == account && part.value.of.container == container => {
                Ok(Some(part))
            }
            Some(_) => Err(Elsewhere::Unknown.into()),
            None => Ok(None),
        }
    }

    /// Of a child: its part of a container, which must be open.
    pub(super) fn open_part(&self, account: &str, container: &str) -> Result<Option<Part>> {
        let part = self.own_part(account, container)?;
        match part.as_ref().and_then(|part| part.value.shut) {
            Some(at) => Err(Elsewhere::Shut { at: Timestamp(at) }.into()),
            None => Ok(part),
        }
    }

    fn holding_of(&self, id: u64, at: Option<Timestamp>) -> Result<Holding> {
        let totals = self.group.totals(TotalsOf::Container(id))?;
        let (objects, bytes) = (totals.objects, totals.bytes);
        let above = Timestamp(self.group.max_sequence());
        Ok(Holding { objects, bytes, at, above, children: self.children(id) })
    }

    pub(super) fn holding(&self, account: &str, container: &str) -> Result<Holding> {
        if let Some(part) = self.own_part(account, container)? {
            return self.holding_of(part.id, part.value.shut.map(Timestamp));
        }
        match self.container_row(account, container)? {
            Some((_, value)) => self.holding_of(value.id, self.going(value.id)?),
            None => Err(Error::NoContainer),
        }
    }

    /// The attempt to delete a container that the parent remembers.
    fn going(&self, id: u64) -> Result<Option<Timestamp>> {
        Ok(self.group.row(&going_key(id))?.map(|row| Timestamp(row.sequence)))
    }

    pub(super) async fn change_parts(&self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Shut { account, container, at: None } => self.go(&account, &container).await,
            Ask::Shut { account, container, at: Some(at) } => self.shut(&account, &container, at).await,
            Ask::Open { account, container, at } => self.open(&account, &container, at).await,
            Ask::DeleteShut { account, container, at } => {
                self.delete_shut(&account, &container, at).await.map(Answer::Deleted)
            }
            _ => Err(Error::Refused("no change of parts".to_owned())),
        }
    }

    fn standing_container(&self, account: &str, container: &str) -> Result<ContainerValue> {
        let found = self.container_row(account, container)?;
        found.map(|(_, value)| value).ok_or(Error::NoContainer)
    }

    /// The parent remembers a new attempt, and no earlier one any more.
    async fn go(&self, account: &str, container: &str) -> Result<Answer> {
        let permit = self.group.claim(Claim::Container { account, container }).await;
        self.behind_barrier().await?;
        let ContainerValue { id, .. } = self.standing_container(account, container)?;
        let now = self.time(self.going(id)?).await?;
        let holding = self.holding_of(id, Some(now))?;
        let row = row_draft(going_key(id), Some(going_value()), now);
        self.commit(vec![row], Class::Delete, permit).await?;
        Ok(Answer::Holding(holding))
    }

    /// A child takes in nothing from here on; grants that were given before are over.
    async fn shut(&self, account: &str, container: &str, at: Timestamp) -> Result<Answer> {
        let permit = self.group.claim(Claim::Emptiness { account, container }).await;
        self.behind_barrier().await?;
        let Some(part) = self.own_part(account, container)? else { return Err(Elsewhere::Unknown.into()) };
        let id = part.id;
        let by = match part.value.shut.map(Timestamp) {
            // By a later attempt, or by this one.
            Some(known) if known >= at => known,
            _ => {
                self.change_part(part, Some(at.0), permit).await?;
                at
            }
        };
        Ok(Answer::Holding(self.holding_of(id, Some(by))?))
    }

    /// Remembers in a child that it is about to take lines back from a child of its own; which attempt that is.
    pub(super) async fn attempt(&self, id: u64, account: &str, container: &str) -> Result<Timestamp> {
        let permit = self.group.claim(Claim::Container { account, container }).await;
        self.behind_barrier().await?;
        let now = self.time(self.going(id)?).await?;
        let row = row_draft(going_key(id), Some(going_value()), now);
        self.commit(vec![row], Class::Delete, permit).await?;
        Ok(now)
    }

    async fn change_part(
        &self,
        part: Part,
        shut: Option<u64>,
        permit: crate::object::locks::Permit,
    ) -> Result<()> {
        let now = self.time(Some(Timestamp(part.sequence))).await?;
        self.commit(vec![part_row(part, shut, now)], Class::Delete, permit).await
    }

    async fn open(&self, account: &str, container: &str, at: Timestamp) -> Result<Answer> {
        let permit = self.group.claim(Claim::Emptiness { account, container }).await;
        self.behind_barrier().await?;
        if let Some(part) = self.own_part(account, container)? {
            let (id, ours) = (part.id, part.value.shut == Some(at.0));
            // Its own children may be opened next: whatever it was about to take back, it does not.
            let going = self.going(id)?;
            if ours || going.is_some() {
                let now = self.time(going.max(Some(Timestamp(part.sequence)))).await?;
                let mut rows: Vec<_> =
                    going.map(|_| row_draft(going_key(id), None, now)).into_iter().collect();
                rows.extend(ours.then(|| part_row(part, None, now)));
                self.commit(rows, Class::Delete, permit).await?;
            }
            return Ok(Answer::Holding(self.holding_of(id, None)?));
        }
        let ContainerValue { id, .. } = self.standing_container(account, container)?;
        if self.going(id)? == Some(at) {
            let now = self.time(Some(at)).await?;
            self.commit(vec![row_draft(going_key(id), None, now)], Class::Delete, permit).await?;
        }
        Ok(Answer::Holding(self.holding_of(id, None)?))
    }

    /// The parent's part of a delete whose children are shut and empty.
    async fn delete_shut(&self, account: &str, container: &str, at: Timestamp) -> Result<Deleted> {
        let permit = self.group.claim(Claim::Emptiness { account, container }).await;
        self.behind_barrier().await?;
        let Some((row, value)) = self.container_row(account, container)? else { return Ok(Deleted::Absent) };
        if self.going(value.id)? != Some(at) {
            let reason = "somebody else deletes the container, or writes to it; try again".to_owned();
            return Err(Error::Unavailable { reason });
        }
        if self.group.totals(TotalsOf::Container(value.id))?.objects > 0 {
            return Ok(Deleted::NotEmpty);
        }
        let now = self.time(Some(at.max(Timestamp(row.sequence)))).await?;
        let gone = crate::catalog::container_key(account, container);
        let rows = vec![row_draft(gone, None, now), row_draft(going_key(value.id), None, now)];
        self.commit(rows, Class::Delete, permit).await?;
        Ok(Deleted::Gone)
    }
}
