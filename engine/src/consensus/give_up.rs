//! Leaving a group: what a disk has of it is given up at once, and taken out of the index bit by bit.
//!
//! Giving up is one group of records: a marker that says that nothing was applied, and a state that ends the group's life on
//! this disk. Rows of a life have keys of their own, so what a crash leaves of them, and what a rebuild of the index brings
//! back, is known to be dead by its keys.
//!
//! Invariant: only keys of lives that have ended are taken out; the state that ends a life is durable before.
//! Invariant: lines that a group took over from another stay when the other one's life ends, and go when its own does; not where their
//! range was taken back: they are the other one's again.

use super::store::Store;
use super::territory::Host;
use super::types::GroupError;
use crate::catalog::{self, Bound, GroupId, group_of_space};
use crate::disk::DiskHandle;
use crate::disk::catalog::Tx;
use crate::index::{Index, IndexError, Range, Table};

type Keys = Vec<(Table, Vec<u8>)>;

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

/// Takes rows of lives that have ended out of a disk's index, and lines of ranges whose group is gone; how many keys that was. To
/// be called when a disk was opened, and after a group was given up.
pub async fn sweep(disk: &DiskHandle) -> Result<u64, GroupError> {
    let mut dead = Vec::new();
    for space in catalog::spaces(disk.index()).map_err(failed)? {
        let (group, life) = group_of_space(space);
        dead.extend(Store::facts(group, disk).await?.filter(|facts| facts.life > life).map(|_| space));
    }
    let (mut keep, mut gone) = (Vec::new(), Vec::new());
    for (group, bound) in catalog::bounds(disk.index()).map_err(failed)? {
        match Store::facts(group, disk).await?.and_then(|facts| facts.host) {
            Some(host) => keep.push(host.keys()),
            None => gone.push((group, bound)),
        }
    }
    let mut swept = 0;
    for space in dead {
        let some = |index: &dyn Index| catalog::dead_keys(index, space, &keep, KEYS);
        swept += drop_all(disk, some, catalog::drop_keys).await?;
    }
    // Looked at again: what is gone now gives nothing away any more.
    let bounds = catalog::bounds(disk.index()).map_err(failed)?;
    for (group, bound) in gone {
        let lines = dead_lines(&bound, &bounds);
        let some = |index: &dyn Index| match catalog::is_over(&index, group)? {
            true => Ok(Vec::new()),
            false => catalog::dead_lines(index, lines.clone(), KEYS),
        };
        let drop = move |tx: &mut Tx<'_>, keys| catalog::drop_lines(tx, group, keys);
        swept += drop_all(disk, some, drop).await?;
    }
    Ok(swept)
}

/// Where the lines of a range lie whose group is not here: up to where the next one begins.
fn dead_lines(bound: &Bound, all: &[(GroupId, Bound)]) -> Range {
    let same = all.iter().filter(|(_, other)| (other.space, other.id) == (bound.space, bound.id));
    let next = same.filter(|(_, other)| other.from > bound.from).map(|(_, other)| other.from.clone()).min();
    let (space, id, from) = (bound.space, bound.id, bound.from.clone());
    Host { space, id, from, to: next }.keys()
}

async fn drop_all(
    disk: &DiskHandle,
    some: impl Fn(&dyn Index) -> Result<Keys, IndexError>,
    drop: impl Fn(&mut Tx<'_>, Keys) -> Result<(), IndexError> + Copy + Send + 'static,
) -> Result<u64, GroupError> {
    let mut dropped = 0;
    loop {
        let keys = some(disk.index()).map_err(failed)?;
        if keys.is_empty() {
            return Ok(dropped);
        }
        dropped += keys.len() as u64;
        let change = Box::new(move |tx: &mut Tx<'_>| drop(tx, keys));
        disk.submit_prune(change).await.map_err(failed)?;
    }
}
