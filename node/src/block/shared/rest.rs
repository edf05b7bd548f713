//! Heads that nobody needs any more.
//!
//! A head asks its members whether they are there, ten times a second looks who is late, and keeps what it knows in memory. Each volume that was
//! ever used would have one until the node stops.
//!
//! Invariant: a head that is still this node's goes only when nobody has it, all its members follow it, and all that it acknowledged is durable.
//! Invariant: while it is let go its place is held: who attaches the volume meanwhile waits, and begins under a new epoch.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use quarry_volume::VolumeId;
use quarry_volume::head::Standing;
use quarry_volume::store::Replicated;

use super::{Place, Shared};

/// Looks for which nobody has used a head that is let go: five minutes of [`super::super::REPLACE_EVERY`].
pub(super) const RESTS: u32 = 150;

impl Shared {
    /// Lets heads go whose volume is gone, or another node's: they would ask its members for ever. What uses one has it still, until it is refused.
    /// Then those that have rested for so many looks.
    pub(crate) async fn let_go(&self) {
        self.let_strangers_go();
        for (id, place) in self.rested() {
            self.let_rest(id, &place).await;
        }
    }

    fn rested(&self) -> Vec<(VolumeId, Arc<Place>)> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().filter(|(_, place)| place.rests()).map(|(id, place)| (*id, Arc::clone(place))).collect()
    }

    fn let_strangers_go(&self) {
        let local = self.local();
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.retain(|id, place| {
            let Ok(mut head) = place.head.try_lock() else { return true };
            // Read after the head: what gave it its place is known here.
            let is_its = |head: &mut Replicated| match self.register.row(*id) {
                Ok(row) => row.is_some_and(|(row, _)| row.head == Some(local) && row.epoch == head.epoch()),
                Err(_) => true,
            };
            let _gone = head.take_if(|head| !is_its(head));
            head.is_some() || Arc::strong_count(place) > 1
        });
    }

    async fn let_rest(&self, id: VolumeId, place: &Place) {
        let Ok(mut head) = place.head.try_lock() else { return };
        // Somebody may have come and gone since it was looked at.
        let rested = place.looks.load(Ordering::Relaxed) > RESTS;
        let Some(device) = head.as_ref().filter(|head| rested && head.is_alone()) else { return };
        // Asked again after the flush: of a head that lacks members it would hold the place for as long as a flush may take, and a member may
        // have died meanwhile.
        if !all_follow(device).await || device.flush().await.is_err() || !all_follow(device).await {
            // One is being filled, or away: it is looked at again after as long a rest.
            return place.looks.store(0, Ordering::Relaxed);
        }
        tracing::info!(volume = %hex::encode(id.0), epoch = device.epoch(), "nobody uses a volume: its head rests");
        *head = None;
    }
}

async fn all_follow(head: &Replicated) -> bool {
    let members = head.members().await;
    !members.is_empty() && members.iter().all(|member| member.counts && member.standing == Standing::Active)
}

impl Place {
    /// Takes note of a look: whether nobody has used its head for so many.
    fn rests(&self) -> bool {
        let Ok(head) = self.head.try_lock() else { return false };
        if head.as_ref().is_none_or(|head| !head.is_alone()) {
            self.looks.store(0, Ordering::Relaxed);
            return false;
        }
        self.looks.fetch_add(1, Ordering::Relaxed) >= RESTS
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::REPLACE_EVERY;
    use super::*;

    #[test]
    fn a_head_rests_for_five_minutes_before_it_goes() {
        assert_eq!(REPLACE_EVERY * RESTS, Duration::from_secs(300));
    }
}
