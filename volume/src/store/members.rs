//! The members that a node's disks hold of volumes that have several.
//!
//! Invariant: a member is made by the first promise that is asked of it, and never again once its volume was deleted.
//! Invariant: of a volume a disk has one member; of two generations the later one.
//! Invariant: what was begun is carried out to its end, also when its caller goes away.
//! Invariant: tasks and time of members and heads are handed in, so that a simulation can bring its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("disks", &self.disks).finish_non_exhaustive()
    }
}

/// What a disk has.
fn labels_of(disk: &DiskHandle) -> Result<(HashMap<VolumeId, MemberLabel>, Vec<VolumeId>), VolumeError> {
    let mut newest: HashMap<VolumeId, MemberLabel> = HashMap::new();
    let (mut gone, mut old) = (Vec::new(), Vec::new());
    for note in notes(disk, None)? {
        match note.key.tag {
            NoteTag::Volume if note.gone => gone.push(note.key.volume),
            NoteTag::Member if !note.gone => {
                let label = MemberLabel::decode(&note.meta)?;
                match newest.get_mut(&label.volume) {
                    Some(known) if known.generation < label.generation => {
                        old.push(std::mem::replace(known, label).id());
                    }
                    Some(_) => old.push(label.id()),
                    None => drop(newest.insert(label.volume, label)),
                }
            }
            _ => {}
        }
    }
    old.retain(|id| !gone.contains(id));
    newest.retain(|volume, label| !gone.contains(volume) && !gone.contains(&label.id()));
    Ok((newest, old))
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
            // Those that a crash left beside their successors are ended when their volume is deleted.
            let (labels, _old) = labels_of(disk)?;
            for (volume, label) in labels {
                let replica = Arc::new(Replica::open(disk.clone(), label)?);
                known.insert((disk.device(), volume), replica);
            }
        }
        let known = Mutex::new(known);
        Ok(Self { disks, spawn, known, making: tokio::sync::Mutex::default(), gone: Mutex::default() })
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
        let (told, answer) = oneshot::channel();
        self.beside(Box::pin(async move {
            // Who no longer waits needs no answer.
            let _gone = told.send(members.act(device, volume, fence, session, call).await);
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
        let replica = self.known(|known| known.get(&(device, volume)).cloned());
        match (replica, call) {
            (_, VolumeCall::Delete) => self.end(device, volume).await.map(|()| VolumeAnswer::Done),
            (Some(replica), call) => replica.carry_out(fence, session, call).await,
            (None, VolumeCall::Promise) => {
                let replica = self.make(device, volume).await?;
                replica.carry_out(fence, session, VolumeCall::Promise).await
            }
            (None, _) => Err(Refusal::NotPromised.into()),
        }
    }

    fn disk(&self, device: DeviceId) -> Result<&DiskHandle, Refusal> {
        self.disks.iter().find(|disk| disk.device() == device).ok_or(Refusal::Out)
    }

    async fn make(&self, device: DeviceId, volume: VolumeId) -> Result<Arc<Replica>, VolumeError> {
        let _making = self.making.lock().await;
        if let Some(replica) = self.known(|known| known.get(&(device, volume)).cloned()) {
            return Ok(replica);
        }
        let disk = self.disk(device)?;
        if is_gone(disk, volume)? {
            return Err(Refusal::Out.into());
        }
        let label = MemberLabel { volume, generation: 1, whole: true, turns: Vec::new(), end: 0 };
        let replica = Arc::new(Replica::open(disk.clone(), label)?);
        replica.found().await?;
        self.known(|known| known.insert((device, volume), Arc::clone(&replica)));
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
            replica.end().await?;
            self.take_left(device, &replica);
        }
        let (_, old) = labels_of(disk)?;
        for id in old {
            Seat::open(disk.clone(), id)?.label(None).await?;
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).push((disk.clone(), id));
        }
        Ok(())
    }

    fn take_left(&self, device: DeviceId, replica: &Replica) {
        let Ok(disk) = self.disk(device) else { return };
        let left = replica.left().into_iter().map(|id| (disk.clone(), id));
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
    }

    /// One step of giving back the space of what is void; false: there is none left.
    pub async fn reap(&self) -> Result<bool, DiskError> {
        for ((device, _), replica) in self.known(|known| known.clone()) {
            self.take_left(device, &replica);
        }
        let next = self.gone.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
        let Some((disk, id)) = next else { return Ok(false) };
        if reap(&disk, id, REAPED).await? < REAPED {
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, gone)| *gone != id);
        }
        Ok(true)
    }
}

fn is_gone(disk: &DiskHandle, volume: VolumeId) -> Result<bool, VolumeError> {
    let known = notes(disk, Some(volume))?;
    Ok(known.iter().any(|note| note.key.tag == NoteTag::Volume && note.gone))
}
