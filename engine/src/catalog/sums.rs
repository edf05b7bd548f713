//! Sums of what a device holds: a tally for each prefix of the path hash, to compare devices by.
//!
//! A version (live or tombstone) adds a hash of (path hash, sequence, deleted) to the tally of its path hash's first
//! [`TALLY_BITS`] bits, modulo 2^128; each storage policy has tallies of its own. So a partition of any ring with at most 2^20 partitions is a range of tallies, and
//! devices with equal sums hold equal versions.
//!
//! Invariant: a tally is the sum over exactly the versions that the index has; the mark of an eviction is none.
//! Invariant: what moves, or comes twice, changes no sum.

use super::keys::{POLICIES, PathHash, policy_of};
use super::newest::Slot;
use super::query;
use crate::disk::catalog::Tx;
use crate::disk::{Shift, TALLIES, TALLY_BITS};
use crate::index::{Index, IndexError};

/// Sets these hashes apart from every other use of BLAKE3.
const DOMAIN: &[u8] = b"quarry sum v1\0";
/// Entries read at once.
const PAGE: usize = 4096;

/// What a version adds to its tally.
#[must_use]
pub fn weight(hash: &PathHash, sequence: u64, deleted: bool) -> u128 {
    let mut input = [0; DOMAIN.len() + 16 + 8 + 1];
    input[..14].copy_from_slice(DOMAIN);
    input[14..30].copy_from_slice(hash);
    input[30..38].copy_from_slice(&sequence.to_le_bytes());
    input[38] = u8::from(deleted);
    let mut sum = [0; 16];
    blake3::Hasher::new().update(&input).finalize_xof().fill(&mut sum);
    u128::from_le_bytes(sum)
}

/// The tally of a key: those of a policy lie side by side.
#[must_use]
pub fn tally(hash: &PathHash) -> u32 {
    u32::from(policy_of(hash)) << TALLY_BITS | quarry_ring::partition_of(hash, TALLY_BITS)
}

/// One version in the place of another; either may be none.
pub(super) fn replace(tx: &mut Tx<'_>, hash: &[u8], before: Option<(u64, bool)>, after: Option<(u64, bool)>) {
    // Keys of another length were refused when they came.
    let Ok(hash) = <&PathHash>::try_from(hash) else { return };
    if before == after {
        return;
    }
    let weigh = |version: Option<(u64, bool)>| {
        version.map_or(0, |(sequence, deleted)| weight(hash, sequence, deleted))
    };
    tx.shift(tally(hash), weigh(after).wrapping_sub(weigh(before)));
}

/// What a slot says that the device keeps.
pub(super) fn kept(slot: &Option<Slot>) -> Option<(u64, bool)> {
    slot.as_ref().and_then(Slot::version)
}

/// All sums, from the entries of an index.
pub(crate) fn count(index: &dyn Index, add: &mut dyn FnMut(Shift)) -> Result<(), IndexError> {
    let mut after = None;
    loop {
        let page = query::stamps(index, None, [0; 16]..=[0xff; 16], after, PAGE)?;
        for stamp in &page.stamps {
            add((tally(&stamp.hash), weight(&stamp.hash, stamp.sequence, stamp.deleted)));
        }
        match page.upto {
            Some(upto) if page.more => after = Some(upto),
            _ => return Ok(()),
        }
    }
}

const _: () = assert!(DOMAIN.len() == 14);
const _: () = assert!((POLICIES as u32) << TALLY_BITS < TALLIES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_never_changes() {
        assert_eq!(weight(&[7; 16], 300, false), GOLDEN[0]);
        assert_eq!(weight(&[7; 16], 300, true), GOLDEN[1]);
        assert_ne!(weight(&[7; 16], 301, true), GOLDEN[1]);
    }

    const GOLDEN: [u128; 2] = [
        61_764_174_071_727_292_663_834_332_768_205_558_622,
        247_496_040_663_329_468_796_635_943_235_244_876_814,
    ];

    #[test]
    fn a_partition_is_a_range_of_tallies() {
        let hash = [0xa5, 0xc3, 0x7e, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
        for power in 0..=TALLY_BITS {
            let partition = quarry_ring::partition_of(&hash, power);
            assert_eq!(tally(&hash) >> (TALLY_BITS - power), partition);
        }
    }
}
