//! The rings as the cluster publishes them, and the groups whose lines were taken back, as its control group knows them.
//!
//! Invariant: rings and owners are replaced together.

use std::collections::{BTreeMap, BTreeSet};
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
pub(crate) struct Board {
    rings: Arc<Mutex<Arc<Published>>>,
    over: Arc<Mutex<BTreeSet<u32>>>,
}

impl Board {
    pub(crate) fn new(published: Published) -> Self {
        Self { rings: Arc::new(Mutex::new(Arc::new(published))), over: Arc::default() }
    }

    pub(crate) fn read(&self) -> Arc<Published> {
        locked(&self.rings).clone()
    }

    pub(crate) fn publish(&self, published: Published) {
        *locked(&self.rings) = Arc::new(published);
    }

    /// Groups whose lines were taken back, these among them.
    pub(crate) fn end(&self, more: BTreeSet<u32>) -> BTreeSet<u32> {
        let mut over = locked(&self.over);
        over.extend(more);
        over.clone()
    }
}
