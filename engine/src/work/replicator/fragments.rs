//! Fragments that a handoff has and no primary.
//!
//! Stamps do not tell fragments of a body apart. Where one change of the ring came before the one before it was done, two primaries may
//! have the same fragment, and a device that is to give its own up the only one of another number.
//!
//! Invariant: a fragment goes from a handoff only when a primary was seen to have the same one, or knows that the body is deleted.

use std::collections::HashSet;

use futures_util::future::join_all;
use quarry_ring::PathHash;

use super::pages::Known;
use super::{Replicator, Round};
use crate::catalog::Stamp;
use crate::object::{Error, Replica, Result, fragment_of};

/// Versions that are looked at together.
const TOGETHER: usize = 32;

impl Replicator {
    /// Those of these versions that may go from here, of which each primary has the stamp or a newer one.
    pub(super) async fn without_sole_fragments(
        &self,
        round: &mut Round,
        stamps: Vec<Stamp>,
        primaries: &[Known],
    ) -> Vec<Stamp> {
        // The first policy keeps no fragments.
        if round.ring.policy == 0 {
            return stamps;
        }
        let mut kept = HashSet::new();
        for some in stamps.chunks(TOGETHER) {
            let looks = some.iter().map(|stamp| self.may_go(stamp, primaries));
            for (stamp, may_go) in some.iter().zip(join_all(looks).await) {
                match may_go {
                    Ok(true) => continue,
                    Ok(false) => {
                        let what = "a handoff keeps fragments of which no primary has the same";
                        round.failed = Some(what.to_owned());
                    }
                    Err(error) => round.failed = Some(error.to_string()),
                }
                kept.insert(stamp.hash);
            }
        }
        stamps.into_iter().filter(|stamp| !kept.contains(&stamp.hash)).collect()
    }

    async fn may_go(&self, stamp: &Stamp, primaries: &[Known]) -> Result<bool> {
        let buried = |(_, theirs): &Known| theirs.get(&stamp.hash).is_some_and(|theirs| theirs.deleted);
        if stamp.deleted || primaries.iter().any(buried) {
            return Ok(true);
        }
        let hash = stamp.hash;
        let Some(own) = readable(self.carrier.local.as_ref(), &hash).await? else { return Ok(true) };
        // That of its place has it, most likely.
        let first = primaries.get(usize::from(own)).into_iter();
        for (primary, _) in first.chain(primaries) {
            if readable(primary.as_ref(), &hash).await? == Some(own) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The number of the fragment that a device has, as far as it can read that.
async fn readable(replica: &dyn Replica, hash: &PathHash) -> Result<Option<u8>> {
    match fragment_of(replica, hash).await {
        Err(Error::Corrupt { .. }) => Ok(None),
        found => found,
    }
}
