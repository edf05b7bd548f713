//! What the cluster's leader does next, as pure functions of what the cluster is.
//!
//! Invariant: equal states and hours give equal steps; nothing to do is no step.

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::net::NodeId;
use quarry_ring::{Builder, EditError, Overload, RebalanceError, Replicas};

use super::policies::Kind;
use super::state::{Device, State, Wanted};

/// Bytes of one unit of weight.
const WEIGHT_UNIT: u64 = 1 << 27;
/// Most voters of a group.
const MAX_VOTERS: usize = 5;

/// Who shall vote: as many as are odd and at most five of the members that stay; those that vote already first, then by age.
pub(crate) fn voters(state: &State, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let staying = || state.members.iter().filter(|(_, member)| !member.leaving);
    let wanted = match staying().count() {
        0 => return current.clone(),
        1 | 2 => 1,
        3 | 4 => 3,
        _ => MAX_VOTERS,
    };
    let mut order: Vec<_> = staying().map(|(node, member)| (*node, member.since)).collect();
    order.sort_by_key(|(node, since)| (!current.contains(node), *since, *node));
    order.into_iter().take(wanted).map(|(node, _)| node).collect()
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error(transparent)]
    Invalid(#[from] quarry_ring::InvalidBuilder),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Rebalance(#[from] RebalanceError),
}

/// The policies of a cluster, and how each keeps objects.
pub(crate) fn policies(state: &State) -> BTreeMap<u16, Kind> {
    state.settings.map_or_else(BTreeMap::new, |settings| state.policies.kinds(settings))
}

/// How many devices each object of a policy lies on now; `None`: there are too few.
fn width(state: &State, kind: Kind) -> Option<u16> {
    let shares = || state.devices.values().filter(|device| device.wanted == Wanted::Share);
    let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let nodes: BTreeSet<NodeId> = shares().map(|device| device.node).collect();
    match kind {
        // As soon as there are as many nodes.
        Kind::Copies(copies) => (!nodes.is_empty()).then(|| narrow(nodes.len()).min(copies).max(1)),
        // All or nothing.
        Kind::Fragments(_) => Some(kind.width()).filter(|width| narrow(shares().count()) >= *width),
    }
}

/// The ring of a policy that follows from the present one, if another is wanted now.
pub(crate) fn ring(state: &State, policy: u16, hour: u32) -> Result<Option<Builder>, RingError> {
    let kind = policies(state).remove(&policy);
    let Some((settings, width)) = state.settings.zip(kind.and_then(|kind| width(state, kind))) else {
        return Ok(None);
    };
    let mut builder = match state.builder_of(policy) {
        Some(builder) => builder.clone(),
        None => Builder::new(
            quarry_ring::Settings {
                part_power: settings.part_power,
                replicas: Replicas::whole(width),
                min_part_hours: settings.min_part_hours,
                overload: Overload::DEFAULT,
                policy,
                class: None,
            },
            hour,
        )?,
    };
    builder.set_replicas(Replicas::whole(width), hour)?;
    builder.set_min_part_hours(settings.min_part_hours, hour)?;
    edit_devices(&mut builder, state, hour)?;
    let edited = builder.pending().next().is_some();
    let rebalanced = builder.rebalance(hour)?;
    let moved = rebalanced.moved + rebalanced.placed + rebalanced.dropped > 0;
    Ok((rebalanced.changed && (edited || moved)).then_some(builder))
}

/// Makes the devices of a builder those that are wanted.
fn edit_devices(builder: &mut Builder, state: &State, hour: u32) -> Result<(), EditError> {
    let known: BTreeMap<String, (u32, u32)> = builder
        .members()
        .iter()
        .map(|member| (member.label.clone(), (member.device.id, member.device.weight)))
        .collect();
    for (id, device) in &state.devices {
        let label = hex::encode(id.0);
        let weight = if device.wanted == Wanted::Share { weight(device) } else { 0 };
        match known.get(&label) {
            Some((number, _)) if device.wanted == Wanted::Out => builder.remove(*number, hour)?,
            Some((number, old)) if *old != weight => builder.set_weight(*number, weight, hour)?,
            Some(_) => {}
            None if device.wanted != Wanted::Share => {}
            None => {
                let Some(member) = state.members.get(&device.node) else { continue };
                let new = quarry_ring::Device {
                    id: 0,
                    region: device.region,
                    zone: device.zone,
                    node: member.number,
                    weight,
                    class: device.class,
                };
                builder.add(&new, &label, hour)?;
            }
        }
    }
    Ok(())
}

fn weight(device: &Device) -> u32 {
    u32::try_from(device.bytes / WEIGHT_UNIT).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use quarry_engine::disk::format::record::DeviceId;
    use quarry_ring::Class;

    use super::super::state::{Member, Settings};
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn grow(state: &mut State, n: u8) {
        let address = format!("10.0.0.{n}:6100").parse().unwrap();
        let member = Member { number: n.into(), address, since: n.into(), leaving: false };
        state.members.insert(node(n), member);
        let (region, zone, class, wanted) = (0, 0, Class::Hdd, Wanted::Share);
        let device = Device { node: node(n), bytes: 10 << 30, region, zone, class, wanted, away: false };
        state.devices.insert(DeviceId([n; 16]), device);
    }

    fn cluster(nodes: u8) -> State {
        let settings = Some(Settings { replicas: 3, part_power: 6, min_part_hours: 0, index_groups: 8 });
        let mut state = State { settings, ..State::default() };
        for n in 1..=nodes {
            grow(&mut state, n);
        }
        state
    }

    fn numbers(voters: &BTreeSet<NodeId>) -> Vec<u8> {
        voters.iter().map(|node| node.0[0]).collect()
    }

    #[test]
    fn voters_grow_by_age_and_stay() {
        let none = BTreeSet::new();
        let wanted =
            [(1, vec![1]), (2, vec![1]), (3, vec![1, 2, 3]), (4, vec![1, 2, 3]), (7, vec![1, 2, 3, 4, 5])];
        for (nodes, expected) in wanted {
            assert_eq!(numbers(&voters(&cluster(nodes), &none)), expected, "{nodes}");
        }
        let current: BTreeSet<NodeId> = [node(2), node(4), node(5)].into();
        assert_eq!(voters(&cluster(4), &current), [node(1), node(2), node(4)].into());
        let mut state = cluster(4);
        state.members.get_mut(&node(2)).unwrap().leaving = true;
        assert_eq!(voters(&state, &[node(1), node(2), node(3)].into()), [node(1), node(3), node(4)].into());
    }

    /// Applies steps until there is none; how many.
    fn settle(state: &mut State) -> usize {
        for steps in 0..100 {
            match ring(state, 0, 1).unwrap() {
                Some(builder) => state.builder = Some(builder),
                None => return steps,
            }
        }
        panic!("it never settles");
    }

    #[test]
    fn a_cluster_that_grows_has_a_copy_on_each_node_up_to_three() {
        let mut state = cluster(0);
        assert_eq!(settle(&mut state), 0);
        for n in 1..=5 {
            grow(&mut state, n);
            settle(&mut state);
            let ring = state.builder.as_ref().unwrap().ring().unwrap().unwrap();
            let copies = usize::from(n.min(3));
            for partition in 0..64 {
                let nodes: BTreeSet<u32> = ring.lookup(partition).map(|device| device.node).collect();
                assert_eq!(nodes.len(), copies);
            }
            assert_eq!(settle(&mut state), 0);
        }
    }

    #[test]
    fn a_policy_of_fragments_has_a_ring_as_soon_as_there_are_as_many_disks() {
        use super::super::policies::Row;
        let code = quarry_engine::object::Code { data: 3, parity: 2 };
        let mut state = cluster(4);
        let row = Row { deprecated: false, kind: Kind::Fragments(code), names: vec!["ec".to_owned()] };
        state.policies.policies.insert(2, row);
        assert_eq!(ring(&state, 2, 1).unwrap(), None, "too few");
        grow(&mut state, 5);
        let builder = ring(&state, 2, 1).unwrap().unwrap();
        assert_eq!(builder.settings().policy, 2);
        state.set_builder(builder);
        assert!(state.builder.is_none());
        let made = state.builder_of(2).unwrap().ring().unwrap().unwrap();
        assert!((0..64).all(|partition| made.lookup(partition).count() == 5));
        assert_eq!(ring(&state, 3, 1).unwrap(), None, "there is no such policy");
    }

    #[test]
    fn a_device_that_is_emptied_ends_empty_and_then_leaves() {
        let mut state = cluster(4);
        settle(&mut state);
        state.devices.get_mut(&DeviceId([2; 16])).unwrap().wanted = Wanted::Empty;
        settle(&mut state);
        let load = |state: &State| {
            let builder = state.builder.as_ref().unwrap();
            let number = state.ring_devices(0).iter().find(|(_, id)| id.0[0] == 2).map(|(number, _)| *number);
            let ring = builder.ring().unwrap().unwrap();
            let holds = |p: u32| ring.lookup(p).filter(|device| Some(device.id) == number).count();
            (0..64).map(holds).sum::<usize>()
        };
        assert_eq!(load(&state), 0);
        state.devices.get_mut(&DeviceId([2; 16])).unwrap().wanted = Wanted::Out;
        settle(&mut state);
        assert!(!state.ring_devices(0).values().any(|id| id.0[0] == 2));
        assert_eq!(settle(&mut state), 0);
    }
}
