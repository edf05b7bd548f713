//! Somebody leads every index group, and everybody agrees on who it is.

use std::collections::BTreeSet;

use super::World;
use super::rows::groups;
use crate::store::oracle::Violation;

pub(in crate::cluster) fn check(world: &World) -> Result<(), Violation> {
    for number in groups(world) {
        let lives = world.machines.iter().filter_map(|machine| machine.life.as_ref());
        let groups = lives.filter_map(|life| life.groups.get(number));
        let votes = groups.map(|group| group.status()).filter(|status| !status.voters.is_empty());
        let leaders: BTreeSet<_> = votes.map(|status| status.leader).collect();
        if leaders.len() != 1 || leaders.contains(&None) {
            return Err(Violation(format!("the nodes follow {leaders:?} in group {number}")));
        }
    }
    Ok(())
}
