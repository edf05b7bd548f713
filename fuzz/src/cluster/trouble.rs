//! What goes wrong, when, and when it is over.
//!
//! Invariant: of what happens to single machines, no more than a minority is in trouble at once; what happens to all at once ends soon.

use std::time::Duration;

use quarry_engine::io::{CrashPlan, SplitMix64};
use quarry_engine::net::SimFaults;

use super::world::World;
use crate::blocks::control::CONTROL;

/// A mishap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A process is killed.
    Kill(usize),
    /// The power of a machine fails.
    Power(usize),
    /// The power fails everywhere.
    Blackout,
    /// The power of a machine fails in the middle of a write that is to come.
    PowerAtWrite(usize, u64),
    /// The power of a machine fails in the middle of a flush that is to come.
    PowerAtFlush(usize, u64),
    /// A write that is to come fails.
    WriteError(usize, u64),
    /// A flush that is to come fails.
    FlushError(usize, u64),
    /// Nothing gets to a machine or from it.
    CutOff(usize),
    /// Nothing gets from a machine to the others.
    Mute(usize),
    /// Nothing gets from the first machine to the second.
    Unheard(usize, usize),
    /// The network is slow and loses messages.
    BadNet(u32, u64),
    /// A machine's drives are slow.
    Slow(usize, u64),
    /// A machine's clock jumps: milliseconds off.
    Clock(usize, i64),
    /// The drives of a machine shall be emptied: the ring changes.
    Empty(usize),
    /// The power fails everywhere, and comes back when tombstones may have gone.
    LongNight,
}

/// What ends a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    Start(usize),
    Connect,
    GoodNet,
    Fast(usize),
    Refill(usize),
    /// Nothing need be done: what was armed has struck, or will.
    Nothing,
}

/// What is going on.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    /// When which trouble ends, and which machine it is about.
    pub(crate) ends: Vec<(Duration, Cure, Option<usize>)>,
}

impl Trouble {
    pub(crate) fn machine(self) -> Option<usize> {
        match self {
            Self::Kill(n)
            | Self::Power(n)
            | Self::PowerAtWrite(n, _)
            | Self::PowerAtFlush(n, _)
            | Self::WriteError(n, _)
            | Self::FlushError(n, _)
            | Self::CutOff(n)
            | Self::Mute(n)
            | Self::Unheard(_, n)
            | Self::Slow(n, _) => Some(n),
            Self::Blackout | Self::LongNight | Self::BadNet(..) | Self::Clock(..) | Self::Empty(_) => None,
        }
    }

    fn draw(rng: &mut SplitMix64, machines: usize, leader: Option<usize>) -> Self {
        let n = leader.filter(|_| rng.chance(400)).unwrap_or_else(|| rng.index(machines));
        let soon = 1 + rng.below(20);
        match rng.below(26) {
            0..3 => Self::Kill(n),
            3..6 => Self::Power(n),
            6 => Self::Blackout,
            7 | 8 => Self::PowerAtWrite(n, soon),
            9 | 10 => Self::PowerAtFlush(n, soon),
            11 => Self::WriteError(n, soon),
            12 => Self::FlushError(n, soon),
            13..15 => Self::CutOff(n),
            15 => Self::Mute(n),
            16 | 17 => Self::BadNet(50 + u32::try_from(rng.below(200)).unwrap_or(0), 1 + rng.below(300)),
            18 | 19 => Self::Slow(n, 20 + rng.below(1500)),
            20..23 => Self::Empty(n),
            23 => Self::LongNight,
            _ => Self::Clock(n, i64::try_from(rng.below(120_000)).unwrap_or(0) - 60_000),
        }
    }

    /// Arms what strikes by itself.
    pub(crate) fn arm(self, world: &World) {
        let Some(n) = self.machine() else { return };
        let machine = &world.machines[n];
        let drive = &machine.drives[0];
        let now = drive.image.counters();
        drive.image.edit_faults(|faults| match self {
            Self::PowerAtWrite(_, soon) => faults.power_off_at_write = Some(now.writes + soon),
            Self::PowerAtFlush(_, soon) => faults.power_off_at_flush = Some(now.flushes + soon),
            Self::WriteError(_, soon) => {
                faults.fail_writes.insert(now.writes + soon);
            }
            Self::FlushError(_, soon) => {
                faults.fail_flushes.insert(now.flushes + soon);
            }
            _ => {}
        });
    }

    /// What ends it.
    pub(crate) fn cure(self) -> Cure {
        match self {
            Self::Kill(n) | Self::Power(n) => Cure::Start(n),
            Self::CutOff(_) | Self::Mute(_) | Self::Unheard(..) => Cure::Connect,
            Self::BadNet(..) => Cure::GoodNet,
            Self::Slow(n, _) => Cure::Fast(n),
            Self::Empty(n) => Cure::Refill(n),
            _ => Cure::Nothing,
        }
    }
}

/// Disarms a machine.
pub(crate) fn disarm(world: &World, n: usize) {
    for drive in &world.machines[n].drives {
        drive.image.edit_faults(|faults| {
            faults.fail_writes.clear();
            faults.fail_flushes.clear();
            faults.power_off_at_write = None;
            faults.power_off_at_flush = None;
        });
    }
}

/// Cuts a machine off, one way or both.
pub(crate) fn cut(world: &World, n: usize, both: bool) {
    let own = world.machines[n].node;
    let others = world.machines.iter().map(|machine| machine.node).filter(|other| *other != own);
    for other in others.chain([CONTROL]) {
        world.net.cut(own, other);
        if both {
            world.net.cut(other, own);
        }
    }
}

pub(crate) fn bad_net(usual: SimFaults, loss: u32, slow: u64) -> SimFaults {
    let delay = (usual.delay.0, Duration::from_millis(slow));
    SimFaults { delay, loss, ..usual }
}

/// The luck of unflushed writes.
pub(crate) fn luck(rng: &mut SplitMix64) -> CrashPlan {
    match rng.below(5) {
        0 => CrashPlan::LOSE_ALL,
        1 => CrashPlan::KEEP_ALL,
        _ => CrashPlan::MIXED,
    }
}

impl Troubles {
    /// The next trouble, if there is room for one.
    pub(crate) fn draw(&self, world: &World, rng: &mut SplitMix64) -> Option<Trouble> {
        let trouble = Trouble::draw(rng, world.machines.len(), world.leader());
        self.allow(world, trouble).then_some(trouble)
    }

    /// Whether there is room for it beside the others.
    pub(crate) fn allow(&self, world: &World, trouble: Trouble) -> bool {
        let machines = world.machines.len();
        let mut struck: Vec<usize> = self.ends.iter().filter_map(|(_, _, machine)| *machine).collect();
        struck.extend((0..machines).filter(|n| !world.machines[*n].is_up()));
        struck.sort_unstable();
        struck.dedup();
        let cut = self.ends.iter().any(|(_, cure, _)| *cure == Cure::Connect);
        match trouble {
            Trouble::CutOff(_) | Trouble::Mute(_) | Trouble::Unheard(..) if cut => false,
            Trouble::Clock(..) => true,
            // Three must remain, and one at a time is emptied.
            Trouble::Empty(_) => {
                let refills = self.ends.iter().any(|(_, cure, _)| matches!(cure, Cure::Refill(_)));
                machines > 3 && !refills
            }
            Trouble::Blackout | Trouble::LongNight | Trouble::BadNet(..) => struck.is_empty(),
            _ => {
                let fresh = trouble.machine().is_some_and(|n| !struck.contains(&n));
                fresh && struck.len() < (machines - 1) / 2
            }
        }
    }

    /// Takes out what is due.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Cure> {
        self.ends.extract_if(.., |(at, ..)| *at <= now).map(|(_, cure, _)| cure).collect()
    }
}
