//! What a line tells of lies on a quorum of its primaries.

use quarry_engine::catalog::policy_of;
use quarry_engine::object::{Code, quorum};

use super::listings::lines;
use super::rows::all;
use super::{Held, World, primaries};
use crate::cluster::board::Placements;
use crate::store::oracle::Violation;

pub(super) fn check(
    world: &World,
    held: &Held,
    placements: &Placements,
    code: Option<Code>,
) -> Result<(), Violation> {
    let rows = all(world)?;
    for line in lines(&rows, &rows)? {
        let primaries = primaries(placements, &line.hash);
        let stamps = primaries.iter().filter_map(|device| held.get(device)?.get(&line.hash));
        let copies = stamps.filter(|stamp| !stamp.deleted && stamp.sequence == line.version).count();
        let coded = code.filter(|_| policy_of(&line.hash) != 0);
        if copies < coded.map_or(quorum(primaries.len()), Code::quorum) {
            let (c, name) = (line.c, &line.name);
            return Err(Violation(format!("{copies} of {} primaries have {c} {name:?}", primaries.len())));
        }
    }
    Ok(())
}
