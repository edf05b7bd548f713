//! One history of a volume on nodes from one seed: who does what next, and what it led to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use quarry_engine::io::SplitMix64;
use quarry_engine::net::SimFaults;

use super::clients::Clients;
use super::control::Control;
use super::copies::{Cloned, Copies, look_at_clones};
use super::healing::{Ground, NOTICED, look_at_all, pass};
use super::part::Part;
use super::plant::Plant;
use super::trouble::{self, Cure, Trouble};
use super::world::World;
use crate::cluster::LINES;
use crate::cluster::log::Log;
use crate::cluster::machine::node_id;
use crate::store::oracle::Violation;
use crate::store::world::IndexFate;

/// What a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Of everything that happened.
    pub hash: u64,
    /// Answers to clients.
    pub answers: u64,
    /// Of these, how many said that it could not be done.
    pub failed: u64,
    /// Heads that served.
    pub heads: u64,
    /// Times that a machine went down.
    pub crashes: u64,
    /// Changes of the configuration.
    pub changes: u64,
    /// Snapshots that were made, and reads of some.
    pub frozen: [u64; 2],
    /// Clones that were made, reads of them, how many took over what they had of their parent, and how many went back to a snapshot.
    pub clones: [u64; 4],
    /// Milliseconds of virtual time.
    pub millis: u64,
}

impl Summary {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.failed += other.failed;
        self.heads += other.heads;
        self.crashes += other.crashes;
        self.changes += other.changes;
        (0..2).for_each(|n| self.frozen[n] += other.frozen[n]);
        (0..4).for_each(|n| self.clones[n] += other.clones[n]);
        self.millis += other.millis;
    }
}

/// A broken promise, and how to see it again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}: {violation}\nlast events:\n{}\nreproduce: quarry-fuzz blocks --seed {seed}{planted}", tail.join("\n"))]
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

/// Runs the history of a seed.
pub fn history(seed: u64, plant: Plant) -> Result<Summary, Box<Failure>> {
    history_with(seed, plant, LINES)
}

/// Runs the history of a seed; a failure shows so many lines of its log.
pub fn history_with(seed: u64, plant: Plant, lines: usize) -> Result<Summary, Box<Failure>> {
    let option = clap::ValueEnum::to_possible_value(&plant).map(|value| value.get_name().to_owned());
    let planted = match plant {
        Plant::Nothing => String::new(),
        _ => format!(" --planted {}", option.unwrap_or_default()),
    };
    let failure = |violation, tail| Box::new(Failure { seed, violation, tail, planted: planted.clone() });
    let mut history = History::new(seed, plant, lines).map_err(|violation| failure(violation, Vec::new()))?;
    let whole = AssertUnwindSafe(|| history.live().and_then(|()| history.heal()));
    // An assertion that fails is a finding like any other.
    let ended = catch_unwind(whole);
    let History { world, clients, copies, log, mut summary, .. } = history;
    summary.hash = log.hash;
    (summary.answers, summary.failed, summary.heads) = (clients.answers, clients.failed, clients.attached);
    summary.frozen = clients.frozen;
    summary.clones = copies.as_ref().map_or([0; 4], |copies| copies.counts);
    summary.changes = u64::from(world.control.read().0.configuration.version) - 1;
    summary.millis = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
    let result = ended.unwrap_or_else(|panic| {
        // What it left half done is not taken apart.
        std::mem::forget((clients, copies, world));
        Err(Violation(crate::panic_text(panic.as_ref())))
    });
    result.map_err(|violation| failure(violation, log.tail.into()))?;
    Ok(summary)
}

pub(super) struct History {
    pub(super) world: World,
    pub(super) clients: Clients,
    /// Not all histories have clones: they are what they were without them.
    copies: Option<Copies>,
    pub(super) rng: SplitMix64,
    log: Log,
    summary: Summary,
    /// The network when nothing is wrong with it.
    net: SimFaults,
    /// Longest pause of clients, and between two troubles; none: there is no trouble.
    think: Duration,
    trouble: Option<Duration>,
    pub(super) members: usize,
    pub(super) cures: Vec<(Duration, Cure)>,
}

impl History {
    fn new(seed: u64, plant: Plant, lines: usize) -> Result<Self, Violation> {
        let mut rng = SplitMix64::new(seed);
        let members = [1, 2, 3, 3, 3, 3, 4, 5][rng.index(8)];
        let machines = members + rng.index(2);
        let (loss, duplication) = [(0, 0), (0, 20), (5, 5), (20, 20)][rng.index(4)];
        let slowest = Duration::from_micros([200, 2_000, 20_000][rng.index(3)]);
        let net = SimFaults { delay: (Duration::from_micros(50), slowest), loss, duplication };
        let world = World::new(machines, members, net, &mut rng, plant)?;
        let think = Duration::from_millis([4, 20, 60][rng.index(3)]);
        let trouble = [None, Some(4_000), Some(1_500), Some(600)][rng.index(4)].map(Duration::from_millis);
        let (clients, log, summary) = (Clients::new(), Log::new(lines), Summary::default());
        let mut own = SplitMix64::new(!seed);
        let copies = own.chance(400).then(|| Copies::new(own));
        Ok(Self {
            world,
            clients,
            copies,
            rng,
            log,
            summary,
            net,
            think,
            trouble,
            members,
            cures: Vec::new(),
        })
    }

    pub(super) fn within(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(1).max(1);
        Duration::from_micros(self.rng.below(micros))
    }

    /// The safety phase.
    fn live(&mut self) -> Result<(), Violation> {
        let what = (self.world.machines.len(), self.members, self.net, self.think, self.trouble);
        self.note(&format!("{what:?}"));
        (0..self.world.machines.len()).try_for_each(|n| self.start(n))?;
        let end = self.world.now() + Duration::from_secs(8 + self.rng.below(12));
        let (mut next, mut trouble_at) = (self.world.now(), self.world.now());
        while self.world.now() < end {
            let now = self.world.now();
            if next <= now {
                next = now + self.within(self.think);
                self.attach_if_none();
                let said = self.clients.ask(&mut self.rng, now);
                said.into_iter().for_each(|said| self.note(&said));
                self.ask_clones(now);
            }
            if let Some(longest) = self.trouble.filter(|_| trouble_at <= now) {
                trouble_at = now + self.within(longest);
                self.make_trouble()?;
            }
            self.tick()?;
        }
        Ok(())
    }

    fn ask_clones(&mut self, now: Duration) {
        let Some(copies) = &mut self.copies else { return };
        let machines = self.world.machines.iter().enumerate();
        let up: Vec<(usize, Part)> = machines.filter_map(|(n, one)| Some((n, one.part.clone()?))).collect();
        let said = copies.ask(&self.clients, &up, now);
        said.into_iter().for_each(|said| self.note(&said));
    }

    fn attach_if_none(&mut self) {
        let none = self.clients.current().is_none() && !self.clients.is_attaching();
        if none && self.rng.chance(300) {
            let up = self.world.up();
            if !up.is_empty() {
                let n = up[self.rng.index(up.len())];
                self.attach(n);
            }
        }
    }

    pub(super) fn attach(&mut self, n: usize) {
        if let Some(part) = self.world.machines[n].part.clone() {
            self.note(&format!("{n} attaches"));
            self.clients.attach(n, part, self.world.now());
        }
    }

    /// Machines that lost their power or a drive are taken down, to be started again later.
    fn look_after(&mut self, n: usize) -> Result<(), Violation> {
        if !self.world.is_up(n) {
            return Ok(());
        }
        let drive = &self.world.machines[n].drive;
        if !drive.image.is_powered() {
            self.crash(n, true);
        } else if let Some(why) = drive.handle().and_then(|disk| disk.failure()) {
            self.note(&format!("{n}: the drive is out: {why}"));
            self.crash(n, true);
        }
        Ok(())
    }

    pub(super) fn crash(&mut self, n: usize, power: bool) {
        if !self.world.is_up(n) {
            return;
        }
        let plan = power.then(|| trouble::luck(&mut self.rng));
        let lost = self.rng.chance(150);
        let fate = if lost { IndexFate::Lost } else { IndexFate::Prefix(self.rng.next_u64()) };
        self.note(&format!("{n} goes down: {plan:?}, index {fate:?}"));
        self.summary.crashes += 1;
        self.take_down(n);
        self.world.down(n, plan, fate, &mut self.rng);
        trouble::disarm(&self.world, n);
        let longest = Duration::from_millis([50, 1_000, 8_000][self.rng.index(3)]);
        let end = self.world.now() + self.within(longest);
        self.cures.push((end, Cure::Start(n)));
    }

    fn take_down(&mut self, n: usize) {
        self.clients.down(n);
        if let Some(copies) = &mut self.copies {
            copies.down(n);
        }
    }

    fn start(&mut self, n: usize) -> Result<(), Violation> {
        match self.world.start(n)? {
            Ok(report) => {
                self.note(&format!("{n} is up: {report:?}"));
                match report.lost.is_empty() {
                    true => Ok(()),
                    false => Err(Violation(format!("recovery reports a loss: {report:?}"))),
                }
            }
            Err(error) if self.world.machines[n].drive.image.is_powered() => {
                Err(Violation(format!("the drive of {n} does not open: {error}")))
            }
            Err(_) => {
                let (plan, seed) = (trouble::luck(&mut self.rng), self.rng.next_u64());
                self.world.down(n, Some(plan), IndexFate::Prefix(seed), &mut self.rng);
                trouble::disarm(&self.world, n);
                self.start(n)
            }
        }
    }

    fn make_trouble(&mut self) -> Result<(), Violation> {
        let machines = self.world.machines.len();
        let trouble = Trouble::draw(&mut self.rng, machines);
        self.note(&format!("{trouble:?}"));
        let end = self.world.now() + self.within(Duration::from_secs(6));
        match trouble {
            Trouble::Kill(n) => self.crash(n, false),
            Trouble::Power(n) => self.crash(n, true),
            Trouble::Blackout(which) => {
                (0..machines).filter(|n| which >> n & 1 == 1).for_each(|n| self.crash(n, true));
            }
            Trouble::CutOff(n) => {
                trouble::cut_off(&self.world, n);
                self.cures.push((end, Cure::Connect));
            }
            Trouble::Cut(one, other) => {
                self.world.net.cut(node_id(one), node_id(other));
                self.cures.push((end, Cure::Connect));
            }
            Trouble::Split(one, other) => self.split(one, other),
            Trouble::BadNet(loss, slow) => {
                self.world.net.set_faults(trouble::bad_net(self.net, loss, slow));
                self.cures.push((end, Cure::GoodNet));
            }
            Trouble::Slow(n, pace) => {
                self.world.machines[n].drive.pace = pace;
                self.cures.push((end, Cure::Fast(n)));
            }
            Trouble::NoHead => {
                if let Some(n) = self.clients.current() {
                    self.clients.heads.remove(&n);
                }
            }
            Trouble::TakeOver(n) => self.attach(n),
            _ => trouble.arm(&self.world),
        }
        Ok(())
    }

    fn cure(&mut self, cure: Cure) -> Result<(), Violation> {
        self.note(&format!("{cure:?}"));
        match cure {
            Cure::Start(n) if !self.world.is_up(n) => self.start(n)?,
            Cure::Start(_) => {}
            Cure::Part(split) => self.part_heads(split),
            Cure::Turn(split) => self.turn(split),
            Cure::Connect => self.world.net.heal(),
            Cure::GoodNet => self.world.net.set_faults(self.net),
            Cure::Fast(n) => self.world.machines[n].drive.pace = 1,
        }
        Ok(())
    }

    /// No more trouble: a new head finds everything, and brings all members to it; twice, with all machines down between.
    fn heal(&mut self) -> Result<(), Violation> {
        self.note("healing");
        self.trouble = None;
        self.cures.clear();
        (self.clients.hushed, self.clients.looked_at) = (None, None);
        self.world.net.heal();
        self.world.net.set_faults(SimFaults::NONE);
        for n in 0..self.world.machines.len() {
            trouble::disarm(&self.world, n);
            self.world.machines[n].drive.pace = 1;
            if !self.world.is_up(n) {
                self.start(n)?;
            }
        }
        pass(self, NOTICED)?;
        self.look_at_all()?;
        for n in 0..self.world.machines.len() {
            let fate = if n == 0 { IndexFate::Lost } else { IndexFate::Prefix(self.rng.next_u64()) };
            self.take_down(n);
            self.world.down(n, Some(trouble::luck(&mut self.rng)), fate, &mut self.rng);
        }
        (0..self.world.machines.len()).try_for_each(|n| self.start(n))?;
        self.look_at_all()
    }

    fn look_at_all(&mut self) -> Result<(), Violation> {
        let n = self.rng.index(self.world.machines.len());
        look_at_all(self, n, self.members)?;
        look_at_clones(self, n, self.members)
    }
}

impl Ground for History {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn tick(&mut self) -> Result<(), Violation> {
        self.world.turn();
        for n in 0..self.world.machines.len() {
            self.look_after(n)?;
        }
        let now = self.world.now();
        let due: Vec<Cure> = self.cures.extract_if(.., |(at, _)| *at <= now).map(|(_, cure)| cure).collect();
        due.into_iter().try_for_each(|cure| self.cure(cure))?;
        let mut said = self.clients.poll(now)?;
        if let Some(copies) = &mut self.copies {
            said.extend(copies.poll(&mut self.clients.oracle, self.clients.happened, now)?);
        }
        said.iter().for_each(|said| self.note(said));
        Ok(())
    }

    fn note(&mut self, what: &str) {
        self.log.note(self.world.now(), what);
    }

    fn part(&self, n: usize) -> Option<Part> {
        self.world.machines[n].part.clone()
    }

    fn clients(&mut self) -> (&mut Clients, &Control) {
        (&mut self.clients, &self.world.control)
    }
}

impl Cloned for History {
    fn copies(&mut self) -> Option<&mut Copies> {
        self.copies.as_mut()
    }
}
