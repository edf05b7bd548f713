//! One disk's member of a volume that has several: what a head asks of it, carried out on a seat.
//!
//! What it has lies under an id of its own ([`MemberLabel::id`]). A member that went another way than the others, or that
//! is not whole and was left so, begins anew under the next id, empty; what it had is void when it is whole again (`former.rs`). Where its disk
//! takes no more volumes it does not begin: it stays what it is.
//!
//! Invariant: a session begins with a promise, and what was asked in another one is not done.
//! Invariant: a session has one beginning, of the order or of being filled, and takes no write before it: messages that overtake
//! each other or come twice change nothing.
//! Invariant: a member that is not whole says what it had acknowledged when it was whole last, for acknowledgements were counted on that.
//! Invariant: what came to a member beside the beginning that it kept is of the order of one head. The same head may go on with it, for its order
//! only grows; another one may have gone another way.
//! Invariant: what is said of the member's history is durable before it is answered.
//! Invariant: while a promise is being made, nothing else gets a place in the order. The same head is refused another one: each that it gave up
//! while the disk hung would be made all the same, one after the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quarry_engine::block::{Fence, Layer, NoteTag, Position, Run, VolumeId, is_thinned};
use quarry_engine::disk::{DiskError, DiskHandle};
use quarry_engine::net::{BlockWrite, TurnFields, VolumeAnswer, VolumeCall};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::device::length_of;
use super::error::VolumeError;
use super::fork::{below_of, eras_needed};
use super::former::Generations;
use super::label::{MemberLabel, encode_promise};
use super::lineage::Thinning;
use super::rows::{read_run, rows};
use super::seat::Seat;
use crate::head::{History, NO_SEQUENCE, Turn};
use crate::member::Refusal;

/// A member on a disk.
#[derive(Debug)]
pub(super) struct Replica {
    life: RwLock<Life>,
    /// Told when a write has its place.
    moved: Notify,
    /// Held while a member of a clone is made, and while it is settled which eras go.
    given: tokio::sync::Mutex<Given>,
    /// Ids under which it began anew and was not filled to the end: what is there is to be given back.
    ended: Mutex<Vec<VolumeId>>,
    /// Heads whose promise is being made.
    promising: Mutex<Vec<Fence>>,
}

/// A promise on its way.
struct Promising<'a> {
    all: &'a Mutex<Vec<Fence>>,
    fence: Fence,
}

impl Drop for Promising<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|under_way| *under_way != self.fence);
    }
}

/// Eras that go: a clone as of one of them comes too late.
#[derive(Debug, Default)]
pub(super) struct Given {
    up: BTreeSet<u32>,
    /// Some stay for clones alone. What was asked is done again when one of those is gone: the views, and the present era.
    owed: Option<(Vec<u32>, u32)>,
}

impl Given {
    pub(super) fn is_up(&self, era: u32) -> bool {
        self.up.contains(&era)
    }
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It was promised, and nothing else.
    Promised,
    /// Writes follow in order.
    Begun,
    /// They do, and rows of others beside them.
    Filling,
}

#[derive(Debug)]
pub(super) struct Life {
    pub(super) seat: Arc<Seat>,
    /// Of a clone: what lies below it on this disk, nearest first.
    pub(super) below: Vec<Layer>,
    pub(super) label: MemberLabel,
    /// 0: none yet.
    session: u64,
    stage: Stage,
    /// What was answered with the last promise.
    last: Position,
    /// Under whom it was sent what it has beside the beginning that it kept.
    pub(super) filled_by: Option<Fence>,
    pub(super) generations: Generations,
}

fn fields(turns: &[Turn]) -> Vec<TurnFields> {
    turns.iter().map(|turn| (turn.epoch, turn.base)).collect()
}

fn turns_of(fields: &[TurnFields]) -> Vec<Turn> {
    fields.iter().map(|&(epoch, base)| Turn { epoch, base }).collect()
}

impl Life {
    /// It follows the order, and has all of it.
    pub(super) fn follows(&self) -> Result<(), Refusal> {
        if self.stage == Stage::Begun && self.label.whole { Ok(()) } else { Err(Refusal::NotBegun) }
    }

    fn in_session(&self, session: u64) -> Result<(), Refusal> {
        if session == self.session && session != 0 { Ok(()) } else { Err(Refusal::NotPromised) }
    }

    async fn promise(&mut self, fence: Fence) -> Result<VolumeAnswer, VolumeError> {
        // A head that is fenced ends no session, and voids nothing that was sent in it.
        self.seat.is_fenced(fence)?;
        // From here on no other session is heard, whatever becomes of this one.
        self.session = 0;
        self.stage = Stage::Promised;
        self.turn_back().await?;
        let (last, session) = self.seat.promise(fence, &encode_promise(fence)).await?;
        (self.session, self.last) = (session, last);
        let history = self.history();
        let (turns, end) = (fields(history.turns()), history.end());
        let MemberLabel { whole, kept, .. } = self.label;
        Ok(VolumeAnswer::Promised { session, turns, end, whole, kept })
    }

    /// What it has, as of its last promise; of a member that is not whole, what it had.
    pub(super) fn history(&self) -> History {
        let turns = self.label.turns.clone();
        if !self.label.whole {
            return History::new(turns, self.label.end).unwrap_or_else(|| History::unknown(self.last));
        }
        let end = match turns.last() {
            // Its last head has written nothing here. Whatever is behind where that began is of an order that was left, by decision.
            Some(turn) if self.last.epoch < turn.epoch => turn.base.min(self.last.sequence),
            _ => self.last.sequence,
        };
        // A turn whose writes were lost is none.
        let known = History::new(turns, NO_SEQUENCE - 1).map(|known| known.until(end));
        let known = known.filter(|known| end == 0 || !known.turns().is_empty());
        known.unwrap_or_else(|| History::unknown(self.last))
    }

    /// Begins what a session does once.
    fn enter(&mut self, stage: Stage) -> Result<(), Refusal> {
        if self.stage != Stage::Promised {
            return Err(Refusal::Elsewhere(self.last));
        }
        self.stage = stage;
        Ok(())
    }

    pub(super) async fn note(&self) -> Result<(), VolumeError> {
        self.seat.note_down(NoteTag::Member, &self.label.encode()).await
    }

    async fn begin(
        &mut self,
        fence: Fence,
        turns: &[TurnFields],
        end: u64,
    ) -> Result<VolumeAnswer, VolumeError> {
        self.seat.admit(fence)?;
        if !self.label.whole {
            return self.begin_as_it_is(fence, turns, end).await;
        }
        if end != self.history().end() {
            return Err(Refusal::Elsewhere(self.last).into());
        }
        self.enter(Stage::Begun)?;
        self.label.turns = turns_of(turns);
        self.note().await?;
        if end == self.last.sequence {
            self.seat.begin(fence, self.last)?;
        } else {
            self.seat.begin_after(fence, end).await?;
        }
        Ok(done(&self.seat))
    }

    /// Not whole, and yet the volume: an operator has decided so. Writes that it was sent of later ones count less than all that come.
    /// One that was emptied is no volume, whoever says so.
    async fn begin_as_it_is(
        &mut self,
        fence: Fence,
        turns: &[TurnFields],
        end: u64,
    ) -> Result<VolumeAnswer, VolumeError> {
        counted(end)?;
        if end != self.label.end || !self.label.kept {
            return Err(Refusal::Elsewhere(self.last).into());
        }
        self.enter(Stage::Begun)?;
        (self.label.whole, self.label.turns, self.label.end) = (true, turns_of(turns), 0);
        self.filled_by = None;
        self.note().await?;
        self.seat.begin_after(fence, end).await?;
        Ok(VolumeAnswer::Done)
    }

    async fn fill(&mut self, fence: Fence, common: u64, after: u64) -> Result<VolumeAnswer, VolumeError> {
        self.seat.admit(fence)?;
        counted(after)?;
        self.enter(Stage::Filling)?;
        let had = self.history();
        let again = self.filled_by == Some(fence);
        // One that has nothing begins anew as well: what it was sent is void when it is not filled to the end.
        let goes_on = had.end() == common && common > 0 && (self.label.whole || again);
        // What it lacks of what it has kept is little, as a rule. Of all there is no room, and what it has does not go for it.
        if !goes_on && self.seat.takes_no_volume() {
            self.stage = Stage::Promised;
            return Ok(VolumeAnswer::Tight);
        }
        if goes_on {
            (self.label.whole, self.label.turns, self.label.end) = (false, had.turns().to_vec(), had.end());
            self.filled_by = Some(fence);
            self.note().await?;
        } else {
            self.begin_anew(fence).await?;
        }
        self.seat.begin_after(fence, after).await?;
        Ok(VolumeAnswer::Filling(if goes_on { common } else { 0 }))
    }

    async fn join(&mut self, fence: Fence, turns: &[TurnFields]) -> Result<VolumeAnswer, VolumeError> {
        self.seat.admit(fence)?;
        if self.stage != Stage::Filling {
            return Err(Refusal::NotBegun.into());
        }
        self.seat.settle().await?;
        (self.label.whole, self.label.turns, self.label.end) = (true, turns_of(turns), 0);
        (self.label.kept, self.label.former) = (true, None);
        self.note().await?;
        (self.generations.former, self.filled_by) = (None, None);
        self.stage = Stage::Begun;
        Ok(done(&self.seat))
    }
}

impl Replica {
    /// A member as its disk tells, or a new one; `begun`: the highest number of a generation that was given.
    pub(super) fn open(disk: DiskHandle, label: MemberLabel, begun: u32) -> Result<Self, VolumeError> {
        let seat = Arc::new(Seat::open(disk, label.id())?);
        let below = below_of(&seat)?;
        let life = Life {
            seat,
            below,
            label,
            session: 0,
            stage: Stage::Promised,
            last: Position::default(),
            filled_by: None,
            generations: Generations { begun, ..Generations::default() },
        };
        Ok(Self::of_life(life))
    }

    /// The same, with a generation that was not filled to the end when it was left.
    pub(super) fn with_astray(self, id: VolumeId) -> Result<Self, VolumeError> {
        let mut life = self.into_life();
        life.generations.astray = Some(Arc::new(Seat::open(life.seat.disk().clone(), id)?));
        Ok(Self::of_life(life))
    }

    /// Ids that are void since this was asked last.
    pub(super) fn ended(&self) -> Vec<VolumeId> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down that it is there, with nothing in it.
    pub(super) async fn found(&self) -> Result<(), VolumeError> {
        self.life.read().await.note().await
    }

    /// No head is heard any more.
    pub(super) async fn end(&self) {
        let mut life = self.life.write().await;
        life.session = 0;
        if let Err(error) = life.seat.settle().await {
            tracing::debug!(%error, "end a member of a volume");
        }
        drop(life);
        self.moved.notify_waiters();
    }

    /// Waits until a write has its place; whoever waits no longer is dropped.
    pub(super) async fn reached(
        &self,
        session: u64,
        sequence: u64,
    ) -> Result<(Arc<Seat>, Vec<Layer>), VolumeError> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let life = self.life.read().await;
                life.in_session(session)?;
                if life.seat.has_reached(sequence) {
                    return Ok((Arc::clone(&life.seat), life.below.clone()));
                }
            }
            moved.await;
        }
    }

    fn promising(&self, fence: Fence) -> Result<Promising<'_>, Refusal> {
        let mut all = self.promising.lock().unwrap_or_else(PoisonError::into_inner);
        if all.contains(&fence) {
            return Err(Refusal::Busy);
        }
        all.push(fence);
        Ok(Promising { all: &self.promising, fence })
    }

    /// Carries out what a head asks. To be driven to its end, but for flushes and reads.
    pub(super) async fn carry_out(
        &self,
        fence: Fence,
        session: u64,
        call: VolumeCall,
    ) -> Result<VolumeAnswer, VolumeError> {
        match call {
            VolumeCall::Promise => {
                let _promising = self.promising(fence)?;
                let mut life = self.life.write().await;
                let answer = life.promise(fence).await;
                self.ended.lock().unwrap_or_else(PoisonError::into_inner).append(&mut life.generations.ended);
                drop(life);
                self.moved.notify_waiters();
                answer
            }
            VolumeCall::Begin { turns, end } => self.alone(session).await?.begin(fence, &turns, end).await,
            VolumeCall::Fill { common, after } => self.alone(session).await?.fill(fence, common, after).await,
            VolumeCall::Join { turns, .. } => self.alone(session).await?.join(fence, &turns).await,
            VolumeCall::Write { writes, data, flush } => {
                let seat = self.write(fence, session, writes, data).await?;
                if flush {
                    seat.flush(fence).await?;
                }
                Ok(done(&seat))
            }
            VolumeCall::Put { rows, data } => match self.put(fence, session, rows, data).await {
                Err(VolumeError::Disk(DiskError::NoSpace)) => Ok(VolumeAnswer::Tight),
                answer => answer,
            },
            VolumeCall::Flush(sequence) => {
                let (seat, _) = self.reached(session, sequence).await?;
                seat.flush(fence).await?;
                Ok(VolumeAnswer::Done)
            }
            VolumeCall::Confirm => {
                let life = self.life.read().await;
                life.in_session(session)?;
                life.seat.admit(fence)?;
                Ok(done(&life.seat))
            }
            VolumeCall::Read { run, at, era } => {
                let (seat, below) = self.reached(session, at).await?;
                read_run(&seat, below, fence, run, era).await
            }
            VolumeCall::Rows { from, above, data, era, since } => {
                let (seat, below) = self.reached(session, 0).await?;
                seat.admit(fence)?;
                seat.settle().await?;
                let wanted = |at: Position, of: u32| at.sequence > above && of >= since;
                rows(&seat, &below, from, data, era, wanted).await
            }
            VolumeCall::Thin { views, era, at } => {
                let (seat, _) = self.reached(session, at).await?;
                seat.admit(fence)?;
                seat.settle().await?;
                self.thin(&seat, views, era).await?;
                Ok(VolumeAnswer::Done)
            }
            VolumeCall::TakeOver { from, oldest } => self.take_over(fence, session, from, oldest).await,
            // Not asked of a member, or not of it alone.
            VolumeCall::Delete
            | VolumeCall::Copy { .. }
            | VolumeCall::Fork { .. }
            | VolumeCall::List { .. }
            | VolumeCall::View { .. } => Err(Refusal::NotPromised.into()),
        }
    }

    pub(super) async fn alone(&self, session: u64) -> Result<RwLockWriteGuard<'_, Life>, Refusal> {
        let life = self.life.write().await;
        life.in_session(session)?;
        Ok(life)
    }

    /// While this is held no other session begins.
    pub(super) async fn held(&self, session: u64) -> Result<RwLockReadGuard<'_, Life>, Refusal> {
        let life = self.life.read().await;
        life.in_session(session)?;
        Ok(life)
    }

    pub(super) async fn look(&self) -> RwLockReadGuard<'_, Life> {
        self.life.read().await
    }

    pub(super) fn into_life(self) -> Life {
        self.life.into_inner()
    }

    pub(super) fn of_life(life: Life) -> Self {
        let (moved, given) = (Notify::new(), tokio::sync::Mutex::default());
        let (ended, promising) = (Mutex::default(), Mutex::default());
        Self { life: RwLock::new(life), moved, given, ended, promising }
    }

    /// While this is held no era goes.
    pub(super) async fn given(&self) -> tokio::sync::MutexGuard<'_, Given> {
        self.given.lock().await
    }

    /// Gives back what neither a view nor a clone on this disk sees.
    async fn thin(&self, seat: &Seat, mut views: Vec<u32>, present: u32) -> Result<(), VolumeError> {
        let gone: Vec<u32> = {
            let mut given = self.given.lock().await;
            let needed = eras_needed(seat)?;
            let only_clones = |era: &u32| *era < present && !views.contains(era);
            given.owed = needed.iter().any(only_clones).then(|| (views.clone(), present));
            // The present era is a view as well: it may have become a snapshot's since its head said so.
            views.extend(needed.into_iter().filter(|era| *era < present).chain([present]));
            views.sort_unstable();
            views.dedup();
            let gone = (0..present).filter(|era| !views.contains(era)).collect();
            given.up.extend(&gone);
            gone
        };
        thin_all(seat, &views, gone).await
    }

    /// Gives back what stayed for clones that are gone.
    pub(super) async fn thin_again(&self) -> Result<(), VolumeError> {
        let owed = self.given.lock().await.owed.clone();
        let Some((views, present)) = owed else { return Ok(()) };
        let seat = Arc::clone(&self.look().await.seat);
        self.thin(&seat, views, present).await
    }

    async fn write(
        &self,
        fence: Fence,
        session: u64,
        writes: Vec<BlockWrite>,
        data: Bytes,
    ) -> Result<Arc<Seat>, VolumeError> {
        let mut placed = Vec::with_capacity(writes.len());
        let mut data = data;
        let seat = {
            let life = self.life.read().await;
            life.in_session(session)?;
            if life.stage == Stage::Promised {
                return Err(Refusal::NotBegun.into());
            }
            for BlockWrite { position, run, era, zeroes } in writes {
                counted(position.sequence)?;
                let bytes = payload(&mut data, &run, zeroes)?;
                placed.push(life.seat.put_at(fence, position.sequence, run, era, bytes).await?);
            }
            Arc::clone(&life.seat)
        };
        self.moved.notify_waiters();
        for one in placed {
            seat.finish(one, false).await?;
        }
        Ok(seat)
    }

    async fn put(
        &self,
        fence: Fence,
        session: u64,
        rows: Vec<BlockWrite>,
        data: Bytes,
    ) -> Result<VolumeAnswer, VolumeError> {
        let life = self.life.read().await;
        life.in_session(session)?;
        life.seat.admit(fence)?;
        if life.stage != Stage::Filling {
            return Err(Refusal::NotBegun.into());
        }
        // A whole volume is not to take the room of those that are here: clients would write no more to any of them.
        if !(life.label.kept && life.label.end > 0) && life.seat.takes_no_volume() {
            return Ok(VolumeAnswer::Tight);
        }
        let mut data = data;
        let mut submitted = Vec::with_capacity(rows.len());
        life.seat.raise(rows.iter().map(|row| row.era).max().unwrap_or(0)).await?;
        for BlockWrite { position, run, era, zeroes } in rows {
            counted(position.sequence)?;
            let bytes = payload(&mut data, &run, zeroes)?;
            submitted.push(life.seat.take_row(fence, position, run, era, bytes).await?);
        }
        for one in submitted {
            one.done().await?;
        }
        Ok(VolumeAnswer::Done)
    }
}

/// It is done; and is there room for more?
fn done(seat: &Seat) -> VolumeAnswer {
    if seat.is_tight() { VolumeAnswer::Tight } else { VolumeAnswer::Done }
}

/// Nothing has come so far; who says so is broken, and what it says would be counted on from here.
fn counted(sequence: u64) -> Result<(), Refusal> {
    if sequence < NO_SEQUENCE { Ok(()) } else { Err(Refusal::Elsewhere(Position { epoch: 0, sequence })) }
}

/// The next run's bytes; `None`: zeroes.
fn payload(data: &mut Bytes, run: &Run, zeroes: bool) -> Result<Option<Bytes>, VolumeError> {
    let length = length_of(run.bytes());
    if zeroes {
        return Ok(None);
    }
    if data.len() < length {
        return Err(VolumeError::Range(crate::geometry::SplitError::Empty { offset: 0 }));
    }
    Ok(Some(data.split_to(length)))
}

/// Gives back what no view sees of eras that have gone. A view that is not known yet is of a later era than all of these.
async fn thin_all(seat: &Seat, views: &[u32], gone: Vec<u32>) -> Result<(), VolumeError> {
    for era in gone {
        if is_thinned(seat.disk(), seat.volume(), era)? {
            continue;
        }
        let mut job = Thinning::new(seat.volume(), era);
        while !job.step(seat.disk(), views).await? {}
    }
    Ok(())
}

/// What a head is told of an error.
pub(super) fn answer_of(result: Result<VolumeAnswer, VolumeError>) -> VolumeAnswer {
    match result {
        Ok(answer) => answer,
        Err(VolumeError::Refused(refusal)) => refused(refusal),
        Err(VolumeError::Disk(DiskError::Corrupt { .. } | DiskError::Io { .. })) => VolumeAnswer::Unreadable,
        Err(error) => {
            tracing::warn!(%error, "serve a member of a volume");
            refused(Refusal::Out)
        }
    }
}

/// A refusal as it travels. Numbers are for ever.
pub(super) fn refused(refusal: Refusal) -> VolumeAnswer {
    match refusal {
        Refusal::Fenced(Fence { epoch, configuration }) => {
            VolumeAnswer::Refused(1, epoch, configuration.into())
        }
        Refusal::NotPromised => VolumeAnswer::Refused(2, 0, 0),
        Refusal::NotBegun => VolumeAnswer::Refused(3, 0, 0),
        Refusal::Elsewhere(Position { epoch, sequence }) => VolumeAnswer::Refused(4, epoch, sequence),
        Refusal::OutOfOrder(next) => VolumeAnswer::Refused(5, next, 0),
        Refusal::Busy => VolumeAnswer::Refused(6, 0, 0),
        Refusal::Out => VolumeAnswer::Refused(7, 0, 0),
    }
}

/// The refusal that travelled; what is unknown is taken for the worst.
pub(super) fn refusal_of(why: u8, one: u64, two: u64) -> Refusal {
    match why {
        1 => Refusal::Fenced(Fence { epoch: one, configuration: u32::try_from(two).unwrap_or(u32::MAX) }),
        2 => Refusal::NotPromised,
        3 => Refusal::NotBegun,
        4 => Refusal::Elsewhere(Position { epoch: one, sequence: two }),
        5 => Refusal::OutOfOrder(one),
        6 => Refusal::Busy,
        _ => Refusal::Out,
    }
}
