//! The cluster as the replicators see it: the rings of the last state, and the devices that they name.
//!
//! Invariant: rings and devices are replaced together; a policy without a ring is none yet, and nobody gives up anything of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use super::Cluster;
use crate::disk::format::record::DeviceId;
use crate::object::{Replica, RingPlacement};

/// What is known now; shared by the follower, which replaces it, and the replicators.
#[derive(Default)]
pub struct Peers(RwLock<Known>);

#[derive(Default)]
struct Known {
    rings: BTreeMap<u16, Arc<RingPlacement>>,
    devices: HashMap<DeviceId, Arc<dyn Replica>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("policies", &self.policies()).finish_non_exhaustive()
    }
}

impl Peers {
    /// From now on these rings and these devices, those of this node among them.
    pub fn replace(
        &self,
        rings: BTreeMap<u16, Arc<RingPlacement>>,
        devices: impl IntoIterator<Item = Arc<dyn Replica>>,
    ) {
        let devices = devices.into_iter().map(|device| (device.device(), device)).collect();
        let known = Known { rings, devices };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn ring(&self, policy: u16) -> Option<Arc<RingPlacement>> {
        self.read(|known| known.rings.get(&policy).cloned())
    }

    fn read<T>(&self, of: impl FnOnce(&Known) -> T) -> T {
        of(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cluster for Peers {
    fn policies(&self) -> Vec<u16> {
        self.read(|known| known.rings.keys().copied().collect())
    }

    fn version(&self, policy: u16) -> u64 {
        self.ring(policy).map_or(0, |placement| placement.ring().version())
    }

    fn power(&self, policy: u16) -> u8 {
        self.ring(policy).map_or(0, |placement| placement.ring().part_power())
    }

    fn primaries(&self, policy: u16, partition: u32) -> Vec<DeviceId> {
        let placement = self.ring(policy);
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
        assert_eq!((peers.policies(), peers.version(0), peers.primaries(0, 0)), (Vec::new(), 0, Vec::new()));
        assert!(peers.replica(DeviceId([1; 16])).is_none());
        peers.replace([(0, placement(7)), (2, placement(9))].into(), []);
        assert_eq!((peers.version(0), peers.version(2), peers.power(2)), (7, 9, 4));
        assert_eq!(peers.policies(), [0, 2]);
        assert!((0..16).all(|partition| peers.primaries(2, partition).len() == 3));
        assert!(peers.primaries(1, 0).is_empty());
    }
}
