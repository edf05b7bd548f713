//! Clones of volumes that have several members: each member of the clone is made where the parent's member is, and shares its blocks.
//!
//! A clone is a volume of its own, with an order of its own. The first write of that order, which nobody asked for, is the first block as
//! the snapshot has it: who lacks it has nothing of the clone, is no beginning of its order, and is filled with all that the clone sees.
//!
//! Invariant: a member of a clone is made by a member of the parent that follows the parent's order and has all up to the snapshot's end,
//! durably. From then on the parent's member may go another way, begin anew or be deleted: what the clone sees of it stays on the disk,
//! under the id that it had, and goes when no clone needs it any more.
//! Invariant: of the parent's eras those that a clone on the disk sees stay, whether the parent still has such a snapshot or not; and no member
//! of a clone is made as of an era that goes, however late it is asked for.
//! Invariant: a member that was cut off in being made is not whole, and never a base.
//! Invariant: taking over changes nothing that anybody sees: what lies below comes into the era 0 as the first write's, and newer writes hide
//! it, whichever comes first.
//! Invariant: who has taken over has a row of its own wherever there is one below, zeroes included: its own clones on the disk go on looking
//! through it to what lies below, which changes from then on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use quarry_engine::block::{
    BlockPlace, Fence, Layer, Mapped, NoteTag, Position, Run, VolumeId, find, notes, read, walk,
};
use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::VolumeAnswer;

use super::error::VolumeError;
use super::label::{MemberLabel, Parent, encode_promise};
use super::members::{Members, is_gone};
use super::replica::{Life, Replica};
use super::rows::{LOOK, ROW_BYTES, after, layers, run_of, same};
use super::seat::Seat;
use crate::geometry::{ChunkId, SliceId};
use crate::head::Turn;
use crate::member::Refusal;

/// The place of a clone's first write in its order. Its heads have later epochs.
pub(super) const FIRST: Position = Position { epoch: 1, sequence: 1 };
/// Under which it is written.
const FENCE: Fence = Fence { epoch: FIRST.epoch, configuration: 1 };
pub(super) const FIRST_BLOCK: Run = Run { slice: SliceId(0), chunk: ChunkId(0), first: 0, blocks: 1 };

/// What lies below a seat on its disk, nearest first.
pub(super) fn below_of(seat: &Seat) -> Result<Vec<Layer>, VolumeError> {
    let (mut layers, mut next) = (Vec::new(), seat.parent());
    while let Some(Parent { volume, era }) = next {
        layers.push(Layer { volume, era });
        let known = notes(seat.disk(), Some(volume))?;
        let parent = known.iter().find(|note| note.key.tag == NoteTag::Parent && !note.gone);
        next = parent.map(|note| Parent::decode(&note.meta)).transpose()?;
    }
    Ok(layers)
}

/// Eras of a seat that clones on its disk see.
pub(super) fn eras_needed(seat: &Seat) -> Result<Vec<u32>, VolumeError> {
    let all = notes(seat.disk(), None)?;
    let is_gone = |id| {
        let mut ends = all.iter().filter(|note| note.key.tag == NoteTag::Volume && note.gone);
        ends.any(|note| note.key.volume == id)
    };
    let mut eras = Vec::new();
    for note in all.iter().filter(|note| note.key.tag == NoteTag::Parent && !note.gone) {
        let parent = Parent::decode(&note.meta)?;
        if parent.volume == seat.volume() && !is_gone(note.key.volume) {
            eras.push(parent.era);
        }
    }
    Ok(eras)
}

/// The bytes of a run where all of it was written at once, and none of it zeroes; `None`: there is nothing, or zeroes.
async fn seen(disk: &DiskHandle, layers: &[Layer], run: &Run) -> Result<Option<bytes::Bytes>, VolumeError> {
    let (found, _pins) = find(disk, layers, run)?;
    match found.first().filter(|first| !first.row.is_zeroes()) {
        Some(_) => Ok(Some(read(disk, &found).await?)),
        None => Ok(None),
    }
}

impl Life {
    /// Begins as a snapshot is.
    async fn descend(&mut self, parent: Parent) -> Result<(), VolumeError> {
        // Not whole for as long as this takes.
        self.note().await?;
        self.seat.descend(Some(parent)).await?;
        self.below = below_of(&self.seat)?;
        let first = seen(self.seat.disk(), &self.below, &FIRST_BLOCK).await?;
        let (last, _) = self.seat.promise(FENCE, &encode_promise(FENCE)).await?;
        self.seat.begin(FENCE, last)?;
        let placed = self.seat.put_at(FENCE, FIRST.sequence, FIRST_BLOCK, 0, first).await?;
        self.seat.finish(placed, true).await?;
        self.label.turns = vec![Turn { epoch: FIRST.epoch, base: 0 }];
        self.label.whole = true;
        self.note().await
    }
}

impl Replica {
    /// A member of a clone.
    async fn forked(disk: DiskHandle, clone: VolumeId, parent: Parent) -> Result<Self, VolumeError> {
        let label = MemberLabel {
            volume: clone,
            generation: 1,
            whole: false,
            turns: Vec::new(),
            end: 0,
            kept: true,
            former: None,
        };
        let mut life = Self::open(disk, label, 1)?.into_life();
        life.descend(parent).await?;
        Ok(Self::of_life(life))
    }

    /// Has for itself some of what it sees of the volume below; when that was all, it needs that volume no more.
    pub(super) async fn take_over(
        &self,
        fence: Fence,
        session: u64,
        from: BlockPlace,
        oldest: u32,
    ) -> Result<VolumeAnswer, VolumeError> {
        let next = {
            let life = self.held(session).await?;
            life.seat.admit(fence)?;
            life.follows()?;
            // Its own clones see it as of eras of which there may be no snapshot any more.
            let oldest = eras_needed(&life.seat)?.into_iter().fold(oldest, u32::min);
            if life.below.is_empty() { None } else { take_some(&life, fence, from, oldest).await? }
        };
        if next.is_none() {
            let mut life = self.alone(session).await?;
            if !life.below.is_empty() {
                life.seat.descend(None).await?;
                life.below = Vec::new();
            }
        }
        Ok(VolumeAnswer::Rows { rows: Vec::new(), next, data: bytes::Bytes::new() })
    }
}

/// Copies what is seen of the layers below from a place on; the place where to go on.
async fn take_some(
    life: &Life,
    fence: Fence,
    from: BlockPlace,
    oldest: u32,
) -> Result<Option<BlockPlace>, VolumeError> {
    let seat = &life.seat;
    seat.settle().await?;
    let layers = layers(seat, &life.below, oldest);
    let (mapped, all) = walk(seat.disk(), &layers, from, (LOOK / layers.len()).max(1))?;
    let mut next = mapped.last().filter(|_| !all).map(|last| after(last.place));
    let below = |block: &Mapped| block.volume != seat.volume();
    let (mut submitted, mut bytes, mut rest) = (Vec::new(), 0, mapped.as_slice());
    while let Some(first) = rest.first() {
        if bytes >= ROW_BYTES {
            next = Some(first.place);
            break;
        }
        let (group, behind) = rest.split_at(same(rest));
        rest = behind;
        let Some(run) = run_of(group).filter(|_| below(first)) else { continue };
        // Found again, and held while it is read.
        let (now, _pins) = find(seat.disk(), &layers, &run)?;
        let mut now = now.as_slice();
        while let Some(first) = now.first() {
            let (group, behind) = now.split_at(same(now));
            now = behind;
            let Some(run) = run_of(group).filter(|_| below(first)) else { continue };
            let mut data = None;
            if !first.row.is_zeroes() {
                data = Some(read(seat.disk(), group).await?);
                bytes += run.bytes();
            }
            submitted.push(seat.take_row(fence, FIRST, run, 0, data).await?);
        }
    }
    for one in submitted {
        one.done().await?;
    }
    Ok(next)
}

impl Members {
    /// Has the member of a clone beside its parent's.
    pub(super) async fn fork(
        &self,
        device: DeviceId,
        parent: &Replica,
        under: (Fence, u64),
        call: (VolumeId, u32, u64),
    ) -> Result<VolumeAnswer, VolumeError> {
        let ((fence, session), (clone, era, at)) = (under, call);
        parent.reached(session, at).await?;
        let _making = self.making().lock().await;
        // Held to the end: the parent's member does not begin anew meanwhile, and what it had is needed from then on.
        let life = parent.held(session).await?;
        life.seat.admit(fence)?;
        life.follows()?;
        let disk = self.disk(device)?;
        if is_gone(disk, clone)? {
            return Err(Refusal::Out.into());
        }
        let above = Parent { volume: life.seat.volume(), era };
        if let Some(known) = self.member(device, clone) {
            // The same message came before.
            return if known.is_fork_of(above).await {
                Ok(VolumeAnswer::Done)
            } else {
                Err(Refusal::NotBegun.into())
            };
        }
        let given = parent.given().await;
        if given.is_up(era) {
            return Err(Refusal::NotBegun.into());
        }
        life.seat.settle().await?;
        let replica = Replica::forked(disk.clone(), clone, above).await?;
        self.enter(device, clone, Arc::new(replica));
        Ok(VolumeAnswer::Done)
    }

    /// Ends, on a disk, what is no member any more and no clone needs.
    pub(super) async fn drop_orphans(&self, device: DeviceId) -> Result<(), VolumeError> {
        let _making = self.making().lock().await;
        self.drop_orphans_of(self.disk(device)?).await
    }

    /// The same, with the making of members held.
    pub(super) async fn drop_orphans_of(&self, disk: &DiskHandle) -> Result<(), VolumeError> {
        loop {
            let orphans = orphans(disk)?;
            if orphans.is_empty() {
                return Ok(());
            }
            // What one of them was a clone of may be needed no more.
            for id in orphans {
                Seat::open(disk.clone(), id)?.label(None).await?;
                self.void(disk, id);
            }
        }
    }
}

impl Replica {
    async fn is_fork_of(&self, parent: Parent) -> bool {
        let life = self.look().await;
        life.label.whole && life.seat.parent() == Some(parent)
    }
}

/// Ids on a disk under which there is what is no member any more, and what no clone on it needs.
fn orphans(disk: &DiskHandle) -> Result<Vec<VolumeId>, VolumeError> {
    let all = notes(disk, None)?;
    let gone: HashSet<VolumeId> = all
        .iter()
        .filter(|note| note.key.tag == NoteTag::Volume && note.gone)
        .map(|note| note.key.volume)
        .collect();
    let (mut members, mut needed) = (Vec::new(), HashSet::new());
    let mut newest: HashMap<VolumeId, (u32, Option<u32>)> = HashMap::new();
    for note in all.iter().filter(|note| !note.gone && !gone.contains(&note.key.volume)) {
        match note.key.tag {
            NoteTag::Parent => drop(needed.insert(Parent::decode(&note.meta)?.volume)),
            NoteTag::Member => {
                let label = MemberLabel::decode(&note.meta)?;
                if !gone.contains(&label.volume) {
                    let known = newest.entry(label.volume).or_default();
                    *known = (label.generation, label.former).max(*known);
                }
                members.push(label);
            }
            _ => {}
        }
    }
    // What began anew is not whole yet: what it was is the member.
    let is_one = |label: &MemberLabel| {
        let known = newest.get(&label.volume);
        known.is_some_and(|&(newest, former)| label.generation == newest || Some(label.generation) == former)
    };
    members.retain(|label| !is_one(label) && !needed.contains(&label.id()));
    Ok(members.into_iter().map(|label| label.id()).collect())
}
