//! When a new index group begins to decide: not before it has the voters that the nodes of the cluster can give it.
//!
//! A group is founded on one node, and others come to it within seconds. What it decided meanwhile would be on one disk alone, in a
//! cluster that promises more. A group that has decided something stays open: a cluster that grows goes on.
//!
//! Invariant: a group that was used is open; one that was not is closed for [`PATIENCE`] at most at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quarry_engine::object::Voter;

/// How long a new group waits for its voters: one of them may have gone as soon as it came.
const PATIENCE: Duration = Duration::from_secs(20);

/// The groups that are open here and were not used yet.
#[derive(Default)]
pub(super) struct Doors(Mutex<BTreeMap<u32, Door>>);

struct Door {
    voter: Arc<Voter>,
    /// Since when it lacks voters.
    lacks: Option<Instant>,
}

impl Doors {
    /// Looks after a group's voter, which is closed.
    pub(super) fn take(&self, group: u32, voter: Arc<Voter>) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut door = Door { voter, lacks: None };
        if !door.look(0, Instant::now()) {
            doors.insert(group, door);
        }
    }

    /// The group is here no more.
    pub(super) fn leave(&self, group: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// Opens and closes; `wanted`: how many voters a group shall have, none when that is not known.
    pub(super) fn look(&self, wanted: usize) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|_, door| !door.look(wanted, Instant::now()));
    }
}

impl Door {
    /// True: the group was used, and need not be looked after any more.
    fn look(&mut self, wanted: usize, now: Instant) -> bool {
        let used = self.voter.is_used().unwrap_or_else(|error| {
            tracing::debug!(%error, "look whether an index group was used");
            false
        });
        let enough = wanted > 0 && self.voter.group().status().voters.len() >= wanted;
        self.lacks = if enough { None } else { Some(self.lacks.unwrap_or(now)) };
        let waited = self.lacks.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.voter.open(may_decide(used, enough, waited));
        used
    }
}

fn may_decide(used: bool, enough: bool, waited: Duration) -> bool {
    used || enough || waited >= PATIENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_group_waits_for_its_voters_but_not_for_ever_and_a_used_one_for_none() {
        assert!(!may_decide(false, false, Duration::ZERO));
        assert!(!may_decide(false, false, PATIENCE - Duration::from_millis(1)));
        assert!(may_decide(false, true, Duration::ZERO));
        assert!(may_decide(true, false, Duration::ZERO));
        assert!(may_decide(false, false, PATIENCE));
    }
}
