//! Which devices an object lies on.
//!
//! Invariant: a placement is fixed; another one takes its place whole ([`super::Store::place`]).

use std::collections::HashMap;

use quarry_ring::{PathHash, Ring};

use crate::disk::format::record::DeviceId;

/// A placement look-up.
pub trait Placement: Send + Sync {
    /// The devices of an object's partition, in replica order.
    fn primaries(&self, hash: &PathHash) -> Vec<DeviceId>;
    /// Where a copy goes when a primary is down, best first, found as they are asked for. No primary is among them.
    fn handoffs<'a>(&'a self, hash: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a>;
    /// Devices that get nothing any more, and may still have what they got: they are being emptied.
    fn leaving<'a>(&'a self, hash: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        let _ = hash;
        Box::new(std::iter::empty())
    }
    /// The only device that may ever hold the object, where there is but one: then there is nothing to coordinate.
    fn sole(&self, _hash: &PathHash) -> Option<DeviceId> {
        None
    }
}

/// Placement by a ring.
#[derive(Debug)]
pub struct RingPlacement {
    ring: Ring,
    ids: HashMap<u32, DeviceId>,
}

/// A device of a ring whose identity was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device {0} of the ring has no identity")]
pub struct UnknownDevice(pub u32);

impl RingPlacement {
    /// A ring, and the identity of each of its devices by its number there.
    pub fn new(ring: Ring, ids: HashMap<u32, DeviceId>) -> Result<Self, UnknownDevice> {
        match ring.devices().iter().find(|device| !ids.contains_key(&device.id)) {
            Some(device) => Err(UnknownDevice(device.id)),
            None => Ok(Self { ring, ids }),
        }
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The devices of a partition, in replica order; none of a partition that there is not.
    #[must_use]
    pub fn devices_of(&self, partition: u32) -> Vec<DeviceId> {
        self.ring.lookup(partition).filter_map(|device| self.identity(device)).collect()
    }

    fn identity(&self, device: &quarry_ring::Device) -> Option<DeviceId> {
        self.ids.get(&device.id).copied()
    }
}

impl Placement for RingPlacement {
    fn primaries(&self, hash: &PathHash) -> Vec<DeviceId> {
        self.devices_of(self.ring.partition_of(hash))
    }

    fn handoffs<'a>(&'a self, hash: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        let partition = self.ring.partition_of(hash);
        Box::new(self.ring.handoffs(partition).filter_map(|device| self.identity(device)))
    }

    fn leaving<'a>(&'a self, _: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        let leaving = self.ring.devices().iter().filter(|device| device.weight == 0);
        Box::new(leaving.filter_map(|device| self.identity(device)))
    }
}

/// One replica of everything, spread over the disks of one node by rendezvous hashing (Thaler and Ravishankar, "A Name-Based
/// Mapping Scheme for Rendezvous", 1996): no table to keep, and the order of the disks does not matter.
#[derive(Debug)]
pub struct Spread {
    devices: Vec<DeviceId>,
}

impl Spread {
    /// Over these devices.
    #[must_use]
    pub fn over(devices: Vec<DeviceId>) -> Self {
        Self { devices }
    }
}

impl Placement for Spread {
    fn primaries(&self, hash: &PathHash) -> Vec<DeviceId> {
        self.sole(hash).into_iter().collect()
    }

    fn handoffs<'a>(&'a self, _: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        Box::new(std::iter::empty())
    }

    fn sole(&self, hash: &PathHash) -> Option<DeviceId> {
        let score = |device: &&DeviceId| {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(hash);
            bytes[16..].copy_from_slice(&device.0);
            *blake3::hash(&bytes).as_bytes()
        };
        match self.devices.as_slice() {
            [only] => Some(*only),
            many => many.iter().max_by_key(score).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_even_and_moves_only_what_a_new_disk_takes() {
        let devices = |n: u8| (0..n).map(|i| DeviceId([i; 16])).collect();
        let (three, four) = (Spread::over(devices(3)), Spread::over(devices(4)));
        let mut counts = [0; 3];
        for n in 0..3000_u32 {
            let hash = *blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk::<16>().unwrap();
            let (before, after) = (three.primaries(&hash)[0], four.primaries(&hash)[0]);
            counts[usize::from(before.0[0])] += 1;
            assert!(after == before || after.0[0] == 3);
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    }

    #[test]
    fn a_ring_places_by_its_rows_and_every_device_has_an_identity() {
        use quarry_ring::{Class, Device, Plan, Replicas, build};
        let device = |id: u32| Device { id, region: 0, zone: 0, node: id, weight: 1, class: Class::Nvme };
        let plan = Plan {
            version: 1,
            part_power: 4,
            replicas: Replicas::whole(3),
            devices: (0..5).map(device).collect(),
        };
        let ring = build(plan).unwrap();
        let ids: HashMap<u32, DeviceId> = (0..5).map(|n: u8| (n.into(), DeviceId([n; 16]))).collect();
        let mut short = ids.clone();
        short.remove(&3);
        assert_eq!(RingPlacement::new(ring.clone(), short).map(drop), Err(UnknownDevice(3)));
        let placement = RingPlacement::new(ring, ids).unwrap();
        for n in 0..=255 {
            let hash = [n; 16];
            let mut all = placement.primaries(&hash);
            assert_eq!((all.len(), placement.sole(&hash)), (3, None));
            all.extend(placement.handoffs(&hash));
            all.sort_unstable();
            assert_eq!(all, (0..5).map(|n| DeviceId([n; 16])).collect::<Vec<_>>());
        }
    }
}
