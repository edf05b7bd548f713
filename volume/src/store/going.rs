//! What was deleted and is needed by clones: it is there for them alone, nobody sees it, and it goes when the last of them does not need it.
//!
//! Invariant: what was let go is never found by its name again, which is free from then on, also after a restart.
//! Invariant: a clone reads the same before and after its parent was let go: nothing goes while a clone needs it.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use quarry_engine::block::VolumeId;

use super::error::VolumeError;
use super::label::Label;
use super::lineage::Thinning;
use super::volumes::{Volume, Volumes};

impl Volumes {
    /// Deletes a volume with its snapshots. If others are clones of it, it stays for them and is seen by nobody.
    pub async fn let_go(&self, name: &str) -> Result<(), VolumeError> {
        let _names = self.names().lock().await;
        let mut volume = self.settled_volume(name)?;
        if self.clones_of(&volume).is_empty() {
            return self.remove(&volume).await;
        }
        volume.label = Label { going: true, ..volume.label };
        volume.seat().label(Some(&volume.label.encode())).await?;
        self.known(|known| known.insert(volume.id, volume.clone()));
        // Heads that it has are refused from now on: what its clones see lies in snapshots.
        volume.seat().attach().await.map(drop)
    }

    /// Deletes a snapshot. If volumes are clones of it, it stays for them and is seen by nobody.
    pub async fn let_snapshot_go(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        let _names = self.names().lock().await;
        let volume = self.settled_volume(name)?;
        let era = Self::snapshot_of(&volume, snapshot)?.era;
        if self.clones_of(&volume).iter().any(|(_, of)| *of == era) {
            return volume.seat().relabel(era, |label| label.going = true).await;
        }
        self.forget(&volume, era).await
    }

    /// Deletes a snapshot of which nothing is a clone; with the names held.
    pub(super) async fn forget(&self, volume: &Volume, era: u32) -> Result<(), VolumeError> {
        volume.seat().forget(era).await?;
        self.thinning(|jobs| jobs.push(Thinning::new(volume.id, era)));
        self.wake();
        Ok(())
    }

    /// A clone is gone or needs its parent no more: there may be something to let go of.
    pub(super) fn freed(&self) {
        self.orphans().store(true, Ordering::Release);
        self.wake();
    }

    /// Deletes one thing that was let go and that no clone needs any more; false: there is none.
    pub(super) async fn drop_orphan(&self) -> Result<bool, VolumeError> {
        if !self.orphans().swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let _names = self.names().lock().await;
        let all: Vec<Volume> = self.known(|known| known.values().cloned().collect());
        let parents = all.iter().filter_map(Volume::parent);
        let needed: HashSet<(VolumeId, u32)> = parents.map(|parent| (parent.volume, parent.era)).collect();
        for volume in &all {
            let used = needed.iter().any(|(of, _)| *of == volume.id);
            let free = |era| !needed.contains(&(volume.id, era));
            let mut going = volume.seat().snapshots().into_iter().filter(|snapshot| snapshot.label.going);
            if volume.label.going && !used {
                self.remove(volume).await?;
            } else if let Some(snapshot) = going.find(|snapshot| free(snapshot.era)) {
                self.forget(volume, snapshot.era).await?;
            } else {
                continue;
            }
            // There may be another one.
            self.freed();
            return Ok(true);
        }
        Ok(false)
    }
}
