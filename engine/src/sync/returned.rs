//! When a device was last back from having been away: until it has been back for a while, it keeps tombstones that are old enough to go.
//!
//! A handoff that missed a DELETE hears of it when it compares what it holds with the primaries, and no primary waits for a handoff.
//! Where all were off together for as long as tombstones are kept, no handoff had the time to.
//!
//! Invariant: a device that was away has its return in its index before it is believed, so before any peer is in sync with it.

use crate::catalog;
use crate::disk::DiskHandle;
use crate::disk::catalog::Tx;
use crate::index::{IndexError, Table};
use crate::object::Result;

/// The share of the reclaim age for which tombstones are kept by a device that is back: six hours of a week.
const REST: u64 = 28;

fn row() -> Vec<u8> {
    catalog::worker_place("returned")
}

/// Notes that all that the device holds was judged, at this time. Microseconds.
pub(crate) async fn note_return(disk: &DiskHandle, now: u64) -> Result<()> {
    let change = move |tx: &mut Tx<'_>| {
        tx.put(Table::System, row(), now.to_le_bytes().to_vec());
        Ok(())
    };
    Ok(disk.submit_prune(Box::new(change)).await?)
}

/// Whether handoffs have had the time to compare since the device was last away. Microseconds.
pub(crate) fn is_rested(disk: &DiskHandle, now: u64, reclaim_age: u64) -> Result<bool, IndexError> {
    let row = disk.index().get(Table::System, &row())?;
    let returned = row.and_then(|time| time.try_into().ok()).map_or(0, u64::from_le_bytes);
    // One that was noted by a clock that was far ahead, and was set right since, counts as none: else nothing would go until then.
    Ok(now.abs_diff(returned) >= reclaim_age / REST)
}
