//! The ring itself: which devices hold each partition.
//!
//! Invariant: a [`Ring`] that exists is valid: every row entry names a device, no partition names one twice,
//! device ids ascend, and the rows hold exactly partitions x replicas entries.

use crate::{Device, Handoffs, PathHash, partition_of};

/// 2^24 partitions: 32 MiB for each replica's row.
pub const MAX_PART_POWER: u8 = 24;
/// Rows name devices by 16-bit positions; the last number means "no device" while a ring is built.
pub const MAX_DEVICES: usize = u16::MAX as usize;
/// More replicas than any policy asks for.
pub const MAX_REPLICAS: Replicas = Replicas::whole(32);

/// A number of replicas, in hundredths: 325 means that a quarter of the partitions have four, the others three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replicas(u32);

impl Replicas {
    /// `count` of every partition.
    #[must_use]
    pub const fn whole(count: u16) -> Self {
        Self(count as u32 * 100)
    }

    /// From hundredths.
    #[must_use]
    pub const fn from_hundredths(hundredths: u32) -> Self {
        Self(hundredths)
    }

    /// In hundredths.
    #[must_use]
    pub const fn hundredths(self) -> u32 {
        self.0
    }

    /// Rows of the table: the most replicas that a partition has.
    #[must_use]
    pub const fn rows(self) -> usize {
        self.0.div_ceil(100) as usize
    }

    /// Entries of row `row`: every partition, but in the last row of a fractional number only the first so many.
    pub(crate) fn row_length(self, row: usize, part_power: u8) -> usize {
        let partitions = 1_usize << part_power;
        let whole = (self.0 / 100) as usize;
        if row < whole { partitions } else { partitions * (self.0 % 100) as usize / 100 }
    }
}

/// Why bytes or parts are not a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRing {
    /// More than [`MAX_PART_POWER`].
    #[error("part power {0} is above {MAX_PART_POWER}")]
    PartPower(u8),
    /// None, or more than [`MAX_REPLICAS`].
    #[error("{0} hundredths of a replica: wanted are 1 to {max}", max = MAX_REPLICAS.hundredths())]
    Replicas(u32),
    /// More than [`MAX_DEVICES`].
    #[error("{0} devices are more than {MAX_DEVICES}")]
    TooManyDevices(usize),
    /// Ids must ascend.
    #[error("device {0} is out of order or given twice")]
    DeviceOrder(u32),
    /// Too few or too many rows, or entries in one.
    #[error("row {row} has the wrong length")]
    RowLength {
        /// Which row; the number of rows if one is missing.
        row: usize,
    },
    /// An entry that names no device.
    #[error("partition {partition} names a device that is not there")]
    NoSuchDevice {
        /// Where.
        partition: usize,
    },
    /// Two replicas in one place.
    #[error("partition {partition} has two replicas on one device")]
    SameDevice {
        /// Where.
        partition: usize,
    },
}

/// An assignment of partitions to devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    version: u64,
    part_power: u8,
    replicas: Replicas,
    devices: Vec<Device>,
    /// One row for each replica; entry `p` is the position in `devices` of that replica of partition `p`.
    rows: Vec<Vec<u16>>,
}

impl Ring {
    /// A ring from its parts, if they are valid together.
    pub(crate) fn new(
        version: u64,
        part_power: u8,
        replicas: Replicas,
        devices: Vec<Device>,
        rows: Vec<Vec<u16>>,
    ) -> Result<Self, InvalidRing> {
        check_sizes(part_power, replicas, &devices)?;
        let lengths = (0..replicas.rows()).map(|row| replicas.row_length(row, part_power));
        if rows.len() != replicas.rows() {
            return Err(InvalidRing::RowLength { row: rows.len().min(replicas.rows()) });
        }
        if let Some(row) = rows.iter().zip(lengths).position(|(row, length)| row.len() != length) {
            return Err(InvalidRing::RowLength { row });
        }
        let ring = Self { version, part_power, replicas, devices, rows };
        for partition in 0..1 << part_power {
            ring.check_partition(partition)?;
        }
        Ok(ring)
    }

    fn check_partition(&self, partition: usize) -> Result<(), InvalidRing> {
        for (number, row) in self.rows.iter().enumerate() {
            let Some(&device) = row.get(partition) else { continue };
            if usize::from(device) >= self.devices.len() {
                return Err(InvalidRing::NoSuchDevice { partition });
            }
            if self.rows[..number].iter().any(|earlier| earlier[partition] == device) {
                return Err(InvalidRing::SameDevice { partition });
            }
        }
        Ok(())
    }

    /// Rises with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// There are 2 to the power of this many partitions.
    #[must_use]
    pub fn part_power(&self) -> u8 {
        self.part_power
    }

    /// Replicas of a partition.
    #[must_use]
    pub fn replicas(&self) -> Replicas {
        self.replicas
    }

    /// All devices, ids ascending.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn rows(&self) -> &[Vec<u16>] {
        &self.rows
    }

    /// The partition of a path hash.
    #[must_use]
    pub fn partition_of(&self, hash: &PathHash) -> u32 {
        partition_of(hash, self.part_power)
    }

    /// The primaries of a partition, in replica order; none for a partition that does not exist.
    pub fn lookup(&self, partition: u32) -> impl Iterator<Item = &Device> + Clone {
        let entries = self.rows.iter().filter_map(move |row| row.get(partition as usize));
        entries.map(|&device| &self.devices[usize::from(device)])
    }

    /// Where a replica goes when a primary is down, best first: every device with weight that is no primary.
    #[must_use]
    pub fn handoffs(&self, partition: u32) -> Handoffs<'_> {
        Handoffs::new(self, partition)
    }
}

pub(crate) fn check_sizes(part_power: u8, replicas: Replicas, devices: &[Device]) -> Result<(), InvalidRing> {
    if part_power > MAX_PART_POWER {
        return Err(InvalidRing::PartPower(part_power));
    }
    if replicas.hundredths() == 0 || replicas > MAX_REPLICAS {
        return Err(InvalidRing::Replicas(replicas.hundredths()));
    }
    if devices.len() > MAX_DEVICES {
        return Err(InvalidRing::TooManyDevices(devices.len()));
    }
    match devices.windows(2).find(|pair| pair[0].id >= pair[1].id) {
        Some(pair) => Err(InvalidRing::DeviceOrder(pair[1].id)),
        None => Ok(()),
    }
}

/// An even, fixed jumble of two numbers (the finalizer of splitmix64); not for secrets.
pub(crate) fn scatter(high: u32, low: u32) -> u64 {
    let mut z = ((u64::from(high) << 32) | u64::from(low)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
