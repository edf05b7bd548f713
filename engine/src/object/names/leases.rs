//! Grants that other nodes hold.
//!
//! Invariant: a grant ends when it is settled or released, or when its time is over; whoever comes with it later is judged
//! as one who has none.
//! Invariant: a request for a grant that comes twice gets one grant, and one that comes after its end gets none.

use std::collections::HashMap;
use std::time::Duration;

use super::Grant;
use crate::net::NodeId;

/// How long a grant holds: longer than a change takes, and no longer than others may wait for a node that was lost. A change
/// that takes longer is judged as one whose grant is lost, which it notices only when somebody else decided meanwhile, or when it has
/// a condition: a DELETE without one is told that the object is gone when it is, whoever removed it.
pub const GRANT_TIME: Duration = Duration::from_secs(6);
/// For so long it is remembered that a grant has ended: longer than a duplicate of its request may be on its way.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Grants that one node may hold.
const MAX_HELD: usize = 4096;

/// A grant's name: who asked, and its number there.
pub(crate) type LeaseId = (NodeId, u64);

/// In place of a number, from a node that gave the grant itself.
pub(crate) const NO_LEASE: u64 = 0;

/// What is known of a lease.
#[derive(Debug)]
enum Slot {
    Held {
        grant: Box<Grant>,
        until: Duration,
    },
    /// Ended; remembered so that a late duplicate of its request is known.
    Over {
        until: Duration,
        /// It was settled, or it was tried.
        used: bool,
    },
}

/// Grants by name.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    slots: HashMap<LeaseId, Slot>,
    held: HashMap<NodeId, usize>,
}

/// What a lease that is to be settled is.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its grant.
    Held(Box<Grant>),
    /// It ran out, or is not known: others may have decided since.
    Unused,
    /// It was to be settled before.
    Used,
}

/// Why a grant is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It has ended already.
    Over,
    /// The node holds too many.
    Full,
}

impl Leases {
    /// The grant of a request that came before.
    pub(crate) fn held(&self, id: LeaseId) -> Option<&Grant> {
        match self.slots.get(&id) {
            Some(Slot::Held { grant, .. }) => Some(&**grant),
            _ => None,
        }
    }

    /// Takes a grant in.
    pub(crate) fn insert(&mut self, id: LeaseId, grant: Grant, now: Duration) -> Result<(), Denied> {
        if self.slots.contains_key(&id) {
            return Err(Denied::Over);
        }
        let held = self.held.entry(id.0).or_default();
        if *held >= MAX_HELD {
            return Err(Denied::Full);
        }
        *held += 1;
        self.slots.insert(id, Slot::Held { grant: Box::new(grant), until: now + GRANT_TIME });
        Ok(())
    }

    /// Ends a lease; its grant, if it was held.
    pub(crate) fn end(&mut self, id: LeaseId, now: Duration) -> Option<Grant> {
        let used = matches!(self.slots.get(&id), Some(Slot::Over { used: true, .. }));
        match self.slots.insert(id, Slot::Over { until: now + REMEMBERED, used }) {
            Some(Slot::Held { grant, .. }) => {
                self.released(id.0);
                Some(*grant)
            }
            _ => None,
        }
    }

    /// Ends a lease that is to be settled.
    pub(crate) fn settle(&mut self, id: LeaseId, now: Duration) -> Ended {
        if id.1 == NO_LEASE {
            return Ended::Unused;
        }
        match self.slots.insert(id, Slot::Over { until: now + REMEMBERED, used: true }) {
            Some(Slot::Held { grant, .. }) => {
                self.released(id.0);
                Ended::Held(grant)
            }
            Some(Slot::Over { used: true, .. }) => Ended::Used,
            Some(Slot::Over { used: false, .. }) | None => Ended::Unused,
        }
    }

    fn released(&mut self, node: NodeId) {
        if let Some(held) = self.held.get_mut(&node) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&node);
            }
        }
    }

    /// Ends what is over; the grants, to be dropped outside any lock.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<Grant> {
        let over = |slot: &Slot| match slot {
            Slot::Held { until, .. } | Slot::Over { until, .. } => *until <= now,
        };
        let ids: Vec<LeaseId> = self.slots.iter().filter(|(_, slot)| over(slot)).map(|(id, _)| *id).collect();
        let mut grants = Vec::new();
        for id in ids {
            if let Some(Slot::Held { grant, .. }) = self.slots.remove(&id) {
                self.released(id.0);
                self.slots.insert(id, Slot::Over { until: now + REMEMBERED, used: false });
                grants.push(*grant);
            }
        }
        grants
    }

    /// Leases that are held.
    pub(crate) fn len(&self) -> usize {
        self.held.values().sum()
    }
}
