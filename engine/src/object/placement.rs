//! Which devices an object lies on.

use quarry_ring::{PathHash, Ring};

use crate::disk::format::record::DeviceId;

/// A placement look-up.
pub trait Placement: Send + Sync {
    /// The devices of an object's partition, in replica order.
    fn devices(&self, hash: &PathHash) -> Vec<DeviceId>;
}

/// Placement by a ring; `ids` gives the identity of each of its devices, by position.
#[derive(Debug)]
pub struct RingPlacement {
    ring: Ring,
    ids: Vec<(u32, DeviceId)>,
}

impl RingPlacement {
    /// A ring, and the identity of each device by its number in the ring.
    #[must_use]
    pub fn new(ring: Ring, ids: Vec<(u32, DeviceId)>) -> Self {
        Self { ring, ids }
    }
}

impl Placement for RingPlacement {
    fn devices(&self, hash: &PathHash) -> Vec<DeviceId> {
        let partition = self.ring.partition_of(hash);
        let identity = |number: u32| self.ids.iter().find(|(n, _)| *n == number).map(|(_, id)| *id);
        self.ring.lookup(partition).filter_map(|device| identity(device.id)).collect()
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
    fn devices(&self, hash: &PathHash) -> Vec<DeviceId> {
        let score = |device: &&DeviceId| {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(hash);
            bytes[16..].copy_from_slice(&device.0);
            *blake3::hash(&bytes).as_bytes()
        };
        match self.devices.as_slice() {
            [only] => vec![*only],
            many => many.iter().max_by_key(score).copied().into_iter().collect(),
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
            let (before, after) = (three.devices(&hash)[0], four.devices(&hash)[0]);
            counts[usize::from(before.0[0])] += 1;
            assert!(after == before || after.0[0] == 3);
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    }
}
