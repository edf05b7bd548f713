//! What an operator sees of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::consensus::{Given, Group};
use quarry_ring::Builder;

use super::groups::Own;
use super::state::{State, Wanted};
use crate::status::{ChildReport, ClusterStatus, DeviceStatus, GroupReport, MemberStatus, RangeReport};

/// The cluster as this node knows it now.
pub(crate) fn report(groups: &Own, state: &State) -> ClusterStatus {
    let shares = shares(state);
    let member = |(node, member): (&_, &super::state::Member)| MemberStatus {
        node: format!("{node}"),
        address: member.address.to_string(),
        state: if member.leaving { "leaving" } else { "member" }.to_owned(),
        votes: groups.control.status().voters.contains(node),
    };
    let device = |(id, device): (&quarry_engine::disk::format::record::DeviceId, &super::state::Device)| {
        let (replicas, share) = shares.get(&hex::encode(id.0)).copied().unwrap_or_default();
        DeviceStatus {
            device: hex::encode(id.0),
            node: device.node.to_string(),
            zone: device.zone,
            bytes: device.bytes,
            state: match device.wanted {
                Wanted::Out => "out",
                Wanted::Empty if replicas == 0 => "drained",
                Wanted::Share | Wanted::Empty if device.away => "away",
                Wanted::Share => "in",
                Wanted::Empty => "draining",
            }
            .to_owned(),
            replicas,
            share,
        }
    };
    ClusterStatus {
        node: groups.control.node().to_string(),
        ring_version: state.builder.as_ref().map_or(0, Builder::version),
        replicas: state.builder.as_ref().map_or(0, |b| b.settings().replicas.hundredths() / 100),
        partitions: state.builder.as_ref().map_or(0, Builder::partitions),
        groups: group_reports(groups, state),
        members: state.members.iter().map(member).collect(),
        devices: state.devices.iter().map(device).collect(),
    }
}

/// Replicas that the ring is still to take off disks that shall be empty.
pub(crate) fn to_leave(state: &State) -> u64 {
    let shares = shares(state);
    let leaving = state.devices.iter().filter(|(_, device)| device.wanted != Wanted::Share);
    leaving.filter_map(|(id, _)| shares.get(&hex::encode(id.0))).map(|(replicas, _)| replicas).sum()
}

/// The control group, and each index group: as it is here, or by its row where it is not.
fn group_reports(groups: &Own, state: &State) -> Vec<GroupReport> {
    let mut reports = vec![group("control".to_owned(), &groups.control)];
    let open = groups.index.open_groups();
    let here: BTreeMap<u32, &Group> = open.iter().map(|group| (group.id(), group)).collect();
    let numbers: BTreeSet<u32> = here.keys().chain(state.groups.keys()).copied().collect();
    reports.extend(numbers.into_iter().map(|number| {
        let name = format!("index {number}");
        let report = match (here.get(&number), state.groups.get(&number)) {
            (Some(open), _) => group(name, open),
            (None, row) => GroupReport { name, voters: row.map_or(0, Vec::len), ..GroupReport::default() },
        };
        let parent = state.children.get(&number).copied();
        let range = |parent| range(number, here.get(&number).copied(), here.get(&parent).copied());
        let child = parent.map(|parent| ChildReport { parent, range: range(parent) });
        GroupReport { child, ..report }
    }));
    reports
}

/// What a child has: by its own word, up to what it gave away, or else by its parent's.
fn range(number: u32, child: Option<&Group>, parent: Option<&Group>) -> Option<RangeReport> {
    if let Some((child, part)) = child.and_then(|child| Some((child, child.part()?))) {
        let given = child.given().into_iter().map(|given| given.from).min();
        let (of, to) = (part.value.of, given.or(part.value.to));
        let (account, container, from) = (of.account, of.container, part.value.from);
        return Some(RangeReport { account, container, from, to });
    }
    let Given { from, to, of, .. } = parent?.given().into_iter().find(|given| given.group == number)?;
    Some(RangeReport { account: of.account, container: of.container, from, to })
}

fn group(name: String, group: &Group) -> GroupReport {
    let status = group.status();
    GroupReport {
        name,
        here: true,
        leader: status.leader.map(|leader| leader.to_string()),
        term: status.term,
        voters: status.voters.len(),
        learners: status.learners.len(),
        last: status.last.unwrap_or(0),
        applied: status.applied.unwrap_or(0),
        child: None,
    }
}

/// Replicas that each device holds and should hold, of all policies, by its label in the rings.
fn shares(state: &State) -> BTreeMap<String, (u64, u64)> {
    let mut shares: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for builder in state.builder.iter().chain(state.other_builders.values()) {
        for (member, load) in builder.members().iter().zip(builder.loads()) {
            let (replicas, share) = shares.entry(member.label.clone()).or_default();
            *replicas += load.replicas;
            *share += load.target / 1_000_000;
        }
    }
    shares
}
