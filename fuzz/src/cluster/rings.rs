//! The ring of a cluster as its leader would change it, one version after the other.
//!
//! Invariant: a device that is emptied keeps its place in the ring with no weight, as `node/src/control/plan.rs` has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use quarry_engine::object::{Code, Keeps, Policies, Policy, RingPlacement};
use quarry_ring::{Builder, Class, Device, Overload, Replicas, Settings};

use super::board::{Placements, Published};
use super::machine::Machine;
use crate::store::oracle::Violation;

/// The ring has 2 to the power of this many partitions.
const PART_POWER: u8 = 4;
const WEIGHT: u32 = 100;

/// The builder of each policy and whose the devices are.
pub(crate) struct Rings {
    builders: BTreeMap<u16, Builder>,
    code: Option<Code>,
    published: u64,
    placements: Placements,
    devices: BTreeMap<u32, (DeviceId, NodeId)>,
    hour: u32,
}

fn bad(e: &dyn std::fmt::Display) -> Violation {
    Violation(format!("change ring: {e}"))
}

impl Rings {
    /// Over every drive, each machine a node and a zone.
    pub(crate) fn new(machines: &[Machine], code: Option<Code>) -> Result<Self, Violation> {
        let settings = |policy, replicas| Settings {
            part_power: PART_POWER,
            replicas: Replicas::whole(replicas),
            min_part_hours: 0,
            overload: Overload::DEFAULT,
            policy,
            class: None,
        };
        let widths = [Some((0, 3)), code.map(|code| (1, code.data + code.parity))];
        let mut builders = BTreeMap::new();
        for (policy, width) in widths.into_iter().flatten() {
            let builder = Builder::new(settings(policy, width.into()), 1).map_err(|e| bad(&e))?;
            builders.insert(policy, builder);
        }
        let mut owners = BTreeMap::new();
        for (zone, machine) in (0_u16..).zip(machines) {
            for drive in &machine.drives {
                let node = u32::from(zone);
                let device = Device { id: 0, region: 0, zone, node, weight: WEIGHT, class: Class::Nvme };
                let label = hex::encode(drive.device.0);
                // All of them number their devices alike.
                for builder in builders.values_mut() {
                    builder.add(&device, &label, 1).map_err(|e| bad(&e))?;
                }
                owners.insert(label, (drive.device, machine.node));
            }
        }
        let owner =
            |member: &quarry_ring::Member| Some((member.device.id, owners.get(&member.label).copied()?));
        let members = builders.get(&0).into_iter().flat_map(|builder| builder.members());
        let devices = members.filter_map(owner).collect();
        Ok(Self { builders, code, published: 0, placements: Placements::new(), devices, hour: 1 })
    }

    /// From now on these devices shall be empty, or full again.
    pub(crate) fn empty(&mut self, node: NodeId, empty: bool) -> Result<(), Violation> {
        self.hour += 1;
        let own = self.devices.iter().filter(|(_, (_, owner))| *owner == node);
        let own: Vec<u32> = own.map(|(id, _)| *id).collect();
        for id in own {
            let weight = if empty { 0 } else { WEIGHT };
            for builder in self.builders.values_mut() {
                builder.set_weight(id, weight, self.hour).map_err(|e| bad(&e))?;
            }
        }
        Ok(())
    }

    /// The next versions, if there is more to move.
    pub(crate) fn next(&mut self) -> Result<Option<Published>, Violation> {
        self.hour += 1;
        let mut new = false;
        for (policy, builder) in &mut self.builders {
            let edited = builder.pending().next().is_some();
            let done = builder.rebalance(self.hour).map_err(|e| bad(&e))?;
            let moved = done.moved + done.placed + done.dropped > 0;
            if !(done.changed && (edited || moved)) {
                continue;
            }
            let Some(ring) = builder.ring().map_err(|e| bad(&e))? else { continue };
            let ids: HashMap<u32, DeviceId> =
                self.devices.iter().map(|(id, (device, _))| (*id, *device)).collect();
            let placement = RingPlacement::new(ring, ids).map_err(|e| bad(&e))?;
            self.placements.insert(*policy, Arc::new(placement));
            new = true;
        }
        if !new {
            return Ok(None);
        }
        self.published += 1;
        let owners = self.devices.values().copied().collect();
        let (number, placements) = (self.published, self.placements.clone());
        Ok(Some(Published { number, policies: self.policies()?, placements, owners }))
    }

    fn policies(&self) -> Result<Policies, Violation> {
        let coded = self.code.map(|code| Policy {
            index: 1,
            name: "coded".to_owned(),
            keeps: Keeps::Fragments(code),
            default: false,
            ..Policy::first()
        });
        Policies::new([Policy::first()].into_iter().chain(coded).collect()).map_err(|e| bad(&e))
    }
}
