//! What is different between two rings of one policy.
//!
//! Invariant: devices are compared by id, never by position.

use std::collections::BTreeMap;

use crate::{Device, Ring};

/// What is different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Devices that only the second has.
    pub added: Vec<Device>,
    /// Devices that only the first has.
    pub removed: Vec<Device>,
    /// Devices that are not the same in both, as they are in the first and in the second.
    pub changed: Vec<(Device, Device)>,
    /// Replicas that are on another device.
    pub moved: u64,
    /// Replicas that only the second has.
    pub placed: u64,
    /// Replicas that only the first has.
    pub dropped: u64,
    /// Partitions of which a replica is on another device.
    pub partitions_moved: u64,
    /// Most replicas of one partition that are on another device.
    pub most_of_one: u64,
    /// Of each device by id: replicas that came, and that went.
    pub traffic: BTreeMap<u32, (u64, u64)>,
}

/// Two rings that cannot be compared: a partition of one is none of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("part power {first} and part power {second} cannot be compared")]
pub struct OtherPartPower {
    /// Of the first ring.
    pub first: u8,
    /// Of the second.
    pub second: u8,
}

/// Compare two rings.
pub fn diff(first: &Ring, second: &Ring) -> Result<Diff, OtherPartPower> {
    if first.part_power() != second.part_power() {
        return Err(OtherPartPower { first: first.part_power(), second: second.part_power() });
    }
    let mut diff = Diff::default();
    let by_id = |ring: &Ring| ring.devices().iter().map(|device| (device.id, device.clone())).collect();
    let (before, after): (BTreeMap<u32, Device>, BTreeMap<u32, Device>) = (by_id(first), by_id(second));
    diff.added = after.values().filter(|device| !before.contains_key(&device.id)).cloned().collect();
    diff.removed = before.values().filter(|device| !after.contains_key(&device.id)).cloned().collect();
    let both = before.values().filter_map(|device| Some((device.clone(), after.get(&device.id)?.clone())));
    diff.changed = both.filter(|(before, after)| before != after).collect();
    for partition in 0..1_u32 << first.part_power() {
        diff.partition(first, second, partition);
    }
    Ok(diff)
}

impl Diff {
    fn partition(&mut self, first: &Ring, second: &Ring, partition: u32) {
        let (mut before, mut after) = (first.lookup(partition), second.lookup(partition));
        let mut moved = 0;
        loop {
            let (from, to) = (before.next().map(|device| device.id), after.next().map(|device| device.id));
            match (from, to) {
                (None, None) => break,
                (None, Some(_)) => self.placed += 1,
                (Some(_), None) => self.dropped += 1,
                (Some(from), Some(to)) => moved += u64::from(from != to),
            }
            if from != to {
                to.iter().for_each(|id| self.traffic.entry(*id).or_default().0 += 1);
                from.iter().for_each(|id| self.traffic.entry(*id).or_default().1 += 1);
            }
        }
        self.moved += moved;
        self.partitions_moved += u64::from(moved > 0);
        self.most_of_one = self.most_of_one.max(moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Plan, Replicas, build};

    fn ring(ids: &[u32], part_power: u8, replicas: u16) -> Ring {
        let device = |&id: &u32| Device { id, region: 0, zone: 0, node: id, weight: 1, class: Class::Hdd };
        let devices = ids.iter().map(device).collect();
        build(Plan { version: 1, part_power, replicas: Replicas::whole(replicas), devices }).unwrap()
    }

    #[test]
    fn a_ring_is_not_different_from_itself() {
        let ring = ring(&[1, 2, 3], 4, 2);
        assert_eq!(diff(&ring, &ring), Ok(Diff::default()));
    }

    #[test]
    fn devices_and_replicas_that_came_and_went_are_told() {
        let found = diff(&ring(&[1], 2, 1), &ring(&[2], 2, 1)).unwrap();
        assert_eq!((found.added[0].id, found.removed[0].id), (2, 1));
        assert_eq!((found.moved, found.partitions_moved, found.most_of_one), (4, 4, 1));
        assert_eq!(found.traffic, BTreeMap::from([(1, (0, 4)), (2, (4, 0))]));
        let more = diff(&ring(&[1, 2], 2, 1), &ring(&[1, 2], 2, 2)).unwrap();
        assert_eq!((more.placed, more.dropped), (4, 0));
        assert_eq!(diff(&ring(&[1], 2, 1), &ring(&[1], 3, 1)), Err(OtherPartPower { first: 2, second: 3 }));
    }
}
