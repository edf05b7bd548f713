//! What the devices say of a name, where they and not a listing's line say what stands.
//!
//! A write is on a quorum of devices, primaries or handoffs. Whoever looks asks the primaries and the handoffs that a write may have
//! used, but for those that are known to be down, and waits for all but as many as are less than a quorum.
//!
//! Invariant: an acknowledged write is missed only while every device that took it, but at most one less than a quorum, is known to
//! be down; that is the limit of a quorum of which handoffs may be a part.
//! Invariant: what a look says is on a quorum of devices when it is said: whoever looks later finds it, or something newer.
//! Invariant: a device that is not believed (it was away, and was not yet judged) is not heard.

use std::sync::Arc;

use quarry_ring::PathHash;

use super::copies::Copies;
use super::devices::Member;
use super::fan::Fan;
use super::launch::wait;
use super::limits::{LOCAL_PACE, STALL};
use super::quorum::quorum;
use super::replica::BoxFuture;
use super::{Error, Result};
use crate::catalog::{Stamp, policy_of};
use crate::clock::Timestamp;
use crate::disk::format::record::Kind;
use crate::disk::{Class, Durability};
use crate::net::first;
use crate::object::Draft;
use crate::sync::{Answer, Ask, MAX_POWER};

/// Times that a look begins anew: a device that failed or stalled in it is known to be down in the next.
const LOOKS: u32 = 3;
/// Seconds after which nobody is at a tombstone any more: it may be going, here sooner than there, and is not spread again.
const OLD: u64 = 24 * 3600;

impl Copies {
    /// The newest version or tombstone of a name. `now` in Unix seconds.
    pub(crate) async fn agreed(self: &Arc<Self>, hash: PathHash, now: u64) -> Result<Option<Stamp>> {
        if let Some(member) = self.devices().sole(&hash) {
            let version = member.replica.version(hash).await?;
            return Ok(version.map(|v| Stamp { hash, sequence: v.sequence, deleted: v.deleted }));
        }
        let (said, wanted) = self.look_around(hash).await?;
        let Some(newest) = said.iter().flatten().max().copied() else { return Ok(None) };
        let holders = said.iter().filter(|stamp| **stamp == Some(newest)).count();
        let old = newest.deleted && newest.sequence / 1_000_000 + OLD < now;
        if holders < quorum(wanted) && !old {
            self.assure(hash, Timestamp(newest.sequence)).await?;
        }
        Ok(Some(newest))
    }

    /// What all that can be reached say, and how many replicas there should be.
    async fn look_around(self: &Arc<Self>, hash: PathHash) -> Result<(Vec<Option<Stamp>>, usize)> {
        for _ in 1..LOOKS {
            let look = Box::pin(self.look_at_all(hash));
            if let Some(Ok(seen)) = first(look, wait(self.time.as_ref(), STALL + LOCAL_PACE)).await {
                return Ok(seen);
            }
        }
        self.look_at_all(hash).await
    }

    async fn look_at_all(self: &Arc<Self>, hash: PathHash) -> Result<(Vec<Option<Stamp>>, usize)> {
        let candidates = self.candidates_to_write(&hash);
        let wanted = candidates.wanted();
        let most = quorum(wanted).saturating_sub(1);
        let (up, down): (Vec<_>, Vec<_>) =
            candidates.partition(|member| member.known().down_since().is_none());
        let needed = up.len().max(wanted).saturating_sub(most);
        let asked = up.len().max(needed);
        let mut all = up.into_iter().chain(down);
        let next = move || {
            let member = all.next()?;
            Some((member.clone(), stamp_at(&member, hash)))
        };
        if wanted == 0 {
            return Err(Error::Unavailable { reason: "no device holds this partition".to_owned() });
        }
        let mut fan = Fan::new(asked, needed, self.time.clone(), Box::new(next));
        fan.reach().await?;
        Ok((fan.into_good().into_iter().map(|(_, stamp)| stamp).collect(), wanted))
    }

    /// Tells the devices of a version that its line was made, without waiting: who does not hear it asks the listing itself.
    pub(crate) fn settled(self: &Arc<Self>, hash: PathHash, at: Timestamp) {
        let Some(spawn) = &self.spawn else { return };
        let candidates = self.candidates_to_write(&hash);
        let wanted = candidates.wanted();
        for member in candidates.take(wanted) {
            let told = member.replica.append(vec![settled(&hash, at)], Durability::Appended, Class::Delete);
            spawn(Box::pin(async move { drop(told.await) }));
        }
    }
}

/// The record that ends an intent.
pub(crate) fn settled(hash: &PathHash, at: Timestamp) -> Draft {
    Draft {
        kind: Kind::Settled,
        deleted: false,
        sequence: at.0,
        number: 0,
        key: hash.to_vec(),
        meta: Vec::new(),
        data: bytes::Bytes::new(),
    }
}

/// What a device holds of a name, if it is believed.
fn stamp_at(member: &Arc<Member>, hash: PathHash) -> BoxFuture<'static, Result<Option<Stamp>>> {
    let bits = u128::from_be_bytes(hash);
    let part = u32::try_from(bits >> (128 - u32::from(MAX_POWER))).unwrap_or(0);
    let part = u32::from(policy_of(&hash)) << MAX_POWER | part;
    // From this very key on: others of the part need not be looked at.
    let after = bits.checked_sub(1).map(u128::to_be_bytes);
    let asked = member.replica.ask(Ask::Stamps { power: MAX_POWER, part, after, limit: 2, doubt: false });
    Box::pin(async move {
        match asked.await? {
            Answer::Stamps(page) => Ok(page.stamps.into_iter().find(|stamp| stamp.hash == hash)),
            _ => Err(Error::Unavailable { reason: "the device answered another question".to_owned() }),
        }
    })
}
