//! The disk engine: one append-only segment log per disk, which is the database (engine/FORMAT.md).
//!
//! Invariant: the log is the truth; the index is derived from it.
//! Invariant: what [`DiskHandle::append`] acknowledged as [`Durability::Durable`] survives any crash.

mod answer;
mod apply;
mod assembly;
mod batching;
mod cache;
pub mod catalog;
mod check;
mod cleaner;
mod core;
mod fence;
pub mod format;
mod handle;
mod hints;
mod lane;
pub mod limits;
pub(crate) mod memo;
mod open;
mod pipeline;
mod rebuild;
mod recovery;
mod room;
pub(crate) mod run;
mod salvage;
mod segments;
mod shared;
mod simulate;
mod stretch;
mod table;
mod tallies;
#[cfg(test)]
mod tests;
mod thread;
mod upkeep;
mod window;

pub use answer::{Durable, Submitted};
pub use cache::CacheBytes;
pub use check::{CheckReport, Finding, check};
pub use cleaner::{Cleaned, benefit};
pub use handle::{DiskHandle, Pins, Room, Usage};
pub use lane::Lane;
pub use memo::Group;
pub use open::{Format, Open, OpenError, format, read_superblock};
pub use rebuild::Rebuilt;
pub use recovery::{Gap, RecoveryError, Report, judge_gap};
pub(crate) use segments::footprint;
pub use segments::{Segment, State};
pub use shared::{Class, Counters, DiskError};
pub use simulate::SimulatedDisk;
pub use tallies::{Shift, TALLIES, TALLY_BITS, Tallies};
pub use thread::{DiskConfig, StartError, rebuild_index, start, start_in_place_of, start_on};

/// Position in the order of all records of a disk. The first record has 1.
pub type Lsn = u64;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// Segment number.
    pub segment: u32,
    /// Bytes from the start of the segment, a multiple of 8.
    pub offset: u32,
    /// Bytes of the record in the log, a multiple of 8.
    pub len: u32,
}

/// When an append is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Written, not flushed: for pieces of a body whose commit record follows durably. Applied to the index once durable.
    Appended,
    /// As [`Durability::Durable`], in nobody's way: it goes with what others write and have flushed, or by itself after a few
    /// milliseconds.
    Lazy,
    /// Durable and applied: later reads see it.
    Durable,
}
