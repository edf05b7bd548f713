//! A member where it sits: its decisions ([`Member`]) carried out on one disk's log.
//!
//! One member holds all slices of its volume for now, so that its order is the volume's.
//!
//! Invariant: what the member accepts is submitted to the log in the order of its sequences, and a write is answered when
//! it and all before it are durable. So a write that was read, or answered, is never lost by a crash.
//! Invariant: an operation that was begun is driven to its end by its caller; one that is dropped before leaves the seat
//! out, which refuses all from then on, rather than with a hole that nobody fills.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quarry_engine::block::{
    BLOCK_LENGTH, Content, Extent, Fence, NoteKey, NoteTag, Position, Run, VolumeId, block_checksum,
    extent_record, last_position, note_record, notes,
};
use quarry_engine::disk::format::record::NewRecord;
use quarry_engine::disk::{Class, DiskError, DiskHandle, Durability};
use tokio::sync::{Semaphore, oneshot};

use super::error::VolumeError;
use super::label::{SnapshotLabel, decode_promise, encode_promise};
use crate::member::{Action, Answer, Event, MAX_WAITING, Member, Refusal, Token};

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
    disk: DiskHandle,
    volume: VolumeId,
    state: Mutex<State>,
    /// Held while a record gets its sequence and its place in the log's queue.
    order: tokio::sync::Mutex<Order>,
    /// As many writes as the member lets wait.
    room: Semaphore,
    /// Writes of whole blocks share it; one that covers a block in part has it alone.
    edges: tokio::sync::RwLock<()>,
}

#[derive(Debug)]
struct Order {
    /// That new writes belong to.
    era: u32,
    /// Of the last note.
    notes: u64,
}

#[derive(Debug)]
struct State {
    member: Member,
    tokens: u64,
    next: u64,
    /// Sequences that are durable while an earlier one is not.
    done: BTreeSet<u64>,
    /// Up to here all are durable.
    durable: u64,
    waiting: HashMap<Token, oneshot::Sender<Answer>>,
    snapshots: Vec<Snapshot>,
}

/// A write that has its place in the log's queue.
#[derive(Debug)]
struct Begun<'a> {
    seat: &'a Seat,
    sequence: u64,
    finished: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.seat.state().fail();
        }
    }
}

impl State {
    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Lets the member decide; its answers go to who waits for them.
    fn step(&mut self, event: Event) -> Vec<Action> {
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

    fn fail(&mut self) {
        self.step(Event::Failed);
        self.waiting.clear();
    }

    /// A sequence is durable.
    fn durable(&mut self, sequence: u64) {
        self.done.insert(sequence);
        while self.done.remove(&(self.durable + 1)) {
            self.durable += 1;
            self.step(Event::Appended(self.durable));
            self.step(Event::Flushed(self.durable));
        }
    }
}

/// What the member answered at once, or refused.
fn refusal(actions: &[Action]) -> Option<Refusal> {
    actions.iter().find_map(|action| match action {
        Action::Answer(_, Answer::Refused(refusal)) => Some(*refusal),
        _ => None,
    })
}

impl Seat {
    /// The member as its disk's log tells.
    pub fn open(disk: DiskHandle, volume: VolumeId) -> Result<Self, VolumeError> {
        let mut promised = Fence::default();
        let mut snapshots = Vec::new();
        let (mut last_note, mut last_era) = (0, None);
        for note in notes(&disk, Some(volume))? {
            last_note = last_note.max(note.sequence);
            match note.key.tag {
                NoteTag::Promise => promised = decode_promise(&note.meta)?,
                NoteTag::Snapshot => {
                    let era = u32::try_from(note.key.number).map_err(|_| VolumeError::Eras)?;
                    // The number of one that is gone is not given again: blocks of its era are still there.
                    last_era = last_era.max(Some(era));
                    if !note.gone {
                        snapshots.push(Snapshot { era, label: SnapshotLabel::decode(&note.meta)? });
                    }
                }
                NoteTag::Volume => {}
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
            next: last.sequence + 1,
            done: BTreeSet::new(),
            durable: last.sequence,
            waiting: HashMap::new(),
            snapshots,
        };
        Ok(Self {
            disk,
            volume,
            state: Mutex::new(state),
            order: tokio::sync::Mutex::new(Order { era, notes: last_note }),
            room: Semaphore::new(MAX_WAITING),
            edges: tokio::sync::RwLock::new(()),
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

    /// Its snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.state().snapshots.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn note(
        &self,
        order: &mut Order,
        tag: NoteTag,
        number: u64,
        meta: Option<&[u8]>,
    ) -> Result<(), DiskError> {
        order.notes += 1;
        let key = NoteKey { volume: self.volume, tag, number };
        let record = note_record(&self.disk, key, order.notes, meta);
        // A full disk must let a head attach: what makes room comes from there.
        let frees = meta.is_none() || tag == NoteTag::Promise;
        let class = if frees { Class::Delete } else { Class::Client };
        self.disk.append(vec![record], Durability::Durable, class).await.map(drop)
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
        // What waits in the log lies before the promise; its completions are reported first.
        self.settle().await?;
        if let Err(error) = self.note(&mut order, NoteTag::Promise, 0, Some(&encode_promise(fence))).await {
            self.state().fail();
            return Err(error.into());
        }
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

    /// Waits until all that is in the log's queue is durable. With the order held nothing new comes.
    async fn settle(&self) -> Result<(), VolumeError> {
        let all = u32::try_from(MAX_WAITING).expect("few may wait");
        drop(self.room.acquire_many(all).await.map_err(|_| Refusal::Out)?);
        Ok(())
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

    /// Answers when all writes that were accepted before are durable.
    pub async fn flush(&self, fence: Fence) -> Result<(), VolumeError> {
        let answer = {
            let mut state = self.state();
            let token = state.token();
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(token, sender);
            // Every append is durable when it is done: the flush that is asked for ends with the last of them.
            state.step(Event::Flush(token, fence));
            answer
        };
        match answer.await {
            Ok(Answer::Refused(refusal)) => Err(refusal.into()),
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Out.into()),
        }
    }

    /// Logs one write to one chunk; `None`: zeroes. Answers when it is durable, and can be read.
    pub async fn write(&self, fence: Fence, run: Run, data: Option<Bytes>) -> Result<(), VolumeError> {
        let full = self.disk.above_high_water();
        if full && data.is_some() {
            return Err(DiskError::NoSpace.into());
        }
        // The order first: who holds it and waits for room waits only for writes that need it no more.
        let order = self.order.lock().await;
        let _room = self.room.acquire().await.map_err(|_| Refusal::Out)?;
        let (sequence, answer) = self.accept(fence)?;
        let mut begun = Begun { seat: self, sequence, finished: false };
        let record = self.record(fence, run, sequence, order.era, data);
        // What makes room must go where the disk is full.
        let class = if full { Class::Delete } else { Class::Client };
        let submitted = self.disk.submit(vec![record], Durability::Durable, class).await;
        drop(order);
        let result = match submitted {
            Ok(submitted) => submitted.done().await,
            Err(error) => Err(error),
        };
        begun.finished = true;
        let sequence = begun.sequence;
        match result {
            Ok(_) => self.state().durable(sequence),
            // Not logged, so not there; those behind it are. A client that is told so knows nothing of its blocks.
            Err(DiskError::NoSpace) => {
                self.state().durable(sequence);
                return Err(DiskError::NoSpace.into());
            }
            Err(error) => {
                self.state().fail();
                return Err(error.into());
            }
        }
        match answer.await {
            Ok(Answer::Written) => Ok(()),
            Ok(Answer::Refused(refusal)) => Err(refusal.into()),
            Ok(_) | Err(_) => Err(Refusal::Out.into()),
        }
    }

    fn accept(&self, fence: Fence) -> Result<(u64, oneshot::Receiver<Answer>), VolumeError> {
        let mut state = self.state();
        let (sequence, token) = (state.next, state.token());
        let (sender, answer) = oneshot::channel();
        match state.step(Event::Write(token, fence, sequence)).first() {
            Some(Action::Append(..)) => {
                state.next += 1;
                state.waiting.insert(token, sender);
                Ok((sequence, answer))
            }
            Some(Action::Answer(_, Answer::Refused(refusal))) => Err((*refusal).into()),
            _ => Err(Refusal::Out.into()),
        }
    }

    fn record(&self, fence: Fence, run: Run, sequence: u64, era: u32, data: Option<Bytes>) -> NewRecord {
        let position = Position { epoch: fence.epoch, sequence };
        let content = match &data {
            None => Content::Zeroes,
            Some(data) => {
                let first = u16::from(run.first);
                let blocks = data.chunks_exact(BLOCK_LENGTH).zip(first..).map(|(block, number)| {
                    let block = block.try_into().expect("whole blocks");
                    block_checksum(self.volume, run.slice, run.chunk, number, position, block)
                });
                Content::Data(blocks.collect())
            }
        };
        let extent = Extent { volume: self.volume, run, fence, sequence, content };
        extent_record(&self.disk, &extent, era, data.unwrap_or_default())
    }

    /// Freezes what is there: all writes that were answered, and none that begin later.
    pub async fn snapshot(&self, label: SnapshotLabel) -> Result<Snapshot, VolumeError> {
        let mut order = self.order.lock().await;
        let next = order.era.checked_add(1).ok_or(VolumeError::Eras)?;
        self.settle().await?;
        let snapshot = Snapshot { era: order.era, label };
        let meta = snapshot.label.encode();
        self.note(&mut order, NoteTag::Snapshot, snapshot.era.into(), Some(&meta)).await?;
        order.era = next;
        self.state().snapshots.push(snapshot.clone());
        Ok(snapshot)
    }

    /// Forgets a snapshot.
    pub async fn forget(&self, era: u32) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        self.note(&mut order, NoteTag::Snapshot, era.into(), None).await?;
        self.state().snapshots.retain(|snapshot| snapshot.era != era);
        Ok(())
    }

    /// Writes the volume's label anew; `None`: the volume is gone, and so is all that is in it.
    pub async fn label(&self, label: Option<&[u8]>) -> Result<(), VolumeError> {
        let mut order = self.order.lock().await;
        if label.is_none() {
            self.settle().await?;
        }
        self.note(&mut order, NoteTag::Volume, 0, label).await?;
        if label.is_none() {
            self.state().fail();
        }
        Ok(())
    }
}
