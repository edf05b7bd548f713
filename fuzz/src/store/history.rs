//! One history from one seed: who does what next, and what it led to.
//!
//! Invariant: exactly one thing moves at a time, and the seed chooses which.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use md5::{Digest, Md5};
use quarry_engine::disk::{Cleaned, DiskError, OpenError};
use quarry_engine::io::SplitMix64;

use super::clients::{Bodies, Call, Reply, perform};
use super::faults::{self, Fault};
use super::model::{Fact, Op, OpId};
use super::oracle::{Oracle, Violation};
use super::plan::{self, Profile};
use super::plant::Plant;
use super::world::{Down, IndexFate, START, World};

/// Ticks without any answer after which something waits for ever.
const STUCK: u32 = 200_000;
/// Lines of the event log that a failure shows.
const TAIL: usize = 60;

/// What a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Of everything that happened.
    pub hash: u64,
    /// Operations of clients, the sweeps included.
    pub operations: u64,
    /// Times that the machine went down.
    pub restarts: u64,
    /// Of these, by a failure of the power.
    pub crashes: u64,
    /// Times that the index was rebuilt.
    pub rebuilds: u64,
    /// Segments cleaned.
    pub cleaned: u64,
    /// PUTs refused for want of space.
    pub no_space: u64,
    /// Most worlds that the oracle had to keep.
    pub worlds: usize,
}

/// A broken promise, and how to see it again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}: {violation}\nlast events:\n{}\nreproduce: quarry-fuzz store --seed {seed}", tail.join("\n"))]
pub struct Failure {
    /// Of the history.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// What happened before.
    pub tail: Vec<String>,
}

/// Runs the history of a seed.
pub fn history(seed: u64, plant: Plant) -> Result<Summary, Box<Failure>> {
    let mut rng = SplitMix64::new(seed);
    let profile = Profile::draw(&mut rng);
    run(seed, rng, profile, plant)
}

pub(crate) fn run(
    seed: u64,
    mut rng: SplitMix64,
    profile: Profile,
    plant: Plant,
) -> Result<Summary, Box<Failure>> {
    let early = |violation| Box::new(Failure { seed, violation, tail: Vec::new() });
    let world = World::new(profile.segments, rng.next_u64(), plant.catalog()).map_err(early)?;
    let mut history = History {
        bodies: Bodies::new(rng.next_u64()),
        oracle: Oracle::new(START),
        world,
        profile,
        rng,
        slots: Vec::new(),
        idle: 0,
        faulty: false,
        out: None,
        tail: VecDeque::new(),
        summary: Summary { hash: 0xcbf2_9ce4_8422_2325, ..Summary::default() },
    };
    let whole = AssertUnwindSafe(|| history.live(plant).and_then(|()| history.heal()));
    // An assertion of the engine that fails is a finding like any other.
    let result =
        catch_unwind(whole).unwrap_or_else(|panic| Err(Violation(crate::panic_text(panic.as_ref()))));
    let History { tail, summary, slots, world, .. } = history;
    // What a panic left half done is not taken apart.
    let _left = result.is_err().then(|| std::mem::forget((slots, world)));
    result.map_err(|violation| Box::new(Failure { seed, violation, tail: tail.into() }))?;
    Ok(summary)
}

/// How a future ended.
enum End {
    Client(Reply),
    Cleaned(Result<Option<Cleaned>, DiskError>),
    Checkpointed(Result<(), DiskError>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Client(OpId),
    Cleaner,
    Checkpoint,
}

struct Slot {
    who: Who,
    future: Pin<Box<dyn Future<Output = End>>>,
}

pub(crate) struct History {
    pub(crate) world: World,
    pub(crate) oracle: Oracle,
    pub(crate) rng: SplitMix64,
    pub(crate) summary: Summary,
    bodies: Rc<Bodies>,
    profile: Profile,
    slots: Vec<Slot>,
    idle: u32,
    /// Something was made to fail since the last start: answers may say so.
    faulty: bool,
    /// The disk is out; ticks until the machine is started again.
    out: Option<u64>,
    tail: VecDeque<String>,
}

impl History {
    /// The safety phase.
    fn live(&mut self, plant: Plant) -> Result<(), Violation> {
        self.start()?;
        if plant == Plant::LyingFlush {
            self.world.image.edit_faults(|faults| faults.lying_flush = true);
        }
        self.alone(Op::PutContainer { c: 0 })?;
        let mut left = self.profile.operations;
        while left > 0 {
            let clients = self.slots.iter().filter(|slot| matches!(slot.who, Who::Client(_))).count();
            if clients < self.profile.clients && self.out.is_none() && self.rng.chance(150) {
                let op = plan::draw(&mut self.rng, &self.profile, &self.oracle.guess(), &self.oracle.book);
                self.begin(op);
                left -= 1;
            }
            self.event()?;
            self.tick()?;
        }
        Ok(())
    }

    /// Things that happen by themselves.
    fn event(&mut self) -> Result<(), Violation> {
        let chance = self.rng.below(100_000);
        if chance < self.profile.faults && self.out.is_none() {
            let fault = Fault::draw(&mut self.rng);
            self.note(&format!("{fault:?}"));
            if let Fault::Crash(down) = fault {
                let fate = faults::index_fate(&mut self.rng);
                return self.restart(down, fate);
            }
            self.faulty = true;
            fault.arm(&self.world);
        }
        match self.rng.below(2000) {
            0..4 => {
                let span = if self.rng.chance(100) { 90_000 } else { 60 };
                let by =
                    i64::try_from(self.rng.below(2 * span)).unwrap_or(0) - i64::try_from(span).unwrap_or(0);
                self.world.jump(by);
                self.oracle.clock(self.world.seconds());
            }
            4..8 => self.world.pass(Duration::from_secs(31)),
            8..14 => self.background(Who::Checkpoint),
            14..18 => self.background(Who::Cleaner),
            18..22 => self.cancel(),
            _ => {}
        }
        Ok(())
    }

    /// One move of one thing.
    pub(crate) fn tick(&mut self) -> Result<(), Violation> {
        if !self.world.image.is_powered() {
            let fate = faults::index_fate(&mut self.rng);
            let luck = faults::luck(&mut self.rng);
            return self.restart(Down::Power(luck), fate);
        }
        match &mut self.out {
            Some(0) => return self.replace(),
            Some(left) => *left -= 1,
            None if self.world.disk().is_some_and(|disk| disk.failure().is_some()) => {
                let why = self.world.disk().and_then(|disk| disk.failure());
                self.note(&format!("disk is out: {}", why.as_deref().unwrap_or("")));
                if !self.faulty {
                    return Err(Violation(format!("disk is out without a fault: {why:?}")));
                }
                self.out = Some(self.rng.below(400));
            }
            None => {}
        }
        // As the node's worker does: so whoever waits for space waits for this.
        if self.rng.chance(10) && self.world.disk().is_some_and(|disk| disk.wants_cleaning()) {
            self.background(Who::Cleaner);
        }
        if !self.slots.is_empty() && self.rng.chance(500) {
            let slot = self.rng.index(self.slots.len());
            self.poll(slot)?;
        } else {
            self.world.turn();
            if self.world.poll_spawned() && !self.faulty && self.oracle.lost() > 0 {
                self.oracle.settle()?;
            }
        }
        self.idle = if self.slots.is_empty() { 0 } else { self.idle + 1 };
        if self.idle > STUCK {
            let who: Vec<Who> = self.slots.iter().map(|slot| slot.who).collect();
            let usage = self.world.disk().map(|disk| disk.usage());
            return Err(Violation(format!("stuck: {who:?} wait for something that never comes; {usage:?}")));
        }
        Ok(())
    }

    /// A disk that is out: the machine is switched off and on.
    fn replace(&mut self) -> Result<(), Violation> {
        let (luck, fate) = (faults::luck(&mut self.rng), faults::index_fate(&mut self.rng));
        self.restart(Down::Power(luck), fate)
    }

    /// Starts an operation of a client.
    pub(crate) fn begin(&mut self, op: Op) {
        let id = OpId::try_from(self.oracle.book.len()).unwrap_or(OpId::MAX);
        let mut fact = Fact::default();
        let mut delete_at = None;
        if matches!(op, Op::Put { .. } | Op::Post { .. }) && self.rng.chance(80) {
            delete_at = Some((self.world.seconds() + self.rng.below(200)).saturating_sub(60));
        }
        if matches!(op, Op::Put { .. }) {
            let size = plan::size(&mut self.rng, &self.profile);
            let body = self.bodies.make(id, size);
            fact = Fact { size: size as u64, etag: hex::encode(Md5::digest(&body)), delete_at };
        }
        fact.delete_at = delete_at;
        self.note(&format!("{id} {op:?} {} {delete_at:?}", fact.size));
        self.oracle.book.push(fact);
        self.oracle.began(id, op.clone());
        self.summary.operations += 1;
        let call = Call { policy: 0, index: None, id, op, delete_at, seed: self.rng.next_u64() };
        let Some(store) = self.world.store() else { return self.oracle.lose(id) };
        let bodies = self.bodies.clone();
        let future = Box::pin(async move { End::Client(perform(store, bodies, call).await) });
        self.slots.push(Slot { who: Who::Client(id), future });
    }

    /// One operation with nothing beside it; it may be cut short by a crash.
    pub(crate) fn alone(&mut self, op: Op) -> Result<(), Violation> {
        self.begin(op);
        let lives = self.summary.restarts;
        while !self.slots.is_empty() && self.summary.restarts == lives {
            self.tick()?;
        }
        Ok(())
    }

    fn background(&mut self, who: Who) {
        let Some(disk) = self.world.disk() else { return };
        if self.out.is_some() || self.slots.iter().any(|slot| slot.who == who) {
            return;
        }
        let future: Pin<Box<dyn Future<Output = End>>> = if who == Who::Checkpoint {
            Box::pin(async move { End::Checkpointed(disk.checkpoint().await) })
        } else {
            let Some(victim) = disk.victim(&[]) else { return };
            self.note(&format!("clean {victim}"));
            Box::pin(async move { End::Cleaned(disk.clean(victim).await) })
        };
        self.slots.push(Slot { who, future });
    }

    /// Cleans as long as there is something to gain.
    pub(crate) fn clean_all(&mut self) -> Result<(), Violation> {
        for _ in 0..64 {
            self.background(Who::Cleaner);
            if self.slots.is_empty() {
                break;
            }
            self.drain()?;
            self.background(Who::Checkpoint);
            self.drain()?;
        }
        Ok(())
    }

    /// A client goes away in the middle.
    fn cancel(&mut self) {
        let clients: Vec<usize> =
            (0..self.slots.len()).filter(|slot| matches!(self.slots[*slot].who, Who::Client(_))).collect();
        if clients.is_empty() || self.oracle.lost() > 2 {
            return;
        }
        let slot = self.slots.swap_remove(clients[self.rng.index(clients.len())]);
        if let Who::Client(id) = slot.who {
            self.note(&format!("{id} is abandoned"));
            self.oracle.lose(id);
        }
    }

    /// Lets everything under way end.
    pub(crate) fn drain(&mut self) -> Result<(), Violation> {
        while !self.slots.is_empty() {
            self.tick()?;
        }
        Ok(())
    }

    fn poll(&mut self, slot: usize) -> Result<(), Violation> {
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(end) = self.slots[slot].future.as_mut().poll(&mut context) else { return Ok(()) };
        self.idle = 0;
        let who = self.slots.swap_remove(slot).who;
        match (who, end) {
            (Who::Client(id), End::Client(reply)) => self.answered(id, reply),
            (_, End::Cleaned(Ok(cleaned))) => {
                self.note(&format!("{cleaned:?}"));
                self.summary.cleaned += u64::from(cleaned.is_some());
                if cleaned.is_some_and(|cleaned| !cleaned.retired) && !self.faulty {
                    return Err(Violation("a segment is not retired by its cleaning".to_owned()));
                }
                Ok(())
            }
            (_, End::Cleaned(Err(e)) | End::Checkpointed(Err(e))) if !self.faulty => {
                Err(Violation(format!("{who:?} failed without a fault: {e}")))
            }
            _ => Ok(()),
        }
    }

    fn answered(&mut self, id: OpId, reply: Reply) -> Result<(), Violation> {
        self.note(&format!("{id} -> {reply:?}"));
        self.oracle.clock(self.world.seconds());
        match reply {
            Reply::Said(outcome) => self.oracle.said(id, &outcome)?,
            Reply::NoSpace => {
                self.summary.no_space += 1;
                let full = self.world.disk().is_none_or(|disk| {
                    let usage = disk.usage();
                    disk.above_high_water() || usage.free <= 5 * usage.segment_size
                });
                if !full {
                    let usage = self.world.disk().map(|disk| disk.usage());
                    return Err(Violation(format!("{id} is refused for want of space; {usage:?}")));
                }
                self.oracle.refused(id)?;
            }
            Reply::Unavailable(why) if !self.faulty => {
                return Err(Violation(format!("{id} is unavailable without a fault: {why}")));
            }
            Reply::Unavailable(_) => self.oracle.lose(id),
            Reply::Corrupt(what) | Reply::Broken(what) => return Err(Violation(format!("{id}: {what}"))),
        }
        self.summary.worlds = self.summary.worlds.max(self.oracle.worlds());
        Ok(())
    }

    /// The machine goes down and comes up again, perhaps not at the first attempt; then everything is looked at.
    pub(crate) fn restart(&mut self, down: Down, fate: IndexFate) -> Result<(), Violation> {
        self.note(&format!("down: {down:?}, index {fate:?}"));
        self.oracle.lose_all();
        self.summary.crashes += u64::from(down != Down::Kill);
        self.slots.clear();
        self.world.down(down, fate, &mut self.rng);
        faults::clear(&self.world);
        self.oracle.settle()?;
        self.faulty = false;
        self.out = None;
        self.idle = 0;
        self.start()?;
        for op in plan::sweep() {
            let lives = self.summary.restarts;
            self.alone(op)?;
            if self.summary.restarts != lives {
                // The power failed again; that start has looked at everything.
                break;
            }
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), Violation> {
        let mut attempts =
            if self.rng.chance(self.profile.faults.min(200).try_into().unwrap_or(0)) { 3 } else { 0 };
        loop {
            self.summary.restarts += 1;
            if attempts > 0 {
                attempts -= 1;
                let soon = 1 + self.rng.below(4);
                let fault =
                    if self.rng.chance(500) { Fault::PowerAtWrite(soon) } else { Fault::PowerAtFlush(soon) };
                fault.arm(&self.world);
                self.faulty = true;
            }
            match self.world.up() {
                Ok(report) => {
                    self.note(&format!("up: {report:?}"));
                    self.summary.rebuilds += u64::from(report.rebuilt.is_some());
                    if !report.lost.is_empty() {
                        return Err(Violation(format!("recovery reports a loss: {report:?}")));
                    }
                    self.oracle.clock(self.world.seconds());
                    return Ok(());
                }
                Err(e) => self.failed_start(&e)?,
            }
        }
    }

    fn failed_start(&mut self, e: &OpenError) -> Result<(), Violation> {
        self.note("start failed");
        if self.world.image.is_powered() {
            return Err(Violation(format!("the device does not open: {e}")));
        }
        let (luck, fate) = (faults::luck(&mut self.rng), faults::index_fate(&mut self.rng));
        self.world.down(Down::Power(luck), fate, &mut self.rng);
        faults::clear(&self.world);
        self.faulty = false;
        Ok(())
    }

    /// Enters an event in the log and its hash (FNV-1a).
    pub(crate) fn note(&mut self, event: &str) {
        for byte in event.bytes() {
            self.summary.hash = (self.summary.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(event.chars().take(400).collect());
    }

    /// No more faults from here on, and none that is still armed.
    pub(crate) fn calm(&mut self) -> Result<(), Violation> {
        self.profile.faults = 0;
        if self.faulty || !self.world.image.is_powered() {
            let luck = faults::luck(&mut self.rng);
            let seed = self.rng.next_u64();
            self.restart(Down::Power(luck), IndexFate::Prefix(seed))?;
        }
        self.drain()?;
        while !self.world.poll_spawned() {
            self.world.turn();
        }
        self.oracle.settle()
    }
}
