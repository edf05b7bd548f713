//! A node whose disk is lost: it must not come back as the node that it was, but as another in its place.
//!
//! A voter that forgot what it voted could vote twice, and what a majority acknowledged could be undone.
//!
//! Invariant: a node opens its groups on the disk that has its votes, or, the first time, on one that has nobody's.
//! Invariant: who is replaced is out only when the one in its place is a member.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Request, Transport, Wish};
use tokio::sync::watch;

use super::MemberError;
use super::state::{State, Wanted};
use crate::cluster::identity::{self, Files, IdentityError};
use crate::cluster::join;

/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one wish may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Refuses a disk that is not the one that has this node's votes. `misses`: not all disks are here, and so they must be known to be.
pub(super) fn check(data: &Path, first: &DiskHandle, misses: bool) -> Result<(), MemberError> {
    let found = first.device();
    let known = match identity::read(&Files::of(data).disk) {
        Ok(text) => String::from_utf8_lossy(&text).trim().to_owned(),
        Err(IdentityError::Missing(_)) if join::replaces(data)?.is_some() && first.max_sequence() > 0 => {
            return Err(MemberError::Votes(found));
        }
        Err(IdentityError::Missing(_)) if !misses => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if known == hex::encode(found.0) { Ok(()) } else { Err(MemberError::OtherDisk { found, known }) }
}

/// Notes which disk has this node's votes.
pub(super) fn remember(data: &Path, first: &DiskHandle) -> Result<(), MemberError> {
    let file = Files::of(data).disk;
    if file.exists() {
        return Ok(());
    }
    Ok(identity::write(&file, &format!("{}\n", hex::encode(first.device().0)))?)
}

/// Takes the place of the node that this one replaces, if it does.
pub(super) async fn take_place(
    net: Arc<dyn Transport>,
    mut state: watch::Receiver<Arc<State>>,
    data: PathBuf,
) {
    let old = match join::replaces(&data) {
        Ok(Some(old)) => old,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "take the place of another node"),
    };
    let local = net.local();
    loop {
        let Ok(seen) =
            state.wait_for(|state| state.members.contains_key(&local)).await.map(|s| Arc::clone(&s))
        else {
            return;
        };
        let wishes = wishes(&seen, old);
        if wishes.is_empty() {
            tracing::info!(node = %local, replaces = %old, "took the place of a node");
            if let Err(error) = std::fs::remove_file(Files::of(&data).replaces) {
                tracing::error!(%error, "note that the place of another node was taken");
            }
            return;
        }
        for wish in wishes {
            if let Err(error) = net.call(local, Request::Wish(wish), WITHIN).await {
                tracing::debug!(%error, "take the place of another node");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is not yet so: the old node leaves, and its disks are out.
fn wishes(state: &State, old: NodeId) -> Vec<Wish> {
    let stays = state.members.get(&old).is_some_and(|member| !member.leaving);
    if stays {
        return vec![Wish::Node { node: old, leaving: true }];
    }
    let disks = state.devices.iter().filter(|(_, device)| device.node == old && device.wanted != Wanted::Out);
    disks.map(|(id, _): (&DeviceId, _)| Wish::Device { device: *id, wanted: 2 }).collect()
}

#[cfg(test)]
mod tests {
    use quarry_ring::Class;

    use super::super::state::{Device, Member};
    use super::*;

    #[test]
    fn the_old_node_leaves_and_then_its_disks_are_out_but_not_those_that_moved() {
        let (old, new) = (NodeId([1; 16]), NodeId([2; 16]));
        let mut state = State::default();
        assert!(wishes(&state, old).is_empty(), "the cluster does not know it");
        let address = "10.0.0.1:6100".parse().unwrap();
        for (node, number) in [(old, 0), (new, 1)] {
            state.members.insert(node, Member { number, address, since: 1, leaving: false });
        }
        for (id, node) in [(1, old), (2, old), (3, new)] {
            let (region, zone, class, wanted) = (0, 0, Class::Hdd, Wanted::Share);
            state.devices.insert(
                DeviceId([id; 16]),
                Device { node, bytes: 1, region, zone, class, wanted, away: false },
            );
        }
        assert_eq!(wishes(&state, old), [Wish::Node { node: old, leaving: true }]);
        state.members.get_mut(&old).unwrap().leaving = true;
        let out = |id| Wish::Device { device: DeviceId([id; 16]), wanted: 2 };
        assert_eq!(wishes(&state, old), [out(1), out(2)]);
        assert!(state.takes_part(old), "its disks may be needed still");
        for id in [1, 2] {
            state.devices.get_mut(&DeviceId([id; 16])).unwrap().wanted = Wanted::Out;
        }
        assert!(wishes(&state, old).is_empty());
        assert!(!state.takes_part(old) && state.takes_part(new), "nothing is sent to a node that is gone");
        assert!(state.has_left(old) && !state.has_left(new));
        assert!(!state.has_left(NodeId([3; 16])), "who is not known yet has not left");
    }
}
