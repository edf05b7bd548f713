//! What is done with a volume whichever kind it is: of one member on this node's disks, or of several.
//!
//! Invariant: a name that the control group knows is never looked for on this node's disks.
//! Invariant: what a head must do is done here only where this node is it, or nobody is: of another one's volume the caller is told so.

use std::sync::Arc;
use std::time::Duration;

use quarry_volume::VolumeId;
use quarry_volume::head::Failure;
use quarry_volume::pace::Limits;
use quarry_volume::store::{Attached, Device, Label, VolumeError, Volumes};

use super::Exports;
use super::lineage::NewClone;
use super::shared::{Clones, New, Shared};

/// How often members of a clone are asked for, and the pause between two tries: a member that died is taken out meanwhile, and then those that
/// are there are enough.
const FORKS: usize = 3;
const TAKEN_OUT: Duration = Duration::from_secs(2);

impl Exports {
    /// Whether there is a volume of this name, as far as this node knows; it may be on a disk that is away.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.several(name).is_some() || self.volumes().has(name)
    }

    /// Makes a volume with so many members.
    pub(crate) async fn create(&self, id: VolumeId, label: Label, members: usize) -> Result<(), VolumeError> {
        if members < 2 {
            return self.volumes().create(id, label).await.map(drop);
        }
        let shared = self.shared().ok_or(VolumeError::TooFewNodes(members))?;
        let Label { name, bytes, description, key, limits, .. } = label;
        shared.create(New { id, name, bytes, description, encrypted: key.is_some(), limits, members }).await
    }

    /// How many members a volume has, or shall have.
    pub(crate) fn members_of(&self, name: &str) -> usize {
        self.several(name).map_or(1, |(_, row)| Shared::members_of(&row))
    }

    /// Whether there is a volume of this name that is no clone.
    pub(crate) fn is_no_clone(&self, name: &str) -> bool {
        match self.several(name) {
            Some((_, row)) => row.parent.is_none(),
            None => self.volumes().find(name).is_ok_and(|known| known.parent().is_none()),
        }
    }

    /// Makes a volume that begins as a snapshot is, and has as many members as the other volume. A try before this one that was cut off
    /// is taken away.
    pub(crate) async fn clone_snapshot(
        &self,
        id: VolumeId,
        label: Label,
        of: &str,
        snapshot: &str,
    ) -> Result<(), VolumeError> {
        let Some((shared, row)) = self.several(of) else {
            return self.volumes().clone_snapshot(id, label, of, snapshot).await.map(drop);
        };
        shared.clear(&label.name).await?;
        let Label { name, bytes, description, limits, .. } = label;
        let (volume, snapshot) = (row.name, snapshot.to_owned());
        let wanted = NewClone { name, bytes, description, limits, volume, snapshot };
        for _ in 1..FORKS {
            match shared.clone_snapshot(wanted.clone()).await {
                Err(VolumeError::Head(Failure::TooFew)) => tokio::time::sleep(TAKEN_OUT).await,
                done => return done,
            }
        }
        shared.clone_snapshot(wanted).await
    }

    /// The device to read and write a volume by.
    pub(crate) async fn attach(&self, name: &str) -> Result<Attached, VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.attach(&row.name).await.map(Attached::Shared),
            None => attach_own(self.volumes(), name).await.map(Attached::Own),
        }
    }

    /// What a snapshot sees.
    pub(crate) async fn view(&self, name: &str, snapshot: &str) -> Result<Attached, VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.view(&row.name, snapshot).await.map(Attached::Shared),
            None => self.volumes().view(name, snapshot).map(Attached::Own),
        }
    }

    /// Freezes a volume as it is; `made` in milliseconds since 1970.
    pub(crate) async fn freeze(&self, name: &str, snapshot: &str, made: u64) -> Result<(), VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.snapshot(&row.name, snapshot).await,
            None => self.volumes().snapshot(name, snapshot, made).await.map(drop),
        }
    }

    /// Deletes a snapshot; what volumes are clones of stays for them, unseen.
    pub(crate) async fn let_snapshot_go(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.forget_snapshot(&row.name, snapshot, Clones::Outlive).await,
            None => self.volumes().let_snapshot_go(name, snapshot).await,
        }
    }

    /// Makes a volume larger.
    pub(crate) async fn extend(&self, name: &str, bytes: u64) -> Result<(), VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.extend(&row.name, bytes).await,
            None => self.volumes().extend(name, bytes).await.map(drop),
        }
    }

    /// How fast a volume may be used, if it is this node that says so: it has the volume, is its head, or is the first with a member of one that
    /// nobody uses.
    pub(crate) fn limits_here(&self, name: &str) -> Option<Limits> {
        let Some((shared, row)) = self.several(name) else {
            return self.volumes().find(name).ok().map(|volume| volume.label.limits);
        };
        let head = row.head.or_else(|| shared.nodes_of(&row).first().copied());
        (head == Some(shared.local())).then_some(row.limits)
    }

    /// Whether a volume is encrypted at rest.
    pub(crate) fn is_encrypted(&self, name: &str) -> Result<bool, VolumeError> {
        match self.several(name) {
            Some((_, row)) => Ok(row.key.is_some()),
            None => Ok(self.volumes().find(name)?.label.key.is_some()),
        }
    }

    /// The identity of a volume.
    pub(crate) fn id_of(&self, name: &str) -> Result<VolumeId, VolumeError> {
        match self.several(name) {
            Some((_, row)) => Ok(row.id),
            None => Ok(self.volumes().find(name)?.id),
        }
    }

    /// Whether a volume has snapshots.
    pub(crate) fn is_frozen(&self, name: &str) -> Result<bool, VolumeError> {
        match self.several(name) {
            Some((_, row)) => Ok(!row.snapshots.is_empty()),
            None => Ok(!self.volumes().find(name)?.snapshots().is_empty()),
        }
    }
}

/// Attaches a volume with one member, to its end, also when nobody waits for it any more: dropped halfway it puts the volume out until the
/// node is started again.
pub(super) async fn attach_own(volumes: &Arc<Volumes>, name: &str) -> Result<Device, VolumeError> {
    let (volumes, name) = (Arc::clone(volumes), name.to_owned());
    let attached = tokio::spawn(async move { volumes.attach(&name).await }).await;
    attached.unwrap_or_else(|error| Err(VolumeError::Register(error.to_string())))
}
