//! At every voter the totals of a container are those of its lines.

use quarry_engine::object::TotalsOf;

use super::World;
use super::listings::{container, lines};
use super::rows::rows;
use crate::cluster::assembly::NAMES;
use crate::cluster::profile::CONTAINERS;
use crate::store::oracle::Violation;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    for (n, rows) in rows(world)? {
        let group = world.machines[n].life.as_ref().and_then(|life| life.groups.get(NAMES));
        let Some(group) = group else { continue };
        let lines = lines(&rows)?;
        for c in 0..CONTAINERS {
            let Some(id) = container(&rows, c)? else { continue };
            let totals = group.totals(TotalsOf::Container(id));
            let totals = totals.map_err(|e| Violation(format!("totals of {c} at {n}: {e}")))?;
            let own = lines.iter().filter(|line| line.c == c);
            let counted = own.fold((0, 0), |(count, bytes), line| (count + 1, bytes + line.size));
            if (totals.objects, totals.bytes) != counted {
                return Err(Violation(format!(
                    "totals of {c} at {n} are {totals:?}, its lines are {counted:?}"
                )));
            }
        }
    }
    Ok(())
}
