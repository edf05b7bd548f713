//! A seat under a head that is elsewhere: what it promises, where its order begins, and rows that others had.
//!
//! Invariant: when a promise is answered, it is durable with all that the seat had accepted before.
//! Invariant: a row that another member had keeps its place in the order, so that the newer of two writes counts, whichever comes first.

use bytes::Bytes;
use quarry_engine::block::{Fence, NoteTag, Position, Run, extent_bytes};
use quarry_engine::disk::{Class, Durability, Submitted};

use super::error::VolumeError;
use super::label::SnapshotLabel;
use super::seat::{Attaching, Seat, refusal};
use crate::member::{Action, Answer, Event, Member, Refusal};

#[cfg(test)]
thread_local! {
    /// Every disk of this test is nearly full: to make one so takes long.
    pub(super) static NEARLY_FULL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// The same, of the mark above which no volume is placed.
    pub(super) static NO_PLACE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Seat {
    /// Clients shall write no more to its disk.
    pub(super) fn is_tight(&self) -> bool {
        #[cfg(test)]
        if NEARLY_FULL.get() {
            return true;
        }
        self.disk.above_high_water()
    }

    /// The whole of a volume is not to be copied to its disk: all that is there would want for the room.
    pub(super) fn takes_no_volume(&self) -> bool {
        #[cfg(test)]
        if NO_PLACE.get() {
            return true;
        }
        self.is_tight() || self.disk.above_volume_mark()
    }

    /// Promises to refuse lower fences: all that it has, durable, and the number of the promise, which only rises.
    pub(super) async fn promise(&self, fence: Fence, meta: &[u8]) -> Result<(Position, u64), VolumeError> {
        let mut order = self.order.lock().await;
        let asked = {
            let mut state = self.state();
            let token = state.token();
            state.step(Event::Promise(token, fence))
        };
        if let Some(refusal) = refusal(&asked) {
            return Err(refusal.into());
        }
        let mut attaching = Attaching(Some(self));
        self.settle().await?;
        let noted = self.note(&mut order, NoteTag::Promise, 0, Some(meta)).await?;
        noted.done().await?;
        attaching.0 = None;
        let answers = if asked.contains(&Action::Persist(fence)) {
            self.state().step(Event::Persisted(fence))
        } else {
            asked
        };
        let history = answers.iter().find_map(|action| match action {
            Action::Answer(_, Answer::Promised(history)) => Some(*history),
            _ => None,
        });
        Ok((history.ok_or(Refusal::Out)?, order.notes))
    }

    /// Whether a higher fence was asked for.
    pub(super) fn is_fenced(&self, fence: Fence) -> Result<(), Refusal> {
        let highest = self.state().member.highest();
        let below = fence.epoch < highest.epoch || fence.configuration < highest.configuration;
        if below { Err(Refusal::Fenced(highest)) } else { Ok(()) }
    }

    /// A promised head continues what is here.
    pub(super) fn begin(&self, fence: Fence, base: Position) -> Result<(), VolumeError> {
        let mut state = self.state();
        state.strict = true;
        let token = state.token();
        match refusal(&state.step(Event::Begin(token, fence, base))) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// The order begins behind `after`, whatever is here: the rest is sent beside it.
    pub(super) async fn begin_after(&self, fence: Fence, after: u64) -> Result<(), VolumeError> {
        let _order = self.order.lock().await;
        self.settle().await?;
        let base = Position { epoch: fence.epoch, sequence: after };
        {
            let mut state = self.state();
            state.member = Member::recovered(fence, base);
            state.next = after + 1;
            state.durable = after;
        }
        self.begin(fence, base)
    }

    /// Writes a note of its own; it is durable when this returns.
    pub(super) async fn note_down(&self, tag: NoteTag, meta: &[u8]) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        let noted = self.note(&mut order, tag, 0, Some(meta)).await?;
        noted.done().await?;
        Ok(())
    }

    /// Numbers of notes, and with them of promises, go on from another seat's.
    pub(super) async fn follow_notes(&self, of: &Self) {
        let notes = of.order.lock().await.notes;
        let mut order = self.order.lock().await;
        order.notes = order.notes.max(notes);
    }

    /// Logs a row that another member has; to be waited for.
    pub(super) async fn take_row(
        &self,
        fence: Fence,
        position: Position,
        run: Run,
        era: u32,
        data: Option<Bytes>,
    ) -> Result<Submitted, VolumeError> {
        let blocks = if data.is_some() { run.blocks } else { 0 };
        let room = self.disk.room(extent_bytes(blocks), Class::Client).await;
        let fence = Fence { epoch: position.epoch, ..fence };
        let record = self.record(fence, run, position.sequence, era, data);
        Ok(self.disk.submit_now(record, Durability::Durable, room)?)
    }

    /// Writes of this era may come: eras are the head's to count, and a note of the one before tells a restart that rows of several
    /// are to be looked through.
    pub(super) async fn raise(&self, era: u32) -> Result<(), VolumeError> {
        if self.era() >= era {
            return Ok(());
        }
        let mut order = self.order.lock().await;
        let Some(before) = era.checked_sub(1).filter(|_| order.era < era) else { return Ok(()) };
        let label = SnapshotLabel { name: String::new(), bytes: 0, made: 0, going: false };
        let noted = self.note(&mut order, NoteTag::Snapshot, before.into(), Some(&label.encode())).await?;
        noted.done().await?;
        order.era = era;
        self.state().era = era;
        Ok(())
    }

    /// The next write is behind this one.
    pub(super) fn has_reached(&self, sequence: u64) -> bool {
        self.state().next > sequence
    }
}
