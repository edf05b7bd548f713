//! Whether this node has left its cluster: it is told to stay no more, and all its disks are out.
//!
//! Such a node is sent nothing any more: its ring grows old, and those whom it knows as leaders of names come to lead no more.
//!
//! Invariant: a node that has left refuses clients at once, and asks nobody for them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether it has; shared by those who learn of it and those who answer clients.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// As the cluster's state says, as far as this node was sent it.
    seen: AtomicBool,
    /// As the leader says.
    told: AtomicBool,
}

impl Left {
    /// Takes note of what the state says.
    pub(super) fn see(&self, left: bool) {
        note(&self.seen, left);
    }

    /// Takes note of what the leader says.
    pub(super) fn tell(&self, left: bool) {
        note(&self.told, left);
    }

    /// Whether it has left.
    pub(crate) fn get(&self) -> bool {
        self.seen.load(Ordering::Relaxed) || self.told.load(Ordering::Relaxed)
    }
}

fn note(which: &AtomicBool, left: bool) {
    if which.swap(left, Ordering::Relaxed) != left {
        if left {
            tracing::warn!("this node has left the cluster: it refuses clients, and may be switched off");
        } else {
            tracing::info!("this node takes part in the cluster again");
        }
    }
}
