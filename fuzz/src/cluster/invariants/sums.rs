//! The sums that a drive keeps are those of what its index has.

use std::collections::BTreeMap;

use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::TALLIES;
use quarry_engine::disk::catalog::Catalog;

use super::World;
use crate::store::oracle::Violation;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    for disk in world.machines.iter().flat_map(|machine| machine.handles()) {
        let (mut kept, mut counted) = (BTreeMap::new(), BTreeMap::<u32, u128>::new());
        disk.tallies().visit(0..TALLIES, |tally, sum| {
            kept.insert(tally, sum);
        });
        let mut add = |(tally, by): (u32, u128)| {
            let sum = counted.entry(tally).or_default();
            *sum = sum.wrapping_add(by);
        };
        let count = ObjectCatalog.count(disk.index(), &mut add);
        count.map_err(|e| Violation(format!("count sums: {e}")))?;
        if kept != counted {
            return Err(Violation(format!("sums of {} are not those of what it has", disk.device())));
        }
    }
    Ok(())
}
