//! What members hold, compared.
//!
//! Invariant: all members of the configuration hold the same blocks, now and as of each snapshot, each of the same write, in an order that
//! what clients saw allows.

use std::collections::BTreeMap;

use quarry_engine::disk::format::record::DeviceId;

use super::clients::{IN_CHUNK, name_in};
use super::oracle::{BLOCKS, Oracle};
use super::part::Table;
use crate::store::oracle::Violation;

type At = ((u64, u64), Option<Vec<u8>>);

pub(crate) fn compare(
    tables: &BTreeMap<DeviceId, Table>,
    snapshots: &[(u32, u64)],
    oracle: &mut Oracle,
    now: u64,
) -> Result<(), Violation> {
    let Some((first, one)) = tables.first_key_value() else {
        return Err(Violation("there are no members".to_owned()));
    };
    for (device, table) in tables {
        let places = one.keys().chain(table.keys());
        if let Some(place) = places.into_iter().find(|place| one.get(place) != table.get(place)) {
            let at = |table: &Table| table.get(place).map(|(at, bytes)| (*at, bytes.is_some()));
            let (mine, theirs) = (at(one), at(table));
            return Err(Violation(format!(
                "members differ at {place:?}: {first} has {mine:?}, {device} {theirs:?}"
            )));
        }
    }
    let mut held = Vec::new();
    for ((_, slice, _, block), (at, bytes)) in one {
        let block = number(*slice, *block);
        let name = bytes.as_ref().map_or(Ok(None), |bytes| name_in(bytes, block))?;
        held.push((block, *at, name));
    }
    oracle.placed(&held)?;
    cuts(one)?;
    for (era, snapshot) in snapshots {
        let mut names = vec![None; usize::from(BLOCKS)];
        for ((_, slice, _, block), (_, bytes)) in view(one, *era) {
            let block = number(*slice, *block);
            if let Some(bytes) = bytes {
                names[usize::from(block)] = name_in(bytes, block)?;
            }
        }
        oracle.froze_as(usize::try_from(*snapshot).unwrap_or(usize::MAX), 0, &names, now)?;
    }
    Ok(())
}

fn number(slice: u64, block: u64) -> u8 {
    u8::try_from(slice * u64::from(IN_CHUNK) + block).unwrap_or(u8::MAX)
}

fn view(table: &Table, era: u32) -> impl Iterator<Item = (&(u32, u64, u64, u64), &At)> {
    table.range((era, 0, 0, 0)..=(era, u64::MAX, u64::MAX, u64::MAX))
}

/// Each view ends at one place in the order: what the next one has instead lies behind all that it has.
fn cuts(table: &Table) -> Result<(), Violation> {
    let mut eras: Vec<u32> = table.keys().map(|(era, ..)| *era).collect();
    eras.dedup();
    for (before, after) in eras.iter().zip(eras.iter().skip(1)) {
        let Some(end) = view(table, *before).map(|(_, (at, _))| *at).max() else { continue };
        for ((_, slice, chunk, block), (at, _)) in view(table, *after) {
            let same = table.get(&(*before, *slice, *chunk, *block)).is_some_and(|(was, _)| was == at);
            if !same && *at <= end {
                let place = (slice, chunk, block);
                return Err(Violation(format!(
                    "a snapshot has a hole: {place:?} as of {after} is of {at:?}, and as of {before} there is {end:?}"
                )));
            }
        }
    }
    Ok(())
}
