//! In every group and at every voter the totals of a container are those of its lines.

use quarry_engine::object::TotalsOf;

use super::World;
use super::listings::{container, lines};
use super::rows::{all, groups, rows};
use crate::cluster::profile::ALL;
use crate::store::oracle::Violation;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    let all = all(world)?;
    for number in groups(world) {
        for (n, rows) in rows(world, number)? {
            let group = world.machines[n].life.as_ref().and_then(|life| life.groups.get(number));
            let Some(group) = group else { continue };
            let lines = lines(&all, &rows)?;
            for c in 0..ALL {
                let Some(id) = container(&all, c)? else { continue };
                let totals = group.totals(TotalsOf::Container(id));
                let totals =
                    totals.map_err(|e| Violation(format!("totals of {c} in group {number} at {n}: {e}")))?;
                let own = lines.iter().filter(|line| line.c == c);
                let counted = own.fold((0, 0), |(count, bytes), line| (count + 1, bytes + line.size));
                if (totals.objects, totals.bytes) != counted {
                    return Err(Violation(format!(
                        "totals of {c} in group {number} at {n} are {totals:?}, its lines are {counted:?}"
                    )));
                }
            }
        }
    }
    Ok(())
}
