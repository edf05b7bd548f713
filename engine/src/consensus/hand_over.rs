//! Who leads, by agreement: a leader says who the members are, and hands over to another voter.
//!
//! Invariant: a leader hands over to a voter that has all of its log, while it holds back what is proposed: so the other one
//! wins at once, or nobody loses anything.

use std::time::Duration;

use super::group::Group;
use super::types::GroupError;
use crate::net::{Code, ConsensusAnswer, ConsensusCall, Failure, NodeId, Request, Response};

/// How long proposals may be held back, for the other voter to catch up, and for it to win.
const WITHIN: Duration = Duration::from_millis(500);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);

impl Group {
    /// Hands over to another voter: true when this node does not lead any more.
    pub async fn hand_over(&self, to: NodeId) -> Result<bool, GroupError> {
        let _held = self.shared.proposals.pause();
        let caught_up = || {
            let status = self.status();
            let matched = status.matched.get(&to).copied().flatten();
            let done = self.shared.proposals.are_done() && status.applied == status.last;
            done && status.voters.contains(&to) && matched.is_some() && matched == status.last
        };
        if !self.until(caught_up).await {
            return Ok(!self.status().leads);
        }
        let request = Request::Consensus { group: self.id(), call: ConsensusCall::Lead };
        let answer = self.shared.net.call(to, request, WITHIN).await;
        let taken = matches!(answer, Ok(Response::Consensus(ConsensusAnswer::Campaigns)));
        Ok(taken && self.until(|| !self.status().leads).await)
    }

    /// Waits until it holds, for a while.
    pub(super) async fn until(&self, holds: impl Fn() -> bool) -> bool {
        let runtime = &self.shared.runtime;
        let end = runtime.now() + WITHIN;
        while !holds() {
            if runtime.now() >= end {
                return false;
            }
            runtime.sleep(LOOK).await;
        }
        true
    }

    pub(super) async fn say_members(&self) -> Result<ConsensusAnswer, Failure> {
        self.barrier().await.map_err(|e| Failure::new(Code::Unavailable, e.to_string()))?;
        let status = self.status();
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
