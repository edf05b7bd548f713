//! A member where it sits: its decisions ([`Member`]) carried out on one disk's log. Writes: `tail.rs`.
//!
//! One member holds all slices of its volume for now, so that its order is the volume's.
//!
//! Invariant: what the member accepts lies in the log in the order of its sequences; nothing waits between a sequence and
//! its place in the log's queue. So after a crash there is a prefix of what was accepted.
//! Invariant: a snapshot's note lies behind all that it sees, and before all that comes after it.
//! Invariant: an attachment that was begun and dropped leaves the seat out, which refuses all from then on.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quarry_engine::block::{Fence, NoteKey, NoteTag, VolumeId, last_position, note_record, notes};
use quarry_engine::disk::{Class, DiskError, DiskHandle, Durability, Durable, Submitted};
use tokio::sync::oneshot;

use super::error::VolumeError;
use super::label::{Parent, SnapshotLabel, decode_promise, encode_promise};
use super::overlay::Overlay;
use super::tail::Late;
use crate::member::{Action, Answer, Event, Member, Refusal, Token};

/// More than a note adds to the log beside what it says.
const NOTE_BYTES: usize = 512;

/// A snapshot of the volume: its era, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last era that it sees.
    pub era: u32,
    /// What it is.
    pub label: SnapshotLabel,
}

/// One volume's member on one disk.
#[derive(Debug)]
pub struct Seat {
    pub(super) disk: DiskHandle,
    pub(super) volume: VolumeId,
    state: Mutex<State>,
    /// Held while a record gets its sequence and its place in the log's queue.
    pub(super) order: tokio::sync::Mutex<Order>,
    /// The oldest write that is not durable; held by whoever waits for it.
    pub(super) front: tokio::sync::Mutex<Option<Late>>,
    /// Writes of whole blocks share it; one that covers a block in part has it alone.
    edges: tokio::sync::RwLock<()>,
    /// Eras of snapshots that were deleted before the seat was opened.
    forgotten: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Order {
    /// That new writes belong to.
    pub(super) era: u32,
    /// Of the last note.
    pub(super) notes: u64,
    /// Of the last write: the log keeps the order of groups of one class only.
    pub(super) class: Class,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) member: Member,
    tokens: u64,
    /// The next sequence.
    pub(super) next: u64,
    /// No write belongs to a later era; that of [`Order`], for who reads.
    pub(super) era: u32,
    /// Up to here all are durable, and in the index.
    pub(super) durable: u64,
    /// The last write, and when it is durable.
    pub(super) last: Option<(u64, Durable)>,
    /// The last write that was not answered early.
    pub(super) last_told: u64,
    /// Writes since somebody waited for one to be durable.
    pub(super) unasked: u32,
    /// Some are in no hurry in the log's queue.
    pub(super) lazy: bool,
    /// The last write for which there was no space.
    pub(super) refused: u64,
    /// Everything is refused.
    pub(super) out: bool,
    /// What was accepted and finds no space puts the seat out: others rely on its having all.
    pub(super) strict: bool,
    /// In the log's queue, oldest first, behind the one that `front` may have.
    pub(super) tail: VecDeque<Late>,
    pub(super) overlay: Overlay,
    pub(super) waiting: HashMap<Token, oneshot::Sender<Answer>>,
    snapshots: Vec<Snapshot>,
    parent: Option<Parent>,
}

/// An attachment on its way.
pub(super) struct Attaching<'a>(pub(super) Option<&'a Seat>);

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.0 {
            seat.state().fail();
        }
    }
}

impl State {
    pub(super) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Lets the member decide; its answers go to who waits for them.
    pub(super) fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.member.step(event);
        actions.retain(|action| match action {
            Action::Answer(token, answer) => match self.waiting.remove(token) {
                Some(waiting) => {
                    // Who no longer waits needs no answer.
                    let _ = waiting.send(*answer);
                    false
                }
                None => true,
            },
            _ => true,
        });
        actions
    }

    /// Fail stop: what waits is told, and all that comes is refused.
    pub(super) fn fail(&mut self) {
        self.out = true;
        self.step(Event::Failed);
        self.waiting.clear();
        self.tail.clear();
    }
}

/// What the member answered at once, or refused.
pub(super) fn refusal(actions: &[Action]) -> Option<Refusal> {
    actions.iter().find_map(|action| match action {
        Action::Answer(_, Answer::Refused(refusal)) => Some(*refusal),
        _ => None,
    })
}

impl Seat {
    /// The member as its disk's log tells.
    pub fn open(disk: DiskHandle, volume: VolumeId) -> Result<Self, VolumeError> {
        let mut promised = Fence::default();
        let (mut snapshots, mut forgotten, mut parent) = (Vec::new(), Vec::new(), None);
        let (mut last_note, mut last_era) = (0, None);
        for note in notes(&disk, Some(volume))? {
            last_note = last_note.max(note.sequence);
            match note.key.tag {
                NoteTag::Promise => promised = decode_promise(&note.meta)?,
                NoteTag::Snapshot => {
                    let era = u32::try_from(note.key.number).map_err(|_| VolumeError::Eras)?;
                    // The number of one that is gone is not given again: blocks of its era are still there.
                    last_era = last_era.max(Some(era));
                    if note.gone {
                        forgotten.push(era);
                    } else {
                        snapshots.push(Snapshot { era, label: SnapshotLabel::decode(&note.meta)? });
                    }
                }
                NoteTag::Parent if note.gone => {}
                NoteTag::Parent => parent = Some(Parent::decode(&note.meta)?),
                NoteTag::Volume | NoteTag::Member => {}
            }
        }
        let last = last_position(&disk, volume)?;
        let era = match last_era {
            Some(era) => era.checked_add(1).ok_or(VolumeError::Eras)?,
            None => 0,
        };
        let state = State {
            member: Member::recovered(promised, last),
            tokens: 0,
            next: last.sequence.saturating_add(1),
            era,
            durable: last.sequence,
            last: None,
            last_told: 0,
            unasked: 0,
            lazy: false,
            refused: 0,
            out: false,
            strict: false,
            tail: VecDeque::new(),
            overlay: Overlay::default(),
            waiting: HashMap::new(),
            snapshots,
            parent,
        };
        Ok(Self {
            disk,
            volume,
            state: Mutex::new(state),
            order: tokio::sync::Mutex::new(Order { era, notes: last_note, class: Class::Client }),
            front: tokio::sync::Mutex::new(None),
            edges: tokio::sync::RwLock::new(()),
            forgotten,
        })
    }

    /// The disk below.
    #[must_use]
    pub fn disk(&self) -> &DiskHandle {
        &self.disk
    }

    /// Whose member.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    pub(super) fn edges(&self) -> &tokio::sync::RwLock<()> {
        &self.edges
    }

    /// Its snapshots, oldest first; among them those that stay for their clones alone.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.state().snapshots.clone()
    }

    /// Whether all is there that a snapshot of an era sees.
    pub(super) fn keeps(&self, era: u32) -> bool {
        let state = self.state();
        !state.out && state.snapshots.iter().any(|snapshot| snapshot.era == era)
    }

    /// Eras as of which somebody may look: those of snapshots, and the present one.
    pub(super) fn views(&self) -> Vec<u32> {
        let state = self.state();
        state.snapshots.iter().map(|snapshot| snapshot.era).chain([state.era]).collect()
    }

    /// What it is a clone of.
    #[must_use]
    pub fn parent(&self) -> Option<Parent> {
        self.state().parent
    }

    pub(super) fn forgotten(&self) -> &[u32] {
        &self.forgotten
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a note into the log's queue; it has its place there when this returns.
    pub(super) async fn note(
        &self,
        order: &mut Order,
        tag: NoteTag,
        number: u64,
        meta: Option<&[u8]>,
    ) -> Result<Submitted, DiskError> {
        let key = NoteKey { volume: self.volume, tag, number };
        // It is small, and a full disk must let a head attach: what makes room comes from there.
        let room = self.disk.room(meta.map_or(0, <[u8]>::len) + NOTE_BYTES, Class::Delete).await;
        order.notes += 1;
        let record = note_record(&self.disk, key, order.notes, meta);
        self.disk.submit_now(record, Durability::Durable, room)
    }

    /// Attaches a new head: the fence under which it acts. Whatever was attached before is refused from here on.
    pub async fn attach(&self) -> Result<Fence, VolumeError> {
        let mut order = self.order.lock().await;
        let (fence, actions) = {
            let mut state = self.state();
            let highest = state.member.highest();
            let fence = Fence { epoch: highest.epoch + 1, configuration: highest.configuration.max(1) };
            let token = state.token();
            (fence, state.step(Event::Promise(token, fence)))
        };
        if let Some(refusal) = refusal(&actions) {
            return Err(refusal.into());
        }
        let mut attaching = Attaching(Some(self));
        // What waits in the log lies before the promise; its completions are reported first.
        self.settle().await?;
        let noted = self.note(&mut order, NoteTag::Promise, 0, Some(&encode_promise(fence))).await?;
        noted.done().await?;
        attaching.0 = None;
        let mut state = self.state();
        let answers = state.step(Event::Persisted(fence));
        let history = answers.iter().find_map(|action| match action {
            Action::Answer(_, Answer::Promised(history)) => Some(*history),
            _ => None,
        });
        let history = history.ok_or(Refusal::Out)?;
        let token = state.token();
        match refusal(&state.step(Event::Begin(token, fence, history))) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(fence),
        }
    }

    /// Is a head of this fence served?
    pub fn admit(&self, fence: Fence) -> Result<(), VolumeError> {
        let mut state = self.state();
        let token = state.token();
        match refusal(&state.step(Event::Read(token, fence))) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Freezes what is there: all writes that were answered, and none that begin later.
    pub async fn snapshot(&self, label: SnapshotLabel) -> Result<Snapshot, VolumeError> {
        let mut order = self.order.lock().await;
        let next = order.era.checked_add(1).ok_or(VolumeError::Eras)?;
        self.settle().await?;
        let snapshot = Snapshot { era: order.era, label };
        let meta = snapshot.label.encode();
        let noted = self.note(&mut order, NoteTag::Snapshot, snapshot.era.into(), Some(&meta)).await?;
        // Whatever becomes of who asked: the note lies before all that is written from here on.
        order.era = next;
        {
            let mut state = self.state();
            state.era = next;
            state.snapshots.push(snapshot.clone());
        }
        noted.done().await?;
        Ok(snapshot)
    }

    /// Forgets a snapshot.
    pub async fn forget(&self, era: u32) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        let noted = self.note(&mut order, NoteTag::Snapshot, era.into(), None).await?;
        self.state().snapshots.retain(|snapshot| snapshot.era != era);
        noted.done().await?;
        Ok(())
    }

    /// Writes a snapshot's label anew.
    pub(super) async fn relabel(
        &self,
        era: u32,
        change: impl FnOnce(&mut SnapshotLabel),
    ) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        let known = self.snapshots().into_iter().find(|snapshot| snapshot.era == era);
        let Some(known) = known else { return Ok(()) };
        let mut label = known.label;
        change(&mut label);
        let noted = self.note(&mut order, NoteTag::Snapshot, era.into(), Some(&label.encode())).await?;
        let place = |snapshot: &&mut Snapshot| snapshot.era == era;
        if let Some(place) = self.state().snapshots.iter_mut().find(place) {
            place.label = label;
        }
        noted.done().await?;
        Ok(())
    }

    /// Takes note of what the volume is a clone of; `None`: of nothing any more.
    pub(super) async fn descend(&self, parent: Option<Parent>) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        self.settle().await?;
        let meta = parent.map(Parent::encode);
        let noted = self.note(&mut order, NoteTag::Parent, 0, meta.as_deref()).await?;
        noted.done().await?;
        self.state().parent = parent;
        Ok(())
    }

    /// Writes the volume's label anew; `None`: the volume is gone, and so is all that is in it.
    pub async fn label(&self, label: Option<&[u8]>) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        if label.is_none() {
            self.settle().await?;
        }
        let noted = self.note(&mut order, NoteTag::Volume, 0, label).await?;
        if label.is_none() {
            self.state().fail();
        }
        noted.done().await?;
        Ok(())
    }
}
