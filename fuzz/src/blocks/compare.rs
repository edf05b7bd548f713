//! What members hold, compared.
//!
//! Invariant: all members of the configuration hold the same blocks, each of the same write, in an order that what clients saw allows.

use std::collections::BTreeMap;

use quarry_engine::disk::format::record::DeviceId;

use super::clients::{IN_CHUNK, name_in};
use super::oracle::Oracle;
use super::part::Table;
use crate::store::oracle::Violation;

pub(crate) fn compare(tables: &BTreeMap<DeviceId, Table>, oracle: &Oracle) -> Result<(), Violation> {
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
    for ((slice, _, block), (at, bytes)) in one {
        let block = u8::try_from(slice * u64::from(IN_CHUNK) + block).unwrap_or(u8::MAX);
        let name = bytes.as_ref().map_or(Ok(None), |bytes| name_in(bytes, block))?;
        held.push((block, *at, name));
    }
    oracle.placed(&held)
}
