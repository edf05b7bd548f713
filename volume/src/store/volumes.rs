//! The volumes of a node: made, listed, attached, snapshotted, deleted.
//!
//! Invariant: a name belongs to one volume. One seat for each volume in a process: two heads meet at it, and the newer wins.
//! Invariant: what is on a disk that is away is not made anew, under its name or its identity, and the key that wraps its own is needed.
//! Invariant: a deleted volume is gone at once; its space comes back step by step, also after a restart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quarry_engine::block::{Fence, NoteTag, VolumeId, notes, reap};
use quarry_engine::disk::limits::VOLUME_HIGH_WATER;
use quarry_engine::disk::{DiskError, DiskHandle};

use super::device::Device;
use super::error::VolumeError;
use super::label::{Label, MAX_DESCRIPTION, Parent, SnapshotLabel, is_name};
use super::lineage::Thinning;
use super::roll::{Noted, Roll};
use super::seat::{Seat, Snapshot};
use crate::cipher::{Cipher, KEY_BYTES, KeyName, KeyRing, WrappedKey};
use crate::geometry::{BLOCK_BYTES, Geometry, SLICE_BYTES};
use crate::pace::Limits;

/// Rows that one step of reaping drops.
const REAPED: usize = 4096;

/// A volume that is there.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// What it is.
    pub label: Label,
    seat: Arc<Seat>,
    /// Under which its present head acts.
    fence: Option<Fence>,
}

impl Volume {
    /// Its snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let mut all = self.seat.snapshots();
        all.retain(|snapshot| !snapshot.label.going);
        all
    }

    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    pub(super) fn set_fence(&mut self, fence: Fence) {
        self.fence = Some(fence);
    }
}

/// The volumes of some disks.
#[derive(Debug)]
pub struct Volumes {
    disks: Vec<DiskHandle>,
    known: Mutex<HashMap<VolumeId, Volume>>,
    /// Volumes that are gone and may still have rows.
    gone: Mutex<Vec<(DiskHandle, VolumeId)>>,
    /// Deleted snapshots that may have left something.
    thinning: Mutex<Vec<Thinning>>,
    /// Volumes that are on their way back to a snapshot.
    returning: Mutex<HashSet<VolumeId>>,
    /// Told when there is something to reap.
    reaps: tokio::sync::Notify,
    /// Held while names are given or taken.
    names: tokio::sync::Mutex<()>,
    /// What the keys of encrypted volumes are wrapped with.
    keys: KeyRing,
    /// There may be something that was let go and that no clone needs.
    orphans: AtomicBool,
    /// Volumes on disks that are away.
    away: Vec<Noted>,
    /// Where it is remembered which volumes there are.
    roll: Option<Arc<dyn Roll>>,
    /// What was written there last; held while it is written.
    noted: tokio::sync::Mutex<Option<Vec<Noted>>>,
}

impl Volumes {
    /// What the disks' notes say.
    pub fn open(disks: Vec<DiskHandle>) -> Result<Self, VolumeError> {
        let (mut known, mut gone, mut thinning) = (HashMap::new(), Vec::new(), Vec::new());
        for disk in &disks {
            for note in notes(disk, None)?.into_iter().filter(|note| note.key.tag == NoteTag::Volume) {
                let id = note.key.volume;
                if note.gone {
                    gone.push((disk.clone(), id));
                    continue;
                }
                let seat = Arc::new(Seat::open(disk.clone(), id)?);
                let volume = Volume { id, label: Label::decode(&note.meta)?, seat, fence: None };
                thinning.extend(Thinning::left(&volume)?);
                known.insert(id, volume);
            }
        }
        Ok(Self {
            disks,
            known: Mutex::new(known),
            gone: Mutex::new(gone),
            thinning: Mutex::new(thinning),
            returning: Mutex::default(),
            reaps: tokio::sync::Notify::new(),
            names: tokio::sync::Mutex::new(()),
            keys: KeyRing::default(),
            orphans: AtomicBool::new(true),
            away: Vec::new(),
            roll: None,
            noted: tokio::sync::Mutex::default(),
        })
    }

    /// Remembers in a roll which volumes there are; `away`: those of disks that are not here.
    #[must_use]
    pub fn with_roll(self, roll: Arc<dyn Roll>, away: Vec<Noted>) -> Self {
        Self { roll: Some(roll), away, ..self }
    }

    /// Writes the roll, if it is another than what was written last.
    pub async fn note(&self) -> Result<(), VolumeError> {
        let _names = self.names.lock().await;
        self.note_with(None).await
    }

    /// With the names held: what is coming is not in the list yet.
    async fn note_with(&self, coming: Option<Noted>) -> Result<(), VolumeError> {
        let Some(roll) = &self.roll else { return Ok(()) };
        let mut noted = self.noted.lock().await;
        let mut all: Vec<Noted> = self.known(|known| known.values().map(Noted::of).collect());
        all.extend(self.away.iter().cloned().chain(coming));
        all.sort_unstable();
        if noted.as_ref() != Some(&all) {
            let failed = |e| VolumeError::Register(format!("note which volumes there are: {e}"));
            roll.write(all.clone()).await.map_err(failed)?;
            *noted = Some(all);
        }
        Ok(())
    }

    /// The same, with the names held. What was done stands whether it can be noted or not, and it is tried again.
    async fn note_late(&self) {
        if let Err(error) = self.note_with(None).await {
            tracing::warn!(%error, "remember a change of a volume");
        }
    }

    /// Whether there is a volume of this name, be it on a disk that is away.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        matches!(self.find(name), Ok(_) | Err(VolumeError::Away(..)))
    }

    /// That a volume is on a disk that is away.
    #[must_use]
    pub fn away(&self, is: impl Fn(&str, VolumeId) -> bool) -> Option<VolumeError> {
        let name = |noted: &Noted| noted.name.clone().filter(|name| is(name, noted.id));
        self.away.iter().find_map(|noted| Some(VolumeError::Away(name(noted)?, noted.device)))
    }

    pub(super) fn names_away(&self) -> impl Iterator<Item = String> {
        self.away.iter().filter_map(|noted| noted.name.clone())
    }

    /// With the keys that wrap those of encrypted volumes.
    #[must_use]
    pub fn with_keys(self, keys: KeyRing) -> Self {
        Self { keys, ..self }
    }

    /// For the label of a new volume that is to be encrypted; `key` is random.
    pub fn wrap(&self, key: &[u8; KEY_BYTES]) -> Result<WrappedKey, VolumeError> {
        Ok(self.keys.wrap(key)?)
    }

    pub(super) fn cipher_of(&self, label: &Label) -> Result<Option<Cipher>, VolumeError> {
        Ok(label.key.map(|key| self.keys.open(&key)).transpose()?)
    }

    /// How many volumes' keys each key wrapped, also of those that are there for their clones alone.
    #[must_use]
    pub fn wrapped_by(&self) -> BTreeMap<KeyName, u64> {
        let mut counts = BTreeMap::new();
        self.known(|known| {
            let here = known.values().filter_map(|volume| volume.label.key).map(|key| key.wrapped_by());
            for key in here.chain(self.away.iter().filter_map(|noted| noted.key)) {
                *counts.entry(key).or_default() += 1;
            }
        });
        counts
    }

    /// Wraps volumes' keys anew by the key of a name, one after the other; how many. Those that cannot be opened stay as they are, and a
    /// disk that takes no label hinders no other.
    pub async fn rewrap(&self, by: KeyName) -> Result<usize, VolumeError> {
        let (mut done, mut failed) = (0, None);
        for id in self.known(|known| known.keys().copied().collect::<Vec<_>>()) {
            let _names = self.names.lock().await;
            let Some(mut volume) = self.by_id(id) else { continue };
            let other = volume.label.key.filter(|key| key.wrapped_by() != by);
            let Some(key) = other.and_then(|key| self.keys.rewrap(by, &key).ok()) else { continue };
            volume.label.key = Some(key);
            match volume.seat.label(Some(&volume.label.encode())).await {
                Ok(()) => {
                    self.known(|known| known.insert(id, volume));
                    done += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        if done > 0 {
            self.note().await?;
        }
        failed.map_or(Ok(done), Err)
    }

    /// Does something unless the key of a name wrapped that of a volume here, and while none can come to be; whether it did. `act` has the
    /// ring forget the key: a volume that was on its way is then refused.
    pub async fn unless_wrapped<E>(
        &self,
        name: KeyName,
        act: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let _names = self.names.lock().await;
        if self.wrapped_by().contains_key(&name) {
            return Ok(false);
        }
        act().map(|()| true)
    }

    pub(super) fn names(&self) -> &tokio::sync::Mutex<()> {
        &self.names
    }

    pub(super) fn jobs(&self) -> &Mutex<Vec<Thinning>> {
        &self.thinning
    }

    pub(super) fn returning<T>(&self, act: impl FnOnce(&mut HashSet<VolumeId>) -> T) -> T {
        act(&mut self.returning.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn orphans(&self) -> &AtomicBool {
        &self.orphans
    }

    pub(super) fn wake(&self) {
        self.reaps.notify_one();
    }

    /// Waits until there may be something to reap.
    pub async fn to_reap(&self) {
        self.reaps.notified().await;
    }

    pub(super) fn by_id(&self, id: VolumeId) -> Option<Volume> {
        self.known(|known| known.get(&id).cloned())
    }

    /// The volume of an identity.
    #[must_use]
    pub fn with_id(&self, id: VolumeId) -> Option<Volume> {
        self.by_id(id).filter(|volume| !volume.label.going)
    }

    /// Volumes whose names are of a kind.
    #[must_use]
    pub fn named(&self, is: impl Fn(&str) -> bool) -> Vec<Volume> {
        let wanted = |volume: &&Volume| !volume.label.going && is(&volume.label.name);
        self.known(|known| known.values().filter(wanted).cloned().collect())
    }

    pub(super) fn known<T>(&self, act: impl FnOnce(&mut HashMap<VolumeId, Volume>) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Volume> {
        let mut volumes: Vec<Volume> = self.known(|known| known.values().cloned().collect());
        volumes.retain(|volume| !volume.label.going);
        volumes.sort_by(|a, b| a.label.name.cmp(&b.label.name));
        volumes
    }

    /// The volume of a name.
    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        let named = |volume: &&Volume| volume.label.name == name && !volume.label.going;
        let found = self.known(|known| known.values().find(named).cloned());
        let away = || self.away(|known, _| known == name);
        found.ok_or_else(|| away().unwrap_or_else(|| VolumeError::NoVolume(name.to_owned())))
    }

    /// Makes a volume. `id` is random.
    pub async fn create(&self, id: VolumeId, label: Label) -> Result<Volume, VolumeError> {
        let _names = self.names.lock().await;
        let disk = self.roomiest().ok_or(VolumeError::NoRoom);
        self.make(id, label, disk, None).await
    }

    /// Makes a volume; with the names held.
    pub(super) async fn make(
        &self,
        id: VolumeId,
        mut label: Label,
        disk: Result<DiskHandle, VolumeError>,
        parent: Option<Parent>,
    ) -> Result<Volume, VolumeError> {
        if !is_name(&label.name) {
            return Err(VolumeError::Name(label.name));
        }
        if label.description.len() > MAX_DESCRIPTION {
            return Err(VolumeError::Description);
        }
        label.slice_bytes = SLICE_BYTES;
        Geometry::new(label.bytes, label.slice_bytes)?;
        self.cipher_of(&label)?;
        if let Some(away) = self.away(|name, known| name == label.name || known == id) {
            return Err(away);
        }
        if self.find(&label.name).is_ok() {
            return Err(VolumeError::Taken(label.name));
        }
        let seat = Arc::new(Seat::open(disk?, id)?);
        let volume = Volume { id, label, seat, fence: None };
        self.note_with(Some(Noted::of(&volume))).await?;
        let Volume { label, seat, .. } = volume;
        if parent.is_some() {
            seat.descend(parent).await?;
        }
        // From here on it is there.
        seat.label(Some(&label.encode())).await?;
        let volume = Volume { id, label, seat, fence: None };
        self.known(|known| known.insert(id, volume.clone()));
        Ok(volume)
    }

    /// The disk with the smallest share in use, if it is below the mark.
    fn roomiest(&self) -> Option<DiskHandle> {
        let share = |disk: &&DiskHandle| {
            let usage = disk.usage();
            usage.live.saturating_mul(100) / usage.capacity.max(1)
        };
        let healthy = self.disks.iter().filter(|disk| disk.failure().is_none());
        healthy.min_by_key(share).filter(|disk| share(disk) <= VOLUME_HIGH_WATER).cloned()
    }

    /// Attaches the volume, or joins those who have: the device to read and write.
    pub async fn attach(&self, name: &str) -> Result<Device, VolumeError> {
        let _names = self.names.lock().await;
        let mut volume = self.settled_volume(name)?;
        let cipher = self.cipher_of(&volume.label)?;
        let fence = match volume.fence {
            Some(fence) => fence,
            None => volume.seat.attach().await?,
        };
        volume.fence = Some(fence);
        let geometry = Geometry::new(volume.label.bytes, volume.label.slice_bytes)?;
        let device = Device::attached(volume.seat.clone(), geometry, fence, self.below(&volume));
        let device = device.with_cipher(cipher);
        self.known(|known| known.insert(volume.id, volume));
        Ok(device)
    }

    /// What a snapshot sees.
    pub fn view(&self, name: &str, snapshot: &str) -> Result<Device, VolumeError> {
        let volume = self.find(name)?;
        let found = Self::snapshot_of(&volume, snapshot)?;
        let geometry = Geometry::new(found.label.bytes, volume.label.slice_bytes)?;
        let below = self.below(&volume);
        let cipher = self.cipher_of(&volume.label)?;
        Ok(Device::of_snapshot(volume.seat, geometry, found.era, below).with_cipher(cipher))
    }

    pub(super) fn snapshot_of(volume: &Volume, snapshot: &str) -> Result<Snapshot, VolumeError> {
        let found = volume.snapshots().into_iter().find(|known| known.label.name == snapshot);
        found.ok_or_else(|| VolumeError::NoSnapshot(volume.label.name.clone(), snapshot.to_owned()))
    }

    /// Makes a volume larger. Clients see it when they connect anew.
    pub async fn extend(&self, name: &str, bytes: u64) -> Result<Volume, VolumeError> {
        let _names = self.names.lock().await;
        let mut volume = self.find(name)?;
        if bytes < volume.label.bytes {
            return Err(VolumeError::Shrink(volume.label.bytes, bytes));
        }
        Geometry::new(bytes, volume.label.slice_bytes)?;
        volume.label.bytes = bytes;
        volume.seat.label(Some(&volume.label.encode())).await?;
        self.known(|known| known.insert(volume.id, volume.clone()));
        Ok(volume)
    }

    /// Changes how fast a volume may be used; who serves it is to be told.
    pub async fn limit(&self, name: &str, limits: Limits) -> Result<Volume, VolumeError> {
        self.relabel(name, |label| label.limits = limits).await
    }

    /// Gives a volume another name; nobody uses it by the old one.
    pub async fn rename(&self, name: &str, new: &str) -> Result<Volume, VolumeError> {
        if !is_name(new) {
            return Err(VolumeError::Name(new.to_owned()));
        }
        self.relabel(name, |label| new.clone_into(&mut label.name)).await
    }

    /// Gives a snapshot another name.
    pub async fn rename_snapshot(&self, name: &str, snapshot: &str, new: &str) -> Result<(), VolumeError> {
        if !is_name(new) {
            return Err(VolumeError::Name(new.to_owned()));
        }
        let _names = self.names.lock().await;
        let volume = self.settled_volume(name)?;
        if Self::snapshot_of(&volume, new).is_ok() {
            return Err(VolumeError::Taken(new.to_owned()));
        }
        let era = Self::snapshot_of(&volume, snapshot)?.era;
        volume.seat.relabel(era, |label| new.clone_into(&mut label.name)).await
    }

    async fn relabel(&self, name: &str, change: impl FnOnce(&mut Label)) -> Result<Volume, VolumeError> {
        let _names = self.names.lock().await;
        let mut volume = self.find(name)?;
        change(&mut volume.label);
        if volume.label.name != name && self.has(&volume.label.name) {
            return Err(VolumeError::Taken(volume.label.name));
        }
        volume.seat.label(Some(&volume.label.encode())).await?;
        self.known(|known| known.insert(volume.id, volume.clone()));
        self.note_late().await;
        Ok(volume)
    }

    /// Freezes the volume as it is, while it is in use or not.
    pub async fn snapshot(&self, name: &str, snapshot: &str, made: u64) -> Result<Snapshot, VolumeError> {
        if !is_name(snapshot) {
            return Err(VolumeError::Name(snapshot.to_owned()));
        }
        let _names = self.names.lock().await;
        let volume = self.settled_volume(name)?;
        if Self::snapshot_of(&volume, snapshot).is_ok() {
            return Err(VolumeError::Taken(snapshot.to_owned()));
        }
        let label =
            SnapshotLabel { name: snapshot.to_owned(), bytes: volume.label.bytes, made, going: false };
        volume.seat.snapshot(label).await
    }

    /// Deletes a volume with its snapshots. Heads that it has are refused from then on.
    pub async fn delete(&self, name: &str) -> Result<(), VolumeError> {
        let _names = self.names.lock().await;
        let volume = self.settled_volume(name)?;
        if let Some((clone, _)) = self.clones_of(&volume).into_iter().next() {
            return Err(VolumeError::HasClones(name.to_owned(), clone));
        }
        self.remove(&volume).await
    }

    /// Deletes a volume of which nothing is a clone; with the names held.
    pub(super) async fn remove(&self, volume: &Volume) -> Result<(), VolumeError> {
        volume.seat.label(None).await?;
        self.known(|known| known.remove(&volume.id));
        self.note_late().await;
        let gone = (volume.seat.disk().clone(), volume.id);
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).push(gone);
        self.freed();
        Ok(())
    }

    /// One step of giving back the space of deleted snapshots and volumes; false: there is none left.
    pub async fn reap(&self) -> Result<bool, DiskError> {
        match self.drop_orphan().await {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(VolumeError::Disk(error)) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "drop what no clone needs any more");
                self.orphans.store(true, Ordering::Release);
            }
        }
        if self.thin().await? {
            return Ok(true);
        }
        let next = self.gone.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        let Some((disk, id)) = next else { return Ok(false) };
        if reap(&disk, id, REAPED).await? < REAPED {
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, gone)| *gone != id);
        }
        Ok(true)
    }
}

const _: () = assert!(SLICE_BYTES.is_multiple_of(BLOCK_BYTES));
