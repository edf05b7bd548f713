//! Anti-entropy: what two devices tell each other of what they hold, how that is compared, and how a version is copied.
//!
//! Devices compare one sum over everything that they share; where it differs, sums of less and less, then the stamps of what
//! lies in one bucket. Sums up to [`crate::disk::TALLY_BITS`] bits of the path hash are ready in memory; finer ones are made by a scan of
//! what lies in one tally. Deciding is pure ([`Comparison`], [`judge`]); the replicator acts.
//!
//! Invariant: every answer is bounded, and a list goes on where the last page ended.
//! Invariant: a copy is the same version: time, meta, MD5, BLAKE3 and data id; only verified bytes are copied.
//! Invariant: a device that has not been judged since it was opened, or is quarantined, is not believed: it tells what it holds
//! to whoever asks in doubt only.

mod answer;
mod compare;
mod copy;
mod evict;
mod listings;
mod parts;
mod peers;
mod quarantine;
mod returned;
mod synced;

pub(crate) use answer::answer;
use bytes::Bytes;
pub use compare::{BadAnswer, Comparison, Difference};
pub use copy::{Copied, CopyError, Side, copy};
pub(crate) use copy::{copy_tombstone, mend};
pub(crate) use evict::evict;
pub use listings::Listings;
pub use parts::{Parts, Runs};
pub use peers::Peers;
pub use quarantine::{Judgement, is_away, judge};
use quarry_ring::PathHash;
pub(crate) use returned::{is_rested, note_return};
pub use synced::{Cluster, Synced};

use crate::catalog::Stamps;

/// Most sums in an answer.
pub const MAX_SUMS: usize = 4096;
/// Most stamps in an answer.
pub const MAX_STAMPS: usize = 4096;
/// Most runs of partitions in a question or an answer.
pub const MAX_RUNS: usize = 32_768;
/// Most bits of the path hash that a question may look at.
pub const MAX_POWER: u8 = 28;
/// Entries that are looked through for one answer.
pub const MAX_SCAN: usize = 1 << 18;

/// A question to a device. A part is the set of keys of one policy with the same first `power` bits: its number is the policy's,
/// and behind that the bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The sums of parts: one for each `group` parts of the list.
    Sums {
        /// Bits.
        power: u8,
        /// Which, in order.
        parts: Parts,
        /// Parts under one sum.
        group: u32,
    },
    /// Which versions lie in a part.
    Stamps {
        /// Bits.
        power: u8,
        /// Which.
        part: u32,
        /// Only behind this one.
        after: Option<PathHash>,
        /// At most so many, and no more than [`MAX_STAMPS`].
        limit: u32,
        /// Answer though nobody believes it.
        doubt: bool,
    },
    /// The parts in which anything lies.
    Held {
        /// Bits, at most those of a tally.
        power: u8,
        /// From here on, in the same policy.
        from: u32,
    },
    /// The record of the newest version of an object, a tombstone's too.
    Record {
        /// Which.
        hash: PathHash,
    },
}

/// What a device answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// In the order of the groups.
    Sums(Vec<u128>),
    /// A page.
    Stamps(Stamps),
    /// Some of them; more from `next` on.
    Held {
        /// Which.
        parts: Parts,
        /// Where to go on.
        next: Option<u32>,
    },
    /// As it lies in the log; the receiver verifies it.
    Record(Option<Bytes>),
}

const _: () = assert!((crate::catalog::POLICIES as u64) << MAX_POWER <= 1 << 32);
const _: () = assert!(MAX_STAMPS * 25 < crate::net::limits::MAX_PAYLOAD);
const _: () = assert!(MAX_SUMS * 16 < crate::net::limits::MAX_PAYLOAD);
const _: () = assert!(MAX_RUNS * 10 + 1024 < crate::net::limits::MAX_HEAD);

#[cfg(test)]
mod tests;
