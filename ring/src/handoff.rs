//! Where a replica goes when a primary is down.
//!
//! Invariant: every device with weight that is no primary comes once, and no other.
//! Invariant: a device in a region where nobody is yet (primary or earlier handoff) comes before all that are not; then
//! zones count, then nodes.

use std::collections::BTreeSet;

use crate::table::scatter;
use crate::{Device, Ring};

/// Region, zone, node, device.
const TIERS: usize = 4;

/// Handoffs of a partition, best first. The first few cost no look at all devices.
#[derive(Debug, Clone)]
pub struct Handoffs<'a> {
    devices: &'a [Device],
    /// Where somebody is, at each tier.
    seen: [BTreeSet<[u32; TIERS]>; TIERS],
    tier: usize,
    /// How many were looked at for this tier.
    looked: usize,
    /// An order of the partition's own, so that the load of a dead device spreads over all others: each `step`th.
    start: usize,
    step: usize,
}

/// The domain of a device at a tier: numbers below it are left out.
fn domain(device: &Device, tier: usize) -> [u32; TIERS] {
    let path = [u32::from(device.region), u32::from(device.zone), device.node, device.id];
    std::array::from_fn(|at| if at <= tier { path[at] } else { 0 })
}

impl<'a> Handoffs<'a> {
    pub(crate) fn new(ring: &'a Ring, partition: u32) -> Self {
        let devices = ring.devices();
        let count = devices.len().max(1);
        let below = |what: u32| usize::try_from(scatter(partition, what) % count as u64).unwrap_or(0);
        let step = (below(1).max(1)..).find(|&step| coprime(step, count)).unwrap_or(1);
        let seen = Default::default();
        let mut handoffs = Self { devices, seen, tier: 0, looked: 0, start: below(0), step };
        ring.lookup(partition).for_each(|primary| handoffs.mark(primary));
        handoffs
    }

    fn mark(&mut self, device: &Device) {
        for (tier, seen) in self.seen.iter_mut().enumerate() {
            seen.insert(domain(device, tier));
        }
    }
}

impl<'a> Iterator for Handoffs<'a> {
    type Item = &'a Device;

    fn next(&mut self) -> Option<&'a Device> {
        while self.tier < TIERS {
            while self.looked < self.devices.len() {
                let device = &self.devices[(self.start + self.looked * self.step) % self.devices.len()];
                self.looked += 1;
                if device.weight > 0 && !self.seen[self.tier].contains(&domain(device, self.tier)) {
                    self.mark(device);
                    return Some(device);
                }
            }
            self.tier += 1;
            self.looked = 0;
        }
        None
    }
}

fn coprime(one: usize, other: usize) -> bool {
    let (mut a, mut b) = (one, other);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Plan, Replicas, build};

    /// 48 devices in 2 regions of 3 zones of 2 nodes; the last has no weight.
    fn ring(replicas: u16) -> Ring {
        let device = |id: u32| {
            let (region, zone) = (u16::try_from(id / 24).unwrap(), u16::try_from(id / 8).unwrap());
            Device { id, region, zone, node: id / 4, weight: u32::from(id < 47), class: Class::Nvme }
        };
        let devices = (0..48).map(device).collect();
        build(Plan { version: 1, part_power: 6, replicas: Replicas::whole(replicas), devices }).unwrap()
    }

    #[test]
    fn everyone_else_comes_once() {
        let ring = ring(3);
        for partition in 0..64 {
            let mut ids: Vec<_> =
                ring.handoffs(partition).chain(ring.lookup(partition)).map(|d| d.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..47).collect::<Vec<_>>(), "none that is being emptied");
        }
    }

    #[test]
    fn new_regions_come_before_new_zones_before_new_nodes() {
        for replicas in [1, 2, 3] {
            let ring = ring(replicas);
            for partition in 0..64 {
                let mut before: Vec<_> = ring.lookup(partition).collect();
                let mut last = 0;
                for device in ring.handoffs(partition) {
                    let is_new =
                        |&tier: &usize| before.iter().all(|d| domain(d, tier) != domain(device, tier));
                    let newest = (0..TIERS).find(is_new).expect("at least the device is new");
                    assert!(newest >= last, "partition {partition}: {device:?}");
                    last = newest;
                    before.push(device);
                }
            }
        }
    }

    #[test]
    fn the_load_of_a_dead_device_spreads() {
        let ring = ring(1);
        let first: BTreeSet<_> = (0..64).filter_map(|p| ring.handoffs(p).next()).map(|d| d.id).collect();
        assert!(first.len() > 25, "{first:?}");
    }
}
