//! The first election of a group that the log of another made.
//!
//! Nobody there has promised anything to anybody, and there is no leader that others might still hear of: nothing need be waited for
//! but the other voters.
//!
//! Invariant: it is called when a majority takes part in the group. Called before, it would only raise the term, and whoever waits
//! for the group would wait until voters missed a leader ([`super::Settings::silence`]).

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use super::confirm::is_majority;
use super::group::Group;
use super::types::GroupError;
use crate::net::{Code, ConsensusCall, Failure, NodeId, Request, Response};

/// For how long the others are asked; then voters have missed a leader.
const GATHER: Duration = Duration::from_secs(3);
/// How long one may take to say whether it takes part.
const SAY: Duration = Duration::from_millis(50);
/// Pause between two questions.
const ASK: Duration = Duration::from_millis(5);
/// How long an election may take before another is called, which may then take twice as long: disks may be slow.
const DECIDE: Duration = Duration::from_millis(250);

impl Group {
    /// Calls the first election of a group that was just made, as soon as a majority takes part in it; ends when somebody leads, or
    /// after a few seconds. For whoever leads the group that made it.
    pub async fn elect_first(&self) -> Result<(), GroupError> {
        let runtime = &self.shared.runtime;
        let until = runtime.now() + GATHER;
        let mut decide = DECIDE;
        while self.leader().is_none() && runtime.now() < until {
            if self.majority_takes_part().await {
                self.campaign().await?;
                self.until_within(decide, || self.leader().is_some()).await;
                decide *= 2;
            } else {
                runtime.sleep(ASK).await;
            }
        }
        Ok(())
    }

    async fn majority_takes_part(&self) -> bool {
        let sets = self.voters();
        let voters: BTreeSet<NodeId> = sets.iter().flatten().copied().collect();
        if !voters.contains(&self.node()) {
            // Who has no vote cannot be elected.
            return false;
        }
        let asked = voters.into_iter().map(|node| async move {
            let takes_part = node == self.node() || self.takes_part(node).await;
            takes_part.then_some(node)
        });
        let take_part = join_all(asked).await.into_iter().flatten().collect();
        is_majority(&sets, &take_part)
    }

    async fn takes_part(&self, node: NodeId) -> bool {
        // Any answer will do but that the group is not there.
        let request = Request::Consensus { group: self.id(), call: ConsensusCall::Members };
        match self.shared.net.call(node, request, SAY).await {
            Ok(Response::Failed(Failure { code, .. })) => code != Code::NotServed,
            answer => answer.is_ok(),
        }
    }
}
