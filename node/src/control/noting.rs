//! What a node notes of its disks while it runs, so that its next start knows a disk that is missing, or one that is older than itself.
//!
//! Invariant: a disk that is another node's now, or that was taken out, is not missed; one that the cluster does not know yet is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::NodeId;
use tokio::sync::watch;

use super::state::{State, Wanted};
use crate::storage::Known;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks between which it is noted how far logs are durable: after so many seconds a loss of what was written last is found at the next start.
const LOGS_EVERY: u32 = 10;

/// Notes for as long as it is polled. `disks`: those that opened.
pub(super) async fn note(
    known: Arc<Known>,
    state: watch::Receiver<Arc<State>>,
    disks: Vec<DiskHandle>,
    local: NodeId,
) {
    let disks = Arc::new(disks);
    let (mut pause, mut looks, mut noted) = (tokio::time::interval(PAUSE), 0, None);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let seen = Arc::clone(&state.borrow());
        // Before anything is known, how far the logs are is.
        let out = (!seen.devices.is_empty()).then(|| gone(&seen, local));
        looks += 1;
        if looks < LOGS_EVERY && out == noted {
            continue;
        }
        (looks, noted) = (0, out.clone());
        let (known, disks) = (Arc::clone(&known), Arc::clone(&disks));
        match tokio::task::spawn_blocking(move || known.note(&disks, out.as_ref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "note which disks this node has"),
            Err(panicked) => tracing::error!(%panicked, "note which disks this node has"),
        }
    }
}

/// Devices that this node need not have.
fn gone(state: &State, local: NodeId) -> BTreeSet<DeviceId> {
    let gone = state.devices.iter().filter(|(_, row)| row.wanted == Wanted::Out || row.node != local);
    gone.map(|(device, _)| *device).collect()
}

#[cfg(test)]
mod tests {
    use quarry_ring::Class;

    use super::super::state::Device;
    use super::*;

    #[test]
    fn what_is_out_or_another_nodes_need_not_be_there() {
        let mut state = State::default();
        for (id, node, wanted) in
            [(1, 1, Wanted::Share), (2, 1, Wanted::Empty), (3, 1, Wanted::Out), (4, 2, Wanted::Share)]
        {
            let (node, bytes, region, zone, class) = (NodeId([node; 16]), 9, 0, 0, Class::Hdd);
            let device = Device { node, bytes, region, zone, class, wanted, away: false };
            state.devices.insert(DeviceId([id; 16]), device);
        }
        let expected = [3, 4].map(|id| DeviceId([id; 16]));
        assert!(gone(&state, NodeId([1; 16])).into_iter().eq(expected));
    }
}
