//! Who leads, by agreement: a leader says who the members are, and hands over to another voter.
//!
//! Invariant: a leader hands over to a voter that has all of its log, while it holds back what is proposed; the others let go of it
//! before: so that one wins at once. For one that does not answer nothing is held back.
//! Invariant: who the members are is said by what is committed alone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::group::Group;
use super::types::GroupError;
use crate::net::{Code, ConsensusAnswer, Failure, NodeId};

/// How long proposals may be held back for the other voter to catch up, and again for it to win when it was told.
const WITHIN: Duration = Duration::from_millis(500);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);

impl Group {
    /// Hands over to another voter: true when this node does not lead any more; then that one leads, or voters elect somebody when they
    /// have missed a leader for long enough.
    pub async fn hand_over(&self, to: NodeId) -> Result<bool, GroupError> {
        let term = self.office().term;
        let both = vec![BTreeSet::from([self.node(), to])];
        if self.shared.prober.confirm(term, both).await.is_err() {
            return Ok(!self.office().leads);
        }
        let _held = self.shared.proposals.pause();
        let caught_up = || {
            let status = self.status();
            let matched = status.matched.get(&to).copied().flatten();
            let done = self.shared.proposals.are_done() && status.applied == status.last;
            done && status.voters.contains(&to) && matched.is_some() && matched == status.last
        };
        if self.until(caught_up).await && self.office().leads {
            if self.scope(self.shared.elector.give_to(term, to)).await {
                self.until(|| self.leader().is_some_and(|leader| leader != self.node())).await;
            } else if self.leader().is_none_or(|leader| leader == self.node()) {
                // It stops, perhaps. All have let go of this leader: nobody is in its way, if it can lead again.
                self.campaign().await?;
                self.until(|| self.leader().is_some()).await;
            }
        }
        Ok(!self.office().leads)
    }

    /// Waits until it holds, for a while.
    pub(super) async fn until(&self, holds: impl Fn() -> bool) -> bool {
        self.until_within(WITHIN, holds).await
    }

    pub(super) async fn until_within(&self, within: Duration, holds: impl Fn() -> bool) -> bool {
        let runtime = &self.shared.runtime;
        let end = runtime.now() + within;
        while !holds() {
            if runtime.now() >= end {
                return false;
            }
            runtime.sleep(LOOK).await;
        }
        true
    }

    /// Who the members are, once nobody can know otherwise: who hears that it is none gives up what it has, and were the entry that says
    /// so lost with this node, the others would need its vote.
    pub(super) async fn say_members(&self) -> Result<ConsensusAnswer, Failure> {
        self.barrier().await.map_err(|e| Failure::new(Code::Unavailable, e.to_string()))?;
        let status = self.status();
        if !status.members_stand {
            return Err(Failure::new(Code::Unavailable, "who the members are is being decided"));
        }
        let (voters, learners) = (status.voters.into_iter().collect(), status.learners.into_iter().collect());
        Ok(ConsensusAnswer::Members { voters, learners })
    }

    /// The leader wants this node to lead.
    pub(super) async fn lead(&self, from: NodeId) -> Result<ConsensusAnswer, Failure> {
        let status = self.status();
        if status.leader != Some(from) || status.leads || !status.voters.contains(&self.node()) {
            return Err(Failure::new(Code::Unavailable, "this node does not follow that one as a voter"));
        }
        self.campaign().await.map_err(|e| Failure::new(Code::Unavailable, e.to_string()))?;
        Ok(ConsensusAnswer::Campaigns)
    }
}
