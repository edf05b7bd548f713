//! Fragments that a handoff has and no primary.
//!
//! Stamps do not tell fragments of a body apart. Where one change of the ring came before the one before it was done, two primaries may
//! have the same fragment, and a device that is to give its own up the only one of another number. One of these two primaries is given it.
//!
//! Invariant: a fragment goes from a handoff only when a primary was seen to have the same one, or knows that the body is deleted, or each has
//! a newer body.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use quarry_ring::PathHash;

use super::pages::Known;
use super::{Replicator, Round};
use crate::catalog::Stamp;
use crate::object::{Error, Fragment, Replica, Result, fragment_of};
use crate::work::carry::Done;

/// Versions that are looked at together.
const TOGETHER: usize = 32;

impl Replicator {
    /// Those of these versions that may go from here, of which each primary has the stamp or a newer one. What no primary has is given to one
    /// of two that have the same; it goes when that is seen.
    pub(super) async fn without_sole_fragments(
        &mut self,
        round: &mut Round,
        stamps: Vec<Stamp>,
        primaries: &[Known],
    ) -> Vec<Stamp> {
        // The first policy keeps no fragments.
        if round.ring.policy == 0 {
            return stamps;
        }
        let devices: Vec<Arc<dyn Replica>> = primaries.iter().map(|(device, _)| Arc::clone(device)).collect();
        let mut kept = HashSet::new();
        for some in stamps.chunks(TOGETHER) {
            let looks = some.iter().map(|stamp| self.may_go(stamp, primaries));
            for (stamp, may_go) in some.iter().zip(join_all(looks).await) {
                match may_go {
                    Ok(true) => continue,
                    Ok(false) => self.give(round, stamp, &devices).await,
                    Err(error) => round.failed = Some(error.to_string()),
                }
                kept.insert(stamp.hash);
            }
        }
        stamps.into_iter().filter(|stamp| !kept.contains(&stamp.hash)).collect()
    }

    /// Gives a fragment that no primary has to one of them that has the same as another.
    async fn give(&mut self, round: &mut Round, stamp: &Stamp, primaries: &[Arc<dyn Replica>]) {
        match self.carrier.renumber(primaries, stamp).await {
            // What was copied is looked for in the pass that comes at once.
            Ok(Some(bytes)) => {
                self.count(round, Done::bytes(bytes));
            }
            Ok(None) => {
                let what = "a handoff keeps fragments of which no primary has the same: one of them cannot be read there";
                round.failed = Some(what.to_owned());
            }
            Err(error) => round.failed = Some(error.to_string()),
        }
    }

    async fn may_go(&self, stamp: &Stamp, primaries: &[Known]) -> Result<bool> {
        let buried = |(_, theirs): &Known| theirs.get(&stamp.hash).is_some_and(|theirs| theirs.deleted);
        if stamp.deleted || primaries.iter().any(buried) {
            return Ok(true);
        }
        let hash = stamp.hash;
        let Some(own) = readable(self.carrier.local.as_ref(), &hash).await? else { return Ok(true) };
        // That of its place has it, most likely.
        let first = primaries.get(usize::from(own.index)).into_iter();
        let mut replaced = true;
        for (primary, _) in first.chain(primaries) {
            let theirs = readable(primary.as_ref(), &hash).await?;
            if theirs == Some(own) {
                return Ok(true);
            }
            replaced &= theirs.is_some_and(|theirs| theirs.body != own.body);
        }
        Ok(replaced)
    }
}

/// The fragment that a device has, as far as it can read that.
async fn readable(replica: &dyn Replica, hash: &PathHash) -> Result<Option<Fragment>> {
    match fragment_of(replica, hash).await {
        Err(Error::Corrupt { .. }) => Ok(None),
        found => found,
    }
}
