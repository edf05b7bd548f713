//! What a line tells of lies on a quorum of its primaries.

use quarry_engine::object::{RingPlacement, quorum};

use super::listings::lines;
use super::rows::rows;
use super::{Held, World, primaries};
use crate::store::oracle::Violation;

pub(super) fn check(world: &World, held: &Held, placement: &RingPlacement) -> Result<(), Violation> {
    let Some((_, rows)) = rows(world)?.pop_first() else { return Ok(()) };
    for line in lines(&rows)? {
        let primaries = primaries(placement, &line.hash);
        let stamps = primaries.iter().filter_map(|device| held.get(device)?.get(&line.hash));
        let copies = stamps.filter(|stamp| !stamp.deleted && stamp.sequence == line.version).count();
        if copies < quorum(primaries.len()) {
            let (c, name) = (line.c, &line.name);
            return Err(Violation(format!("{copies} of {} primaries have {c} {name:?}", primaries.len())));
        }
    }
    Ok(())
}
