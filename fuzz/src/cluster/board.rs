//! The ring as the cluster publishes it, and what a node makes of it.
//!
//! Invariant: ring and owners are replaced together; a node uses a ring only with the devices that it names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_engine::object::{Replica, RingPlacement};
use quarry_engine::sync::Cluster;

use super::assembly::locked;

/// A ring and whose its devices are.
pub(crate) struct Published {
    pub(crate) placement: Arc<RingPlacement>,
    pub(crate) owners: BTreeMap<DeviceId, NodeId>,
}

impl Published {
    pub(crate) fn version(&self) -> u64 {
        self.placement.ring().version()
    }
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

/// The cluster as a node's replicators see it.
#[derive(Default)]
pub(crate) struct Peers(Mutex<Known>);

#[derive(Default)]
struct Known {
    placement: Option<Arc<RingPlacement>>,
    devices: BTreeMap<DeviceId, Arc<dyn Replica>>,
}

impl Peers {
    pub(crate) fn replace(
        &self,
        placement: Arc<RingPlacement>,
        devices: impl IntoIterator<Item = Arc<dyn Replica>>,
    ) {
        let devices = devices.into_iter().map(|device| (device.device(), device)).collect();
        *locked(&self.0) = Known { placement: Some(placement), devices };
    }
}

/// There is the first policy alone.
impl Cluster for Peers {
    fn policies(&self) -> Vec<u16> {
        vec![0]
    }

    fn version(&self, _policy: u16) -> u64 {
        locked(&self.0).placement.as_ref().map_or(0, |placement| placement.ring().version())
    }

    fn power(&self, _policy: u16) -> u8 {
        locked(&self.0).placement.as_ref().map_or(0, |placement| placement.ring().part_power())
    }

    fn primaries(&self, _policy: u16, partition: u32) -> Vec<DeviceId> {
        let placement = locked(&self.0).placement.clone();
        placement.map_or_else(Vec::new, |placement| placement.devices_of(partition))
    }

    fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>> {
        locked(&self.0).devices.get(&device).cloned()
    }
}
