//! Every voter of an index group has the same rows, and no row is in two groups.

use std::collections::{BTreeMap, BTreeSet};

use quarry_engine::index::Range;

use super::World;
use crate::cluster::assembly::NAMES;
use crate::store::oracle::Violation;

/// Version time and value by key.
pub(super) type Rows = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// The groups that are open anywhere.
pub(super) fn groups(world: &World) -> BTreeSet<u32> {
    let lives = world.machines.iter().filter_map(|machine| machine.life.as_ref());
    lives.flat_map(|life| life.groups.all()).map(|group| group.id()).collect()
}

/// The rows of all groups together.
pub(super) fn all(world: &World) -> Result<Rows, Violation> {
    let mut all = Rows::new();
    for group in groups(world) {
        if let Some((_, rows)) = rows(world, group)?.pop_first() {
            all.extend(rows.into_iter().filter(|(key, _)| group == NAMES || key.starts_with(b"o")));
        }
    }
    Ok(all)
}

/// The rows of a group at each machine that votes in it.
pub(super) fn rows(world: &World, group: u32) -> Result<BTreeMap<usize, Rows>, Violation> {
    let mut all = BTreeMap::new();
    for (n, machine) in world.machines.iter().enumerate() {
        let group = machine.life.as_ref().and_then(|life| life.groups.get(group));
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
    let mut lines = BTreeMap::new();
    for group in groups(world) {
        let all = rows(world, group)?;
        let Some((first, rows)) = all.first_key_value() else {
            return Err(Violation(format!("nobody votes in group {group}")));
        };
        for (n, other) in &all {
            if let Some(key) = rows.keys().chain(other.keys()).find(|key| rows.get(*key) != other.get(*key)) {
                let (a, b) = (rows.get(key), other.get(key));
                return Err(Violation(format!(
                    "row {key:02x?} of group {group} is {a:02x?} at {first} and {b:02x?} at {n}"
                )));
            }
        }
        for key in rows.keys().filter(|key| key.starts_with(b"o")) {
            if let Some(other) = lines.insert(key.clone(), group) {
                return Err(Violation(format!("line {key:02x?} is in groups {other} and {group}")));
            }
        }
    }
    Ok(())
}
