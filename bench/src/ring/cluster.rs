//! The clusters that are measured, and what is changed in them.

use quarry_ring::{Builder, Class, Device, Overload, Replicas, Settings};

use crate::failure::Failure;

/// A region's number, and the devices in each node of each zone.
type Region = (u16, &'static [&'static [u32]]);

/// A cluster by rule.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) name: &'static str,
    pub(super) part_power: u8,
    /// In hundredths.
    pub(super) replicas: u32,
    /// In hundredths of a percent.
    pub(super) overload: u32,
    shape: Shape,
    /// Weights that devices have in turn.
    weights: &'static [u32],
}

#[derive(Debug)]
enum Shape {
    /// So many zones, nodes in each, devices in each of those.
    Regular(u16, u32, u32),
    /// One by one.
    Given(&'static [Region]),
}

/// 1,000 devices, alike.
pub(super) const UNIFORM: &Cluster = &Cluster {
    name: "uniform-1000",
    part_power: 18,
    replicas: 300,
    overload: 0,
    shape: Shape::Regular(10, 10, 10),
    weights: &[4000],
};

/// 10,000 devices, alike.
pub(super) const LARGE: &Cluster = &Cluster {
    name: "uniform-10000",
    part_power: 20,
    replicas: 300,
    overload: 0,
    shape: Shape::Regular(10, 50, 20),
    weights: &[4000],
};

/// What is compared with Swift.
pub(super) const COMPARED: &[&Cluster] = &[
    &Cluster {
        name: "mixed-weights",
        part_power: 16,
        replicas: 300,
        overload: 0,
        shape: Shape::Regular(5, 8, 10),
        weights: &[4000, 8000, 12000, 16000],
    },
    &Cluster {
        name: "uneven-zones",
        part_power: 14,
        replicas: 300,
        overload: 1000,
        shape: Shape::Given(&[(1, &[&[10, 10, 10], &[10, 10, 10], &[10, 10, 8]])]),
        weights: &[4000],
    },
    &Cluster {
        name: "three-zones",
        part_power: 14,
        replicas: 300,
        overload: 0,
        shape: Shape::Regular(3, 4, 7),
        weights: &[4000],
    },
    &Cluster {
        name: "two-regions",
        part_power: 14,
        replicas: 400,
        overload: 1000,
        shape: Shape::Given(&[(1, &[&[8, 8], &[8, 8], &[8, 8]]), (2, &[&[8, 8], &[8, 8]])]),
        weights: &[4000, 6000],
    },
    &Cluster {
        name: "fractional",
        part_power: 14,
        replicas: 325,
        overload: 0,
        shape: Shape::Regular(1, 6, 4),
        weights: &[4000],
    },
    UNIFORM,
];

impl Cluster {
    /// Region, zone, node and weight of each device, in the order of their ids.
    pub(super) fn devices(&self) -> Vec<(u16, u16, u32, u32)> {
        let mut places = Vec::new();
        match self.shape {
            Shape::Regular(zones, nodes, devices) => {
                for zone in 1..=zones {
                    for node in 1..=nodes {
                        places.extend((0..devices).map(|_| (1, zone, node)));
                    }
                }
            }
            Shape::Given(regions) => {
                for (region, zones) in regions {
                    for (zone, nodes) in (1..).zip(*zones) {
                        for (node, devices) in (1..).zip(*nodes) {
                            places.extend((0..*devices).map(|_| (*region, zone, node)));
                        }
                    }
                }
            }
        }
        let weights = self.weights.iter().cycle();
        places
            .into_iter()
            .zip(weights)
            .map(|((region, zone, node), &weight)| (region, zone, node, weight))
            .collect()
    }

    /// A builder with its devices and no table.
    pub(super) fn empty(&self) -> Result<Builder, Failure> {
        let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
        let settings = Settings {
            part_power: self.part_power,
            replicas: Replicas::from_hundredths(self.replicas),
            min_part_hours: 0,
            overload: Overload::from_hundredths(self.overload),
            policy: 0,
            class: None,
        };
        let mut builder = Builder::new(settings, 1).map_err(|e| other(&e))?;
        for (region, zone, node, weight) in self.devices() {
            let device = Device { id: 0, region, zone, node, weight, class: Class::Hdd };
            builder.add(&device, "", 1).map_err(|e| other(&e))?;
        }
        Ok(builder)
    }
}

/// What is done to a cluster, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The first table.
    Build,
    /// One device more in the first node, of the first one's weight.
    Add,
    /// The device in the middle goes.
    Remove,
    /// The device after the first third gets half as much again.
    Weight,
}

impl Step {
    pub(super) const ALL: [Self; 4] = [Self::Build, Self::Add, Self::Remove, Self::Weight];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Weight => "weight",
        }
    }

    /// Which of so many devices (before anything was done) it is about.
    pub(super) fn device(self, devices: usize) -> usize {
        match self {
            Self::Build | Self::Add => 0,
            Self::Remove => devices / 2,
            Self::Weight => devices / 3,
        }
    }

    /// Change what the next rebalance takes up.
    pub(super) fn edit(self, builder: &mut Builder) -> Result<(), Failure> {
        // One more since `Add`; the ids of the others are their positions.
        let devices =
            if self == Self::Remove { builder.members().len() - 1 } else { builder.members().len() };
        let device = builder.members()[self.device(devices)].device.clone();
        let done = match self {
            Self::Build => Ok(()),
            Self::Add => builder.add(&device, "", 2).map(|_| ()),
            Self::Remove => builder.remove(device.id, 2),
            Self::Weight => builder.set_weight(device.id, device.weight * 3 / 2, 2),
        };
        done.map_err(|error| Failure::Other(error.to_string()))
    }
}
