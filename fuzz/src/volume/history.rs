//! One history of a volume from one seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use quarry_engine::io::SplitMix64;
use quarry_volume::head::{Settings, Standing};

use super::driver::Ask;
use super::oracle::BLOCKS;
use super::plant::Plant;
use super::world::{Net, World};
use crate::store::oracle::Violation;

/// Longer than everything that heals takes.
const HEALED: u64 = 400_000;
/// Requests of a client at a time, at most.
const DEPTH: u64 = 8;

/// What a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Of everything that happened.
    pub hash: u64,
    /// Answers to clients.
    pub answers: u64,
    /// Heads that were attached.
    pub heads: u64,
    /// Times that a member lost its power.
    pub crashes: u64,
    /// Messages with rows for a member that was filled.
    pub fills: u64,
    /// Changes of the configuration.
    pub changes: u64,
    /// Heads that stopped because acknowledged writes were gone before a flush.
    pub lost: u64,
}

impl Summary {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.heads += other.heads;
        self.crashes += other.crashes;
        self.fills += other.fills;
        self.changes += other.changes;
        self.lost += other.lost;
    }
}

/// A broken promise, and how to see it again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}: {violation}\nlast events:\n{}\nreproduce: quarry-fuzz volume --seed {seed}{planted}", tail.join("\n"))]
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
    history_with(seed, plant, crate::cluster::LINES)
}

/// Runs the history of a seed; a failure shows so many lines of its log.
pub fn history_with(seed: u64, plant: Plant, lines: usize) -> Result<Summary, Box<Failure>> {
    let mut history = History::new(seed, plant, lines);
    let whole = AssertUnwindSafe(|| history.live().and_then(|()| history.heal()));
    // An assertion that fails is a finding like any other.
    let result =
        catch_unwind(whole).unwrap_or_else(|panic| Err(Violation(crate::panic_text(panic.as_ref()))));
    let option = clap::ValueEnum::to_possible_value(&plant).map(|value| value.get_name().to_owned());
    let planted = match plant {
        Plant::Nothing => String::new(),
        _ => format!(" --planted {}", option.unwrap_or_default()),
    };
    let History { world, mut summary, .. } = history;
    if let Err(violation) = result {
        return Err(Box::new(Failure { seed, violation, tail: world.log.tail.into(), planted }));
    }
    summary.hash = world.log.hash;
    summary.answers = world.answers;
    summary.heads = world.control.epoch;
    summary.fills = world.fills;
    summary.changes = u64::from(world.control.configuration.version) - 1;
    summary.lost = world.losses;
    Ok(summary)
}

struct History {
    world: World,
    summary: Summary,
    rng: SplitMix64,
    members: usize,
    values: u64,
    /// Troubles of a thousand looks.
    trouble: u32,
}

impl History {
    fn new(seed: u64, plant: Plant, lines: usize) -> Self {
        let mut rng = SplitMix64::new(seed);
        let members = [1, 2, 3, 3, 3, 3, 4, 5][rng.index(8)];
        let keep = [0, 0, 4, 64][rng.index(4)];
        let settings = Settings { least: members / 2 + 1, keep, near: None };
        let mut world = World::new(rng.next_u64(), members, settings, plant, lines);
        let (lost, twice) = [(0, 0), (0, 0), (5, 5), (30, 10)][rng.index(4)];
        world.net = Net { delay: [5, 20, 60][rng.index(3)], lost, twice };
        let trouble = [0, 10, 25, 60][rng.index(4)];
        Self { world, summary: Summary::default(), rng, members, values: 0, trouble }
    }

    /// The safety phase.
    fn live(&mut self) -> Result<(), Violation> {
        self.world.attach()?;
        let looks = 300 + self.rng.below(500);
        for _ in 0..looks {
            let time = 5 + self.rng.below(80);
            self.world.pass(time)?;
            if self.rng.chance(self.trouble) {
                self.make_trouble()?;
            }
            self.attach_if_none()?;
            for _ in 0..self.rng.below(4) {
                self.ask()?;
            }
        }
        Ok(())
    }

    fn attach_if_none(&mut self) -> Result<(), Violation> {
        if self.world.current().is_none() && self.rng.chance(200) {
            self.world.attach()?;
        }
        Ok(())
    }

    /// A client of some head that lives asks for something.
    fn ask(&mut self) -> Result<(), Violation> {
        let heads: Vec<usize> = self.world.heads.keys().copied().collect();
        if heads.is_empty() {
            return Ok(());
        }
        // Mostly at the newest one; now and then at one that may be fenced.
        let head =
            if self.rng.chance(800) { heads[heads.len() - 1] } else { heads[self.rng.index(heads.len())] };
        let busy = self.world.heads.get(&head).map_or(0, |running| running.driver.requests.len());
        if busy as u64 >= DEPTH {
            return Ok(());
        }
        let blocks = 1 + u8::try_from(self.rng.below(3)).unwrap_or(0);
        let first = u8::try_from(self.rng.below(u64::from(BLOCKS - blocks + 1))).unwrap_or(0);
        let ask = match self.rng.below(100) {
            0..45 => {
                self.values += 1;
                // A trim is a write of zeroes.
                let value = if self.rng.chance(100) { 0 } else { self.values };
                Ask::Write { first, blocks, value, durable: self.rng.chance(100) }
            }
            45..82 => Ask::Read { first, blocks },
            82..95 => Ask::Flush,
            95..99 => Ask::Snapshot,
            _ if self.rng.chance(100) => Ask::HandOver,
            _ => Ask::Flush,
        };
        self.world.ask(head, ask)
    }

    fn make_trouble(&mut self) -> Result<(), Violation> {
        let member = self.rng.index(self.members);
        let away = 1 + self.rng.below(6_000);
        let newest = self.world.heads.keys().next_back().copied();
        match self.rng.below(11) {
            0..3 => self.crash(member, away),
            3 => (0..self.members).for_each(|member| self.crash(member, away)),
            4 if self.world.sites[member].is_up() => self.world.sites[member].failing = true,
            4 => {}
            5 => {
                self.world.attach()?;
            }
            6 => {
                // It is cut off from some, and somebody else takes the volume.
                if let Some(head) = newest {
                    let count = 1 + self.rng.index(self.members);
                    (0..count).for_each(|member| self.world.cut(head, member, away));
                }
                if self.rng.chance(500) {
                    self.world.attach()?;
                }
            }
            7 => {
                if let Some(head) = newest {
                    self.world.kill(head);
                }
            }
            8 => {
                if let Some(old) = newest {
                    let new = self.world.attach()?;
                    self.world.split(old, new, away);
                }
            }
            9 => {
                if let Some(head) = newest {
                    self.world.cut(head, member, away);
                }
            }
            _ => {
                // A member whose disk failed comes back by a new start.
                self.crash(member, 1);
            }
        }
        // Old heads do not pile up.
        while self.world.heads.len() > 3 {
            if let Some(oldest) = self.world.heads.keys().next().copied() {
                self.world.kill(oldest);
            }
        }
        Ok(())
    }

    fn crash(&mut self, member: usize, away: u64) {
        if self.world.sites[member].is_up() {
            self.summary.crashes += 1;
            self.world.crash(member, away);
        }
    }

    /// No more trouble: a new head finds everything, and brings all members to it.
    fn heal(&mut self) -> Result<(), Violation> {
        self.world.note("healing");
        self.world.net = Net { delay: 10, lost: 0, twice: 0 };
        self.world.mend_all();
        for member in 0..self.members {
            // Also those whose disk failed.
            self.crash(member, 0);
            self.world.sites[member].failing = false;
            self.world.start(member);
        }
        let old: Vec<usize> = self.world.heads.keys().copied().collect();
        old.into_iter().for_each(|head| self.world.kill(head));
        let mut head = self.world.attach()?;
        let end = self.world.now + HEALED;
        loop {
            self.world.pass(1_000)?;
            if self.is_healed(head) {
                break;
            }
            if self.world.current().is_none() {
                head = self.world.attach()?;
            }
            if self.world.now > end {
                let running = self.world.heads.get(&head);
                let members = running.map(|running| running.driver.head.members().collect::<Vec<_>>());
                return Err(Violation(format!("does not heal: {members:?}")));
            }
        }
        self.world.ask(head, Ask::Read { first: 0, blocks: BLOCKS })?;
        self.world.ask(head, Ask::Snapshot)?;
        self.world.pass(5_000)?;
        for (name, site) in self.world.sites.iter().enumerate() {
            let report = site.report(site.accepted);
            if !report.whole {
                return Err(Violation(format!("member {name} is not whole")));
            }
            self.world.oracle.check(name, site, &report.history)?;
            if report.history.end() != self.world.oracle.flushed {
                return Err(Violation(format!("member {name} ends at {}", report.history.end())));
            }
        }
        Ok(())
    }

    fn is_healed(&self, head: usize) -> bool {
        let Some(running) = self.world.heads.get(&head) else { return false };
        let head = &running.driver.head;
        head.is_serving()
            && head.configuration().members.len() == self.members
            && head.members().all(|(_, standing)| standing == Standing::Active)
            && running.driver.requests.is_empty()
    }
}
