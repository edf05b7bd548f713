//! Which volume an NBD client means: `name`, `name@snapshot`, the volume's id, or nothing where there is only one.
//!
//! Invariant: a use is counted from before its device exists until its connection has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quarry_engine::io::Slabs;
use quarry_volume::VolumeId;
use quarry_volume::nbd::{Export, Listed, OptionError};
use quarry_volume::pace::Limits;
use quarry_volume::store::{Attached, Volume, VolumeError, Volumes};

use super::either::attach_own;
use super::lineage::names_of;
use super::moving::{end_of, is_on_its_way};
use super::pace::Pacer;
use super::shared::{Clones, Shared};
use crate::control::volumes::Row;

/// Names of volumes, and who uses them.
#[derive(Debug)]
pub(crate) struct Exports {
    volumes: Arc<Volumes>,
    /// Those of the cluster that have several members.
    shared: Option<Arc<Shared>>,
    users: Arc<Mutex<HashMap<String, usize>>>,
    /// Of volumes that are in use.
    pacers: Mutex<HashMap<VolumeId, Weak<Pacer>>>,
    /// For what clients write; as long as there are any.
    memory: Mutex<Weak<Slabs>>,
}

/// A volume in use, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Use {
    /// The volume, and the snapshot if it is one.
    names: Vec<String>,
    /// That all who use it have.
    pacer: Arc<Pacer>,
    users: Arc<Mutex<HashMap<String, usize>>>,
}

impl Use {
    /// How fast it may be used.
    pub(super) fn pacer(&self) -> &Arc<Pacer> {
        &self.pacer
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(count) = users.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    users.remove(name);
                }
            }
        }
    }
}

/// What a name means.
struct Meant {
    volume: Volume,
    snapshot: Option<String>,
}

impl Exports {
    pub(crate) fn new(volumes: Arc<Volumes>, shared: Option<Arc<Shared>>) -> Self {
        Self { volumes, shared, users: Arc::default(), pacers: Mutex::default(), memory: Mutex::default() }
    }

    /// Memory for what a client writes, the same for all.
    pub(super) fn memory(&self) -> Arc<Slabs> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.upgrade().unwrap_or_else(|| {
            let fresh = Arc::default();
            *memory = Arc::downgrade(&fresh);
            fresh
        })
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// A volume with several members.
    pub(crate) fn several(&self, name: &str) -> Option<(&Arc<Shared>, Row)> {
        let shared = self.shared.as_ref()?;
        shared.find(name).map(|row| (shared, row))
    }

    /// One that clients find: it is not on its way.
    fn several_seen(&self, name: &str) -> Option<(&Arc<Shared>, Row)> {
        self.several(name).filter(|(_, row)| end_of(&row.name).is_none())
    }

    pub(crate) fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// Connections that use a volume or its snapshots.
    pub(crate) fn users_of(&self, name: &str) -> usize {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
    }

    /// The pace of a volume, as its label says, which whoever changes it writes first.
    fn pacer_of(&self, volume: &Volume) -> Arc<Pacer> {
        self.pacer(volume.id, || {
            let now = self.volumes.find(&volume.label.name);
            now.map_or(volume.label.limits, |volume| volume.label.limits)
        })
    }

    /// The pace of a volume that is in use; of another one a new one, with the limits that it has now.
    fn pacer(&self, id: VolumeId, limits: impl FnOnce() -> Limits) -> Arc<Pacer> {
        let mut pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pacers.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        pacers.retain(|_, pacer| pacer.strong_count() > 0);
        let pacer = Arc::new(Pacer::new(limits()));
        pacers.insert(id, Arc::downgrade(&pacer));
        pacer
    }

    /// Holds volumes with several members that are in use here to the limits of their rows.
    pub(super) fn hold(&self) {
        let Some(shared) = &self.shared else { return };
        let pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, pacer) in pacers.iter() {
            if let (Some(pacer), Some(limits)) = (pacer.upgrade(), shared.limits_of(*id)) {
                pacer.set(limits);
            }
        }
    }

    /// Changes how fast a volume may be used, also by those who use it.
    pub(crate) async fn limit(&self, name: &str, limits: Limits) -> Result<(), VolumeError> {
        if let Some((shared, row)) = self.several(name) {
            shared.limit(&row.name, limits).await?;
            self.hold();
            return Ok(());
        }
        let volume = self.volumes.limit(name, limits).await?;
        let pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pacer) = pacers.get(&volume.id).and_then(Weak::upgrade) {
            pacer.set(limits);
        }
        Ok(())
    }

    /// Gives a volume that nobody uses another name.
    pub(crate) async fn rename(&self, name: &str, new: &str) -> Result<(), VolumeError> {
        // Back it gets the name that it had, not the id that it was named by.
        let name = &self.called(name);
        self.unused(name)?;
        self.name_anew(name, new).await?;
        // Somebody came in between, perhaps.
        if let Err(used) = self.unused(name) {
            self.name_anew(new, name).await?;
            return Err(used);
        }
        Ok(())
    }

    async fn name_anew(&self, name: &str, new: &str) -> Result<(), VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.rename(&row.name, new).await,
            None => self.volumes.rename(name, new).await.map(drop),
        }
    }

    /// Deletes a volume that nobody uses; if others are clones of it, it stays for them, unseen.
    pub(crate) async fn let_go(&self, name: &str) -> Result<(), VolumeError> {
        self.unused(name)?;
        match self.several(name) {
            Some((shared, row)) => shared.delete(&row.name, Clones::Outlive).await,
            None => self.volumes.let_go(name).await,
        }
    }

    fn unused(&self, name: &str) -> Result<(), VolumeError> {
        let name = self.called(name);
        if self.users_of(&name) > 0 { Err(VolumeError::InUse(name)) } else { Ok(()) }
    }

    /// The name under which who uses a volume is counted: a volume of several members is found by its id too.
    pub(crate) fn called(&self, name: &str) -> String {
        self.several(name).map_or_else(|| name.to_owned(), |(_, row)| row.name)
    }

    fn enter(&self, names: Vec<String>, pacer: Arc<Pacer>) -> Use {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &names {
            *users.entry(name.clone()).or_default() += 1;
        }
        drop(users);
        Use { names, pacer, users: Arc::clone(&self.users) }
    }

    /// Deletes a snapshot that nobody reads.
    pub(crate) async fn forget_snapshot(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        let export = format!("{}@{snapshot}", self.called(name));
        if self.users_of(&export) > 0 {
            return Err(VolumeError::InUse(export));
        }
        match self.several(name) {
            Some((shared, row)) => shared.forget_snapshot(&row.name, snapshot, Clones::Keep).await,
            None => self.volumes.forget_snapshot(name, snapshot).await,
        }
    }

    /// Makes a volume that nobody uses what one of its snapshots is.
    pub(crate) async fn revert(&self, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        self.unused(name)?;
        match self.several(name) {
            Some((shared, row)) => {
                let (users, used) = (Arc::clone(&self.users), row.name.clone());
                let is_used = move || {
                    users.lock().unwrap_or_else(PoisonError::into_inner).get(&used).is_some_and(|n| *n > 0)
                };
                shared.revert(&row.name, snapshot, is_used).await
            }
            None => self.volumes.revert(name, snapshot).await,
        }
    }

    /// Makes a clone independent of its parent.
    pub(crate) async fn flatten(&self, name: &str) -> Result<(), VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.flatten(&row.name).await,
            None => self.volumes.flatten(name).await,
        }
    }

    /// What was written between a snapshot and a later one, or now.
    pub(crate) async fn difference(
        &self,
        name: &str,
        from: &str,
        to: Option<&str>,
    ) -> Result<Vec<(u64, u64)>, VolumeError> {
        match self.several(name) {
            Some((shared, row)) => shared.difference(&row.name, from, to).await,
            None => self.volumes.difference(name, from, to).await,
        }
    }

    /// Deletes a volume that nobody uses.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), VolumeError> {
        self.unused(name)?;
        match self.several(name) {
            Some((shared, row)) => shared.delete(&row.name, Clones::Keep).await,
            None => self.volumes.delete(name).await,
        }
    }

    fn meant(&self, name: &str) -> Result<Meant, OptionError> {
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot.to_owned())),
            None => (name, None),
        };
        if volume.is_empty() {
            let mut all = self.volumes.list();
            all.retain(|volume| !is_on_its_way(volume));
            // One that is away may be meant.
            let only = all.len() == 1 && self.volumes.away(|_, _| true).is_none();
            return match (all.pop(), only, &snapshot) {
                (Some(volume), true, None) => Ok(Meant { volume, snapshot }),
                _ => Err(OptionError::Unknown),
            };
        }
        let found = self.volumes.find(volume).ok().or_else(|| {
            let by_id = |known: &Volume| hex::encode(known.id.0) == volume;
            self.volumes.list().into_iter().find(by_id)
        });
        let away = || self.volumes.away(|name, id| name == volume || hex::encode(id.0) == volume);
        if found.is_none()
            && let Some(error) = away()
        {
            tracing::warn!(%error, "serve volume");
            return Err(OptionError::Platform);
        }
        let found = found.filter(|volume| !is_on_its_way(volume));
        found.map(|volume| Meant { volume, snapshot }).ok_or(OptionError::Unknown)
    }

    /// All volumes and snapshots.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let several = self.shared.as_ref().map_or_else(Vec::new, |shared| shared.list());
        let mut all = Vec::new();
        for row in several.into_iter().filter(|row| end_of(&row.name).is_none()) {
            let frozen = row.snapshots.iter().map(|one| format!("{}@{}", row.name, one.name));
            all.extend(frozen.map(|name| Listed { name, description: String::new() }));
            all.push(Listed { name: row.name, description: row.description });
        }
        for volume in self.volumes.list().into_iter().filter(|volume| !is_on_its_way(volume)) {
            let name = &volume.label.name;
            all.push(Listed { name: name.clone(), description: volume.label.description.clone() });
            all.extend(volume.snapshots().into_iter().map(|snapshot| Listed {
                name: format!("{name}@{}", snapshot.label.name),
                description: String::new(),
            }));
        }
        all
    }

    /// What a client is told of an export.
    pub(crate) fn look(&self, name: &str) -> Result<Export, OptionError> {
        if let Some((shared, row)) = self.several_seen(volume_of(name)) {
            let elsewhere = row.head.is_some_and(|head| head != shared.local());
            return several_export(&row, snapshot_of(name), elsewhere);
        }
        let Meant { volume, snapshot } = self.meant(name)?;
        let label = &volume.label;
        let mut known = volume.snapshots();
        let (name, bytes) = match &snapshot {
            None => (label.name.clone(), label.bytes),
            Some(snapshot) => {
                let at = known.iter().position(|known| known.label.name == *snapshot);
                let at = at.ok_or(OptionError::Unknown)?;
                // What was written since a later one is no difference of this one.
                known.truncate(at + 1);
                (format!("{}@{snapshot}", label.name), known.pop().map_or(0, |known| known.label.bytes))
            }
        };
        let snapshots = known.into_iter().map(|known| known.label.name.into()).collect();
        Ok(Export {
            name,
            description: Some(label.description.clone()).filter(|text| !text.is_empty()),
            bytes,
            minimum_block: 1,
            preferred_block: 4096,
            read_only: snapshot.is_some(),
            rotational: false,
            multi_connection: true,
            tls_only: false,
            snapshots,
        })
    }

    /// An export to be used.
    pub(crate) async fn open(&self, name: &str) -> Result<(Export, Attached, Use), OptionError> {
        if let Some((shared, row)) = self.several_seen(volume_of(name)) {
            let pacer = self.pacer(row.id, || shared.limits_of(row.id).unwrap_or(row.limits));
            let export = several_export(&row, snapshot_of(name), false)?;
            let frozen = snapshot_of(name).map(|_| export.name.clone());
            let held = self.enter(std::iter::once(row.name.clone()).chain(frozen).collect(), pacer);
            let attach = || async {
                match snapshot_of(name) {
                    Some(snapshot) => shared.view_anywhere(&row.name, snapshot).await,
                    None => shared.attach(&row.name).await.map(Attached::Shared),
                }
            };
            let device = self.certainly(attach).await;
            let device = device.map_err(|error| {
                tracing::warn!(volume = %row.name, %error, "attach volume");
                OptionError::Platform
            })?;
            let (device, snapshots) = match device {
                Attached::Shared(device) => {
                    (Attached::Shared(device.knowing(earlier(&row, snapshot_of(name)))), export.snapshots)
                }
                // It tells no differences.
                device => (device, Vec::new()),
            };
            return Ok((Export { bytes: device.bytes(), snapshots, ..export }, device, held));
        }
        let Meant { volume, snapshot } = self.meant(name)?;
        let own = volume.label.name.clone();
        let frozen = snapshot.as_ref().map(|snapshot| format!("{own}@{snapshot}"));
        let pacer = self.pacer_of(&volume);
        let held = self.enter(std::iter::once(own).chain(frozen).collect(), pacer);
        let device = match &snapshot {
            Some(snapshot) => self.volumes.view(&volume.label.name, snapshot),
            None => attach_own(&self.volumes, &volume.label.name).await,
        };
        let device = device.map_err(|error| {
            tracing::warn!(volume = %volume.label.name, %error, "attach volume");
            match error {
                VolumeError::NoVolume(_) | VolumeError::NoSnapshot(..) => OptionError::Unknown,
                _ => OptionError::Platform,
            }
        })?;
        let export = Export { bytes: device.bytes(), ..self.look(name)? };
        Ok((export, Attached::Own(device), held))
    }
}

/// The volume of an export.
pub(super) fn volume_of(name: &str) -> &str {
    name.split_once('@').map_or(name, |(volume, _)| volume)
}

fn snapshot_of(name: &str) -> Option<&str> {
    name.split_once('@').map(|(_, snapshot)| snapshot)
}

/// The snapshots of a volume that come before one of them, or all.
fn earlier<'a>(row: &'a Row, snapshot: Option<&str>) -> impl Iterator<Item = (String, u32)> + 'a {
    names_of(row, snapshot.and_then(|name| row.snapshot(name)).map(|snapshot| snapshot.era))
}

/// What a client is told of a volume with several members, or of a snapshot of it; `elsewhere`: its head is at another node.
fn several_export(row: &Row, snapshot: Option<&str>, elsewhere: bool) -> Result<Export, OptionError> {
    let (name, bytes) = match snapshot {
        None => (row.name.clone(), row.bytes),
        Some(snapshot) => {
            let found = row.snapshot(snapshot).ok_or(OptionError::Unknown)?;
            (format!("{}@{snapshot}", row.name), found.bytes)
        }
    };
    // Where it is read elsewhere no differences are told.
    let known = earlier(row, snapshot).filter(|_| snapshot.is_none() || !elsewhere);
    Ok(Export {
        name,
        description: Some(row.description.clone()).filter(|text| !text.is_empty()),
        bytes,
        minimum_block: 1,
        preferred_block: 4096,
        read_only: snapshot.is_some(),
        rotational: false,
        multi_connection: true,
        tls_only: false,
        snapshots: known.map(|(name, _)| name.into()).collect(),
    })
}
