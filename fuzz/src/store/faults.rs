//! What goes wrong, and when.

use quarry_engine::io::{CrashPlan, SplitMix64};

use super::world::{Down, IndexFate, World};

/// A mishap of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It goes down now.
    Crash(Down),
    /// The power fails in the middle of a write that is to come.
    PowerAtWrite(u64),
    /// The power fails in the middle of a flush that is to come.
    PowerAtFlush(u64),
    /// A write that is to come fails.
    WriteError(u64),
    /// A flush that is to come fails.
    FlushError(u64),
    /// Reads that are to come fail.
    ReadErrors(u64),
    /// The index fails.
    IndexError(u64),
}

impl Fault {
    pub(crate) fn draw(rng: &mut SplitMix64) -> Self {
        let soon = 1 + rng.below(6);
        match rng.below(12) {
            0 | 1 => Self::Crash(Down::Kill),
            2 | 3 => Self::Crash(Down::Power(luck(rng))),
            4 | 5 => Self::PowerAtWrite(soon),
            6 | 7 => Self::PowerAtFlush(soon),
            8 => Self::WriteError(soon),
            9 => Self::FlushError(soon),
            10 => Self::ReadErrors(soon),
            _ => Self::IndexError(rng.below(20)),
        }
    }

    /// Arms it; a crash is the caller's to carry out.
    pub(crate) fn arm(self, world: &World) {
        let now = world.image.counters();
        world.image.edit_faults(|faults| match self {
            Self::Crash(_) | Self::IndexError(_) => {}
            Self::PowerAtWrite(soon) => faults.power_off_at_write = Some(now.writes + soon),
            Self::PowerAtFlush(soon) => faults.power_off_at_flush = Some(now.flushes + soon),
            Self::WriteError(soon) => {
                faults.fail_writes.insert(now.writes + soon);
            }
            Self::FlushError(soon) => {
                faults.fail_flushes.insert(now.flushes + soon);
            }
            Self::ReadErrors(soon) => faults.fail_reads.extend(now.reads + 1..=now.reads + soon),
        });
        if let Self::IndexError(soon) = self {
            world.index.fail_after(soon);
        }
    }
}

/// Disarms everything.
pub(crate) fn clear(world: &World) {
    world.image.edit_faults(|faults| {
        faults.fail_reads.clear();
        faults.fail_writes.clear();
        faults.fail_flushes.clear();
        faults.power_off_at_write = None;
        faults.power_off_at_flush = None;
    });
}

/// The luck of unflushed writes.
pub(crate) fn luck(rng: &mut SplitMix64) -> CrashPlan {
    match rng.below(5) {
        0 => CrashPlan::LOSE_ALL,
        1 => CrashPlan::KEEP_ALL,
        _ => CrashPlan::MIXED,
    }
}

/// What becomes of the index.
pub(crate) fn index_fate(rng: &mut SplitMix64) -> IndexFate {
    if rng.chance(200) { IndexFate::Lost } else { IndexFate::Prefix(rng.next_u64()) }
}
