//! Clones of the volume's snapshots: made while everything goes on, written and read by a client each, who asks for one thing after
//! the other.
//!
//! Invariant: a block of a clone is what the snapshot has until the clone is written there; then it is that, or something later, once it was
//! made durable or shown.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::io::SplitMix64;
use quarry_volume::head::{Standing, Until};
use quarry_volume::store::{Condition, Replicated, VolumeError};
use quarry_volume::{BLOCK_BYTES, VolumeId};

use super::clients::{Clients, content, name_in, offset, some_blocks};
use super::control::{CloneRow, Register};
use super::healing::{Ground, HEALED, LOOK, pass, wait};
use super::oracle::{BLOCKS, Oracle};
use super::part::{Part, geometry};
use crate::store::oracle::Violation;

/// Clones, at most.
const MOST: usize = 2;
/// Their ids begin here.
const FIRST_ID: u8 = 0x80;
/// Names of their writes begin here: no write of the volume has such a name.
const FIRST_NAME: usize = 1_000_000;

/// What a block of a clone may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// As the snapshot has it.
    Base,
    Zeroes,
    Own(usize),
}

/// What is known of a block: what it is at least, and what may lie over that, in order; each with whether its client was told.
#[derive(Debug, Clone, Default)]
struct Known {
    least: Option<Value>,
    over: Vec<(Value, u64, bool)>,
}

impl Known {
    fn may(&self) -> impl Iterator<Item = Value> + '_ {
        std::iter::once(self.least.unwrap_or(Value::Base)).chain(self.over.iter().map(|(value, ..)| *value))
    }

    /// It is this, or something that came later.
    fn is(&mut self, which: impl Fn(&(Value, u64, bool)) -> bool) {
        if let Some(at) = self.over.iter().rposition(which) {
            self.least = self.over.drain(..=at).next_back().map(|(value, ..)| value);
        }
    }
}

#[derive(Debug, Clone)]
enum Ask {
    Make,
    Attach,
    Write { block: u8, value: Value, write: u64, durable: bool },
    Read { first: u8, blocks: u8 },
    Flush,
    TakeOver,
    Freeze,
    ReadThen { first: u8, blocks: u8 },
    GoBack,
}

enum Told {
    /// And how often the clone went back to its snapshot.
    Head(Replicated, u32),
    Bytes(Vec<u8>),
    Done,
    Failed(String),
}

struct Slot {
    machine: usize,
    ask: Ask,
    /// Writes before this one were answered before.
    writes: u64,
    since: Duration,
    future: Pin<Box<dyn Future<Output = Told>>>,
}

struct Copy {
    row: CloneRow,
    head: Option<(usize, Replicated)>,
    blocks: BTreeMap<u8, Known>,
    /// What there was when a snapshot was asked for last.
    then: BTreeMap<u8, Known>,
    /// How often it went back to that.
    returns: u32,
    slot: Option<Slot>,
}

/// The clones of a history.
pub(crate) struct Copies {
    rng: SplitMix64,
    all: Vec<Copy>,
    making: Option<Slot>,
    ids: u8,
    writes: u64,
    /// Clones that were made, reads of them, how many took over, and went back.
    pub(crate) counts: [u64; 4],
}

/// Longer than anything that a client waits for.
const STUCK: Duration = Duration::from_secs(200);

async fn told<E: ToString>(done: impl Future<Output = Result<(), E>>) -> Told {
    done.await.map_or_else(|error| Told::Failed(error.to_string()), |()| Told::Done)
}

/// A clone is made as `node/src/block/lineage.rs` does.
async fn make(head: Replicated, register: Register, id: u8, of: u64) -> Told {
    let failed = |why: &str| Told::Failed(why.to_owned());
    let Some(clone) = register.begin_clone(head.epoch(), id, of).await else {
        return failed("it is not begun");
    };
    let made = match head.fork(clone.volume(), clone.era).await {
        Ok(made) => made,
        Err(error) => return failed(&error.to_string()),
    };
    let counted = made.iter().filter(|device| clone.configuration.counts(**device)).count();
    if counted < clone.configuration.quorum() {
        return failed("too few members");
    }
    if register.end_clone(&clone, &made).await { Told::Done } else { failed("it is not known to be there") }
}

impl Copies {
    pub(crate) fn new(rng: SplitMix64) -> Self {
        Self { rng, all: Vec::new(), making: None, ids: FIRST_ID, writes: 0, counts: [0; 4] }
    }

    /// A machine went down: who asked there is told nothing.
    pub(crate) fn down(&mut self, machine: usize) {
        self.making.take_if(|slot| slot.machine == machine);
        for copy in &mut self.all {
            copy.slot.take_if(|slot| slot.machine == machine);
            copy.head.take_if(|(at, _)| *at == machine);
        }
    }

    /// Somebody makes a clone, or asks one for something; what it is.
    pub(crate) fn ask(&mut self, clients: &Clients, up: &[(usize, Part)], now: Duration) -> Option<String> {
        // Those that have come to be there, also where nobody was told.
        let register = up.first()?.1.register().clone();
        for row in register.control.read().0.clones.into_iter().filter(|row| !row.making) {
            if self.all.iter().all(|known| known.row.id != row.id) {
                self.counts[0] += 1;
                self.all.push(Copy {
                    row,
                    head: None,
                    blocks: BTreeMap::new(),
                    then: BTreeMap::new(),
                    returns: 0,
                    slot: None,
                });
            }
        }
        if self.making.is_none() && self.all.len() < MOST && self.rng.chance(100) {
            return self.make(clients, now);
        }
        let n = self.rng.index(self.all.len().max(1));
        self.use_one(n, up, now)
    }

    fn make(&mut self, clients: &Clients, now: Duration) -> Option<String> {
        let machine = clients.current()?;
        let (head, part) = (clients.heads.get(&machine)?.clone(), clients.part(machine)?);
        let register = part.register().clone();
        let all = register.control.read().0.snapshots;
        let (_, of) = *all.get(self.rng.index(all.len().max(1)))?;
        self.ids += 1;
        let (id, writes) = (self.ids, 0);
        let future = Box::pin(make(head, register, id, of));
        self.making = Some(Slot { machine, ask: Ask::Make, writes, since: now, future });
        Some(format!("{machine} makes clone {id} of {of}"))
    }

    fn use_one(&mut self, n: usize, up: &[(usize, Part)], now: Duration) -> Option<String> {
        let Self { rng, all, writes, .. } = self;
        let copy = all.get_mut(n).filter(|copy| copy.slot.is_none())?;
        let serves = |head: &Replicated| head.condition() == Condition::Serving;
        let stays = !rng.chance(20);
        let head = copy.head.clone().filter(|(_, head)| stays && serves(head));
        let Some((machine, head)) = head else {
            let (machine, part) = up.get(rng.index(up.len()))?.clone();
            return Some(copy.attach(machine, part, now));
        };
        let known = up.first()?.1.register().control.read().0.clones;
        let frozen = known.iter().any(|row| row.id == copy.row.id && row.frozen);
        let ask = match rng.below(100) {
            0..45 => {
                *writes += 1;
                let block = some_blocks(rng).start;
                let name = FIRST_NAME * usize::from(copy.row.id) + usize::try_from(*writes).unwrap_or(0);
                let value = if rng.chance(200) { Value::Zeroes } else { Value::Own(name) };
                Ask::Write { block, value, write: *writes, durable: rng.chance(200) }
            }
            45..85 => {
                let blocks = some_blocks(rng);
                let (first, blocks) = (blocks.start, blocks.end - blocks.start);
                if frozen && rng.chance(200) {
                    Ask::ReadThen { first, blocks }
                } else {
                    Ask::Read { first, blocks }
                }
            }
            85..94 => Ask::Flush,
            94..96 => Ask::TakeOver,
            96..98 if frozen => Ask::GoBack,
            _ if frozen => Ask::Flush,
            _ => Ask::Freeze,
        };
        Some(copy.begin(machine, head, ask, up.first()?.1.register(), now, *writes))
    }

    /// Answers that have come are judged; what happened, in words.
    pub(crate) fn poll(
        &mut self,
        oracle: &mut Oracle,
        at: u64,
        now: Duration,
    ) -> Result<Vec<String>, Violation> {
        let mut said = Vec::new();
        if let Some((slot, told)) = ended(&mut self.making, now)? {
            said.push(format!("{:?} -> {}", slot.ask, words(&told)));
        }
        for copy in &mut self.all {
            if let Some((slot, told)) = ended(&mut copy.slot, now)? {
                let what = format!("{}: {} {:?} -> {}", slot.machine, copy.row.id, slot.ask, words(&told));
                copy.hear(slot, told, oracle, at, &mut self.counts)
                    .map_err(|why| Violation(format!("{what}: {why}")))?;
                said.push(what);
            }
        }
        Ok(said)
    }

    fn is_idle(&self) -> bool {
        self.making.is_none() && self.all.iter().all(|copy| copy.slot.is_none())
    }
}

fn words(told: &Told) -> String {
    match told {
        Told::Head(head, returns) => format!("epoch {}, {returns} returns", head.epoch()),
        Told::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Told::Done => "done".to_owned(),
        Told::Failed(why) => why.clone(),
    }
}

/// What a question has come to, if it has.
fn ended(place: &mut Option<Slot>, now: Duration) -> Result<Option<(Slot, Told)>, Violation> {
    let Some(slot) = place else { return Ok(None) };
    if slot.since + STUCK < now {
        return Err(Violation(format!("{:?} waits for something that never comes", slot.ask)));
    }
    match slot.future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(told) => Ok(place.take().map(|slot| (slot, told))),
        Poll::Pending => Ok(None),
    }
}

impl Copy {
    fn attach(&mut self, machine: usize, part: Part, now: Duration) -> String {
        self.head = None;
        let volume = self.row.volume();
        let future = Box::pin(async move {
            let head = attached(part, volume).await;
            head.map_or_else(Told::Failed, |(head, returns)| Told::Head(head, returns))
        });
        self.slot = Some(Slot { machine, ask: Ask::Attach, writes: 0, since: now, future });
        format!("{machine} attaches clone {}", self.row.id)
    }

    fn begin(
        &mut self,
        machine: usize,
        head: Replicated,
        ask: Ask,
        register: &Register,
        now: Duration,
        writes: u64,
    ) -> String {
        if matches!(ask, Ask::Freeze) {
            self.then = self.blocks.clone();
        }
        if let Ask::Write { block, value, write, .. } = ask {
            self.blocks.entry(block).or_default().over.push((value, write, false));
        }
        let (register, volume, asked) = (register.clone(), self.row.volume(), ask.clone());
        let said = format!("{machine}: {} {ask:?}", self.row.id);
        let future = Box::pin(async move {
            match asked {
                Ask::Write { block, value, durable, .. } => {
                    let until = if durable { Until::Durable } else { Until::Written };
                    match value {
                        Value::Own(name) => {
                            told(head.write(offset(block), Bytes::from(content(name, block)), until)).await
                        }
                        _ => told(head.discard(offset(block), BLOCK_BYTES, until)).await,
                    }
                }
                Ask::Read { first, blocks } => {
                    let read = head.read_whole(offset(first), u64::from(blocks) * BLOCK_BYTES).await;
                    read.map_or_else(|e| Told::Failed(e.to_string()), |bytes| Told::Bytes(bytes.to_vec()))
                }
                Ask::ReadThen { first, blocks } => {
                    let then = head.as_of(0, geometry());
                    let read = then.read_whole(offset(first), u64::from(blocks) * BLOCK_BYTES).await;
                    read.map_or_else(|e| Told::Failed(e.to_string()), |bytes| Told::Bytes(bytes.to_vec()))
                }
                Ask::TakeOver => take_over(head, register, volume).await,
                Ask::Freeze => {
                    let freeze = |row: &mut CloneRow| row.frozen = true;
                    let unknown = || VolumeError::Register("nobody knows".to_owned());
                    let commit = register.edit_clone(volume, head.epoch(), freeze);
                    told(head.freeze(async { Ok(commit.await.ok_or_else(unknown)?.views()) })).await
                }
                Ask::GoBack => {
                    let epoch = head.epoch();
                    let back = |row: &mut CloneRow| {
                        // A try before this one may have been heard.
                        if !row.returning {
                            (row.returning, row.returns) = (true, row.returns + 1);
                        }
                    };
                    match register.edit_clone(volume, epoch, back).await {
                        Some(row) => match returned(head, register, row).await {
                            Ok((head, returns)) => Told::Head(head, returns),
                            Err(why) => Told::Failed(why),
                        },
                        None => Told::Failed("nobody knows".to_owned()),
                    }
                }
                Ask::Flush | Ask::Make | Ask::Attach => told(head.flush()).await,
            }
        });
        self.slot = Some(Slot { machine, ask, writes, since: now, future });
        said
    }

    fn hear(
        &mut self,
        slot: Slot,
        told: Told,
        oracle: &mut Oracle,
        at: u64,
        counts: &mut [u64; 4],
    ) -> Result<(), String> {
        match (slot.ask, told) {
            // Nobody reads it before it has come back; who attaches it completes that.
            (Ask::GoBack, Told::Failed(_)) => self.head = None,
            (_, Told::Failed(_)) => {}
            (_, Told::Head(head, returns)) => {
                if std::mem::replace(&mut self.returns, returns) != returns {
                    counts[3] += 1;
                    self.blocks = self.then.clone();
                }
                // What another head answered and did not flush may be gone.
                self.blocks
                    .values_mut()
                    .flat_map(|known| &mut known.over)
                    .for_each(|(.., told)| *told = false);
                self.head = Some((slot.machine, head));
            }
            (Ask::Write { block, write, durable, .. }, _) => {
                let known = self.blocks.entry(block).or_default();
                known
                    .over
                    .iter_mut()
                    .filter(|(_, of, _)| *of == write)
                    .for_each(|(.., was_told)| *was_told = true);
                if durable {
                    known.is(|(_, of, _)| *of == write);
                }
            }
            (Ask::Flush, _) => self.flushed(slot.writes),
            (Ask::Read { first, .. }, Told::Bytes(bytes)) => {
                counts[1] += 1;
                for (block, bytes) in (first..).zip(bytes.chunks(content(0, 0).len())) {
                    self.shown(block, bytes, oracle, at)?;
                }
            }
            (Ask::ReadThen { first, .. }, Told::Bytes(bytes)) => {
                counts[1] += 1;
                // Judged as what the clone is, of what it was.
                std::mem::swap(&mut self.blocks, &mut self.then);
                let mut each = (first..).zip(bytes.chunks(content(0, 0).len()));
                let shown = each.try_for_each(|(block, bytes)| self.shown(block, bytes, oracle, at));
                std::mem::swap(&mut self.blocks, &mut self.then);
                return shown;
            }
            (Ask::TakeOver, _) => counts[2] += 1,
            _ => {}
        }
        Ok(())
    }

    /// What was answered before is durable. A trim of what has nothing there is no write: what lay below it is what there is.
    fn flushed(&mut self, upto: u64) {
        for known in self.blocks.values_mut() {
            known.is(|(_, write, told)| *told && *write <= upto);
        }
    }

    fn shown(&mut self, block: u8, bytes: &[u8], oracle: &mut Oracle, at: u64) -> Result<(), String> {
        let name = name_in(bytes, block).map_err(|why| why.0)?;
        let known = self.blocks.entry(block).or_default();
        let own = name.and_then(|name| usize::try_from(name).ok()).filter(|name| *name >= FIRST_NAME);
        let shown = match (own, name) {
            (Some(own), _) => Value::Own(own),
            (None, None) if known.may().any(|value| value == Value::Zeroes) => Value::Zeroes,
            (None, _) => Value::Base,
        };
        if !known.may().any(|value| value == shown) {
            return Err(format!("block {block} shows {shown:?} ({name:?}), and may be {known:?}"));
        }
        if shown == Value::Base {
            let of = usize::try_from(self.row.of).unwrap_or(usize::MAX);
            return oracle.froze_as(of, block, &[name], at).map_err(|why| why.0);
        }
        // Which of several trims it is does not show, nor whether it is one.
        if matches!(shown, Value::Own(_)) {
            known.is(|(value, ..)| *value == shown);
        }
        Ok(())
    }
}

/// A head, once the clone has come to where it was on its way back to, as `node/src/block/lineage.rs` does it.
async fn attached(part: Part, volume: VolumeId) -> Result<(Replicated, u32), String> {
    let head = part.clone().attach(volume).await?;
    let register = part.register().clone();
    let row = register.control.read().0.clones.into_iter().find(|row| row.volume() == volume);
    returned(head, register, row.ok_or("there is no such clone")?).await
}

async fn returned(head: Replicated, register: Register, row: CloneRow) -> Result<(Replicated, u32), String> {
    if row.returning {
        head.go_back_to(0).await.map_err(|error| error.to_string())?;
        let there = |row: &mut CloneRow| row.returning = false;
        register.edit_clone(row.volume(), head.epoch(), there).await.ok_or("nobody knows")?;
    }
    Ok((head, row.returns))
}

async fn take_over(head: Replicated, register: Register, volume: VolumeId) -> Told {
    let row = register.control.read().0;
    let Some(clone) = row.clones.into_iter().find(|clone| clone.volume() == volume) else {
        return Told::Failed("there is no such clone".to_owned());
    };
    let members: Vec<DeviceId> = clone.configuration.all().collect();
    let oldest = clone.frozen.then_some(0);
    if let Err(error) = head.take_over(&members, oldest).await {
        return Told::Failed(error.to_string());
    }
    match register.edit_clone(volume, head.epoch(), |clone| clone.descends = false).await {
        Some(_) => Told::Done,
        None => Told::Failed("nobody knows".to_owned()),
    }
}

/// Who has clones in a history.
pub(crate) trait Cloned: Ground {
    fn copies(&mut self) -> Option<&mut Copies>;
}

/// Without trouble every clone is whole on all its members, which hold the same, and is what its client and its snapshot's were told.
pub(crate) fn look_at_clones(ground: &mut impl Cloned, n: usize, members: usize) -> Result<(), Violation> {
    while ground.copies().is_some_and(|copies| !copies.is_idle()) {
        pass(ground, LOOK)?;
    }
    let count = ground.copies().map_or(0, |copies| copies.all.len());
    for one in 0..count {
        look_at_clone(ground, one, n, members)?;
    }
    Ok(())
}

fn look_at_clone(ground: &mut impl Cloned, one: usize, n: usize, members: usize) -> Result<(), Violation> {
    let Some(part) = ground.part(n) else { return Err(Violation(format!("{n} went down without trouble"))) };
    let Some(volume) = ground.copies().and_then(|copies| Some(copies.all.get(one)?.row.volume())) else {
        return Ok(());
    };
    let (head, returns) = wait(ground, attached(part.clone(), volume))?.map_err(Violation)?;
    if let Some(copy) = ground.copies().and_then(|copies| copies.all.get_mut(one))
        && std::mem::replace(&mut copy.returns, returns) != returns
    {
        copy.blocks = copy.then.clone();
    }
    let end = ground.now() + HEALED;
    loop {
        let seen = wait(ground, head.members())?;
        let good = seen.iter().filter(|seen| seen.counts && seen.standing == Standing::Active).count();
        if good == members {
            break;
        }
        if ground.now() > end {
            return Err(Violation(format!("a clone does not heal: {seen:?}")));
        }
        pass(ground, LOOK)?;
    }
    for block in 0..BLOCKS {
        let bytes = wait(ground, head.read_whole(offset(block), BLOCK_BYTES))?;
        let bytes = bytes.map_err(|why| Violation(why.to_string()))?;
        let (clients, _) = ground.clients();
        let mut oracle = std::mem::replace(&mut clients.oracle, Oracle::new());
        let at = clients.happened;
        let copy = ground.copies().and_then(|copies| copies.all.get_mut(one));
        let shown = copy.map_or(Ok(()), |copy| copy.shown(block, &bytes, &mut oracle, at));
        ground.clients().0.oracle = oracle;
        shown.map_err(Violation)?;
    }
    wait(ground, head.flush())?.map_err(|why| Violation(why.to_string()))?;
    pass(ground, super::healing::NOTICED)?;
    drop(head);
    let (tables, _) = wait(ground, part.tables(volume))?.map_err(Violation)?;
    let mut all = tables.iter();
    let Some((first, one)) = all.next() else { return Err(Violation("a clone has no members".to_owned())) };
    match all.find(|(_, other)| *other != one) {
        Some((device, other)) => {
            let place = one.keys().chain(other.keys()).find(|place| one.get(place) != other.get(place));
            Err(Violation(format!("members of a clone differ: {first} and {device} at {place:?}")))
        }
        None => Ok(()),
    }
}
