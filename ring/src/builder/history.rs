//! What was done to a builder, and when.

use crate::Replicas;
use crate::builder::Overload;

/// One line of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Version of the ring that the change first counts in.
    pub version: u64,
    /// Hours since 1970 when it was made, by the editor's clock.
    pub hour: u32,
    /// What was done.
    pub change: Change,
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The builder was made.
    Created,
    /// The builder was made from another system's file.
    Imported,
    /// A device came.
    Added {
        /// Which.
        device: u32,
        /// Its weight.
        weight: u32,
    },
    /// A device is to go.
    Removed {
        /// Which.
        device: u32,
    },
    /// A device got another weight.
    Weighted {
        /// Which.
        device: u32,
        /// Before.
        from: u32,
        /// Now.
        to: u32,
    },
    /// Another number of replicas.
    Replicated {
        /// Before.
        from: Replicas,
        /// Now.
        to: Replicas,
    },
    /// Another overload.
    Overloaded {
        /// Before.
        from: Overload,
        /// Now.
        to: Overload,
    },
    /// Another time between two moves of a partition.
    MinPartHours {
        /// Before.
        from: u16,
        /// Now.
        to: u16,
    },
    /// All partitions may move at once.
    PretendedMinPartHours,
    /// A new version of the ring.
    Rebalanced {
        /// Replicas that changed their device.
        moved: u32,
        /// Replicas that got their first.
        placed: u32,
    },
}
