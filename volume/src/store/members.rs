//! The members that a node's disks hold of volumes that have several.
//!
//! Invariant: a member is made by the first promise that is asked of it, and never again once its volume was deleted.
//! Invariant: of a volume a disk has one member; of two generations the later one, once it is whole.
//! Invariant: what was begun is carried out to its end, also when its caller goes away.
//! Invariant: tasks and time of members and heads are handed in, so that a simulation can bring its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use quarry_engine::block::{Fence, NoteTag, VolumeId, notes, reap};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::disk::{DiskError, DiskHandle};
use quarry_engine::net::{VolumeAnswer, VolumeCall};
use quarry_engine::object::{BoxFuture, Spawn};
use tokio::sync::oneshot;

use super::error::VolumeError;
use super::label::MemberLabel;
use super::replica::{Replica, answer_of, refused};
use super::seat::Seat;
use crate::member::Refusal;

/// Rows that one step of reaping drops.
const REAPED: usize = 4096;

type Known = HashMap<(DeviceId, VolumeId), Arc<Replica>>;

/// All members on some disks.
pub struct Members {
    disks: Vec<DiskHandle>,
    /// Runs what goes on beside its caller.
    spawn: Spawn,
    known: Mutex<Known>,
    /// Held while a member is made or ended.
    making: tokio::sync::Mutex<()>,
    /// Ids that may still have rows.
    gone: Mutex<Vec<(DiskHandle, VolumeId)>>,
    /// Disks on which there may be something that no clone needs any more.
    loose: Mutex<HashSet<DeviceId>>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("disks", &self.disks).finish_non_exhaustive()
    }
}

/// A member that a disk has.
struct Found {
    label: MemberLabel,
    /// The highest number of a generation that was given.
    begun: u32,
    /// A later one, that was not filled to the end.
    astray: Option<VolumeId>,
}

/// The members that a disk has.
fn members_of(disk: &DiskHandle) -> Result<HashMap<VolumeId, Found>, VolumeError> {
    let (mut all, mut gone) = (HashMap::<VolumeId, Vec<(VolumeId, MemberLabel)>>::new(), HashSet::new());
    for note in notes(disk, None)? {
        match note.key.tag {
            NoteTag::Volume if note.gone => drop(gone.insert(note.key.volume)),
            NoteTag::Member if !note.gone => {
                let label = MemberLabel::decode(&note.meta)?;
                all.entry(label.volume).or_default().push((note.key.volume, label));
            }
            _ => {}
        }
    }
    all.retain(|volume, _| !gone.contains(volume));
    let found = all.into_iter().filter_map(|(volume, labels)| {
        let begun = labels.iter().map(|(_, label)| label.generation).max()?;
        let stands = |(id, _): &&(VolumeId, MemberLabel)| !gone.contains(id);
        let (newest, label) = labels.iter().filter(stands).max_by_key(|(_, label)| label.generation)?;
        let is_former = |known: &&(VolumeId, MemberLabel)| Some(known.1.generation) == label.former;
        let former = labels.iter().filter(stands).find(is_former);
        let astray = former.map(|_| *newest);
        let label = former.map_or(label, |(_, former)| former).clone();
        Some((volume, Found { label, begun, astray }))
    });
    Ok(found.collect())
}

impl Members {
    /// What the disks' notes say. Tasks are the runtime's in which members are asked.
    pub fn open(disks: Vec<DiskHandle>) -> Result<Self, VolumeError> {
        Self::open_on(disks, Arc::new(|work| drop(tokio::spawn(work))))
    }

    /// The same, with tasks of another kind.
    pub fn open_on(disks: Vec<DiskHandle>, spawn: Spawn) -> Result<Self, VolumeError> {
        let mut known = Known::new();
        for disk in &disks {
            for (volume, Found { label, begun, astray }) in members_of(disk)? {
                let replica = Replica::open(disk.clone(), label, begun)?;
                let replica = match astray {
                    Some(astray) => replica.with_astray(astray)?,
                    None => replica,
                };
                known.insert((disk.device(), volume), Arc::new(replica));
            }
        }
        // A crash may have left members beside their successors.
        let loose = Mutex::new(disks.iter().map(DiskHandle::device).collect());
        let (known, making) = (Mutex::new(known), tokio::sync::Mutex::default());
        Ok(Self { disks, spawn, known, making, gone: Mutex::default(), loose })
    }

    fn known<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The volumes of which there are members, and where.
    #[must_use]
    pub fn list(&self) -> Vec<(DeviceId, VolumeId)> {
        self.known(|known| known.keys().copied().collect())
    }

    /// Runs this beside its caller.
    pub(super) fn beside(&self, work: BoxFuture<'static, ()>) {
        (self.spawn)(work);
    }

    /// Whether a disk is here.
    #[must_use]
    pub fn has(&self, device: DeviceId) -> bool {
        self.disks.iter().any(|disk| disk.device() == device)
    }

    /// Answers a head.
    pub async fn answer(
        self: &Arc<Self>,
        device: DeviceId,
        volume: VolumeId,
        fence: Fence,
        session: u64,
        call: VolumeCall,
    ) -> VolumeAnswer {
        use VolumeCall::{Confirm, Flush, Read, Rows};
        if matches!(call, Flush(_) | Confirm | Read { .. } | Rows { .. }) {
            // These change nothing: they end with their caller.
            return answer_of(self.act(device, volume, fence, session, call).await);
        }
        let members = Arc::clone(self);
        let mut work = Box::pin(async move { members.act(device, volume, fence, session, call).await });
        // Most writes have their place at once.
        if let Poll::Ready(answer) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer_of(answer);
        }
        let (told, answer) = oneshot::channel();
        self.beside(Box::pin(async move {
            // Who no longer waits needs no answer.
            let _gone = told.send(work.await);
        }));
        // It has panicked, or the node is going.
        let none = |_| {
            tracing::error!("a member of a volume gives no answer");
            refused(Refusal::Out)
        };
        answer.await.map_or_else(none, answer_of)
    }

    pub(super) async fn act(
        &self,
        device: DeviceId,
        volume: VolumeId,
        fence: Fence,
        session: u64,
        call: VolumeCall,
    ) -> Result<VolumeAnswer, VolumeError> {
        // One that is away is out, whatever it had promised.
        self.disk(device)?;
        match (self.member(device, volume), call) {
            (_, VolumeCall::Delete) => self.end(device, volume).await.map(|()| VolumeAnswer::Done),
            (Some(parent), VolumeCall::Fork { clone, era, at }) => {
                self.fork(device, &parent, (fence, session), (clone, era, at)).await
            }
            (Some(replica), call) => {
                let fills = matches!(call, VolumeCall::Fill { .. } | VolumeCall::Join { .. });
                let takes_over = matches!(call, VolumeCall::TakeOver { .. });
                let answer = replica.carry_out(fence, session, call).await;
                let took_over = takes_over && matches!(answer, Ok(VolumeAnswer::Rows { next: None, .. }));
                let disk = self.disk(device)?;
                replica.ended().into_iter().for_each(|id| self.void(disk, id));
                if fills || took_over {
                    // What it had may be void now, or what it was a clone of.
                    self.tidy(device).await;
                }
                if took_over {
                    self.loosen(device);
                }
                answer
            }
            (None, VolumeCall::Promise) => {
                let replica = self.make(device, volume).await?;
                replica.carry_out(fence, session, VolumeCall::Promise).await
            }
            (None, _) => Err(Refusal::NotPromised.into()),
        }
    }

    pub(super) fn member(&self, device: DeviceId, volume: VolumeId) -> Option<Arc<Replica>> {
        self.known(|known| known.get(&(device, volume)).cloned())
    }

    pub(super) fn enter(&self, device: DeviceId, volume: VolumeId, replica: Arc<Replica>) {
        self.known(|known| known.insert((device, volume), replica));
    }

    pub(super) fn making(&self) -> &tokio::sync::Mutex<()> {
        &self.making
    }

    pub(super) fn disk(&self, device: DeviceId) -> Result<&DiskHandle, Refusal> {
        self.disks.iter().find(|disk| disk.device() == device).ok_or(Refusal::Out)
    }

    async fn make(&self, device: DeviceId, volume: VolumeId) -> Result<Arc<Replica>, VolumeError> {
        let _making = self.making.lock().await;
        if let Some(replica) = self.member(device, volume) {
            return Ok(replica);
        }
        let disk = self.disk(device)?;
        if is_gone(disk, volume)? {
            return Err(Refusal::Out.into());
        }
        let (turns, former) = (Vec::new(), None);
        let label = MemberLabel { volume, generation: 1, whole: true, turns, end: 0, kept: true, former };
        let replica = Arc::new(Replica::open(disk.clone(), label, 1)?);
        replica.found().await?;
        self.enter(device, volume, Arc::clone(&replica));
        Ok(replica)
    }

    async fn end(&self, device: DeviceId, volume: VolumeId) -> Result<(), VolumeError> {
        let _making = self.making.lock().await;
        let disk = self.disk(device)?;
        if !is_gone(disk, volume)? {
            // The mark that no promise makes it again.
            Seat::open(disk.clone(), volume)?.label(None).await?;
        }
        if let Some(replica) = self.known(|known| known.remove(&(device, volume))) {
            replica.end().await;
        }
        self.loosen(device);
        self.drop_orphans_of(disk).await
    }

    /// There may be something on a disk that no clone needs any more.
    fn loosen(&self, device: DeviceId) {
        self.loose.lock().unwrap_or_else(PoisonError::into_inner).insert(device);
    }

    /// Looks for what no clone needs any more; what fails is tried again.
    async fn tidy(&self, device: DeviceId) {
        if let Err(error) = self.drop_orphans(device).await {
            tracing::warn!(%error, %device, "end what is no member of a volume any more");
            self.loosen(device);
        }
    }

    /// Gives back, of the members on a disk, what stayed for clones that are gone.
    async fn thin_again(&self, device: DeviceId) {
        let here: Vec<Arc<Replica>> = self.known(|known| {
            let on_it = known.iter().filter(|((on, _), _)| *on == device);
            on_it.map(|(_, replica)| Arc::clone(replica)).collect()
        });
        for replica in here {
            if let Err(error) = replica.thin_again().await {
                tracing::warn!(%error, %device, "give back what stayed for clones");
                self.loosen(device);
            }
        }
    }

    /// Nothing under this id is needed any more.
    pub(super) fn void(&self, disk: &DiskHandle, id: VolumeId) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).push((disk.clone(), id));
    }

    /// One step of giving back the space of what is void; false: there is none left.
    pub async fn reap(&self) -> Result<bool, DiskError> {
        let loose = std::mem::take(&mut *self.loose.lock().unwrap_or_else(PoisonError::into_inner));
        for device in loose {
            self.tidy(device).await;
            self.thin_again(device).await;
        }
        let next = self.gone.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        let Some((disk, id)) = next else { return Ok(false) };
        if reap(&disk, id, REAPED).await? < REAPED {
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, gone)| *gone != id);
        }
        Ok(true)
    }
}

pub(super) fn is_gone(disk: &DiskHandle, volume: VolumeId) -> Result<bool, VolumeError> {
    let known = notes(disk, Some(volume))?;
    Ok(known.iter().any(|note| note.key.tag == NoteTag::Volume && note.gone))
}
