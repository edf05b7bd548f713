//! Hybrid logical clock: version times that never run backwards on one node.
//!
//! Invariant: `tick` returns strictly increasing values, whatever the wall clock does.
//! Invariant: after `observe(t)`, every later `tick` is greater than `t`.

use std::sync::atomic::{AtomicU64, Ordering};

/// A version time: microseconds since the Unix epoch, pushed forward where the wall clock stood still or went
/// backwards. Ties between nodes are broken by node id, outside this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Microseconds within the second.
    #[must_use]
    pub fn subsec_micros(self) -> u32 {
        u32::try_from(self.0 % 1_000_000).unwrap_or(0)
    }
}

/// Reads the wall clock: microseconds since the Unix epoch. The node passes the real one, a simulation its own.
pub type WallClock = Box<dyn Fn() -> u64 + Send + Sync>;

/// The clock of one node.
pub struct Clock {
    wall: WallClock,
    last: AtomicU64,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Clock {
    /// A clock over a wall clock.
    #[must_use]
    pub fn new(wall: WallClock) -> Self {
        Self { wall, last: AtomicU64::new(0) }
    }

    /// A new version time, greater than every one returned or observed before.
    pub fn tick(&self) -> Timestamp {
        let wall = (self.wall)();
        let previous = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(wall.max(last + 1)))
            .unwrap_or(wall);
        Timestamp(wall.max(previous + 1))
    }

    /// Take note of a version time seen on disk or from a peer.
    pub fn observe(&self, seen: Timestamp) {
        self.last.fetch_max(seen.0, Ordering::AcqRel);
    }

    /// The wall clock in whole seconds since the Unix epoch: for expiry and ages, never for order.
    pub fn unix_seconds(&self) -> u64 {
        (self.wall)() / 1_000_000
    }
}
