//! Volumes that have several members: made, attached here or at another node, shown, compared, deleted.
//!
//! Invariant: a node is head of a volume only by an epoch that the control group granted it; whoever attaches takes it over.
//! Invariant: a head that is not served yet goes on for as long as it is the volume's head, also when nobody waits for it any more: what it
//! fills is needed, and whoever comes next joins it. Another epoch is granted only when there is no such head here.
//! Invariant: a volume is deleted by whoever could attach it: from its last head nothing is taken any more.

mod compare;
mod owners;
mod replace;
mod rest;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::consensus::StatusWatch;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::VolumeCall;
use quarry_engine::object::BoxFuture;
use quarry_volume::head::{Configuration, MAX_MEMBERS, Session};
use quarry_volume::pace::Limits;
use quarry_volume::store::{
    Attachment, Condition, MAX_DESCRIPTION, Members, Peer, Reach, Replicated, Seen, VolumeError, is_name,
};
use quarry_volume::{Fence, Geometry, KEY_BYTES, KeyRing, SLICE_BYTES, VolumeId, WrappedKey};
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, watch};

pub(crate) use compare::Compared;

use crate::cluster;
use crate::control::member::Member;
use crate::control::state::State;
use crate::control::volumes::wrapping::Choice;
use crate::control::volumes::{MAX_SNAPSHOTS, Register, RegisterError, Row, SnapshotRow, Standing, id_of};
use crate::storage::{random_bytes, wall_clock};

/// How often a change of a volume's row is tried, and the pause between two tries.
pub(super) const TRIES: usize = 50;
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Where a volume's head on this node is.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The head, if there is one; held while one is made or ended, and while something is done of which only one may be under way.
    pub(super) head: Arc<tokio::sync::Mutex<Option<Replicated>>>,
    /// Held while the volume goes back to a snapshot.
    pub(super) returning: tokio::sync::Mutex<()>,
    /// Held while a clone takes over what it sees of its parent.
    pub(super) flattening: tokio::sync::Mutex<()>,
    /// At its head since somebody used it.
    looks: AtomicU32,
}

type Held = OwnedMutexGuard<Option<Replicated>>;

/// The volumes of the cluster that have several members.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) register: Register,
    reach: Reach,
    members: Arc<Members>,
    state: watch::Receiver<Arc<State>>,
    /// What wraps the keys of encrypted volumes: all machines of a cluster have the same.
    keys: KeyRing,
    /// On which heads live: clients come and go, and so do the threads that serve them.
    pub(super) runtime: Handle,
    heads: Mutex<HashMap<VolumeId, Arc<Place>>>,
    /// Clones that this process is making.
    pub(super) making: Mutex<HashSet<VolumeId>>,
}

/// A volume that is to be.
pub(crate) struct New {
    /// Made once: who asks for it again gets what is there.
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) description: String,
    pub(crate) encrypted: bool,
    pub(crate) limits: Limits,
    pub(crate) members: usize,
}

/// Whether something may be deleted of which there are clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clones {
    /// It may not: people shall see what a clone comes from.
    Keep,
    /// It may, when the clones are there: their members keep what they see.
    Outlive,
}

impl From<RegisterError> for VolumeError {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Changed => Self::Changed,
            RegisterError::Away(_) => Self::Register(error.to_string()),
        }
    }
}

impl Shared {
    /// Of a member of the cluster.
    pub(crate) fn new(member: &Member, keys: KeyRing) -> Self {
        let net = Arc::clone(&member.cluster.transport);
        let register = Register::new(member.groups.control.clone(), Arc::clone(&net));
        let (members, state) = (Arc::clone(&member.volumes), member.state.clone());
        let known = state.clone();
        let node_of = Arc::new(move |device: DeviceId| known.borrow().devices.get(&device).map(|d| d.node));
        let (timer, kept) = (cluster::timer(), Arc::default());
        let reach = Reach { members: Arc::clone(&members), net: Some(net), node_of, timer, kept };
        Self::over(register, reach, members, state, keys)
    }

    fn over(
        register: Register,
        reach: Reach,
        members: Arc<Members>,
        state: watch::Receiver<Arc<State>>,
        keys: KeyRing,
    ) -> Self {
        let runtime = Handle::current();
        let (heads, making) = (Mutex::default(), Mutex::default());
        Self { register, reach, members, state, keys, runtime, heads, making }
    }

    /// Tells when the control group has applied something here.
    pub(super) fn watch(&self) -> StatusWatch {
        self.register.watch()
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<Row> {
        self.register.list().unwrap_or_else(|error| {
            tracing::warn!(%error, "list volumes");
            Vec::new()
        })
    }

    /// The volume of a name, or of an id in hex.
    pub(crate) fn find(&self, name: &str) -> Option<Row> {
        let by_name = self.register.find(name).ok().flatten();
        let by_id = || self.register.row(id_of(name)?).ok().flatten();
        by_name.or_else(by_id).map(|(row, _)| row)
    }

    /// A volume that is there, also one that is still being made.
    fn known(&self, name: &str) -> Result<Standing, VolumeError> {
        self.register.find(name)?.ok_or_else(|| VolumeError::NoVolume(name.to_owned()))
    }

    /// A volume that can be used.
    pub(super) fn standing(&self, name: &str) -> Result<Standing, VolumeError> {
        let found = self.known(name)?;
        if found.0.is_being_made() { Err(VolumeError::BeingMade(name.to_owned())) } else { Ok(found) }
    }

    /// Devices of so many nodes, as the ring of the first policy has them for an id.
    fn choose(&self, id: VolumeId, members: usize) -> Result<Vec<DeviceId>, VolumeError> {
        let mut chosen = self.candidates(id)?;
        chosen.truncate(members);
        if chosen.len() == members { Ok(chosen) } else { Err(VolumeError::TooFewNodes(members)) }
    }

    /// A device that may take something new of each node that stays, as the ring of the first policy has them for an id.
    fn candidates(&self, id: VolumeId) -> Result<Vec<DeviceId>, VolumeError> {
        let state = Arc::clone(&self.state.borrow());
        let ring = state.builder.as_ref().and_then(|builder| builder.ring().ok().flatten());
        let ring = ring.ok_or(VolumeError::NoRoom)?;
        let numbers = state.ring_devices(0);
        let partition = ring.partition_of(&id.0);
        let (mut nodes, mut chosen) = (HashSet::new(), Vec::new());
        for device in ring.lookup(partition).chain(ring.handoffs(partition)) {
            let Some(id) = numbers.get(&device.id) else { continue };
            let Some(known) = state.devices.get(id) else { continue };
            if state.may_take(*id) && nodes.insert(known.node) {
                chosen.push(*id);
            }
        }
        Ok(chosen)
    }

    /// Makes a volume.
    pub(crate) async fn create(&self, wanted: New) -> Result<(), VolumeError> {
        let New { id, name, bytes, description, encrypted, limits, members } = wanted;
        if !is_name(&name) {
            return Err(VolumeError::Name(name));
        }
        if description.len() > MAX_DESCRIPTION {
            return Err(VolumeError::Description);
        }
        if members > MAX_MEMBERS {
            return Err(VolumeError::TooFewNodes(members));
        }
        Geometry::new(bytes, SLICE_BYTES)?;
        let configuration = Configuration::new(self.choose(id, members)?);
        let made = wall_clock() / 1000;
        let mut row = Row {
            id,
            name: name.clone(),
            description,
            bytes,
            slice_bytes: SLICE_BYTES,
            made,
            epoch: 0,
            head: None,
            configuration,
            key: None,
            era: 0,
            snapshots: Vec::new(),
            limits,
            parent: None,
            returning: None,
            wanted: 0,
        };
        let key = random_bytes();
        for _ in 0..TRIES {
            let (choice, chosen) = self.register.choice()?;
            row.key = encrypted.then(|| self.wrapped(choice.as_ref(), &key)).transpose()?;
            match self.register.make(&row, chosen).await {
                // It may have been this very one, whose answer was lost, or that was made in another life.
                Err(_) if self.find(&name).is_some_and(|found| found.id == id) => return Ok(()),
                // Another key wraps since, or this node had not heard of it.
                Err(RegisterError::Changed) if encrypted && self.find(&name).is_none() => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(RegisterError::Changed) => return Err(VolumeError::Taken(name)),
                other => return Ok(other?),
            }
        }
        Err(VolumeError::Changed)
    }

    fn wrapped(&self, choice: Option<&Choice>, key: &[u8; KEY_BYTES]) -> Result<WrappedKey, VolumeError> {
        Ok(match choice {
            Some(Choice { wraps, .. }) => self.keys.wrap_by(*wraps, key)?,
            None => self.keys.wrap(key)?,
        })
    }

    pub(super) fn place(&self, id: VolumeId) -> Arc<Place> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(heads.entry(id).or_default())
    }

    /// Changes a row, however often others are first.
    pub(super) async fn change(&self, id: VolumeId, edit: impl Fn(&mut Row)) -> Result<Row, VolumeError> {
        self.change_if(id, |row| {
            edit(row);
            Ok(())
        })
        .await
    }

    /// The same, unless something speaks against it as the row stands.
    async fn change_if(
        &self,
        id: VolumeId,
        edit: impl Fn(&mut Row) -> Result<(), VolumeError>,
    ) -> Result<Row, VolumeError> {
        let mut last = RegisterError::Changed;
        for _ in 0..TRIES {
            match self.register.row(id) {
                Ok(None) => return Err(VolumeError::NoVolume(hex::encode(id.0))),
                Ok(Some((mut row, time))) => {
                    edit(&mut row)?;
                    match self.register.change(&row, time).await {
                        Ok(()) => return Ok(row),
                        Err(error) => last = error,
                    }
                }
                Err(error) => last = error,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last.into())
    }

    /// Attaches a volume here, or joins those who have. One that is on its way back to a snapshot has come there then.
    pub(crate) async fn attach(self: &Arc<Self>, name: &str) -> Result<Replicated, VolumeError> {
        self.as_it_stands(name, || self.attach_known(name)).await
    }

    /// The same by what is known here.
    async fn attach_known(self: &Arc<Self>, name: &str) -> Result<Replicated, VolumeError> {
        let (device, row) = self.attach_if(name, |_| true).await?;
        if row.returning.is_some() { self.returned(device, row.id).await } else { Ok(device) }
    }

    /// A head that serves, where the volume may be taken as its row stands; and the row then.
    pub(super) async fn attach_if(
        &self,
        name: &str,
        may: impl Fn(&Row) -> bool,
    ) -> Result<(Replicated, Row), VolumeError> {
        // Had until it is found in its place: nobody has it otherwise for a moment, and it goes to rest.
        let mut granted: Option<Replicated> = None;
        loop {
            let (device, row) = self.head_of(name, &may, granted.is_some()).await?;
            if matches!(device.condition(), Condition::Serving) {
                return Ok((device, row));
            }
            // Its place is not held: others find it there meanwhile, and may wait for it too.
            device.served().await?;
            granted = Some(device);
        }
    }

    /// The head on this node, as far as it has come: the one in its place, or a new one. `granted`: there has been a new one.
    async fn head_of(
        &self,
        name: &str,
        may: impl Fn(&Row) -> bool,
        granted: bool,
    ) -> Result<(Replicated, Row), VolumeError> {
        let place = self.place(self.standing(name)?.0.id);
        let mut head = place.head.lock().await;
        place.looks.store(0, Ordering::Relaxed);
        // As it stands now: whoever had the place before may have attached it.
        let (row, _) = self.standing(name)?;
        let local = self.register.local();
        let is_head = |device: &Replicated| device.epoch() == row.epoch && row.head == Some(local);
        if let Some(device) = head.as_ref().filter(|device| !device.has_stopped() && is_head(device)) {
            // It may have become larger.
            return Ok((device.resized(Geometry::new(row.bytes, row.slice_bytes)?), row));
        }
        if granted {
            // Somebody else has it; or it stopped by itself, and says why.
            let stopped = head.as_ref().filter(|device| is_head(device)).map(Replicated::condition);
            return Err(match stopped {
                Some(Condition::Stopped(why)) => why.into(),
                _ => taken_over(),
            });
        }
        // An epoch that was given and lost is given to nobody else.
        *head = None;
        let row = self
            .change(row.id, |row| {
                if may(row) {
                    row.epoch += 1;
                    row.head = Some(local);
                }
            })
            .await?;
        if row.head != Some(local) {
            return Err(taken_over());
        }
        let attachment = self.attachment(&row)?;
        let device = {
            let _there = self.runtime.enter();
            Replicated::attach(&attachment, &self.reach, self.commit(&row))
        };
        tracing::info!(volume = %row.name, epoch = row.epoch, "attach volume");
        *head = Some(device.clone());
        Ok((device, row))
    }

    fn attachment(&self, row: &Row) -> Result<Attachment, VolumeError> {
        let configuration = row.configuration.clone();
        let near = configuration.all().find(|device| self.members.has(*device));
        let geometry = Geometry::new(row.bytes, row.slice_bytes)?;
        let cipher = row.key.map(|key| self.keys.open(&key)).transpose()?;
        Ok(Attachment {
            volume: row.id,
            geometry,
            epoch: row.epoch,
            configuration,
            wanted: Self::members_of(row),
            near,
            cipher,
            views: row.views(),
        })
    }

    fn commit(&self, row: &Row) -> quarry_volume::store::Commit {
        let (register, id, epoch) = (self.register.clone(), row.id, row.epoch);
        Arc::new(move |wanted: Configuration| -> BoxFuture<'static, Result<(), Fence>> {
            let register = register.clone();
            Box::pin(async move { register.configure(id, epoch, &wanted).await })
        })
    }

    /// Takes the volume from whoever has it; nobody has it then.
    pub(crate) async fn detach(self: &Arc<Self>, name: &str) -> Result<(), VolumeError> {
        let device = self.attach(name).await?;
        device.flush().await?;
        let (row, _) = self.standing(name)?;
        self.place(row.id).head.lock().await.take();
        let epoch = device.epoch();
        self.change(row.id, |row| {
            if row.epoch == epoch {
                row.head = None;
            }
        })
        .await
        .map(drop)
    }

    /// Makes a volume larger. Clients see it when they connect anew.
    pub(crate) async fn extend(&self, name: &str, bytes: u64) -> Result<(), VolumeError> {
        let (row, _) = self.standing(name)?;
        Geometry::new(bytes, row.slice_bytes)?;
        let row = self.change(row.id, |row| row.bytes = row.bytes.max(bytes)).await?;
        if row.bytes > bytes { Err(VolumeError::Shrink(row.bytes, bytes)) } else { Ok(()) }
    }

    /// The head, if nobody else is: what is asked of snapshots must not take the volume from who uses it. Its place is held, so that
    /// one thing is done after the other.
    pub(super) async fn head_here(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<(Replicated, Row, Held), VolumeError> {
        let row = self.not_elsewhere(name).await?;
        loop {
            let device = self.attach(name).await?;
            let held = Arc::clone(&self.place(row.id).head).lock_owned().await;
            let (row, _) = self.standing(name)?;
            if row.epoch != device.epoch() {
                return Err(taken_over());
            }
            // Somebody has sent it back to a snapshot meanwhile.
            if row.returning.is_none() {
                return Ok((device, row, held));
            }
        }
    }

    /// Does something to its end, also when nobody waits for it any more.
    pub(super) async fn surely<F: Future<Output = Result<(), VolumeError>> + Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<(), VolumeError> {
        let done = self.runtime.spawn(act(Arc::clone(self))).await;
        done.unwrap_or_else(|error| Err(VolumeError::Register(error.to_string())))
    }

    /// Freezes the volume as it is, while it is in use or not.
    pub(crate) async fn snapshot(self: &Arc<Self>, name: &str, snapshot: &str) -> Result<(), VolumeError> {
        if !is_name(snapshot) {
            return Err(VolumeError::Name(snapshot.to_owned()));
        }
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        self.surely(|this| async move { this.freeze(&name, snapshot).await }).await
    }

    async fn freeze(self: &Arc<Self>, name: &str, snapshot: String) -> Result<(), VolumeError> {
        let (device, row, _held) = self.head_here(name).await?;
        if row.snapshots.iter().any(|known| known.name == snapshot) {
            return Err(VolumeError::Taken(snapshot));
        }
        if row.snapshots.len() >= MAX_SNAPSHOTS {
            return Err(VolumeError::TooManySnapshots(name.to_owned(), MAX_SNAPSHOTS));
        }
        let (bytes, made, era) = (row.bytes, wall_clock() / 1000, row.era);
        let next = era.checked_add(1).ok_or(VolumeError::Eras)?;
        let (epoch, fresh) = (device.epoch(), SnapshotRow { era, bytes, made, name: snapshot });
        let commit = async {
            let written = self.change(row.id, |row| {
                // Another head has it, or a try before this one was heard.
                if row.epoch == epoch && row.era == era {
                    row.snapshots.push(fresh.clone());
                    row.era = next;
                }
            });
            let row = written.await?;
            if row.snapshots.contains(&fresh) { Ok(row.views()) } else { Err(taken_over()) }
        };
        device.freeze(commit).await
    }

    /// Deletes a snapshot: it is gone at once, and members give back what only it saw.
    pub(crate) async fn forget_snapshot(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
        clones: Clones,
    ) -> Result<(), VolumeError> {
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        self.surely(|this| async move { this.forget(&name, &snapshot, clones).await }).await
    }

    async fn forget(self: &Arc<Self>, name: &str, snapshot: &str, clones: Clones) -> Result<(), VolumeError> {
        let (device, row, _held) = self.head_here(name).await?;
        let era = snapshot_of(&row, snapshot)?.era;
        let epoch = device.epoch();
        let row = self
            .change_if(row.id, |row| {
                self.may_go(row, Some((era, snapshot)), clones)?;
                if row.epoch == epoch {
                    row.snapshots.retain(|known| known.era != era);
                }
                Ok(())
            })
            .await?;
        if row.snapshots.iter().any(|known| known.era == era) {
            return Err(taken_over());
        }
        device.see(row.views()).await
    }

    /// What a snapshot sees.
    pub(crate) async fn view(&self, name: &str, snapshot: &str) -> Result<Replicated, VolumeError> {
        self.as_it_stands(name, || self.view_known(name, snapshot)).await
    }

    /// The same by what is known here: another node may have the head since, and what is read is refused then.
    pub(super) async fn view_known(&self, name: &str, snapshot: &str) -> Result<Replicated, VolumeError> {
        // Also while the volume goes back to a snapshot: all of them stay as they are.
        let row = self.not_elsewhere(name).await?;
        let (device, row) = self.attach_if(&row.name, |_| true).await?;
        let found = snapshot_of(&row, snapshot)?;
        Ok(device.as_of(found.era, Geometry::new(found.bytes, row.slice_bytes)?))
    }

    /// Whether a volume, or a snapshot of it, may go for what is a clone of it.
    fn may_go(&self, row: &Row, snapshot: Option<(u32, &str)>, clones: Clones) -> Result<(), VolumeError> {
        for (clone, of) in self.register.clones_of(row.id)? {
            if snapshot.is_some_and(|(era, _)| era != of.era) {
                continue;
            }
            if of.making {
                return Err(VolumeError::BeingMade(clone));
            }
            if clones == Clones::Keep {
                let name = snapshot.map_or(row.name.clone(), |(_, name)| format!("{}@{name}", row.name));
                return Err(VolumeError::HasClones(name, clone));
            }
        }
        Ok(())
    }

    /// Deletes a volume; members that do not answer are told when they are there again.
    pub(crate) async fn delete(&self, name: &str, clones: Clones) -> Result<(), VolumeError> {
        for _ in 1..TRIES {
            match self.delete_known(name, clones).await {
                // What was known here was old: another node has attached it, perhaps.
                Err(VolumeError::Changed) => tokio::time::sleep(PAUSE).await,
                done => return done,
            }
        }
        self.delete_known(name, clones).await
    }

    /// Deletes it if it stands as it is known here.
    async fn delete_known(&self, name: &str, clones: Clones) -> Result<(), VolumeError> {
        let (row, time) = self.known(name)?;
        // Who was making a clone may never come back to it.
        if !row.is_being_made() {
            self.is_not_elsewhere(&row, time).await?;
        }
        self.remove(&row, time, clones).await
    }

    /// Deletes what stood at this time.
    pub(super) async fn remove(&self, row: &Row, time: u64, clones: Clones) -> Result<(), VolumeError> {
        let place = self.place(row.id);
        let mut head = place.head.lock().await;
        self.may_go(row, None, clones)?;
        self.register.remove(row, time).await?;
        *head = None;
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(&row.id);
        let (reach, row) = (self.reach.clone(), row.clone());
        self.runtime.spawn(async move {
            for device in row.configuration.all() {
                let peer = Peer { device, volume: row.id };
                // Those that do not hear it are found by the sweep.
                let _away = reach.ask(peer, Fence::default(), Session(0), VolumeCall::Delete).await;
            }
        });
        Ok(())
    }

    /// The head of a volume, where that is here, as far as it has come; nobody waits for one that is being made.
    pub(super) fn head_now(&self, row: &Row) -> Option<Replicated> {
        let place = self.heads.lock().unwrap_or_else(PoisonError::into_inner).get(&row.id).cloned()?;
        place.head.try_lock().ok()?.clone()
    }

    /// The members of a volume as its head sees them, where that is here; nobody waits for one that is being attached.
    pub(crate) async fn seen(&self, row: &Row) -> Vec<Seen> {
        match self.head_now(row) {
            Some(device) => device.members().await,
            None => Vec::new(),
        }
    }
}

/// The snapshot of a name.
pub(super) fn snapshot_of<'a>(row: &'a Row, snapshot: &str) -> Result<&'a SnapshotRow, VolumeError> {
    row.snapshot(snapshot).ok_or_else(|| VolumeError::NoSnapshot(row.name.clone(), snapshot.to_owned()))
}

pub(super) fn taken_over() -> VolumeError {
    VolumeError::Register("another node took the volume over".to_owned())
}
