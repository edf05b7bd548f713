//! The ring of a cluster as its leader would change it, one version after the other.
//!
//! Invariant: a device that is emptied keeps its place in the ring with no weight, as `node/src/control/plan.rs` has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_engine::object::RingPlacement;
use quarry_ring::{Builder, Class, Device, Overload, Replicas, Settings};

use super::board::Published;
use super::machine::Machine;
use crate::store::oracle::Violation;

/// The ring has 2 to the power of this many partitions.
const PART_POWER: u8 = 4;
const WEIGHT: u32 = 100;

/// A builder and whose its devices are.
pub(crate) struct Rings {
    builder: Builder,
    devices: BTreeMap<u32, (DeviceId, NodeId)>,
    hour: u32,
}

fn bad(e: &dyn std::fmt::Display) -> Violation {
    Violation(format!("change ring: {e}"))
}

impl Rings {
    /// Over every drive, each machine a node and a zone.
    pub(crate) fn new(machines: &[Machine]) -> Result<Self, Violation> {
        let settings = Settings {
            part_power: PART_POWER,
            replicas: Replicas::whole(3),
            min_part_hours: 0,
            overload: Overload::DEFAULT,
            policy: 0,
            class: None,
        };
        let mut builder = Builder::new(settings, 1).map_err(|e| bad(&e))?;
        let mut owners = BTreeMap::new();
        for (zone, machine) in (0_u16..).zip(machines) {
            for drive in &machine.drives {
                let node = u32::from(zone);
                let device = Device { id: 0, region: 0, zone, node, weight: WEIGHT, class: Class::Nvme };
                let label = hex::encode(drive.device.0);
                builder.add(&device, &label, 1).map_err(|e| bad(&e))?;
                owners.insert(label, (drive.device, machine.node));
            }
        }
        let owner =
            |member: &quarry_ring::Member| Some((member.device.id, owners.get(&member.label).copied()?));
        let devices = builder.members().iter().filter_map(owner).collect();
        Ok(Self { builder, devices, hour: 1 })
    }

    /// From now on these devices shall be empty, or full again.
    pub(crate) fn empty(&mut self, node: NodeId, empty: bool) -> Result<(), Violation> {
        self.hour += 1;
        let own = self.devices.iter().filter(|(_, (_, owner))| *owner == node);
        let own: Vec<u32> = own.map(|(id, _)| *id).collect();
        for id in own {
            let weight = if empty { 0 } else { WEIGHT };
            self.builder.set_weight(id, weight, self.hour).map_err(|e| bad(&e))?;
        }
        Ok(())
    }

    /// The next version, if there is more to move.
    pub(crate) fn next(&mut self) -> Result<Option<Published>, Violation> {
        self.hour += 1;
        let edited = self.builder.pending().next().is_some();
        let done = self.builder.rebalance(self.hour).map_err(|e| bad(&e))?;
        let moved = done.moved + done.placed + done.dropped > 0;
        if !(done.changed && (edited || moved)) {
            return Ok(None);
        }
        let ring = self.builder.ring().map_err(|e| bad(&e))?;
        let Some(ring) = ring else { return Ok(None) };
        let ids: HashMap<u32, DeviceId> =
            self.devices.iter().map(|(id, (device, _))| (*id, *device)).collect();
        let owners = self.devices.values().copied().collect();
        let placement = RingPlacement::new(ring, ids).map_err(|e| bad(&e))?;
        Ok(Some(Published { placement: Arc::new(placement), owners }))
    }
}
