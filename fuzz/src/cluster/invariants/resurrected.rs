//! No device holds an object that no line tells of, but for writes whose clients were told nothing.

use quarry_ring::path_hash;

use super::listings::lines;
use super::rows::all;
use super::{Held, World};
use crate::cluster::oracle::Oracle;
use crate::cluster::profile::ALL;
use crate::store::model::{NAMES, account_name, account_of, container_name};
use crate::store::oracle::Violation;

pub(super) fn check(world: &World, held: &Held, oracle: &Oracle) -> Result<(), Violation> {
    let rows = all(world)?;
    let told: Vec<_> = lines(&rows, &rows)?.into_iter().map(|line| line.hash).collect();
    for c in 0..ALL {
        for (o, name) in NAMES.iter().enumerate() {
            let hash = path_hash(&account_name(account_of(c)), &container_name(c), name);
            if told.contains(&hash) || oracle.was_unanswered((c, o)) {
                continue;
            }
            let newest = held.values().filter_map(|stamps| stamps.get(&hash)).max();
            if let Some(stamp) = newest.filter(|stamp| !stamp.deleted) {
                return Err(Violation(format!("{c} {name:?} was deleted, and a device holds {stamp:?}")));
            }
        }
    }
    Ok(())
}
