//! Nothing is left on a device that is no primary of it.
//!
//! Known limit: a fragment that no primary has stays on a handoff, where two primaries have the same one instead. Stamps do not tell which
//! it is, so what all primaries have of a coded object may be on others as well.

use quarry_engine::catalog::{Stamp, policy_of};

use super::{Held, primaries};
use crate::cluster::board::Placements;
use crate::store::oracle::Violation;

pub(super) fn check(held: &Held, placements: &Placements) -> Result<(), Violation> {
    for (device, stamps) in held {
        let everywhere = |stamp: &Stamp| {
            let has = |device| held.get(device).and_then(|stamps| stamps.get(&stamp.hash)) == Some(stamp);
            policy_of(&stamp.hash) != 0 && primaries(placements, &stamp.hash).iter().all(has)
        };
        let is_astray =
            |stamp: &Stamp| !primaries(placements, &stamp.hash).contains(device) && !everywhere(stamp);
        let astray = stamps.values().find(|stamp| is_astray(stamp));
        if let Some(stamp) = astray {
            return Err(Violation(format!("{stamp:?} is still on {device}, which is no primary of it")));
        }
    }
    Ok(())
}
