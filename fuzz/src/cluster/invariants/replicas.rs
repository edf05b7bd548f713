//! Every primary of an object holds the same version of it. A tombstone may go here sooner than there.

use std::collections::BTreeSet;

use super::{Held, primaries};
use crate::cluster::board::Placements;
use crate::store::oracle::Violation;

pub(super) fn check(held: &Held, placements: &Placements) -> Result<(), Violation> {
    let all: BTreeSet<_> = held.values().flat_map(|stamps| stamps.keys().copied()).collect();
    for hash in all {
        let of = |device| held.get(&device).and_then(|stamps| stamps.get(&hash)).copied();
        let copies: Vec<_> =
            primaries(placements, &hash).into_iter().map(|device| (device, of(device))).collect();
        let newest = copies.iter().filter_map(|(_, stamp)| *stamp).max();
        let alike = copies
            .iter()
            .all(|(_, stamp)| *stamp == newest || newest.is_some_and(|n| n.deleted) && stamp.is_none());
        if !alike {
            return Err(Violation(format!("the primaries of an object differ: {copies:?}")));
        }
    }
    Ok(())
}
