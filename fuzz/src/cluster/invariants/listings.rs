//! Behind every line of a listing is the object that it tells of, of that version and no newer one.

use quarry_engine::catalog::{ContainerValue, ListingValue, PathHash, container_key, listing_prefix};
use quarry_ring::path_hash;

use super::rows::{Rows, all};
use super::{Held, World};
use crate::cluster::profile::ALL;
use crate::store::model::{account_name, account_of, container_name};
use crate::store::oracle::Violation;

/// A line of a listing.
pub(super) struct Told {
    /// Its container.
    pub(super) c: usize,
    pub(super) name: String,
    pub(super) hash: PathHash,
    /// The object's version time.
    pub(super) version: u64,
    pub(super) size: u64,
}

/// The identity of a container, if it stands.
pub(super) fn container(rows: &Rows, c: usize) -> Result<Option<u64>, Violation> {
    let Some((_, value)) = rows.get(&container_key(&account_name(account_of(c)), &container_name(c))) else {
        return Ok(None);
    };
    let value = ContainerValue::decode(value).map_err(|e| Violation(format!("row of container {c}: {e}")))?;
    Ok(Some(value.id))
}

/// Every line of `rows`; which containers stand, `all` rows tell.
pub(super) fn lines(all: &Rows, rows: &Rows) -> Result<Vec<Told>, Violation> {
    let mut lines = Vec::new();
    for c in 0..ALL {
        let Some(id) = container(all, c)? else { continue };
        let prefix = listing_prefix(id);
        for (key, (sequence, value)) in rows.range(prefix.clone()..) {
            let Some(name) = key.strip_prefix(prefix.as_slice()) else { break };
            let name = String::from_utf8_lossy(name).into_owned();
            let value = ListingValue::decode(value).map_err(|e| Violation(format!("line of {name}: {e}")))?;
            let own = || path_hash(&account_name(account_of(c)), &container_name(c), &name);
            let hash = value.key.unwrap_or_else(own);
            let version = value.version.unwrap_or(*sequence);
            lines.push(Told { c, name, hash, version, size: value.size });
        }
    }
    Ok(lines)
}

pub(super) fn check(world: &World, held: &Held) -> Result<(), Violation> {
    let rows = all(world)?;
    for Told { c, name, hash, version, .. } in lines(&rows, &rows)? {
        let newest = held.values().filter_map(|stamps| stamps.get(&hash)).max();
        if newest.is_none_or(|newest| newest.deleted || newest.sequence != version) {
            return Err(Violation(format!(
                "the line of {c} {name:?} says {version}, the devices have {newest:?}"
            )));
        }
    }
    Ok(())
}
