//! Somebody leads the index group, and everybody agrees on who it is.

use std::collections::BTreeSet;

use super::World;
use crate::cluster::assembly::NAMES;
use crate::store::oracle::Violation;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    let lives = world.machines.iter().filter_map(|machine| machine.life.as_ref());
    let groups = lives.filter_map(|life| life.groups.get(NAMES));
    let votes = groups.map(|group| group.status()).filter(|status| !status.voters.is_empty());
    let leaders: BTreeSet<_> = votes.map(|status| status.leader).collect();
    if leaders.len() == 1 && !leaders.contains(&None) {
        return Ok(());
    }
    Err(Violation(format!("the nodes follow {leaders:?}")))
}
