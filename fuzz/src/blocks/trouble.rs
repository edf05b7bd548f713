//! What goes wrong, and when it is over. Whatever goes wrong with how many machines: a volume may stop, and tells nothing that is not so.

use std::time::Duration;

use quarry_engine::io::{CrashPlan, SplitMix64};
use quarry_engine::net::{NodeId, SimFaults};

use super::control::CONTROL;
use super::split::Split;
use super::world::World;
use crate::cluster::machine::node_id;

/// A mishap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A process is killed.
    Kill(usize),
    /// The power of a machine fails.
    Power(usize),
    /// The power fails at all machines of which this has the bit.
    Blackout(u8),
    /// The power of a machine fails in the middle of a write that is to come.
    PowerAtWrite(usize, u64),
    /// The power of a machine fails in the middle of a flush that is to come.
    PowerAtFlush(usize, u64),
    /// A write that is to come fails.
    WriteError(usize, u64),
    /// A flush that is to come fails.
    FlushError(usize, u64),
    /// A read that is to come fails.
    ReadError(usize, u64),
    /// Nothing gets to a machine or from it.
    CutOff(usize),
    /// Nothing gets from one machine to another.
    Cut(usize, usize),
    /// The next head and the present one do not hear each other, and a third machine hears them in turn ([`Split`]).
    Split(usize, usize),
    /// The network is slow and loses messages.
    BadNet(u32, u64),
    /// A drive is slow.
    Slow(usize, u64),
    /// A head is dropped, and its node stays.
    NoHead,
    /// Another node takes the volume.
    TakeOver(usize),
}

/// What ends a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    Start(usize),
    Part(Split),
    Turn(Split),
    Connect,
    GoodNet,
    Fast(usize),
}

impl Trouble {
    pub(crate) fn draw(rng: &mut SplitMix64, machines: usize) -> Self {
        let (n, other) = (rng.index(machines), rng.index(machines));
        let soon = 1 + rng.below(20);
        match rng.below(36) {
            0..3 => Self::Kill(n),
            3..6 => Self::Power(n),
            6..9 => Self::Blackout(u8::try_from(1 + rng.below(31)).unwrap_or(31)),
            9..12 => Self::PowerAtWrite(n, soon),
            12..14 => Self::PowerAtFlush(n, soon),
            14 => Self::WriteError(n, soon),
            15 => Self::FlushError(n, soon),
            16 => Self::ReadError(n, soon),
            17 | 18 => Self::CutOff(n),
            19 | 20 => Self::Cut(n, other),
            21..27 => Self::Split(n, other),
            27 => Self::BadNet(20 + u32::try_from(rng.below(150)).unwrap_or(0), 1 + rng.below(200)),
            28 => Self::Slow(n, 20 + rng.below(500)),
            29 | 30 => Self::NoHead,
            _ => Self::TakeOver(n),
        }
    }

    /// Arms what strikes by itself.
    pub(crate) fn arm(self, world: &World) {
        let (Self::PowerAtWrite(n, soon)
        | Self::PowerAtFlush(n, soon)
        | Self::WriteError(n, soon)
        | Self::FlushError(n, soon)
        | Self::ReadError(n, soon)) = self
        else {
            return;
        };
        if !world.is_up(n) {
            return;
        }
        let image = &world.machines[n].drive.image;
        let now = image.counters();
        image.edit_faults(|faults| match self {
            Self::PowerAtWrite(..) => faults.power_off_at_write = Some(now.writes + soon),
            Self::PowerAtFlush(..) => faults.power_off_at_flush = Some(now.flushes + soon),
            Self::WriteError(..) => drop(faults.fail_writes.insert(now.writes + soon)),
            Self::FlushError(..) => drop(faults.fail_flushes.insert(now.flushes + soon)),
            _ => drop(faults.fail_reads.insert(now.reads + soon)),
        });
    }
}

/// Disarms a machine.
pub(crate) fn disarm(world: &World, n: usize) {
    world.machines[n].drive.image.edit_faults(|faults| {
        faults.fail_writes.clear();
        faults.fail_flushes.clear();
        faults.fail_reads.clear();
        faults.power_off_at_write = None;
        faults.power_off_at_flush = None;
    });
}

pub(crate) fn cut(world: &World, one: NodeId, other: NodeId) {
    world.net.cut(one, other);
    world.net.cut(other, one);
}

/// Cuts a machine off from all others, the control group included.
pub(crate) fn cut_off(world: &World, n: usize) {
    let others = (0..world.machines.len()).filter(|other| *other != n).map(node_id);
    others.chain([CONTROL]).for_each(|other| cut(world, node_id(n), other));
}

pub(crate) fn bad_net(usual: SimFaults, loss: u32, slow: u64) -> SimFaults {
    SimFaults { delay: (usual.delay.0, Duration::from_millis(slow)), loss, ..usual }
}

/// The luck of unflushed writes.
pub(crate) fn luck(rng: &mut SplitMix64) -> CrashPlan {
    match rng.below(5) {
        0 => CrashPlan::LOSE_ALL,
        1 => CrashPlan::KEEP_ALL,
        _ => CrashPlan::MIXED,
    }
}
