//! Who belongs to a group and who of them votes: brought to what is wanted step by step.
//!
//! Invariant: a change of voters that was begun is ended before anything else of the members changes, whoever began it: openraft ends one
//! only where it was begun, and until then a majority of both sets decides, one of which may be gone.
//! Invariant: voters are changed only to such of which a majority follows this leader at that moment: all that is proposed after a
//! change that cannot be committed waits for it.
//! Invariant: a leader that shall vote no more hands over before, where it can: nobody else leads until voters miss it.

use std::collections::BTreeSet;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};

use super::group::{Group, GroupStatus, stopped};
use super::limits::MAX_MEMBERS;
use super::types::GroupError;
use crate::net::NodeId;

/// A member that lags by so many entries has caught up enough to vote.
const CAUGHT_UP: u64 = 500;

impl GroupStatus {
    /// Whether a member has, by the word of the leader whose status this is, all but the newest of the log, or votes already.
    #[must_use]
    pub fn has_caught_up(&self, node: &NodeId) -> bool {
        let matched = self.matched.get(node).copied().flatten();
        self.voters.contains(node)
            || matched.zip(self.last).is_some_and(|(matched, last)| matched + CAUGHT_UP >= last)
    }
}

impl Group {
    /// Brings the members nearer to `all` and the voters to `voters`, which are among them, by one step; true: they are that. For the
    /// leader, again and again: a step that fails, or is cut off, is tried again from what stands then.
    pub async fn bring_members(
        &self,
        all: &BTreeSet<NodeId>,
        voters: &BTreeSet<NodeId>,
    ) -> Result<bool, GroupError> {
        let status = self.status();
        if let Some(begun) = &status.changing {
            self.bring_voters(&status, begun).await?;
            return Ok(false);
        }
        let known = |node: &NodeId| status.voters.contains(node) || status.learners.contains(node);
        if let Some(node) = all.iter().find(|node| !known(node)) {
            tracing::info!(group = self.id(), %node, "add member");
            self.add_learner(*node).await?;
            return Ok(false);
        }
        let there = status.voters == *voters;
        if !there && voters.iter().all(|node| status.has_caught_up(node)) {
            self.bring_voters(&status, voters).await?;
            return Ok(false);
        }
        match status.learners.iter().find(|node| !all.contains(node)) {
            Some(node) => self.remove_learner(*node).await.map(|()| false),
            None => Ok(there),
        }
    }

    async fn bring_voters(&self, status: &GroupStatus, voters: &BTreeSet<NodeId>) -> Result<(), GroupError> {
        let sets = self.voters().into_iter().chain([voters.clone()]).collect();
        if self.shared.prober.confirm(status.term, sets).await.is_err() {
            return Err(stopped("a majority of those that vote, and shall vote, does not answer"));
        }
        if !voters.contains(&self.node()) {
            let mut stay: Vec<_> = voters.intersection(&status.voters).collect();
            // Nothing is proposed until it has all: one that lags would hold everybody up.
            stay.sort_by_key(|node| std::cmp::Reverse(status.matched.get(node).copied().flatten()));
            for next in stay {
                if self.hand_over(*next).await? {
                    return Ok(());
                }
            }
        }
        let names: Vec<String> = voters.iter().map(ToString::to_string).collect();
        tracing::info!(group = self.id(), voters = names.join(" "), "change voters");
        self.change_voters(voters.clone()).await
    }

    /// Adds a member that does not vote. It is sent everything; when it has it, make it a voter.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), GroupError> {
        let added = self.scope(self.shared.raft.add_learner(node, EmptyNode {}, false)).await;
        added.map(drop).map_err(members_error)
    }

    /// Makes these the voters; new ones must be members and should have caught up. Others leave the group.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), GroupError> {
        if voters.is_empty() || voters.len() > MAX_MEMBERS {
            return Err(GroupError::Limit("voters"));
        }
        let changed = self.scope(self.shared.raft.change_membership(voters, false)).await;
        changed.map(drop).map_err(members_error)
    }

    /// Removes a member that does not vote.
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), GroupError> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node]));
        let changed = self.scope(self.shared.raft.change_membership(change, true)).await;
        changed.map(drop).map_err(members_error)
    }
}

fn members_error(e: RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>) -> GroupError {
    match e {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => GroupError::NotLeader(to.leader_id),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => GroupError::Members(e.to_string()),
        RaftError::Fatal(e) => stopped(e),
    }
}
