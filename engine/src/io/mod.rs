//! The disk seam: reads, writes and flushes of one device, submitted and reaped without blocking.
//!
//! Invariant: offsets, lengths and buffers are multiples of [`BLOCK`]; a body asserts this.
//! Invariant: one thread owns a [`Disk`]; only its [`Waker`] may be used from elsewhere.
//! Invariant: a write is durable only when a [`Op::Flush`] or [`Op::WriteDurably`] submitted after its completion has succeeded.
//! Invariant: this folder holds all `unsafe` of Quarry.

mod buffer;
mod commit;
#[cfg(test)]
mod conformance;
mod device;
mod gather;
mod lane;
mod linger;
mod platter;
mod pool;
mod random;
mod signature;
mod sim;
mod slabs;
mod uring;

use std::sync::Arc;

pub(crate) use buffer::RECORD_BUFFER;
pub use buffer::{AlignedBuf, BufferPool};
pub use device::{
    Backend, DeviceError, DeviceInfo, DeviceKind, OpenOptions, inspect_device, open_device, preallocate,
};
pub use gather::{Gather, IN_PLACE_FROM, MAX_PIECES, aligned_bytes};
pub use lane::Lanes;
pub(crate) use lane::ReadRing;
pub use linger::Linger;
pub use random::SplitMix64;
pub use signature::{SIGNATURE_SPAN, foreign_signature};
pub use sim::{CrashOutcome, CrashPlan, SimCounters, SimDisk, SimFaults, SimImage, SimSnapshot};
pub use slabs::Slabs;

/// Bytes of the smallest unit that a disk reads or writes.
pub const BLOCK: usize = 4096;

/// Requests that one disk may have in flight, those it queues itself included; more is the submitter's bug.
pub const MAX_REQUESTS: usize = 1 << 16;

/// Chosen by the submitter and handed back with the [`Completion`].
pub type Token = u64;

/// One request to a disk. The memory travels with the request; a read's comes back with its completion.
#[derive(Debug)]
pub enum Op {
    /// Fill `buf` from byte `offset`.
    Read {
        /// Handed back.
        token: Token,
        /// Bytes from the start of the device.
        offset: u64,
        /// Its length is the length of the read.
        buf: AlignedBuf,
    },
    /// Write `data` at byte `offset`.
    Write {
        /// Handed back.
        token: Token,
        /// Bytes from the start of the device.
        offset: u64,
        /// At least one piece.
        data: Gather,
    },
    /// Write `data` at byte `offset`, then make it durable, with every write that completed before this submission: one answer
    /// for both. After an error nothing is known of either.
    WriteDurably {
        /// Handed back.
        token: Token,
        /// Bytes from the start of the device.
        offset: u64,
        /// At least one piece.
        data: Gather,
    },
    /// Make every write that completed before this submission durable.
    Flush {
        /// Handed back.
        token: Token,
    },
}

/// The answer to one [`Op`]. A short read or write is an error of kind `UnexpectedEof` / `WriteZero`, never a success.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// What the device said.
    pub result: std::io::Result<()>,
    /// The buffer of a read.
    pub buf: Option<AlignedBuf>,
}

/// How long [`Disk::reap`] may sleep when nothing has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Never,
    /// Until a completion or a wake-up, at most this long.
    AtMost(std::time::Duration),
}

/// Size and habits of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Usable bytes, a multiple of [`BLOCK`].
    pub capacity: u64,
    /// The drive's cache is write-through: a flush adds nothing and is left out.
    pub write_through: bool,
}

/// Interrupts a sleeping [`Disk::reap`] from any thread. A wake-up before the sleep is not lost.
pub trait Wake: Send + Sync {
    /// Wake the owner; cheap when it is awake.
    fn wake(&self);
}

/// To be called once something is known, by whatever thread knows it first.
pub type Told = Box<dyn FnOnce() + Send>;

/// Shared handle to a [`Wake`].
pub type Waker = Arc<dyn Wake>;

/// One open device.
///
/// Contract (checked by the conformance suite over every body): requests may complete in any order;
/// each completes exactly once; writes in flight to overlapping ranges are the submitter's bug; a read
/// sees every write that completed before it was submitted; `submit` never blocks for long and never
/// fails (errors arrive as completions); a request beyond the capacity completes with the error of a short one and
/// changes nothing; dropping the disk waits for what is in flight. `reap` may return early with nothing.
pub trait Disk: Send {
    /// Size and habits.
    fn geometry(&self) -> Geometry;
    /// Queue one request.
    fn submit(&mut self, op: Op);
    /// To be called as soon as the [`Op::WriteDurably`] that is submitted next has succeeded, which may be before the owner is awake.
    /// A body need not call it.
    fn announce(&mut self, told: Told) {
        drop(told);
    }
    /// Whether an [`Op::WriteDurably`] may be submitted behind another: the body begins it as soon as that has ended, not at all if
    /// that failed, and of late they took so short that the time in between would count.
    fn pipelines(&self) -> bool {
        false
    }
    /// Push queued requests to the device and append what has completed to `out`. Who is willing to wait may be made to carry out
    /// an [`Op::WriteDurably`], for which nobody wakes it.
    fn reap(&mut self, wait: Wait, out: &mut Vec<Completion>);
    /// A handle that interrupts `reap`.
    fn waker(&self) -> Waker;
    /// Name of the body, for logs: `io_uring`, `pread`, `sim`.
    fn name(&self) -> &'static str;
    /// A buffer of `len` bytes (a positive multiple of [`BLOCK`]), the cheapest kind that this body can transfer.
    /// **Its contents are left-overs of earlier use, not zeros**: zero the padding that you do not fill.
    fn buffer(&mut self, len: usize) -> AlignedBuf {
        AlignedBuf::zeroed(len)
    }
    /// What makes lanes, by which callers read beside this body, where it has such.
    fn lanes(&self) -> Option<Lanes> {
        None
    }
}

/// Asserts what the submitter promises, and turns a request beyond the capacity into its completion.
fn check_range(capacity: u64, op: Op) -> Result<Op, Completion> {
    let (offset, len) = match &op {
        Op::Read { offset, buf, .. } => (*offset, buf.len() as u64),
        Op::Write { offset, data, .. } | Op::WriteDurably { offset, data, .. } => {
            assert!(!data.is_empty(), "a write has bytes");
            (*offset, data.len() as u64)
        }
        Op::Flush { .. } => return Ok(op),
    };
    assert!(offset.is_multiple_of(BLOCK as u64), "offset {offset} is not a multiple of {BLOCK}");
    if offset.checked_add(len).is_some_and(|end| end <= capacity) {
        return Ok(op);
    }
    match op {
        Op::Read { token, buf, .. } => Err(short(token, std::io::ErrorKind::UnexpectedEof, Some(buf))),
        Op::Write { token, .. } | Op::WriteDurably { token, .. } => {
            Err(short(token, std::io::ErrorKind::WriteZero, None))
        }
        Op::Flush { .. } => Ok(op),
    }
}

fn short(token: Token, kind: std::io::ErrorKind, buf: Option<AlignedBuf>) -> Completion {
    Completion { token, result: Err(kind.into()), buf }
}
