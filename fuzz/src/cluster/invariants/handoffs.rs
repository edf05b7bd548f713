//! Nothing is left on a device that is no primary of it.

use super::{Held, primaries};
use crate::cluster::board::Placements;
use crate::store::oracle::Violation;

pub(super) fn check(held: &Held, placements: &Placements) -> Result<(), Violation> {
    for (device, stamps) in held {
        let astray = stamps.values().find(|stamp| !primaries(placements, &stamp.hash).contains(device));
        if let Some(stamp) = astray {
            return Err(Violation(format!("{stamp:?} is still on {device}, which is no primary of it")));
        }
    }
    Ok(())
}
