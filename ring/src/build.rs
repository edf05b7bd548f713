//! A new ring from nothing: dispersion first, then weight. Rebalancing with least movement is a later step.
//!
//! Each replica walks down the tree region - zone - node - device. At each step it takes the child with the fewest
//! replicas of this partition, among those the one furthest below its share by weight, and among
//! equals one drawn by a fixed jumble of partition and child.
//!
//! Invariant: a child is never given more replicas of a partition than it has devices with weight, so no
//! device gets two.
//! Invariant: no floating point and no randomness, so every machine computes the same ring.

use crate::table::{check_sizes, scatter};
use crate::{Device, InvalidRing, Replicas, Ring};

/// What a ring is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Version of the ring to build.
    pub version: u64,
    /// 2 to the power of this many partitions.
    pub part_power: u8,
    /// Replicas of each.
    pub replicas: Replicas,
    /// In any order.
    pub devices: Vec<Device>,
}

/// Why no ring can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The plan breaks a limit, or gives a device twice.
    #[error(transparent)]
    Invalid(#[from] InvalidRing),
    /// A replica would have no device of its own.
    #[error("{wanted} replicas need as many devices with weight; there are {devices}")]
    TooFewDevices {
        /// Most replicas of a partition.
        wanted: usize,
        /// Devices with weight.
        devices: usize,
    },
}

/// Build a ring.
pub fn build(plan: Plan) -> Result<Ring, BuildError> {
    let Plan { version, part_power, replicas, mut devices } = plan;
    devices.sort_by_key(|device| device.id);
    check_sizes(part_power, replicas, &devices)?;
    let mut tree = Domain::root(&devices);
    if tree.devices < replicas.rows() {
        return Err(BuildError::TooFewDevices { wanted: replicas.rows(), devices: tree.devices });
    }
    let lengths: Vec<_> = (0..replicas.rows()).map(|row| replicas.row_length(row, part_power)).collect();
    let mut rows: Vec<_> = lengths.iter().map(|&length| Vec::with_capacity(length)).collect();
    for partition in 0..1_u32 << part_power {
        let wanted = lengths.iter().filter(|&&length| (partition as usize) < length).count();
        for row in rows.iter_mut().take(wanted) {
            row.push(tree.place(partition));
        }
        tree.next_partition();
    }
    Ok(Ring::new(version, part_power, replicas, devices, rows)?)
}

/// A failure domain or, as a leaf, a device.
struct Domain {
    /// Number among its siblings.
    number: u32,
    /// Position of the device, in a leaf.
    position: u16,
    /// Devices below that have weight.
    devices: usize,
    weight: u64,
    /// Replicas placed below, of all partitions.
    placed: u64,
    /// Replicas placed below, of the partition at hand.
    here: usize,
    children: Vec<Domain>,
}

impl Domain {
    fn empty(number: u32, position: u16) -> Self {
        Self { number, position, devices: 0, weight: 0, placed: 0, here: 0, children: Vec::new() }
    }

    fn root(devices: &[Device]) -> Self {
        let mut root = Self::empty(0, 0);
        for (position, device) in (0..=u16::MAX).zip(devices).filter(|(_, device)| device.weight > 0) {
            let path = [u32::from(device.region), u32::from(device.zone), device.node, device.id];
            root.insert(&path, position, u64::from(device.weight));
        }
        root
    }

    fn insert(&mut self, path: &[u32], position: u16, weight: u64) {
        self.devices += 1;
        self.weight += weight;
        let Some((&number, rest)) = path.split_first() else { return };
        let at = self.children.iter().position(|child| child.number == number).unwrap_or_else(|| {
            self.children.push(Self::empty(number, position));
            self.children.len() - 1
        });
        self.children[at].insert(rest, position, weight);
    }

    /// Give one replica of `partition` to a device below; its position.
    fn place(&mut self, partition: u32) -> u16 {
        self.placed += 1;
        self.here += 1;
        if self.children.is_empty() {
            return self.position;
        }
        let free = self.children.iter_mut().filter(|child| child.here < child.devices);
        let best = free.min_by(|one, other| {
            let dispersion = one.here.cmp(&other.here);
            let tie = || scatter(partition, one.number).cmp(&scatter(partition, other.number));
            let last = || one.number.cmp(&other.number);
            dispersion.then_with(|| one.fullness_against(other)).then_with(tie).then_with(last)
        });
        best.expect("a domain is entered only while it has a free device").place(partition)
    }

    /// Compare how full two would be by weight with half a replica more (Sainte-Laguë's rule, which favours
    /// neither the heavy nor the light).
    fn fullness_against(&self, other: &Self) -> std::cmp::Ordering {
        let cross = |one: &Self, other: &Self| u128::from(2 * one.placed + 1) * u128::from(other.weight);
        cross(self, other).cmp(&cross(other, self))
    }

    fn next_partition(&mut self) {
        if self.here > 0 {
            self.here = 0;
            self.children.iter_mut().for_each(Self::next_partition);
        }
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
