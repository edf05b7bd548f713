//! Every voter of the index group has the same rows.

use std::collections::BTreeMap;

use quarry_engine::index::Range;

use super::World;
use crate::cluster::assembly::NAMES;
use crate::store::oracle::Violation;

/// Version time and value by key.
pub(super) type Rows = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// The rows of each machine that votes.
pub(super) fn rows(world: &World) -> Result<BTreeMap<usize, Rows>, Violation> {
    let mut all = BTreeMap::new();
    for (n, machine) in world.machines.iter().enumerate() {
        let group = machine.life.as_ref().and_then(|life| life.groups.get(NAMES));
        let Some(group) = group.filter(|group| group.status().voters.contains(&machine.node)) else {
            continue;
        };
        let bad = |e: &dyn std::fmt::Display| Violation(format!("rows of {n}: {e}"));
        let mut rows = Rows::new();
        for pair in group.scan(&Range::default()).map_err(|e| bad(&e))? {
            let (key, row) = pair.map_err(|e| bad(&e))?;
            rows.insert(key, (row.sequence, row.value));
        }
        all.insert(n, rows);
    }
    Ok(all)
}

pub(super) fn check(world: &World) -> Result<(), Violation> {
    let all = rows(world)?;
    let Some((first, rows)) = all.first_key_value() else {
        return Err(Violation("nobody votes".to_owned()));
    };
    for (n, other) in &all {
        if let Some(key) = rows.keys().chain(other.keys()).find(|key| rows.get(*key) != other.get(*key)) {
            let (a, b) = (rows.get(key), other.get(key));
            return Err(Violation(format!("row {key:02x?} is {a:02x?} at {first} and {b:02x?} at {n}")));
        }
    }
    Ok(())
}
