//! No line is left of a container that does not stand.

use std::collections::BTreeSet;

use quarry_engine::catalog::listing_prefix;

use super::World;
use super::listings::container;
use super::rows::all;
use crate::cluster::profile::ALL;
use crate::store::oracle::Violation;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    let rows = all(world)?;
    let standing = (0..ALL).filter_map(|c| container(&rows, c).transpose());
    let prefixes = standing.map(|id| id.map(listing_prefix)).collect::<Result<BTreeSet<_>, _>>()?;
    let is_line = |key: &&Vec<u8>| key.starts_with(b"o");
    let known = |key: &Vec<u8>| prefixes.iter().any(|prefix| key.starts_with(prefix));
    match rows.keys().filter(is_line).find(|key| !known(key)) {
        Some(key) => Err(Violation(format!("line {key:02x?} is of no container that stands"))),
        None => Ok(()),
    }
}
