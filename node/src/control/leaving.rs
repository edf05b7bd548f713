//! Volumes on nodes that are to be emptied: how many are there still, and why some stay.
//!
//! Invariant: a node that does not answer is said to have something left, and so are disks whose members cannot be listed.

use std::collections::BTreeMap;
use std::time::Duration;

use quarry_engine::block::{Fence, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{ListedVolume, NodeId, Request, Response, Transport, VolumeAnswer, VolumeCall};
use serde::{Deserialize, Serialize};

use super::state::State;
use super::volumes::{Register, RegisterError, Row};

/// Stays that are named, at most.
const MAX_NAMED: usize = 100;
/// How long a node has for a page of its list.
const WITHIN: Duration = Duration::from_secs(5);

/// What is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Volumes with one member on nodes that are to be emptied.
    pub(crate) volumes: u64,
    /// Members of volumes with several, on disks that are to be empty or are out.
    pub(crate) members: u64,
    /// Which stay, and what would let them go.
    pub(crate) kept: BTreeMap<String, String>,
    /// When all others will be gone, as fast as it went since somebody first asked.
    pub(crate) eta_seconds: Option<u64>,
}

impl Left {
    /// All together.
    pub(crate) fn count(&self) -> u64 {
        self.volumes + self.members
    }
}

/// Asks the nodes that are to be emptied.
pub(crate) async fn left(register: &Register, state: &State) -> Left {
    let mut left = Left::default();
    for (node, _) in state.members.iter().filter(|(node, member)| member.leaving && state.takes_part(**node))
    {
        match listed(register.net(), *node).await {
            Some(listed) => note(&mut left, *node, &listed),
            None => {
                left.volumes += 1;
                left.kept.insert(format!("node {node}"), "it does not answer".to_owned());
            }
        }
    }
    note_members(&mut left, register.list(), state);
    left
}

fn note_members(left: &mut Left, rows: Result<Vec<Row>, RegisterError>, state: &State) {
    let rows = rows.unwrap_or_else(|error| {
        left.members += 1;
        left.kept
            .insert("volumes with several members".to_owned(), format!("they cannot be listed: {error}"));
        Vec::new()
    });
    let others = state.members.values().filter(|member| !member.leaving).count();
    for row in rows {
        let leave = row.configuration.all().filter(|device| !state.stays(*device)).count();
        let has = row.configuration.all().count();
        let wanted = if row.wanted > 0 { usize::from(row.wanted) } else { has };
        if leave > 0 && others < wanted && left.kept.len() < MAX_NAMED {
            let why = "there are not as many other nodes as it has members";
            left.kept.insert(row.name.clone(), why.to_owned());
        }
        left.members += leave as u64;
    }
}

/// What a node has, each volume with its snapshots behind it.
async fn listed(net: &dyn Transport, node: NodeId) -> Option<Vec<ListedVolume>> {
    let mut all = Vec::new();
    loop {
        let call = VolumeCall::List { from: u32::try_from(all.len()).ok()? };
        let (device, volume, fence) = (DeviceId([0; 16]), VolumeId([0; 16]), Fence::default());
        match net.call(node, Request::Volume { device, volume, fence, session: 0, call }, WITHIN).await {
            Ok(Response::Volume(VolumeAnswer::Listed(page))) if page.is_empty() => return Some(all),
            Ok(Response::Volume(VolumeAnswer::Listed(page))) => all.extend(page),
            _ => return None,
        }
    }
}

fn note(left: &mut Left, node: NodeId, listed: &[ListedVolume]) {
    for volume in listed.iter().filter(|one| !one.snapshot) {
        left.volumes += 1;
        let frozen = listed.iter().any(|one| one.snapshot && one.volume == volume.volume);
        let why = match (volume.used, frozen) {
            (true, _) => "a client is connected to it: disconnect it",
            (false, true) => "it has snapshots: delete them, or copy the volume",
            (false, false) => continue,
        };
        if left.kept.len() < MAX_NAMED {
            left.kept.insert(format!("{} at {node}", volume.name), why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(id: u8, snapshot: bool, used: bool) -> ListedVolume {
        let name = format!("disk{id}");
        ListedVolume { volume: VolumeId([id; 16]), snapshot, name, bytes: 1, encrypted: false, used }
    }

    /// An operator would take the node away.
    #[test]
    fn members_that_cannot_be_listed_are_not_gone() {
        let mut left = Left::default();
        note_members(&mut left, Err(RegisterError::Changed), &State::default());
        assert_eq!((left.count(), left.kept.len()), (1, 1));
        let mut left = Left::default();
        note_members(&mut left, Ok(Vec::new()), &State::default());
        assert_eq!((left.count(), left.kept.len()), (0, 0));
    }

    #[test]
    fn what_is_used_or_frozen_stays_and_is_named_with_what_would_let_it_go() {
        let mut left = Left::default();
        let node = NodeId([9; 16]);
        note(
            &mut left,
            node,
            &[one(1, false, false), one(2, false, true), one(3, false, false), one(3, true, false)],
        );
        assert_eq!((left.volumes, left.count()), (3, 3));
        let named: Vec<_> =
            left.kept.iter().map(|(name, why)| (name.clone(), why.contains("client"))).collect();
        assert_eq!(named, [(format!("disk2 at {node}"), true), (format!("disk3 at {node}"), false)]);
    }
}
