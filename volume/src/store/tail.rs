//! Writes on a seat: answered once they have their place in the log's queue, durable some time later, in order.
//!
//! A write is written and flushed by the disk at once, in case that its client flushes next. Where nobody has asked for that for
//! some writes, it goes with others that come within milliseconds: on a disk that flushes fast, a batch would be a few writes
//! otherwise, and most of what they cost. Whoever waits for one hastens them.
//!
//! Nobody is woken when a write becomes durable. Who writes next, flushes, or waits for room looks at what has ended. A flush waits
//! for the log alone: what the index does not have yet is read from the overlay.
//!
//! Invariant: a write is answered early only where free segments hold all that is queued. Elsewhere, as on a disk that is nearly
//! full, it is answered when it is durable: a write that was answered is never refused afterwards.
//! Invariant: a flush answers when all that was accepted before it is durable, and fails if any of that failed; a seat that
//! failed refuses everything for good.
//! Invariant: what is not durable is bounded (`overlay.rs`), and who writes more waits.

use bytes::Bytes;
use quarry_engine::block::{Content, Extent, Fence, Run, data_record, extent_bytes, extent_record};
use quarry_engine::disk::format::record::NewRecord;
use quarry_engine::disk::{Class, DiskError, Durability, Durable, Lsn, Submitted};
use tokio::sync::oneshot;

use super::error::VolumeError;
use super::overlay::Seen;
use super::seat::{Seat, State};
use crate::member::{Action, Answer, Event, Refusal};

/// Writes after a flush that the disk begins with at once.
const EAGER: u32 = 8;

/// A write in the log's queue.
#[derive(Debug)]
pub(super) struct Late {
    sequence: u64,
    run: Run,
    submitted: Submitted,
    /// Who waits for its end, where it was not answered early.
    told: Option<oneshot::Sender<Result<(), DiskError>>>,
}

/// Where a write belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the present era, or with this sequence, in this era.
    Next(Option<(u64, u32)>),
    /// Under everything that the volume has of its own.
    Below,
}

/// A write that has its place.
#[derive(Debug)]
#[must_use]
pub struct Placed {
    sequence: u64,
    durability: Durable,
    end: Option<oneshot::Receiver<Result<(), DiskError>>>,
}

impl State {
    /// The oldest write has come to its end.
    fn ended(&mut self, late: Late, result: Result<Lsn, DiskError>) {
        let Late { sequence, run, told, .. } = late;
        let result = match (result, told) {
            (Ok(_), told) => {
                let _gone = told.map(|told| told.send(Ok(())));
                Ok(())
            }
            // Not logged, so not there; those behind it are. A client that is told so knows nothing of its blocks.
            (Err(DiskError::NoSpace), Some(told)) if !self.strict => {
                self.refused = sequence;
                let _gone = told.send(Err(DiskError::NoSpace));
                Ok(())
            }
            (Err(error), told) => {
                let _gone = told.map(|told| told.send(Err(error.clone())));
                Err(error)
            }
        };
        if let Err(error) = result {
            if !self.out {
                tracing::error!(%error, sequence, "a volume's write failed after its answer; the volume is out until a restart");
            }
            return self.fail();
        }
        self.overlay.remove(sequence, run);
        self.durable = sequence;
        self.step(Event::Flushed(sequence));
    }
}

impl Seat {
    /// Waits until all up to `sequence` is durable and in the index.
    pub(super) async fn settled(&self, sequence: u64) -> Result<(), VolumeError> {
        self.settled_soon(sequence, true).await
    }

    /// As [`Seat::settled`]; without hurry where the disk comes to it by itself.
    async fn settled_soon(&self, sequence: u64, hurry: bool) -> Result<(), VolumeError> {
        loop {
            if self.is_settled(sequence)? {
                return Ok(());
            }
            let mut front = self.front.lock().await;
            if self.is_settled(sequence)? {
                return Ok(());
            }
            if front.is_none() {
                *front = self.state().tail.pop_front();
            }
            if hurry {
                self.hasten();
            }
            let Some(late) = front.as_mut() else {
                drop(front);
                // A write has its sequence, and is about to get its place: who places it holds the order. Who waits here with
                // the order held never comes by, for then there is none.
                drop(self.order.lock().await);
                continue;
            };
            let result = late.submitted.wait().await;
            let mut state = self.state();
            if let Some(late) = front.take() {
                state.ended(late, result);
            }
            Self::take_ended(&mut state, &mut front);
        }
    }

    /// Waits until all up to the last write, or the one given, is durable: all that was answered early, for which the log has
    /// space for certain, is where the last of it is. Where something was not, each has to be asked.
    async fn logged(&self, sequence: u64, durability: Option<Durable>) -> Result<(), VolumeError> {
        let durability = {
            let mut state = self.state();
            state.unasked = 0;
            let state = &*state;
            let last = || state.last.as_ref().filter(|(last, _)| *last == sequence).map(|(_, it)| it.clone());
            let early = state.durable >= state.last_told;
            durability.or_else(last).filter(|_| early)
        };
        let Some(durability) = durability else { return self.settled(sequence).await };
        self.hasten();
        if !durability.wait().await {
            return self.settled(sequence).await;
        }
        self.reap();
        let mut state = self.state();
        if state.out {
            return Err(Refusal::Out.into());
        }
        state.step(Event::Flushed(sequence));
        Ok(())
    }

    /// What is in the log's queue is in a hurry from now on.
    fn hasten(&self) {
        let lazy = std::mem::take(&mut self.state().lazy);
        if lazy {
            self.disk.hasten();
        }
    }

    /// Waits until all up to `sequence`, of which a client is to be told, is durable.
    pub(super) async fn kept(&self, sequence: u64) -> Result<(), VolumeError> {
        self.logged(sequence, None).await
    }

    fn is_settled(&self, sequence: u64) -> Result<bool, VolumeError> {
        let state = self.state();
        if state.out { Err(Refusal::Out.into()) } else { Ok(state.durable >= sequence) }
    }

    /// Takes note of the oldest writes that have ended.
    fn take_ended(state: &mut State, front: &mut Option<Late>) {
        loop {
            if front.is_none() {
                *front = state.tail.pop_front();
            }
            let Some(result) = front.as_mut().and_then(|late| late.submitted.look()) else { return };
            if let Some(late) = front.take() {
                state.ended(late, result);
            }
        }
    }

    fn reap(&self) {
        // Who waits for the oldest one looks at the others as well.
        if let Ok(mut front) = self.front.try_lock() {
            Self::take_ended(&mut self.state(), &mut front);
        }
    }

    /// Waits until all that has its place is durable and in the index.
    pub(super) async fn settle(&self) -> Result<(), VolumeError> {
        let all = self.state().next - 1;
        self.settled(all).await
    }

    /// What writes that are not in the index yet hold of a run, and the era that writes belong to: all others, but for such as
    /// begin later, are of it or before.
    pub(super) fn late(&self, run: &Run) -> (Vec<Seen>, u32) {
        let state = self.state();
        (state.overlay.look(run), state.era)
    }

    /// The era that writes belong to.
    pub(super) fn era(&self) -> u32 {
        self.state().era
    }

    /// That the next write gets.
    pub(super) fn next_sequence(&self) -> u64 {
        self.state().next
    }

    /// Whether there was no space for a write from `sequence` on, of those that have come to their end.
    pub(super) fn refused_since(&self, sequence: u64) -> bool {
        self.state().refused >= sequence
    }

    /// Waits until a write of so many bytes may come; with the order held.
    async fn make_room(&self, bytes: u64) -> Result<(), VolumeError> {
        loop {
            let (oldest, heavy) = {
                let state = self.state();
                if state.overlay.has_room(bytes) {
                    return Ok(());
                }
                (state.durable + 1, state.overlay.is_heavy())
            };
            // A flush for less than the disk would take into one is time in which it writes nothing.
            self.settled_soon(oldest, !heavy).await?;
        }
    }

    /// Puts one write to one chunk into the log's queue; `None`: zeroes. Reads see it from then on.
    pub async fn put(&self, fence: Fence, run: Run, data: Option<Bytes>) -> Result<Placed, VolumeError> {
        self.put_in(fence, run, data, Place::Next(None)).await
    }

    /// Puts what is seen through the volume below the oldest of its own, where no view has anything of its own: what is read
    /// stays the same.
    pub(super) async fn put_below(
        &self,
        fence: Fence,
        run: Run,
        data: Option<Bytes>,
    ) -> Result<Placed, VolumeError> {
        self.put_in(fence, run, data, Place::Below).await
    }

    /// As [`Seat::put`], of a write whose sequence somebody else gave: it is the next one, or refused.
    pub(super) async fn put_at(
        &self,
        fence: Fence,
        sequence: u64,
        run: Run,
        era: u32,
        data: Option<Bytes>,
    ) -> Result<Placed, VolumeError> {
        self.raise(era).await?;
        self.put_in(fence, run, data, Place::Next(Some((sequence, era)))).await
    }

    async fn put_in(
        &self,
        fence: Fence,
        run: Run,
        data: Option<Bytes>,
        place: Place,
    ) -> Result<Placed, VolumeError> {
        let full = self.disk.above_high_water();
        // A head has given places to writes that it knew no better of: they fit, below the mark at which it heard of it.
        if full && data.is_some() && !matches!(place, Place::Next(Some(_))) {
            return Err(DiskError::NoSpace.into());
        }
        if place != Place::Below {
            self.disk.count_call();
        }
        self.reap();
        let mut order = self.order.lock().await;
        self.is_next(place)?;
        self.make_room(data.as_ref().map_or(0, |data| data.len() as u64)).await?;
        // What makes room must go where the disk is full.
        let class = if full && data.is_none() { Class::Delete } else { Class::Client };
        if class != order.class {
            self.settle().await?;
            order.class = class;
        }
        let blocks = if data.is_some() { run.blocks } else { 0 };
        let room = self.disk.room(extent_bytes(blocks), class).await;
        // Nothing waits from here on, so that no sequence is without its record.
        let early = self.disk.has_slack();
        let sequence = self.accept(fence)?;
        let era = match place {
            Place::Below => 0,
            Place::Next(Some((_, era))) => era,
            Place::Next(None) => order.era,
        };
        let record = self.record(fence, run, sequence, era, data.clone());
        let lazy = early && place != Place::Below && self.state().unasked >= EAGER;
        let durability = if lazy { Durability::Lazy } else { Durability::Durable };
        let submitted = self.disk.submit_now(record, durability, room);
        let mut state = self.state();
        state.unasked = state.unasked.saturating_add(1);
        state.lazy |= lazy;
        let submitted = submitted.inspect_err(|_| state.fail())?;
        let durability = submitted.durability();
        let (told, end) = if early { (None, None) } else { Some(oneshot::channel()).unzip() };
        if !early {
            state.last_told = sequence;
        }
        state.last = Some((sequence, durability.clone()));
        if place != Place::Below {
            state.overlay.insert(sequence, run, data);
        }
        state.tail.push_back(Late { sequence, run, submitted, told });
        state.step(Event::Appended(sequence));
        Ok(Placed { sequence, durability, end })
    }

    /// Waits until a write may be answered; `durable`: until it, and all before it, is durable.
    pub async fn finish(&self, placed: Placed, durable: bool) -> Result<(), VolumeError> {
        let Placed { sequence, durability, end } = placed;
        if end.is_some() {
            self.settled(sequence).await?;
        } else if durable {
            self.logged(sequence, Some(durability)).await?;
        }
        match end {
            Some(end) => Ok(end.await.unwrap_or(Err(DiskError::Closed))?),
            None => Ok(()),
        }
    }

    fn is_next(&self, place: Place) -> Result<(), Refusal> {
        let next = self.state().next;
        match place {
            Place::Next(Some((sequence, _))) if sequence != next => Err(Refusal::OutOfOrder(next)),
            _ => Ok(()),
        }
    }

    fn accept(&self, fence: Fence) -> Result<u64, VolumeError> {
        let mut state = self.state();
        let (sequence, token) = (state.next, state.token());
        match state.step(Event::Write(token, fence, sequence)).first() {
            Some(Action::Append(..)) => {
                state.next += 1;
                Ok(sequence)
            }
            Some(Action::Answer(_, Answer::Refused(refusal))) => Err((*refusal).into()),
            _ => Err(Refusal::Out.into()),
        }
    }

    pub(super) fn record(
        &self,
        fence: Fence,
        run: Run,
        sequence: u64,
        era: u32,
        data: Option<Bytes>,
    ) -> NewRecord {
        let extent = Extent { volume: self.volume, run, fence, sequence, content: Content::Zeroes };
        match data {
            None => extent_record(&self.disk, &extent, era, Bytes::new()),
            Some(data) => data_record(&self.disk, extent, era, data),
        }
    }

    /// Answers when all writes that were answered before are durable.
    pub async fn flush(&self, fence: Fence) -> Result<(), VolumeError> {
        let (answer, goal) = {
            let mut state = self.state();
            let token = state.token();
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(token, sender);
            let actions = state.step(Event::Flush(token, fence));
            let goal = actions.iter().find_map(|action| match action {
                Action::Flush(goal) => Some(*goal),
                _ => None,
            });
            (answer, goal)
        };
        if let Some(goal) = goal {
            self.kept(goal).await?;
        }
        match answer.await {
            Ok(Answer::Refused(refusal)) => Err(refusal.into()),
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Out.into()),
        }
    }
}
