//! What a crash left in the log and recovery did not take: told apart, and destroyed before anything new is written.
//!
//! A batch that was being written when the power failed may be whole while one before it is missing. Recovery does not
//! take it; but it stays on the device, and so may a footer written with it. Sequence numbers go on from where the log
//! ended, so a later rebuild, which knows no order of openings, would believe such leftovers. They are overwritten.
//!
//! Invariant: only what no acknowledgement covers is destroyed, and it is gone durably before the next batch is written.

use std::cmp::Reverse;

use super::Lsn;
use super::format::record::DeviceId;
use super::format::superblock::Layout;
use super::upkeep::{flush_now, write_now};
use super::window::{At, Window};
use crate::io::{BLOCK, Disk};

/// A batch in a segment that has no footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) segment: u32,
    /// Bytes from the start of the segment.
    pub(crate) offset: u64,
    pub(crate) first: Lsn,
    /// LSN after its last record.
    pub(crate) end: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) epoch: u64,
    pub(crate) hash: u64,
    pub(crate) prev_hash: u64,
    pub(crate) whole: bool,
}

/// Which of these batches are not part of the log (indices): those that no batch claims as durable, unless they follow
/// on what is, one chained to the other without a gap.
#[must_use]
pub(crate) fn unpromised(tails: &[Tail]) -> Vec<usize> {
    let durable = promised(tails);
    let mut open: Vec<usize> = (0..tails.len()).filter(|i| tails[*i].end > durable + 1).collect();
    open.sort_by_key(|i| (tails[*i].first, Reverse(tails[*i].epoch), !tails[*i].whole));
    let mut reach = durable;
    let mut chain = tails.iter().filter(|t| t.end == durable + 1).max_by_key(|t| t.epoch).map(|t| t.hash);
    open.retain(|i| {
        let t = &tails[*i];
        // One that was composed when all before it was durable needs no chain: after a rebuild it has none.
        let chained = t.durable == reach || chain.is_none_or(|hash| hash == t.prev_hash);
        let follows = t.whole && t.first == reach + 1 && chained;
        if follows {
            (reach, chain) = (t.end - 1, Some(t.hash));
        }
        !follows
    });
    open
}

/// Up to here everything was durable, as the batches say.
#[must_use]
pub(crate) fn promised(tails: &[Tail]) -> Lsn {
    tails.iter().map(|t| t.durable).max().unwrap_or(0)
}

/// Destroys every batch of the use `seq` of a segment from `from` on, and its footer. True: something was there.
pub(crate) fn fence_tail(
    disk: &mut dyn Disk,
    layout: Layout,
    device: DeviceId,
    (segment, seq): (u32, u64),
    from: u64,
) -> std::io::Result<bool> {
    let mut stale = Vec::new();
    let mut window = Window::new(disk, layout, device, segment);
    for offset in (from..layout.segment_size).step_by(BLOCK) {
        if !matches!(window.at(offset, seq)?, At::Nothing) {
            stale.push(offset);
        }
    }
    if window.trailer(seq)?.is_some() {
        stale.push(layout.segment_size - BLOCK as u64);
    }
    for offset in &stale {
        erase(disk, layout, segment, *offset)?;
    }
    Ok(!stale.is_empty())
}

/// Overwrites one block of a segment with zeros.
pub(crate) fn erase(disk: &mut dyn Disk, layout: Layout, segment: u32, offset: u64) -> std::io::Result<()> {
    write_now(disk, layout.segment_start(segment) + offset, &[0; BLOCK])
}

/// Makes what was erased durable.
pub(crate) fn settle(disk: &mut dyn Disk) -> std::io::Result<()> {
    flush_now(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(first: Lsn, durable: Lsn, epoch: u64, hash: u64, prev_hash: u64, whole: bool) -> Tail {
        Tail { segment: 0, offset: 4096, first, end: first + 2, durable, epoch, hash, prev_hash, whole }
    }

    #[test]
    fn what_nobody_promised_and_does_not_follow_is_no_part_of_the_log() {
        let (a, b) = (tail(1, 0, 1, 10, 0, true), tail(3, 2, 1, 11, 10, true));
        for (tails, dropped) in [
            (vec![], vec![]),
            (vec![a, b], vec![]),
            // In flight after what is durable: whole and chained, so it counts; torn, so it does not.
            (vec![a, b, tail(5, 2, 1, 12, 11, true)], vec![]),
            (vec![a, b, tail(5, 2, 1, 12, 11, false)], vec![2]),
            // Its predecessor is missing, or another one.
            (vec![a, b, tail(7, 2, 1, 13, 12, true)], vec![2]),
            (vec![a, b, tail(5, 2, 1, 12, 99, true)], vec![2]),
            // After a rebuild the chain begins anew.
            (vec![a, b, tail(5, 4, 2, 12, 0, true), tail(7, 6, 2, 13, 12, true)], vec![]),
            // Of two that begin alike the later opening's counts.
            (vec![a, b, tail(5, 4, 1, 12, 11, true), tail(5, 4, 2, 20, 11, true)], vec![2]),
            // Damaged, but a later batch says it was durable: rot, kept for what is sound in it.
            (vec![a, tail(3, 2, 1, 11, 10, false), tail(5, 4, 1, 12, 11, true)], vec![]),
        ] {
            assert_eq!(unpromised(&tails), dropped, "{tails:?}");
        }
    }
}
