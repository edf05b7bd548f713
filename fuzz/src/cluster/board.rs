//! The rings as the cluster publishes them.
//!
//! Invariant: rings and owners are replaced together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_engine::object::{Policies, RingPlacement};

use super::assembly::locked;

/// The ring of each policy.
pub(crate) type Placements = BTreeMap<u16, Arc<RingPlacement>>;

/// The rings and whose their devices are.
pub(crate) struct Published {
    /// Rises with every change of any of them.
    pub(crate) number: u64,
    pub(crate) policies: Policies,
    pub(crate) placements: Placements,
    pub(crate) owners: BTreeMap<DeviceId, NodeId>,
}

/// Where the newest ring is read; clones share it.
#[derive(Clone)]
pub(crate) struct Board(Arc<Mutex<Arc<Published>>>);

impl Board {
    pub(crate) fn new(published: Published) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(published))))
    }

    pub(crate) fn read(&self) -> Arc<Published> {
        locked(&self.0).clone()
    }

    pub(crate) fn publish(&self, published: Published) {
        *locked(&self.0) = Arc::new(published);
    }
}
