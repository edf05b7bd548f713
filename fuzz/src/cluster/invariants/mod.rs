//! What must hold when a cluster has healed, one promise in each file.
//!
//! Invariant: these look at drives and rows directly; what clients see is the oracle's matter.

mod handoffs;
mod leaders;
mod listings;
mod quorums;
mod replicas;
mod resurrected;
mod rows;
mod sums;
mod totals;

use std::collections::BTreeMap;

use quarry_engine::catalog::{Stamp, stamps};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::index::Index;
use quarry_engine::object::RingPlacement;
use quarry_ring::PathHash;

use super::history::History;
use super::world::World;
use crate::store::oracle::Violation;

/// Most versions of a device.
const MOST: usize = 100_000;

/// What every device holds.
pub(super) type Held = BTreeMap<DeviceId, BTreeMap<PathHash, Stamp>>;

/// Checks all of them.
pub(super) fn check(history: &mut History) -> Result<(), Violation> {
    let held = held(&history.world)?;
    let placement = history.world.board.read().placement.clone();
    sums::check(&history.world)?;
    leaders::check(&history.world)?;
    rows::check(&history.world)?;
    totals::check(&history.world)?;
    listings::check(&history.world, &held)?;
    resurrected::check(&history.world, &held, &history.oracle)?;
    quorums::check(&history.world, &held, &placement)?;
    replicas::check(&held, &placement)?;
    handoffs::check(&held, &placement)
}

fn held(world: &World) -> Result<Held, Violation> {
    let mut held = Held::new();
    for (device, index) in world.machines.iter().flat_map(|machine| machine.indexes()) {
        let index: &dyn Index = index.as_ref();
        let found = stamps(index, None, [0; 16]..=[0xff; 16], None, MOST);
        let found = found.map_err(|e| Violation(format!("read index of {device}: {e}")))?;
        held.insert(device, found.stamps.into_iter().map(|stamp| (stamp.hash, stamp)).collect());
    }
    Ok(held)
}

/// The primaries of an object.
pub(super) fn primaries(placement: &RingPlacement, hash: &PathHash) -> Vec<DeviceId> {
    quarry_engine::object::Placement::primaries(placement, hash)
}
