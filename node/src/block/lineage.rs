//! Volumes with several members: clones of their snapshots, going back to one, what was written since one, and their limits.
//!
//! A clone's row is written first, as being made, together with its parent's, so that no snapshot goes of which a clone is made; then the parent's members
//! make the clone's; then the row says which of them did, and the clone is there. Cut off before that it is none: who was making it takes
//! it away at its next start, and whoever deletes it does at once.
//!
//! Invariant: a clone that can be used has a quorum of members that begin as the snapshot is.
//! Invariant: a volume on its way back to a snapshot is read by nobody before it has come there: whoever attaches it completes that first.
//! It goes on also when nobody does: at the head's node, or at another one with a member, where that is gone.
//! Invariant: a row says that a clone needs its parent for as long as any of its members does. The parent, and its snapshot, may go before:
//! then the clone's members alone keep, each on its disk, what it sees.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_volume::head::{Configuration, Failure};
use quarry_volume::pace::Limits;
use quarry_volume::store::{MAX_DESCRIPTION, Replicated, VolumeError, is_name};
use quarry_volume::{Geometry, VolumeId};
use tokio::task::JoinHandle;

use super::shared::{Clones, PAUSE, Shared, TRIES, snapshot_of, taken_over};
use crate::cluster::watch::{Patience, is_first};
use crate::control::volumes::{ParentRow, RegisterError, Row, SnapshotRow};
use crate::storage::{random_bytes, wall_clock};

/// A clone that is to be.
#[derive(Clone)]
pub(crate) struct NewClone {
    pub(crate) name: String,
    /// 0: as large as the snapshot.
    pub(crate) bytes: u64,
    pub(crate) description: String,
    pub(crate) limits: Limits,
    pub(crate) volume: String,
    pub(crate) snapshot: String,
}

/// A clone for as long as this process makes it.
struct Making<'a>(&'a Shared, VolumeId);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making().remove(&self.1);
    }
}

impl Shared {
    fn making(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a volume that begins as a snapshot is.
    pub(crate) async fn clone_snapshot(self: &Arc<Self>, wanted: NewClone) -> Result<(), VolumeError> {
        if !is_name(&wanted.name) {
            return Err(VolumeError::Name(wanted.name));
        }
        if wanted.description.len() > MAX_DESCRIPTION {
            return Err(VolumeError::Description);
        }
        self.surely(|this| async move { this.fork(wanted).await }).await
    }

    async fn fork(self: &Arc<Self>, wanted: NewClone) -> Result<(), VolumeError> {
        let (device, _, _held) = self.head_here(&wanted.volume).await?;
        let id = VolumeId(random_bytes());
        self.making().insert(id);
        let _making = Making(self, id);
        let (row, era) = self.begin_clone(id, &wanted, &device).await?;
        let made = self.make_members(&device, &row, era).await;
        if made.is_err() {
            self.unmake(id).await;
        }
        made
    }

    /// Writes the row of a clone that is being made; it, and the era of its snapshot.
    async fn begin_clone(
        &self,
        id: VolumeId,
        wanted: &NewClone,
        device: &Replicated,
    ) -> Result<(Row, u32), VolumeError> {
        let mut tries = TRIES;
        loop {
            let (parent, time) = self.standing(&wanted.volume)?;
            if parent.epoch != device.epoch() {
                return Err(taken_over());
            }
            let snapshot = snapshot_of(&parent, &wanted.snapshot)?;
            let row = row_of(id, wanted, &parent, snapshot, self.register.local())?;
            tries -= 1;
            match self.register.make_clone(&row, &parent, time).await {
                // It may have been this very one, whose answer was lost.
                Err(_) if self.find(&row.name).is_some_and(|found| found.id == id) => {}
                Err(RegisterError::Changed) if self.find(&row.name).is_some() => {
                    return Err(VolumeError::Taken(row.name));
                }
                // The parent's row: who its members are, perhaps.
                Err(RegisterError::Changed) if tries > 0 => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                other => other?,
            }
            return Ok((row, snapshot.era));
        }
    }

    /// Has members of a clone made, and makes it known that it is there.
    async fn make_members(&self, device: &Replicated, row: &Row, era: u32) -> Result<(), VolumeError> {
        let forked = device.fork(row.id, era).await?;
        let counted = forked.iter().filter(|device| row.configuration.counts(**device)).count();
        if counted < row.configuration.quorum() {
            return Err(Failure::TooFew.into());
        }
        let configuration = begun_with(&row.configuration, &forked);
        let row = self
            .change(row.id, |row| {
                if let Some(parent) = row.parent.as_mut().filter(|parent| parent.making) {
                    parent.making = false;
                    row.configuration = configuration.clone();
                    row.head = None;
                }
            })
            .await?;
        if row.is_being_made() { Err(taken_over()) } else { Ok(()) }
    }

    /// Takes a clone away that was not completed.
    async fn unmake(&self, id: VolumeId) {
        let Ok(Some((row, time))) = self.register.row(id) else { return };
        if !row.is_being_made() {
            return;
        }
        tracing::warn!(volume = %row.name, "take a clone away whose making was cut off");
        if let Err(error) = self.remove(&row, time, Clones::Keep).await {
            tracing::warn!(%error, volume = %row.name, "take a clone away");
        }
    }

    /// Takes a clone of a name away whose making was cut off, at this node or another one. Whoever is making it is told that it is none.
    pub(crate) async fn clear(&self, name: &str) -> Result<(), VolumeError> {
        let Some((row, _)) = self.register.find(name)? else { return Ok(()) };
        if self.making().contains(&row.id) {
            return Err(VolumeError::BeingMade(name.to_owned()));
        }
        self.unmake(row.id).await;
        Ok(())
    }

    /// How many members a volume shall have.
    pub(crate) fn members_of(row: &Row) -> usize {
        if row.wanted > 0 { row.wanted.into() } else { row.configuration.all().count() }
    }

    /// Takes clones away that this node was making before it was started anew.
    pub(crate) async fn tidy(&self) {
        let local = self.register.local();
        for row in self.list().into_iter().filter(|row| row.is_being_made() && row.head == Some(local)) {
            if !self.making().contains(&row.id) {
                self.unmake(row.id).await;
            }
        }
    }

    /// Makes a clone independent of its parent, while it is in use or not. All its members are to be there.
    pub(crate) async fn flatten(self: &Arc<Self>, name: &str) -> Result<(), VolumeError> {
        let name = name.to_owned();
        self.surely(|this| async move { this.take_over(&name).await }).await
    }

    async fn take_over(self: &Arc<Self>, name: &str) -> Result<(), VolumeError> {
        let place = self.place(self.standing(name)?.0.id);
        // Who gave up waiting and asks again finds it done; all would be copied twice at once.
        let _alone = place.flattening.lock().await;
        let (device, row, held) = self.head_here(name).await?;
        if row.parent.is_none() {
            return Ok(());
        }
        // It may take hours, and changes nothing that anybody sees. Who takes the volume meanwhile is found out by the epoch.
        drop(held);
        let members: Vec<DeviceId> = row.configuration.all().collect();
        // A snapshot that is made meanwhile is of the present era, and does not see what is written later over what lies below.
        let oldest = row.snapshots.first().map_or(row.era, |oldest| oldest.era);
        device.take_over(&members, Some(oldest)).await?;
        let epoch = device.epoch();
        let row = self
            .change(row.id, |row| {
                // Whoever came meanwhile has not taken over.
                let same = row.configuration.all().all(|device| members.contains(&device));
                if row.epoch == epoch && same {
                    row.parent = None;
                }
            })
            .await?;
        if row.parent.is_none() { Ok(()) } else { Err(taken_over()) }
    }

    /// Makes a volume what one of its snapshots is, unless it is in use here. All snapshots stay.
    pub(crate) async fn revert(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
        is_used: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<(), VolumeError> {
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        self.surely(|this| async move { this.go_back(&name, &snapshot, is_used).await }).await
    }

    async fn go_back(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
        is_used: impl Fn() -> bool + Send + Sync,
    ) -> Result<(), VolumeError> {
        let (device, row, held) = self.head_here(name).await?;
        let (era, epoch) = (snapshot_of(&row, snapshot)?.era, device.epoch());
        // Who came while its head was attached counted itself before it had the head; who comes later waits for its place, and reads the row as it is then.
        if is_used() {
            return Err(VolumeError::InUse(row.name));
        }
        let row = self
            .change(row.id, |row| {
                if row.epoch == epoch {
                    row.returning = Some(era);
                }
            })
            .await?;
        if row.epoch != epoch {
            return Err(taken_over());
        }
        // Nobody attaches it, or does anything to it, before it has come there: the row says so.
        drop(held);
        self.returned(device, row.id).await.map(drop)
    }

    /// A head whose volume has come to where it was on its way back to. It goes on when nobody waits for it any more: each client would begin
    /// anew, and none would see its end that does not wait so long.
    pub(super) async fn returned(
        self: &Arc<Self>,
        device: Replicated,
        id: VolumeId,
    ) -> Result<Replicated, VolumeError> {
        let head = device.clone();
        self.surely(|this| async move { this.come_back(&head, id).await }).await?;
        Ok(device)
    }

    /// One after the other: who comes second finds it there.
    async fn come_back(&self, device: &Replicated, id: VolumeId) -> Result<(), VolumeError> {
        let place = self.place(id);
        let _alone = place.returning.lock().await;
        let epoch = device.epoch();
        let row =
            self.row(id)?.map(|(row, _)| row).filter(|row| row.epoch == epoch).ok_or_else(taken_over)?;
        let Some(era) = row.returning else { return Ok(()) };
        device.go_back_to(era).await?;
        let row = self
            .change(row.id, |row| {
                if row.epoch == epoch {
                    row.returning = None;
                }
            })
            .await?;
        if row.epoch == epoch { Ok(()) } else { Err(taken_over()) }
    }

    /// Has volumes come to where they are on their way back to, also if nobody opens them: whoever sent them there may be gone. `begun`: those
    /// with which this is under way.
    pub(super) fn complete(self: &Arc<Self>, begun: &mut HashMap<VolumeId, JoinHandle<()>>) {
        begun.retain(|_, task| !task.is_finished());
        for row in self.list().into_iter().filter(|row| row.returning.is_some()) {
            begun.entry(row.id).or_insert_with(|| {
                let this = Arc::clone(self);
                self.runtime.spawn(async move {
                    if let Err(error) = this.complete_one(&row).await {
                        tracing::warn!(volume = %row.name, %error, "go on with a volume's way back to a snapshot");
                    }
                })
            });
        }
    }

    async fn complete_one(self: &Arc<Self>, row: &Row) -> Result<(), VolumeError> {
        if !is_first(self.net(), &self.doers(row), Patience::Whole).await {
            return Ok(());
        }
        let (local, epoch) = (self.local(), row.epoch);
        let (head, now) =
            self.attach_if(&row.name, |now| now.epoch == epoch || now.head == Some(local)).await?;
        if now.returning.is_some() { self.returned(head, row.id).await.map(drop) } else { Ok(()) }
    }

    /// What was written between a snapshot and a later one, or now: offsets and lengths, in order.
    pub(crate) async fn difference(
        self: &Arc<Self>,
        name: &str,
        from: &str,
        to: Option<&str>,
    ) -> Result<Vec<(u64, u64)>, VolumeError> {
        let (device, row, held) = self.head_here(name).await?;
        drop(held);
        snapshot_of(&row, from)?;
        let device = device.knowing(names_of(&row, None));
        let device = match to {
            Some(to) => {
                let to = snapshot_of(&row, to)?;
                device.as_of(to.era, Geometry::new(to.bytes, row.slice_bytes)?)
            }
            None => device,
        };
        let (mut at, mut changed) = (0, Vec::new());
        for stretch in device.changes(from, 0, device.bytes(), usize::MAX).await? {
            if !stretch.hole {
                changed.push((at, stretch.bytes));
            }
            at += stretch.bytes;
        }
        Ok(changed)
    }

    /// Changes how fast a volume may be used; who serves it follows the row.
    pub(crate) async fn limit(&self, name: &str, limits: Limits) -> Result<(), VolumeError> {
        let (row, _) = self.standing(name)?;
        self.change(row.id, |row| row.limits = limits).await.map(drop)
    }

    /// How fast a volume may be used, as its row says.
    pub(super) fn limits_of(&self, id: VolumeId) -> Option<Limits> {
        self.register.row(id).ok().flatten().map(|(row, _)| row.limits)
    }

    /// The name of the snapshot that a volume is a clone of.
    pub(crate) fn parent_of(&self, row: &Row) -> Option<String> {
        let ParentRow { volume, era, .. } = row.parent?;
        let (parent, _) = self.register.row(volume).ok().flatten()?;
        let snapshot = parent.snapshots.iter().find(|snapshot| snapshot.era == era)?;
        Some(format!("{}@{}", parent.name, snapshot.name))
    }
}

/// The row of a clone that is being made here.
fn row_of(
    id: VolumeId,
    wanted: &NewClone,
    parent: &Row,
    snapshot: &SnapshotRow,
    local: NodeId,
) -> Result<Row, VolumeError> {
    let bytes = if wanted.bytes == 0 { snapshot.bytes } else { wanted.bytes };
    if bytes < snapshot.bytes {
        return Err(VolumeError::Smaller(snapshot.bytes, bytes));
    }
    Geometry::new(bytes, parent.slice_bytes)?;
    Ok(Row {
        id,
        name: wanted.name.clone(),
        description: wanted.description.clone(),
        bytes,
        slice_bytes: parent.slice_bytes,
        made: wall_clock() / 1000,
        // In which its first write is: that it begins as the snapshot is.
        epoch: 1,
        head: Some(local),
        configuration: Configuration { version: 1, ..parent.configuration.clone() },
        key: parent.key,
        era: 0,
        snapshots: Vec::new(),
        limits: wanted.limits,
        parent: Some(ParentRow { volume: parent.id, era: snapshot.era, making: true }),
        returning: None,
        // One of the parent's may be about to go: it is to go here too.
        wanted: parent.wanted,
    })
}

/// The names of a volume's snapshots with their eras; those before one, if it is given.
pub(super) fn names_of(row: &Row, before: Option<u32>) -> impl Iterator<Item = (String, u32)> + '_ {
    let all = row.snapshots.iter().filter(move |one| before.is_none_or(|before| one.era < before));
    all.map(|one| (one.name.clone(), one.era))
}

/// The members that a clone begins with: those that were made of those that there shall be; the others are filled.
fn begun_with(wanted: &Configuration, forked: &[DeviceId]) -> Configuration {
    let (members, joining) = wanted.all().partition(|device| forked.contains(device));
    Configuration { version: wanted.version, members, joining }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clone made while another took the place of one of its parent's members had that one too, and for ever: as many as it began
    /// with were to stay.
    #[test]
    fn a_clone_shall_have_as_many_members_as_its_parent_shall() {
        let [old, kept, new] = [1, 2, 3].map(|byte| DeviceId([byte; 16]));
        let snapshot = SnapshotRow { era: 1, bytes: 1 << 20, made: 0, name: "s".to_owned() };
        let parent = Row {
            id: VolumeId([7; 16]),
            name: "parent".to_owned(),
            description: String::new(),
            bytes: 1 << 20,
            slice_bytes: 1 << 20,
            made: 0,
            epoch: 3,
            head: None,
            configuration: Configuration { version: 5, members: vec![old, kept], joining: vec![new] },
            key: None,
            era: 2,
            snapshots: vec![snapshot.clone()],
            limits: Limits::default(),
            parent: None,
            returning: None,
            wanted: 2,
        };
        let clone = NewClone {
            name: "clone".to_owned(),
            bytes: 0,
            description: String::new(),
            limits: Limits::default(),
            volume: "parent".to_owned(),
            snapshot: "s".to_owned(),
        };
        let row = row_of(VolumeId([8; 16]), &clone, &parent, &snapshot, NodeId([9; 16])).unwrap();
        assert_eq!((row.wanted, row.configuration.all().count()), (2, 3));
    }
}
