//! Volumes that come from one another: clones of snapshots, volumes that go back to one, and what deleted snapshots leave.
//!
//! Invariant: what a volume is a clone of is there: neither the snapshot nor its volume is deleted before the clone is, or has taken
//! all over. Parents lie on their clones' disk.
//! Invariant: a deleted snapshot is gone at once; what only it saw is dropped step by step, at a cost of what changed between it and
//! the next, also after a restart and after the index was made anew.

use std::sync::PoisonError;

use quarry_engine::block::{Layer, Mark, VolumeId, is_thinned, marks, set_thinned, thin};
use quarry_engine::disk::{DiskError, DiskHandle};

use super::device::Device;
use super::error::VolumeError;
use super::label::{Label, Parent};
use super::volumes::{Volume, Volumes};
use crate::geometry::Geometry;

/// Marks that one step of thinning looks at.
const THINNED: usize = 256;

/// Blocks that one step of a difference looks at.
const DIFFERENCE_BLOCKS: usize = 4096;

/// Ranges that touch are one.
fn joined(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (at, bytes) in ranges {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == at => last.1 += bytes,
            _ => joined.push((at, bytes)),
        }
    }
    joined
}

/// A deleted snapshot, and how far what only it saw is dropped.
#[derive(Debug, Clone)]
pub(super) struct Thinning {
    volume: VolumeId,
    era: u32,
    last: Option<Mark>,
}

impl Thinning {
    pub(super) fn new(volume: VolumeId, era: u32) -> Self {
        Self { volume, era, last: None }
    }

    /// Looks at some marks, and drops what none of the views sees; true: there are no others. The present era is among the views:
    /// it may become a snapshot's while this goes on.
    pub(super) async fn step(&mut self, disk: &DiskHandle, views: &[u32]) -> Result<bool, DiskError> {
        let upto = views.iter().copied().find(|view| *view > self.era).unwrap_or(u32::MAX);
        // Below the oldest snapshot marks are of no use to anybody.
        let oldest = views.iter().all(|view| *view > self.era);
        let after = (!oldest).then_some(self.era);
        let found = marks(disk, self.volume, after, upto, self.last.as_ref(), THINNED)?;
        thin(disk, self.volume, &found, views, oldest).await?;
        if found.len() < THINNED {
            // What the present era still writes over is found when the volume is opened the next time, or at the next look.
            if views.last().is_some_and(|present| upto < *present) {
                set_thinned(disk, self.volume, self.era).await?;
            }
            return Ok(true);
        }
        self.last = found.into_iter().last();
        Ok(false)
    }

    /// What was deleted before the volume was opened, and not thinned for certain.
    pub(super) fn left(volume: &Volume) -> Result<Vec<Self>, DiskError> {
        let seat = volume.seat();
        let mut left = Vec::new();
        for era in seat.forgotten() {
            if !is_thinned(seat.disk(), volume.id, *era)? {
                left.push(Self::new(volume.id, *era));
            }
        }
        Ok(left)
    }
}

/// A volume that is on its way back to a snapshot: nobody attaches it.
struct Returning<'a>(&'a Volumes, VolumeId);

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        self.0.returning(|all| all.remove(&self.1));
    }
}

impl Volume {
    /// What it is a clone of.
    #[must_use]
    pub fn parent(&self) -> Option<Parent> {
        self.seat().parent()
    }
}

impl Volumes {
    /// The layers below a volume, nearest first.
    pub(super) fn below(&self, volume: &Volume) -> Vec<Layer> {
        let mut layers = Vec::new();
        let mut next = volume.parent();
        while let Some(Parent { volume, era }) = next {
            layers.push(Layer { volume, era });
            next = self.by_id(volume).and_then(|parent| parent.parent());
        }
        layers
    }

    /// The names of the volume and the snapshot that a volume is a clone of.
    #[must_use]
    pub fn parent_of(&self, volume: &Volume) -> Option<(String, String)> {
        let Parent { volume, era } = volume.parent()?;
        let parent = self.by_id(volume)?;
        let snapshot = parent.seat().snapshots().into_iter().find(|snapshot| snapshot.era == era)?;
        Some((parent.label.name, snapshot.label.name))
    }

    /// The names of a volume's clones, each with the era of its snapshot.
    #[must_use]
    pub fn clones_of(&self, volume: &Volume) -> Vec<(String, u32)> {
        let all: Vec<Volume> = self.known(|known| known.values().cloned().collect());
        let clones = all.into_iter().filter_map(|clone| Some((clone.parent()?, clone.label.name)));
        clones
            .filter(|(parent, _)| parent.volume == volume.id)
            .map(|(parent, name)| (name, parent.era))
            .collect()
    }

    /// Makes a volume that begins as a snapshot is, at no cost. `id` is random; `label.bytes` 0: as large as the snapshot.
    pub async fn clone_snapshot(
        &self,
        id: VolumeId,
        mut label: Label,
        name: &str,
        snapshot: &str,
    ) -> Result<Volume, VolumeError> {
        let _names = self.names().lock().await;
        let parent = self.find(name)?;
        let snapshot = Self::snapshot_of(&parent, snapshot)?;
        if label.bytes == 0 {
            label.bytes = snapshot.label.bytes;
        }
        if label.bytes < snapshot.label.bytes {
            return Err(VolumeError::Smaller(snapshot.label.bytes, label.bytes));
        }
        // What it sees of its parent was encrypted with the parent's key.
        label.key = parent.label.key;
        let above = Parent { volume: parent.id, era: snapshot.era };
        self.make(id, label, Ok(parent.seat().disk().clone()), Some(above)).await
    }

    /// Makes a clone independent of its parent: takes over what it sees of it, while it is in use or not.
    pub async fn flatten(&self, name: &str) -> Result<(), VolumeError> {
        let device = self.attach(name).await?;
        if device.seat().parent().is_none() {
            return Ok(());
        }
        device.take_over().await?;
        device.seat().descend(None).await?;
        self.freed();
        Ok(())
    }

    /// Makes a volume what one of its snapshots is. All snapshots stay. Whoever has the volume attached is fenced. Cut off on the
    /// way, it is to be asked for again.
    pub async fn revert(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        let (now, then, era, _returning) = {
            let _names = self.names().lock().await;
            let mut volume = self.find(name)?;
            let era = Self::snapshot_of(&volume, snapshot)?.era;
            if !self.returning(|all| all.insert(volume.id)) {
                return Err(VolumeError::InUse(name.to_owned()));
            }
            let returning = Returning(self, volume.id);
            let cipher = self.cipher_of(&volume.label)?;
            let fence = volume.seat().attach().await?;
            let geometry = Geometry::new(volume.label.bytes, volume.label.slice_bytes)?;
            let below = self.below(&volume);
            let now = Device::attached(volume.seat().clone(), geometry, fence, below.clone());
            let now = now.with_cipher(cipher.clone());
            let then = Device::frozen(volume.seat().clone(), geometry, era, below).with_cipher(cipher);
            volume.set_fence(fence);
            self.known(|known| known.insert(volume.id, volume));
            (now, then, era, returning)
        };
        now.go_back_to(&then, era).await
    }

    /// A volume that is not on its way back to a snapshot.
    pub(super) fn settled_volume(&self, name: &str) -> Result<Volume, VolumeError> {
        let volume = self.find(name)?;
        if self.returning(|all| all.contains(&volume.id)) {
            return Err(VolumeError::InUse(name.to_owned()));
        }
        Ok(volume)
    }

    /// What was written to a volume between a snapshot and a later one, or now: offsets and lengths, in order.
    pub async fn difference(
        &self,
        name: &str,
        from: &str,
        to: Option<&str>,
    ) -> Result<Vec<(u64, u64)>, VolumeError> {
        let device = match to {
            Some(to) => self.view(name, to)?,
            None => self.attach(name).await?,
        };
        Self::snapshot_of(&self.find(name)?, from)?;
        let mut changed = Vec::new();
        let mut at = 0;
        while at < device.bytes() {
            for stretch in device.changes(from, at, device.bytes() - at, DIFFERENCE_BLOCKS).await? {
                if !stretch.hole {
                    changed.push((at, stretch.bytes));
                }
                at += stretch.bytes;
            }
        }
        Ok(joined(changed))
    }

    /// Deletes a snapshot. What only it saw is dropped in steps of [`Volumes::reap`].
    pub async fn forget_snapshot(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        let _names = self.names().lock().await;
        let volume = self.settled_volume(name)?;
        let era = Self::snapshot_of(&volume, snapshot)?.era;
        if let Some((clone, _)) = self.clones_of(&volume).into_iter().find(|(_, of)| *of == era) {
            return Err(VolumeError::HasClones(format!("{name}@{snapshot}"), clone));
        }
        self.forget(&volume, era).await
    }

    /// One step of dropping what only deleted snapshots saw; false: there is nothing left.
    pub(super) async fn thin(&self) -> Result<bool, DiskError> {
        let Some(mut job) = self.thinning(|jobs| jobs.last().cloned()) else { return Ok(false) };
        let done = match self.by_id(job.volume) {
            Some(volume) => Self::thin_step(&volume, &mut job).await?,
            None => true,
        };
        self.thinning(|jobs| {
            let place = jobs.iter().position(|known| (known.volume, known.era) == (job.volume, job.era));
            match place {
                Some(place) if done => drop(jobs.remove(place)),
                Some(place) => jobs.splice(place..=place, [job]).for_each(drop),
                None => {}
            }
        });
        Ok(true)
    }

    async fn thin_step(volume: &Volume, job: &mut Thinning) -> Result<bool, DiskError> {
        let disk = volume.seat().disk();
        let views = volume.seat().views();
        job.step(disk, &views).await
    }

    pub(super) fn thinning<T>(&self, act: impl FnOnce(&mut Vec<Thinning>) -> T) -> T {
        act(&mut self.jobs().lock().unwrap_or_else(PoisonError::into_inner))
    }
}
