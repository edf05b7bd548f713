//! A new ring from nothing: dispersion first, then weight. A [`crate::Builder`] changes one with least movement.

use crate::builder::first_rows;
use crate::table::check_sizes;
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
    let active = devices.iter().filter(|device| device.weight > 0).count();
    if active < replicas.rows() {
        return Err(BuildError::TooFewDevices { wanted: replicas.rows(), devices: active });
    }
    let rows = first_rows(&devices, part_power, replicas, version);
    Ok(Ring::new(version, part_power, replicas, devices, rows)?)
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
