//! What must hold when a cluster has healed, one promise in each file.
//!
//! Invariant: these look at drives and rows directly; what clients see is the oracle's matter.

mod handoffs;
mod intents;
mod leaders;
mod listings;
mod quorums;
mod replicas;
mod resurrected;
mod rows;
mod strays;
mod sums;
mod totals;

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::catalog::{Stamp, policy_of, stamps};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::index::Index;
use quarry_engine::object::Placement;
use quarry_ring::PathHash;

use super::board::Placements;
use super::fleeting::FLEETING;
use super::history::History;
use super::profile::CODED;
use super::world::World;
use crate::store::oracle::Violation;

pub(super) use leaders::check as check_leaders;

/// Most versions of a device.
const MOST: usize = 100_000;

/// What every device holds.
pub(super) type Held = BTreeMap<DeviceId, BTreeMap<PathHash, Stamp>>;

/// Checks all of them.
pub(super) fn check(history: &mut History) -> Result<(), Violation> {
    let held = held(&history.world)?;
    let placements = history.world.board.read().placements.clone();
    sums::check(&history.world)?;
    leaders::check(&history.world)?;
    rows::check(&history.world)?;
    totals::check(&history.world)?;
    strays::check(&history.world)?;
    listings::check(&history.world, &held)?;
    let staying = history.profile.eventual.then_some(CODED);
    let eventual: Vec<usize> =
        staying.into_iter().chain(history.fleeting.is_eventual().then_some(FLEETING)).collect();
    intents::check(&history.world, &held, &eventual)?;
    resurrected::check(&history.world, &held, &history.oracle)?;
    quorums::check(&history.world, &held, &placements, history.profile.code)?;
    let held = counted(held, &history.world)?;
    replicas::check(&held, &placements)?;
    handoffs::check(&held, &placements)
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

/// The newest time of a version that a device holds.
pub(super) fn newest(world: &World) -> Result<u64, Violation> {
    let held = held(world)?;
    let times = held.values().flat_map(|stamps| stamps.values().map(|stamp| stamp.sequence));
    Ok(times.max().unwrap_or(0))
}

/// Without the bodies that have a key of their own and that no line names: their writers died, or they were replaced while a
/// device was away. An auditor buries them after a day.
fn counted(mut held: Held, world: &World) -> Result<Held, Violation> {
    let rows = rows::all(world)?;
    let named: BTreeSet<PathHash> =
        listings::lines(&rows, &rows)?.into_iter().map(|line| line.hash).collect();
    for stamps in held.values_mut() {
        stamps.retain(|hash, _| policy_of(hash) == 0 || named.contains(hash));
    }
    Ok(held)
}

/// The primaries of an object.
pub(super) fn primaries(placements: &Placements, hash: &PathHash) -> Vec<DeviceId> {
    placements.get(&policy_of(hash)).map_or_else(Vec::new, |ring| Placement::primaries(ring.as_ref(), hash))
}
