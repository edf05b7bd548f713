//! The cluster as the replicators see it: the ring of the last state, and the devices that it names.
//!
//! Invariant: ring and devices are replaced together; a node without a ring has no partitions, and nobody gives up anything.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::object::{Replica, RingPlacement};
use quarry_engine::sync::Cluster;

/// What is known now; shared by the follower, which replaces it, and the replicators.
#[derive(Default)]
pub(crate) struct Peers(RwLock<Known>);

#[derive(Default)]
struct Known {
    placement: Option<Arc<RingPlacement>>,
    devices: HashMap<DeviceId, Arc<dyn Replica>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("version", &self.version()).finish_non_exhaustive()
    }
}

impl Peers {
    /// From now on this ring and these devices, those of this node among them.
    pub(crate) fn replace(
        &self,
        placement: Arc<RingPlacement>,
        devices: impl IntoIterator<Item = Arc<dyn Replica>>,
    ) {
        let devices = devices.into_iter().map(|device| (device.device(), device)).collect();
        let known = Known { placement: Some(placement), devices };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn read<T>(&self, of: impl FnOnce(&Known) -> T) -> T {
        of(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cluster for Peers {
    fn version(&self) -> u64 {
        self.read(|known| known.placement.as_ref().map_or(0, |placement| placement.ring().version()))
    }

    fn power(&self) -> u8 {
        self.read(|known| known.placement.as_ref().map_or(0, |placement| placement.ring().part_power()))
    }

    fn primaries(&self, partition: u32) -> Vec<DeviceId> {
        let placement = self.read(|known| known.placement.clone());
        placement.map_or_else(Vec::new, |placement| placement.devices_of(partition))
    }

    fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>> {
        self.read(|known| known.devices.get(&device).cloned())
    }
}

#[cfg(test)]
mod tests {
    use quarry_ring::{Class, Device, Plan, Replicas, build};

    use super::*;

    fn placement(version: u64) -> Arc<RingPlacement> {
        let device = |id: u32| Device { id, region: 0, zone: 0, node: id, weight: 1, class: Class::Hdd };
        let devices = (0..4).map(device).collect();
        let ring = build(Plan { version, part_power: 4, replicas: Replicas::whole(3), devices }).unwrap();
        let ids = (0..4_u8).map(|n| (n.into(), DeviceId([n; 16]))).collect();
        Arc::new(RingPlacement::new(ring, ids).unwrap())
    }

    #[test]
    fn before_there_is_a_ring_nothing_has_a_place_and_then_all_has() {
        let peers = Peers::default();
        assert_eq!((peers.version(), peers.power(), peers.primaries(0)), (0, 0, Vec::new()));
        assert!(peers.replica(DeviceId([1; 16])).is_none());
        peers.replace(placement(7), []);
        assert_eq!((peers.version(), peers.power()), (7, 4));
        assert!((0..16).all(|partition| peers.primaries(partition).len() == 3));
    }
}
