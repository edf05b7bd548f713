//! No intent is left, and every version that has one in its record is told by its line.

use quarry_engine::catalog::count_intents;
use quarry_engine::index::Index;
use quarry_ring::path_hash;

use super::listings::lines;
use super::rows::all;
use super::{Held, World};
use crate::store::model::{NAMES, account_name, account_of, container_name};
use crate::store::oracle::Violation;

/// `eventual`: the containers that are.
pub(super) fn check(world: &World, held: &Held, eventual: &[usize]) -> Result<(), Violation> {
    for (device, index) in world.machines.iter().flat_map(|machine| machine.indexes()) {
        let index: &dyn Index = index.as_ref();
        let left = count_intents(index, 1000).map_err(|e| Violation(format!("count intents: {e}")))?;
        if left > 0 {
            return Err(Violation(format!("{left} intents are left on {device}")));
        }
    }
    let rows = all(world)?;
    let told: Vec<_> = lines(&rows, &rows)?.into_iter().map(|line| line.hash).collect();
    for (c, name) in eventual.iter().flat_map(|c| NAMES.map(|name| (*c, name))) {
        let hash = path_hash(&account_name(account_of(c)), &container_name(c), name);
        let newest = held.values().filter_map(|stamps| stamps.get(&hash)).max();
        if let Some(stamp) = newest.filter(|stamp| !stamp.deleted && !told.contains(&hash)) {
            return Err(Violation(format!("no line tells of {c} {name:?}, a device holds {stamp:?}")));
        }
    }
    Ok(())
}
