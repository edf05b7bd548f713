//! Leaving a group: what a disk has of it is given up at once, and taken out of the index bit by bit.
//!
//! Giving up is one group of records: a marker that says that nothing was applied, and a state that ends the group's life on
//! this disk. Rows of a life have keys of their own, so what a crash leaves of them, and what a rebuild of the index brings
//! back, is known to be dead by its keys.
//!
//! Invariant: only keys of lives that have ended are taken out; the state that ends a life is durable before.

use super::store::Store;
use super::types::GroupError;
use crate::catalog::{self, GroupId, group_of_space};
use crate::disk::DiskHandle;

/// Keys taken out of the index by one change.
const KEYS: usize = 1000;

fn failed(e: impl std::fmt::Display) -> GroupError {
    GroupError::Unavailable(e.to_string())
}

/// Ends the life of a group on a disk.
pub(crate) async fn give_up(group: GroupId, disk: DiskHandle) -> Result<(), GroupError> {
    let store = Store::open(group, disk).await?;
    if store.given_up() {
        return Ok(());
    }
    if store.life() == u16::MAX {
        return Err(failed("this disk gave the group up too often"));
    }
    store.give_up().await.map_err(failed)
}

/// The groups that a disk has and has not given up.
pub async fn held(disk: &DiskHandle) -> Result<Vec<GroupId>, GroupError> {
    let mut held = Vec::new();
    for group in catalog::groups(disk.index()).map_err(failed)? {
        // What cannot be read is opened, and says so.
        if !matches!(Store::facts(group, disk).await, Ok(Some(facts)) if facts.given_up) {
            held.push(group);
        }
    }
    Ok(held)
}

/// Takes rows of lives that have ended out of a disk's index; how many keys that was. To be called when a disk was opened,
/// and after a group was given up.
pub async fn sweep(disk: &DiskHandle) -> Result<u64, GroupError> {
    let mut swept = 0;
    for space in catalog::spaces(disk.index()).map_err(failed)? {
        let (group, life) = group_of_space(space);
        let Some(facts) = Store::facts(group, disk).await? else { continue };
        if facts.life <= life {
            continue;
        }
        loop {
            let keys = catalog::dead_keys(disk.index(), space, KEYS).map_err(failed)?;
            if keys.is_empty() {
                break;
            }
            swept += keys.len() as u64;
            let change = Box::new(move |tx: &mut crate::disk::catalog::Tx<'_>| catalog::drop_keys(tx, keys));
            disk.submit_prune(change).await.map_err(failed)?;
        }
    }
    Ok(swept)
}
