//! Lines that another group has, and has none of any more, are their parent's again (engine/FORMAT-groups.md).
//!
//! The child is shut by an attempt that its parent remembers, as for a delete of the container; then the parent takes the range back, if
//! it remembers the attempt still. Whoever finds the child shut ends an attempt that takes too long: the parent forgets it first.
//!
//! Invariant: what is taken back has no line, and no children, and is shut: by this attempt, or for ever, because the container is gone.
//! Invariant: what goes wrong ends the attempt, and the child goes on.

use super::divided::Divided;
use super::{Answer, Ask, Child, Holding, Names};
use crate::catalog::GroupId;
use crate::clock::Timestamp;
use crate::consensus::Given;
use crate::object::{Error, ObjectPath, Result, Voter, odd};

/// An attempt that shuts the child.
struct Attempt {
    /// As the account's group, and with it the child, calls it.
    at: Timestamp,
    /// As the parent remembers it.
    remembered: Timestamp,
}

/// Of what a group gave of its containers, what it can take back: of each container that which lies directly behind what it has.
#[must_use]
pub fn returnable(given: Vec<Given>) -> Vec<Given> {
    let mut first: Vec<Given> = Vec::new();
    for one in given {
        match first.iter_mut().find(|known| known.id == one.id) {
            Some(known) if known.from <= one.from => {}
            Some(known) => *known = one,
            None => first.push(one),
        }
    }
    first
}

impl Divided {
    /// Whether a child has nothing, as it says now.
    pub async fn is_idle(&self, given: &Given) -> Result<bool> {
        Ok(is_empty(&self.ask_child(given).await?))
    }

    async fn ask_child(&self, Given { of, group, .. }: &Given) -> Result<Holding> {
        let ask = Ask::Holding { account: of.account.clone(), container: of.container.clone() };
        match self.child(&of.account, *group)?.ask(ask).await? {
            Answer::Holding(holding) => Ok(holding),
            other => odd(other),
        }
    }

    /// Takes back what a group gave away that is led here; false when the child has something, or somebody came in between. `voter` is
    /// this node's of that group.
    pub async fn take_back(&self, voter: &Voter, given: &Given) -> Result<bool> {
        let (account, container) = (&given.of.account, &given.of.container);
        if !self.is_idle(given).await? {
            return Ok(false);
        }
        if !self.stands(given).await? {
            // Whatever shut it does so for ever: who would open it asks the account's group first, which has no such container.
            let holding = self.ask_child(given).await?;
            let shut = holding.at.is_some() && is_empty(&holding);
            return if shut { voter.take_back(given, None, holding.above.0).await } else { Ok(false) };
        }
        let attempt = match self.attempt(voter.group().id(), given).await {
            Err(Error::NoContainer) => return Ok(false),
            attempt => attempt?,
        };
        match self.take_shut(voter, given, &attempt).await {
            Ok(true) if attempt.at == attempt.remembered => Ok(true),
            Ok(true) => {
                // The account's group may forget it. Should it not hear of that, the next attempt overwrites it.
                let (account, container, at) = (account.clone(), container.clone(), attempt.at);
                let _lost = self.of(&account)?.ask(Ask::Open { account, container, at }).await;
                Ok(true)
            }
            not => {
                self.open_all(account, container, attempt.at).await?;
                not
            }
        }
    }

    async fn stands(&self, Given { id, of, .. }: &Given) -> Result<bool> {
        let (account, container) = (of.account.as_str().into(), of.container.as_str().into());
        let path = ObjectPath { account, container, object: "".into() };
        match self.of(&of.account)?.ask(Ask::Line { path }).await? {
            Answer::Line(line) => Ok(line.container.is_some_and(|standing| standing.id == *id)),
            other => odd(other),
        }
    }

    async fn attempt(&self, parent: GroupId, Given { id, of, .. }: &Given) -> Result<Attempt> {
        let (account, container) = (&of.account, &of.container);
        let holding = Self::shut(self.of(account)?, account, container, None).await?;
        let Some(at) = holding.at else { return odd(Answer::Holding(holding)) };
        if self.base(account)? == parent {
            return Ok(Attempt { at, remembered: at });
        }
        let here = self.decider(parent);
        let here = here.ok_or_else(|| Error::Unavailable { reason: "the group is not here".to_owned() })?;
        let remembered = here.attempt(*id, account, container).await?;
        Ok(Attempt { at, remembered })
    }

    async fn take_shut(&self, voter: &Voter, given: &Given, attempt: &Attempt) -> Result<bool> {
        let (account, container) = (&given.of.account, &given.of.container);
        let child = self.child(account, given.group)?;
        let holding = Self::shut(child, account, container, Some(attempt.at)).await?;
        if holding.at != Some(attempt.at) || !is_empty(&holding) {
            return Ok(false);
        }
        voter.take_back(given, Some(attempt.remembered.0), holding.above.0).await
    }
}

fn is_empty(holding: &Holding) -> bool {
    let none: &[Child] = &[];
    holding.objects == 0 && holding.children == none
}
