//! One history of a cluster from one seed: who does what next, and what it led to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use md5::{Digest, Md5};
use quarry_engine::io::SplitMix64;
use quarry_engine::object::IndexPolicy;
use quarry_engine::object::names::GRANT_TIME;

use super::assembly::RECLAIM;
use super::fleeting::{FLEETING, Fleeting};
use super::lag::Course;
use super::log::{LINES, Log};
use super::machine::Running;
use super::oracle::{Oracle, container_of};
use super::plant::Plant;
use super::profile::{self, CODED, CONTAINERS, Profile};
use super::returns::Returns;
use super::trouble::{self, Cure, Trouble, Troubles};
use super::volume::Volume;
use super::world::World;
use crate::store::clients::{Bodies, Call, Reply, perform};
use crate::store::model::{Fact, Op, OpId, Outcome};
use crate::store::oracle::Violation;
use crate::store::world::IndexFate;

/// No client waits longer than this, whatever happens.
pub(super) const STUCK: Duration = Duration::from_secs(120);
/// Longer than tombstones are kept.
const NIGHT: Duration = Duration::from_secs(2 * RECLAIM);
/// For so long after a trouble answers may still say so.
const RECOVERY: Duration = Duration::from_secs(30);

/// What a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Of everything that happened.
    pub hash: u64,
    /// Operations of clients, the sweeps included.
    pub operations: u64,
    /// Of these, how many were told nothing.
    pub unanswered: u64,
    /// Times that a machine went down.
    pub crashes: u64,
    /// Troubles of every kind.
    pub troubles: u64,
    /// Terms in which somebody led.
    pub terms: u64,
    /// Groups that took over half of another one's lines.
    pub splits: u64,
    /// Of these groups, how many gave all back.
    pub returned: u64,
    /// Changes in eventual containers that were begun while their group was away.
    pub alone: u64,
    /// Containers that were deleted.
    pub gone: u64,
    /// Objects that nodes may have put alone, without a group, into the container that comes and goes.
    pub strays: u64,
    /// Answers to clients of volumes.
    pub blocks: u64,
    /// Milliseconds of virtual time.
    pub millis: u64,
}

/// A broken promise, and how to see it again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}: {violation}\nlast events:\n{}\nreproduce: quarry-fuzz cluster --seed {seed}{planted}", tail.join("\n"))]
pub struct Failure {
    /// Of the history.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// What happened before.
    pub tail: Vec<String>,
    /// The option that plants the bug.
    pub planted: String,
}

impl Summary {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.unanswered += other.unanswered;
        self.crashes += other.crashes;
        self.troubles += other.troubles;
        self.terms += other.terms;
        self.splits += other.splits;
        self.returned += other.returned;
        self.alone += other.alone;
        self.gone += other.gone;
        self.strays += other.strays;
        self.blocks += other.blocks;
        self.millis += other.millis;
    }
}

/// Runs the history of a seed.
pub fn history(seed: u64, plant: Plant) -> Result<Summary, Box<Failure>> {
    history_with(seed, plant, LINES)
}

/// Runs the history of a seed; a failure shows so many lines of its log.
pub fn history_with(seed: u64, plant: Plant, lines: usize) -> Result<Summary, Box<Failure>> {
    let mut rng = SplitMix64::new(seed);
    let mut own = SplitMix64::new(!seed);
    let profile = Profile::draw(&mut rng).with_volume(&mut own);
    let option = clap::ValueEnum::to_possible_value(&plant).map(|value| value.get_name().to_owned());
    let planted = match plant {
        Plant::Nothing => String::new(),
        _ => format!(" --planted {}", option.unwrap_or_default()),
    };
    let failure = |violation, tail| Box::new(Failure { seed, violation, tail, planted: planted.clone() });
    let world = World::new(&profile, &mut rng, plant).map_err(|violation| failure(violation, Vec::new()))?;
    let control = profile.volume.zip(world.control.clone());
    let mut history = History {
        volume: control.map(|(members, control)| Volume::new(members, control, own)),
        bodies: Bodies::new(rng.next_u64()),
        oracle: Oracle::new(profile.eventual.then_some([CODED, FLEETING]).into_iter().flatten().collect()),
        world,
        profile,
        rng,
        returns: Returns::new(seed),
        fleeting: Fleeting::new(seed, &profile),
        slots: Vec::new(),
        troubles: Troubles::default(),
        uneasy_until: RECOVERY,
        faulty: true,
        slept: false,
        log: Log::new(lines),
        summary: Summary::default(),
    };
    let whole = AssertUnwindSafe(|| history.live(plant).and_then(|()| history.heal()));
    // An assertion of the engine that fails is a finding like any other.
    let ended = catch_unwind(whole);
    let History { log, mut summary, slots, world, volume, .. } = history;
    summary.blocks = volume.as_ref().map_or(0, |volume| volume.clients.answers);
    summary.hash = log.hash;
    summary.alone += world.changes_alone();
    summary.terms = world.terms() as u64;
    summary.splits = world.splits() as u64;
    summary.returned = world.returned() as u64;
    summary.millis = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
    let result = ended.unwrap_or_else(|panic| {
        // What it left half done is not taken apart.
        std::mem::forget((slots, world, volume));
        Err(Violation(crate::panic_text(panic.as_ref())))
    });
    result.map_err(|violation| failure(violation, log.tail.into()))?;
    Ok(summary)
}

struct Slot {
    machine: usize,
    id: OpId,
    op: Op,
    began: Duration,
    /// Terms in which somebody led by then.
    terms: usize,
    /// Nothing was wrong by then; changes that its node had begun without a group.
    calm: bool,
    alone: u64,
    /// Somebody else was about to delete the same container, or to take lines of it back.
    contended: bool,
    future: Pin<Box<dyn Future<Output = Reply>>>,
}

pub(crate) struct History {
    pub(crate) world: World,
    pub(crate) oracle: Oracle,
    pub(crate) rng: SplitMix64,
    /// When lines are taken back.
    pub(super) returns: Returns,
    pub(super) fleeting: Fleeting,
    pub(crate) summary: Summary,
    pub(crate) profile: Profile,
    pub(crate) troubles: Troubles,
    pub(super) volume: Option<Volume>,
    bodies: Rc<Bodies>,
    slots: Vec<Slot>,
    /// Until then answers may say that something is unavailable.
    uneasy_until: Duration,
    /// There is trouble, or there may be.
    faulty: bool,
    /// All were off for longer than tombstones are kept.
    pub(super) slept: bool,
    log: Log,
}

impl History {
    /// The safety phase.
    fn live(&mut self, plant: Plant) -> Result<(), Violation> {
        self.note(&format!("{:?}", self.profile));
        for n in 0..self.world.machines.len() {
            self.start(n)?;
            if plant == Plant::AckBeforeFlush {
                let drives = &self.world.machines[n].drives;
                drives.iter().for_each(|drive| drive.image.edit_faults(|faults| faults.lying_flush = true));
            }
        }
        self.wait_for_all()?;
        if self.profile.trouble.is_none() {
            self.uneasy_until = self.world.now();
        }
        for c in 0..CONTAINERS {
            self.alone(0, Op::PutContainer { c })?;
        }
        let mut left = self.profile.operations;
        let mut next = vec![self.world.now(); self.profile.clients];
        let (mut trouble_at, mut split_at) = (self.world.now(), self.world.now());
        while left > 0 {
            let now = self.world.now();
            for at in &mut next {
                if *at <= now && self.slots.len() - self.under_way(FLEETING) < self.profile.clients {
                    *at = now + self.within(self.profile.think);
                    let op = profile::draw(&mut self.rng, &self.oracle, self.profile.eventual);
                    let op = self.returns.spared(op, now);
                    left -= u32::from(self.begin_anywhere(op, None)?).min(left);
                }
            }
            if let Some(longest) = self.profile.trouble.filter(|_| trouble_at <= now) {
                trouble_at = now + self.within(longest);
                self.make_trouble()?;
            }
            if let Some(longest) = self.profile.splits.filter(|_| split_at <= now) {
                split_at = now + self.within(longest);
                if let Some(said) = self.world.split(&mut self.rng) {
                    self.note(&said);
                }
            }
            if self.profile.splits.is_some() {
                self.return_some()?;
            }
            self.flit()?;
            self.ask_volume();
            self.tick()?;
        }
        Ok(())
    }

    /// Operations under way that are about a container, or its account.
    pub(super) fn under_way(&self, c: usize) -> usize {
        self.slots.iter().filter(|slot| container_of(&slot.op) == Some(c)).count()
    }

    pub(super) fn is_under_way(&self, id: OpId) -> bool {
        self.slots.iter().any(|slot| slot.id == id)
    }

    fn within(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(1).max(1);
        Duration::from_micros(self.rng.below(micros))
    }

    /// Until every node is there and somebody leads.
    pub(crate) fn wait_for_all(&mut self) -> Result<(), Violation> {
        let end = self.world.now() + STUCK;
        while !self.world.is_founded() || self.world.machines.iter().any(|m| m.running().is_none()) {
            if self.world.now() > end {
                return Err(Violation("the nodes do not start".to_owned()));
            }
            self.tick()?;
        }
        Ok(())
    }

    /// Everything moves on a little, and answers are judged.
    pub(crate) fn tick(&mut self) -> Result<(), Violation> {
        self.world.turn()?;
        for n in 0..self.world.machines.len() {
            self.look_after(n)?;
        }
        for cure in self.troubles.due(self.world.now()) {
            self.cure(cure)?;
        }
        let mut at = 0;
        while at < self.slots.len() {
            if !self.poll(at)? {
                at += 1;
            }
        }
        self.hear_volume()?;
        let now = self.world.now();
        match self.slots.iter().find(|slot| slot.began + STUCK < now) {
            Some(slot) => Err(Violation(format!("op {} waits for something that never comes", slot.id))),
            None => Ok(()),
        }
    }

    /// Machines that lost their power or a drive are taken down, to be started again later.
    fn look_after(&mut self, n: usize) -> Result<(), Violation> {
        let machine = &self.world.machines[n];
        if !machine.is_up() {
            return Ok(());
        }
        if !machine.has_power() {
            return self.crash(n, true);
        }
        if let Some(why) = machine.drive_failure() {
            self.note(&format!("{n}: a drive is out: {why}"));
            if !self.faulty {
                return Err(Violation(format!("a drive is out without a fault: {why}")));
            }
            return self.crash(n, true);
        }
        if let Some(why) = machine.why_failed() {
            return Err(Violation(format!("node {n} does not start: {why}")));
        }
        Ok(())
    }

    /// Polls a client; true when it is over.
    fn poll(&mut self, at: usize) -> Result<bool, Violation> {
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(reply) = self.slots[at].future.as_mut().poll(&mut context) else { return Ok(false) };
        let slot = self.slots.remove(at);
        self.note(&format!("{} -> {reply:?}", slot.id));
        match reply {
            Reply::Said(outcome) => {
                // A group whose lines are given away, or come back, ends its grants without a new term.
                let stays = self.profile.splits.is_none() && self.world.terms() == slot.terms;
                if stays && self.world.now() < slot.began + GRANT_TIME {
                    self.oracle.held(slot.id);
                }
                let (now, alone) = (self.world.now(), self.changes_alone(slot.machine) != slot.alone);
                let changed = matches!(outcome, Outcome::Done | Outcome::Gone);
                let course = Course { now, calm: slot.calm && self.is_calm(), alone, changed };
                self.oracle.went(slot.id, course);
                let gone = outcome == Outcome::Gone;
                self.summary.gone += u64::from(gone && matches!(slot.op, Op::DeleteContainer { .. }));
                let strays = alone && outcome == Outcome::Done && container_of(&slot.op) == Some(FLEETING);
                self.summary.strays += u64::from(strays);
                self.fleeting.heard(&slot.op, gone);
                self.oracle.said(slot.id, &outcome, alone)?;
            }
            Reply::NoSpace | Reply::Unavailable(_) => {
                if self.is_calm() && !self.is_contended(&slot, &reply) {
                    return Err(Violation(format!("op {} is refused without a reason: {reply:?}", slot.id)));
                }
                self.lose(slot.id)?;
            }
            Reply::Corrupt(what) | Reply::Broken(what) => {
                return Err(Violation(format!("op {}: {what}", slot.id)));
            }
        }
        Ok(true)
    }

    /// Nothing is wrong, and nothing was a while ago.
    fn is_calm(&self) -> bool {
        self.world.now() > self.uneasy_until
    }

    /// Changes that a node has begun while a group was away.
    fn changes_alone(&self, n: usize) -> u64 {
        self.world.machines[n].running().map_or(0, |running| running.store.changes_alone())
    }

    /// Of two who delete a container that is in several groups one may be told to try again. So may who changes an object while its group is
    /// given away: of a line that may have been made and is not there nobody can tell whether a DELETE took it (ARCHITECTURE.md, "A line
    /// that comes late makes no name anew"), and a DELETE or a POST that comes late and finds another version is not told that it was done.
    fn is_contended(&self, slot: &Slot, reply: &Reply) -> bool {
        let Reply::Unavailable(reason) = reply else { return false };
        let both_delete = slot.contended && reason.contains("somebody else deletes the container");
        let is_change = matches!(slot.op, Op::Put { .. } | Op::Post { .. } | Op::Delete { .. });
        let doubtful = is_change && reason.contains("nobody can tell what became of the change");
        self.profile.splits.is_some() && (both_delete || doubtful)
    }

    fn lose(&mut self, id: OpId) -> Result<(), Violation> {
        self.summary.unanswered += 1;
        self.oracle.lose(id, self.world.now())
    }

    /// Machines whose nodes serve clients.
    pub(super) fn serving(&self) -> Vec<(usize, Running)> {
        let machines = self.world.machines.iter().enumerate();
        machines.filter_map(|(n, machine)| Some((n, machine.running()?))).collect()
    }

    /// Starts an operation of a client at some node, but for one; false when there is none.
    pub(super) fn begin_anywhere(&mut self, op: Op, but: Option<usize>) -> Result<bool, Violation> {
        let mut serving = self.serving();
        serving.retain(|(n, _)| Some(*n) != but);
        if serving.is_empty() {
            return Ok(false);
        }
        let (n, running) = serving[self.rng.index(serving.len())].clone();
        self.begin(n, &running, op)?;
        Ok(true)
    }

    pub(super) fn begin(&mut self, machine: usize, running: &Running, op: Op) -> Result<OpId, Violation> {
        let size = if let Op::Put { .. } = op { profile::size(&mut self.rng, &self.profile) } else { 0 };
        let id = self.oracle.number(Fact::default());
        if let Op::Put { .. } = op {
            let body = self.bodies.make(id, size);
            let etag = hex::encode(Md5::digest(&body));
            self.oracle.book[id as usize] = Fact { size: size as u64, etag, delete_at: None };
        }
        self.note(&format!("{id} at {machine}: {op:?} {size}"));
        let began = self.world.now();
        self.oracle.began(id, op.clone(), began)?;
        self.summary.operations += 1;
        let policy = match op {
            Op::PutContainer { c } if c == CODED => u16::from(self.profile.code.is_some()),
            Op::PutContainer { c: FLEETING } => {
                u16::from(self.fleeting.rng.chance(300) && self.profile.code.is_some())
            }
            _ => 0,
        };
        let index = match op {
            Op::PutContainer { c: CODED } if self.profile.eventual => Some(IndexPolicy::Eventual),
            Op::PutContainer { c: FLEETING } => self.fleeting.index(),
            _ => None,
        };
        let asked = op.clone();
        let call = Call { policy, index, id, op, delete_at: None, seed: self.rng.next_u64() };
        let (store, bodies) = (running.store.clone(), self.bodies.clone());
        let (terms, calm, alone) = (self.world.terms(), self.is_calm(), running.store.changes_alone());
        let contended = self.contend(&asked);
        let future = Box::pin(perform(store, bodies, call));
        self.slots.push(Slot { machine, id, op: asked, began, terms, calm, alone, contended, future });
        Ok(id)
    }

    /// Whether somebody is just about to do with a container what this does; they hear of one another.
    fn contend(&mut self, op: &Op) -> bool {
        let deletes = |op: &Op| matches!(op, Op::DeleteContainer { .. });
        if !deletes(op) {
            return false;
        }
        let others = self.slots.iter_mut().filter(|slot| deletes(&slot.op));
        let others = others.map(|slot| slot.contended = true).count();
        others > 0 || self.returns.tried_at() + STUCK > self.world.now()
    }

    /// One operation with nothing beside it.
    pub(crate) fn alone(&mut self, machine: usize, op: Op) -> Result<(), Violation> {
        let Some(running) = self.world.machines[machine].running() else {
            return Err(Violation(format!("node {machine} does not run")));
        };
        self.begin(machine, &running, op)?;
        self.drain()
    }

    /// Lets everything under way end.
    pub(crate) fn drain(&mut self) -> Result<(), Violation> {
        while !self.slots.is_empty() {
            self.tick()?;
        }
        Ok(())
    }

    fn make_trouble(&mut self) -> Result<(), Violation> {
        let Some(trouble) = self.troubles.draw(&self.world, &mut self.rng) else { return Ok(()) };
        if self.profile.eventual && matches!(trouble, Trouble::Clock(..)) {
            // Where nobody grants version times, the last writer is the one with the latest clock.
            return Ok(());
        }
        let lasts = self.within(Duration::from_secs(10));
        self.strike(trouble, lasts)
    }

    pub(super) fn strike(&mut self, trouble: Trouble, lasts: Duration) -> Result<(), Violation> {
        self.note(&format!("{trouble:?}"));
        self.summary.troubles += 1;
        self.faulty = true;
        let end = self.world.now() + lasts;
        self.uneasy_until = self.uneasy_until.max(end + RECOVERY);
        match trouble {
            Trouble::Kill(n) => return self.crash(n, false),
            Trouble::Power(n) => return self.crash(n, true),
            Trouble::Blackout | Trouble::LongNight => {
                (0..self.world.machines.len()).try_for_each(|n| self.crash(n, true))?;
                if trouble == Trouble::LongNight {
                    self.world.sleep(NIGHT);
                    self.slept = true;
                    self.note("all are off for a night");
                }
                return Ok(());
            }
            Trouble::Empty(n) => self.world.rings.empty(self.world.machines[n].node, true)?,
            Trouble::CutOff(n) => trouble::cut(&self.world, n, true),
            Trouble::Mute(n) => trouble::cut(&self.world, n, false),
            Trouble::Unheard(from, to) => {
                let [from, to] = [from, to].map(|n| self.world.machines[n].node);
                self.world.net.cut(from, to);
            }
            Trouble::BadNet(loss, slow) => {
                self.world.net.set_faults(trouble::bad_net(self.profile.net, loss, slow));
            }
            Trouble::Slow(n, pace) => {
                self.world.machines[n].drives.iter_mut().for_each(|drive| drive.pace = pace);
            }
            Trouble::Clock(n, off) => self.world.machines[n].wall.set_skew(off * 1000),
            _ => trouble.arm(&self.world),
        }
        self.troubles.ends.push((end, trouble.cure(), trouble.machine()));
        Ok(())
    }

    fn cure(&mut self, cure: Cure) -> Result<(), Violation> {
        self.note(&format!("{cure:?}"));
        self.uneasy_until = self.uneasy_until.max(self.world.now() + RECOVERY);
        match cure {
            Cure::Start(n) if !self.world.machines[n].is_up() => self.start(n)?,
            Cure::Start(_) | Cure::Nothing => {}
            Cure::Connect => self.world.net.heal(),
            Cure::Refill(n) => self.world.rings.empty(self.world.machines[n].node, false)?,
            Cure::GoodNet => self.world.net.set_faults(self.profile.net),
            Cure::Fast(n) => self.world.machines[n].drives.iter_mut().for_each(|drive| drive.pace = 1),
        }
        Ok(())
    }

    /// A machine goes down, to be started again later.
    pub(crate) fn crash(&mut self, n: usize, power: bool) -> Result<(), Violation> {
        if !self.world.machines[n].is_up() {
            return Ok(());
        }
        let plan = power.then(|| trouble::luck(&mut self.rng));
        let lost = self.rng.chance(150);
        let fate = if lost { IndexFate::Lost } else { IndexFate::Prefix(self.rng.next_u64()) };
        self.note(&format!("{n} goes down: {plan:?}, index {fate:?}"));
        self.summary.crashes += 1;
        let alone = self.world.machines[n].running().map_or(0, |running| running.store.changes_alone());
        self.summary.alone += alone;
        let gone: Vec<Slot> = self.slots.extract_if(.., |slot| slot.machine == n).collect();
        for slot in gone {
            self.lose(slot.id)?;
        }
        if let Some(volume) = &mut self.volume {
            volume.clients.down(n);
        }
        self.world.down(n, plan, fate, &mut self.rng);
        trouble::disarm(&self.world, n);
        let end = self.world.now() + self.within(Duration::from_secs(8));
        self.uneasy_until = self.uneasy_until.max(end + RECOVERY);
        self.troubles.ends.push((end, Cure::Start(n), Some(n)));
        Ok(())
    }

    pub(crate) fn start(&mut self, n: usize) -> Result<(), Violation> {
        let random = self.rng.next_u64();
        match self.world.start(n, random) {
            Ok(reports) => {
                self.note(&format!("{n} is up: {reports:?}"));
                match reports.iter().find(|report| !report.lost.is_empty()) {
                    Some(report) => Err(Violation(format!("recovery reports a loss: {report:?}"))),
                    None => Ok(()),
                }
            }
            Err(e) if self.world.machines[n].has_power() => {
                Err(Violation(format!("a drive of {n} does not open: {e}")))
            }
            Err(_) => {
                let (plan, seed) = (trouble::luck(&mut self.rng), self.rng.next_u64());
                self.world.down(n, Some(plan), IndexFate::Prefix(seed), &mut self.rng);
                trouble::disarm(&self.world, n);
                self.start(n)
            }
        }
    }

    pub(crate) fn note(&mut self, event: &str) {
        self.log.note(self.world.now(), event);
    }

    /// No more trouble from here on.
    pub(crate) fn calm(&mut self) -> Result<(), Violation> {
        self.note("healing");
        self.profile.trouble = None;
        let troubles = std::mem::take(&mut self.troubles);
        for (_, cure, _) in troubles.ends {
            // Some are still empty when all is looked at.
            if matches!(cure, Cure::Refill(_)) && self.rng.chance(500) {
                self.cure(cure)?;
            }
        }
        self.world.net.heal();
        self.world.net.set_faults(quarry_engine::net::SimFaults::NONE);
        for n in 0..self.world.machines.len() {
            trouble::disarm(&self.world, n);
            self.world.machines[n].wall.set_skew(0);
            self.world.machines[n].drives.iter_mut().for_each(|drive| drive.pace = 1);
            if !self.world.machines[n].is_up() {
                self.start(n)?;
            }
        }
        self.uneasy_until = self.world.now() + RECOVERY;
        self.drain()?;
        self.wait_for_all()
    }

    /// From here on nothing may be refused.
    pub(crate) fn demand_all(&mut self) {
        self.faulty = false;
        self.uneasy_until = self.world.now();
    }
}
