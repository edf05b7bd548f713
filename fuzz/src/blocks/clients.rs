//! Clients of a volume: what they ask at which node's head, and what the oracle says to their answers.
//!
//! Invariant: what a client was not told may have happened or not; no client waits for ever.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::io::SplitMix64;
use quarry_volume::head::Until;
use quarry_volume::store::{Condition, Replicated, VolumeError};
use quarry_volume::{BLOCK_BYTES, CHUNK_BYTES};

use super::control::Register;
use super::oracle::{BLOCKS, Oracle};
use super::part::{Part, VOLUME, geometry};
use crate::store::oracle::Violation;

/// Blocks of a chunk that are used: two spans of the index.
pub(crate) const IN_CHUNK: u8 = 32;
/// Nobody waits longer than this, whatever happens: a head's patience, and an attachment's.
const STUCK: Duration = Duration::from_secs(150);
/// Snapshots of the volume, at most.
const MOST_SNAPSHOTS: usize = 4;
/// Requests of all clients at a time, at most.
const DEPTH: usize = 8;

/// What a client asked for.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Attach,
    Write { name: usize, durable: bool },
    Read { blocks: Range<u8> },
    Flush,
    Snapshot { name: usize },
    Forget { name: u64 },
    ReadFrozen { name: u64, era: u32, blocks: Range<u8> },
}

enum Told {
    Attached(Replicated, Part),
    Done,
    Bytes(Vec<u8>),
    Failed(String),
}

struct Slot {
    machine: usize,
    /// Of its head.
    epoch: u64,
    ask: Ask,
    /// As the oracle counts.
    began: u64,
    since: Duration,
    future: Pin<Box<dyn Future<Output = Told>>>,
}

/// The clients of one volume.
pub(crate) struct Clients {
    pub(crate) oracle: Oracle,
    /// The heads, by their machines.
    pub(crate) heads: BTreeMap<usize, Replicated>,
    pub(crate) answers: u64,
    pub(crate) attached: u64,
    pub(crate) failed: u64,
    /// Snapshots that were made, and reads of some.
    pub(crate) frozen: [u64; 2],
    /// What the nodes of the heads have.
    parts: BTreeMap<usize, Part>,
    slots: Vec<Slot>,
    pub(crate) happened: u64,
    /// Nobody asks for anything at this machine for a while.
    pub(super) hushed: Option<usize>,
    /// Nobody does anything but reads at this machine, and often.
    pub(super) looked_at: Option<usize>,
}

/// Where a block lies.
pub(crate) fn offset(block: u8) -> u64 {
    u64::from(block / IN_CHUNK) * CHUNK_BYTES + u64::from(block % IN_CHUNK) * BLOCK_BYTES
}

/// The bytes of a block: whose write it is, and where.
pub(crate) fn content(name: usize, block: u8) -> Vec<u8> {
    let word = [(name as u64).to_le_bytes(), u64::from(block).to_le_bytes()].concat();
    word.repeat(256)
}

/// The write that a block's bytes are of; zero bytes are of none.
pub(crate) fn name_in(bytes: &[u8], block: u8) -> Result<Option<u64>, Violation> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let name = bytes.first_chunk().map_or(0, |name| u64::from_le_bytes(*name));
    if usize::try_from(name).is_ok_and(|name| bytes == content(name, block)) {
        return Ok(Some(name));
    }
    Err(Violation(format!(
        "block {block} has bytes that nobody wrote, {:02x?}...",
        bytes.first_chunk::<16>()
    )))
}

async fn told(done: impl Future<Output = Result<(), VolumeError>>) -> Told {
    match done.await {
        Ok(()) => Told::Done,
        Err(error) => Told::Failed(error.to_string()),
    }
}

impl Clients {
    pub(crate) fn new() -> Self {
        Self {
            oracle: Oracle::new(),
            heads: BTreeMap::new(),
            answers: 0,
            attached: 0,
            failed: 0,
            frozen: [0; 2],
            parts: BTreeMap::new(),
            slots: Vec::new(),
            happened: 0,
            hushed: None,
            looked_at: None,
        }
    }

    fn tick(&mut self) -> u64 {
        self.happened += 1;
        self.happened
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether somebody waits for an answer of this machine's head.
    pub(super) fn is_asked(&self, machine: usize) -> bool {
        self.slots.iter().any(|slot| slot.machine == machine)
    }

    pub(crate) fn is_attaching(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.ask, Ask::Attach))
    }

    /// The newest head that serves.
    pub(crate) fn current(&self) -> Option<usize> {
        let serves = |head: &Replicated| head.condition() == Condition::Serving;
        let serving = self.heads.iter().filter(|(_, head)| serves(head));
        serving.max_by_key(|(_, head)| head.epoch()).map(|(machine, _)| *machine)
    }

    /// What the node of a head has.
    pub(crate) fn part(&self, machine: usize) -> Option<&Part> {
        self.parts.get(&machine)
    }

    /// A machine went down: its head is gone, and who asked there is told nothing.
    pub(crate) fn down(&mut self, machine: usize) {
        let now = self.tick();
        for slot in self.slots.extract_if(.., |slot| slot.machine == machine) {
            if let Ask::Snapshot { name } = slot.ask {
                self.oracle.froze(name, now);
            }
        }
        self.heads.remove(&machine);
        self.parts.remove(&machine);
        self.oracle.down(now);
    }

    pub(crate) fn attach(&mut self, machine: usize, part: Part, now: Duration) {
        let future = Box::pin(async move {
            match part.clone().attach(VOLUME).await {
                Ok(head) => Told::Attached(head, part),
                Err(why) => Told::Failed(why),
            }
        });
        let began = self.tick();
        self.slots.push(Slot { machine, epoch: 0, ask: Ask::Attach, began, since: now, future });
    }

    /// A client of some head asks for something; what it is.
    pub(crate) fn ask(&mut self, rng: &mut SplitMix64, now: Duration) -> Option<String> {
        if self.heads.is_empty() || self.slots.len() >= DEPTH {
            return None;
        }
        let any = self.heads.keys().copied().collect::<Vec<_>>();
        let any = any[rng.index(any.len())];
        // Mostly at the newest one; now and then at one that may be fenced.
        let machine = self.current().filter(|_| rng.chance(700)).unwrap_or(any);
        let old = |n: &usize| self.heads.contains_key(n) && self.current() != Some(*n);
        let looked_at = self.looked_at.filter(old);
        let machine = looked_at.filter(|_| rng.chance(300)).unwrap_or(machine);
        if self.hushed == Some(machine) {
            return None;
        }
        // What a fenced head must not do is show something.
        let fenced = self.current().is_some_and(|current| current != machine) && rng.chance(700);
        let fenced = fenced || looked_at == Some(machine);
        let ask = match if fenced { 50 } else { rng.below(100) } {
            0..50 => {
                let (blocks, zeroes) = (some_blocks(rng), rng.chance(100));
                return self.write(machine, blocks, zeroes, rng.chance(100), now);
            }
            50..85 => Ask::Read { blocks: some_blocks(rng) },
            85..88 => return self.ask_frozen(rng, machine, now),
            88..98 => Ask::Flush,
            what => return self.change_snapshots(rng, machine, what == 98, now),
        };
        self.begin(machine, ask, now)
    }

    fn write(
        &mut self,
        machine: usize,
        blocks: Range<u8>,
        zeroes: bool,
        durable: bool,
        now: Duration,
    ) -> Option<String> {
        let head = self.heads.get(&machine)?.clone();
        let began = self.tick();
        let name = self.oracle.began(blocks.clone(), zeroes, head.epoch(), began);
        let until = if durable { Until::Durable } else { Until::Written };
        let epoch = head.epoch();
        let (from, length) = (offset(blocks.start), blocks.len() as u64 * BLOCK_BYTES);
        let what =
            format!("{machine}, epoch {epoch}: write {name} to {blocks:?}, {until:?}, zeroes: {zeroes}");
        let bytes: Bytes = blocks.flat_map(|block| content(name, block)).collect::<Vec<u8>>().into();
        let future = Box::pin(async move {
            match zeroes {
                true => told(head.discard(from, length, until)).await,
                false => told(head.write(from, bytes, until)).await,
            }
        });
        self.slots.push(Slot {
            machine,
            epoch,
            ask: Ask::Write { name, durable },
            began,
            since: now,
            future,
        });
        Some(what)
    }

    /// A client looks at a snapshot that nobody is deleting.
    fn ask_frozen(&mut self, rng: &mut SplitMix64, machine: usize, now: Duration) -> Option<String> {
        let all = self.parts.get(&machine)?.register().control.read().0.snapshots;
        let (era, name) = *all.get(rng.index(all.len().max(1)))?;
        let blocks = some_blocks(rng);
        let goes = |slot: &Slot| matches!(slot.ask, Ask::Forget { name: gone } if gone == name);
        if self.slots.iter().any(|slot| slot.machine == machine && goes(slot)) {
            return None;
        }
        self.begin(machine, Ask::ReadFrozen { name, era, blocks }, now)
    }

    /// A snapshot is made, or one that nobody reads is deleted; a node does one after the other.
    fn change_snapshots(
        &mut self,
        rng: &mut SplitMix64,
        machine: usize,
        make: bool,
        now: Duration,
    ) -> Option<String> {
        let busy = |slot: &Slot| matches!(slot.ask, Ask::Snapshot { .. } | Ask::Forget { .. });
        if self.slots.iter().any(|slot| slot.machine == machine && busy(slot)) {
            return None;
        }
        let all = self.parts.get(&machine)?.register().control.read().0.snapshots;
        if make && all.len() < MOST_SNAPSHOTS {
            let (epoch, began) = (self.heads.get(&machine)?.epoch(), self.tick());
            let name = self.oracle.freezes(epoch, began);
            return self.begin(machine, Ask::Snapshot { name }, now);
        }
        let (_, name) = *all.get(rng.index(all.len().max(1)))?;
        let read = |slot: &Slot| matches!(slot.ask, Ask::ReadFrozen { name: read, .. } if read == name);
        if self.slots.iter().any(|slot| slot.machine == machine && read(slot)) {
            return None;
        }
        self.begin(machine, Ask::Forget { name }, now)
    }

    /// Asks for a read, a flush, or what concerns a snapshot.
    pub(crate) fn begin(&mut self, machine: usize, ask: Ask, now: Duration) -> Option<String> {
        let head = self.heads.get(&machine)?.clone();
        let (epoch, began) = (head.epoch(), self.tick());
        let what = format!("{machine}, epoch {epoch}: {ask:?}");
        let asked = ask.clone();
        let register = self.parts.get(&machine)?.register().clone();
        let future: Pin<Box<dyn Future<Output = Told>>> = Box::pin(carried_out(head, register, asked));
        self.slots.push(Slot { machine, epoch, ask, began, since: now, future });
        Some(what)
    }

    /// Answers that have come are judged; what happened, in words.
    pub(crate) fn poll(&mut self, now: Duration) -> Result<Vec<String>, Violation> {
        let mut context = Context::from_waker(Waker::noop());
        let (mut at, mut said) = (0, Vec::new());
        while at < self.slots.len() {
            let slot = &mut self.slots[at];
            if slot.since + STUCK < now {
                return Err(Violation(format!("{:?} waits for something that never comes", slot.ask)));
            }
            let Poll::Ready(told) = slot.future.as_mut().poll(&mut context) else {
                at += 1;
                continue;
            };
            let slot = self.slots.remove(at);
            said.push(self.told(slot, told)?);
        }
        Ok(said)
    }

    fn told(&mut self, slot: Slot, told: Told) -> Result<String, Violation> {
        let now = self.tick();
        let Slot { machine, epoch, ask, began, .. } = slot;
        self.answers += 1;
        let mut what = format!("{machine}, epoch {epoch}: {ask:?} ->");
        match (ask, told) {
            (ask, Told::Failed(why)) => {
                self.failed += 1;
                if let Ask::Snapshot { name } = ask {
                    self.oracle.froze(name, now);
                }
                what.push_str(&why);
            }
            (_, Told::Attached(head, part)) => {
                self.attached += 1;
                self.parts.insert(machine, part);
                what.push_str(&format!(" epoch {}", head.epoch()));
                self.heads.insert(machine, head);
            }
            (Ask::Write { name, durable }, _) => self.oracle.acknowledged(name, durable, now)?,
            (Ask::Read { blocks }, Told::Bytes(bytes)) => {
                let each = bytes.chunks(content(0, 0).len()).zip(blocks.clone());
                let names =
                    each.map(|(bytes, block)| name_in(bytes, block)).collect::<Result<Vec<_>, _>>()?;
                what.push_str(&format!(" {names:?}"));
                if names.len() != blocks.len() {
                    return Err(Violation(format!("{what}: too short")));
                }
                self.oracle.read(blocks.start, &names, epoch, began, now)?;
            }
            (Ask::ReadFrozen { name, blocks, .. }, Told::Bytes(bytes)) => {
                let each = bytes.chunks(content(0, 0).len()).zip(blocks.clone());
                let names =
                    each.map(|(bytes, block)| name_in(bytes, block)).collect::<Result<Vec<_>, _>>()?;
                what.push_str(&format!(" {names:?}"));
                self.frozen[1] += 1;
                let name = usize::try_from(name).unwrap_or(usize::MAX);
                self.oracle.froze_as(name, blocks.start, &names, now)?;
            }
            (Ask::Flush, _) => self.oracle.flushed(epoch, began)?,
            (Ask::Snapshot { name }, _) => {
                self.frozen[0] += 1;
                self.oracle.froze(name, now);
                self.oracle.flushed(epoch, began)?;
            }
            (Ask::Forget { .. }, _) => {}
            (Ask::Attach | Ask::Read { .. } | Ask::ReadFrozen { .. }, Told::Done | Told::Bytes(_)) => {}
        }
        Ok(what)
    }
}

async fn carried_out(head: Replicated, register: Register, ask: Ask) -> Told {
    let (head, blocks) = match ask {
        Ask::Read { blocks } => (head, blocks),
        Ask::ReadFrozen { era, blocks, .. } => (head.as_of(era, geometry()), blocks),
        Ask::Snapshot { name } => {
            let commit = register.snapshot(head.epoch(), name as u64);
            let unknown = || VolumeError::Register("nobody knows".to_owned());
            return told(head.freeze(async { commit.await.ok_or_else(unknown) })).await;
        }
        Ask::Forget { name } => {
            return match register.forget(head.epoch(), name).await {
                Some(views) => told(head.see(views)).await,
                None => Told::Failed("nobody knows".to_owned()),
            };
        }
        Ask::Flush | Ask::Attach | Ask::Write { .. } => return told(head.flush()).await,
    };
    let length = blocks.len() as u64 * BLOCK_BYTES;
    match head.read_whole(offset(blocks.start), length).await {
        Ok(bytes) => Told::Bytes(bytes.to_vec()),
        Err(error) => Told::Failed(error.to_string()),
    }
}

/// Some blocks of one chunk: mostly few, now and then whole spans of the index.
pub(crate) fn some_blocks(rng: &mut SplitMix64) -> Range<u8> {
    let small = |rng: &mut SplitMix64, below: u8| u8::try_from(rng.below(u64::from(below))).unwrap_or(0);
    let chunk = small(rng, BLOCKS.div_ceil(IN_CHUNK)) * IN_CHUNK;
    let end = (chunk + IN_CHUNK).min(BLOCKS);
    if rng.chance(80) {
        let first = chunk + 16 * small(rng, (end - chunk) / 16);
        return first..first + 16;
    }
    // Where most of them meet.
    let within = if rng.chance(600) { 6 } else { end - chunk };
    let length = 1 + small(rng, 3);
    let first = chunk + small(rng, within - length + 1);
    first..first + length
}
