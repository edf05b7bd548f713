//! A device that was away: pure. Its versions are offered, never believed, until each was compared.
//!
//! | the other primaries                     | its time is            | judgement |
//! |-----------------------------------------|------------------------|-----------|
//! | one has it, or a newer one              | any                    | keep      |
//! | one has an older one                    | any                    | believe   |
//! | none has any; one did not answer        | any                    | wait      |
//! | none has any                            | after the last sync    | believe   |
//! | none has any                            | before the last sync   | ask       |
//! | there are no others                     | any                    | believe   |
//!
//! Before the last sync it most likely was with others, so that it was deleted since, and the tombstone is gone. Most likely: the sync may have
//! been with primaries of other partitions, and what lies on a handoff was compared with nobody. So the listing is asked
//! ([`super::Listings`]), and only what it does not name goes.
//!
//! Where the listing's group does not answer there is no rule that is safe without it. To drop the version may lose the last copy of what
//! was acknowledged. To believe it may bring back what was deleted, also of what was written into a strict container, which its line
//! alone lets stand: the container may have been made eventual since, and while the group of such a one is away whatever its devices
//! have is shown. And that the group was silent all the time proves nothing: in an eventual container objects are deleted without it. So
//! all waits until the group answers; whoever knows that it never will has lost its lines with it, and gives the device up (its
//! versions that primaries lack are then lost, too) or the containers.
//!
//! Invariant: nothing is dropped that came after the last sync, or while anybody who might have it has not answered.
//! Invariant: a version that was acknowledged last, so that its listing names it, is never dropped.

use crate::catalog::Stamp;

/// What becomes of a version on a device that was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Others have it, or one that will replace it.
    Keep,
    /// It is news to the others.
    Believe,
    /// It goes unless its listing names it: then it was deleted while the device was away.
    Ask,
    /// Not to be told yet.
    Wait,
}

/// Whether a device was away for as long as tombstones are kept: it completed no sync with most of its peers for so long.
/// `synced` is when it last did, of the peers with which it ever did. Times in microseconds.
#[must_use]
pub fn is_away(now: u64, reclaim_age: u64, synced: &[u64]) -> bool {
    let old = synced.iter().filter(|last| now.saturating_sub(**last) >= reclaim_age).count();
    old * 2 > synced.len()
}

/// Judges a version. `last_sync` is when the device last completed a sync; of the other primaries, `None` did not answer.
#[must_use]
pub fn judge(own: Stamp, last_sync: u64, others: &[Option<Option<Stamp>>]) -> Judgement {
    let known = || others.iter().flatten().flatten();
    if known().any(|other| *other >= own) {
        return Judgement::Keep;
    }
    if known().next().is_some() || others.is_empty() {
        return Judgement::Believe;
    }
    if others.contains(&None) {
        return Judgement::Wait;
    }
    if own.sequence <= last_sync { Judgement::Ask } else { Judgement::Believe }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sequence: u64, deleted: bool) -> Stamp {
        Stamp { hash: [1; 16], sequence, deleted }
    }

    #[test]
    fn versions_are_judged_by_the_table() {
        use Judgement::{Ask, Believe, Keep, Wait};
        let (put, tombstone) = (|at| stamp(at, false), |at| stamp(at, true));
        let (silent, nothing, has) = (None, Some(None), |other| Some(Some(other)));
        for (own, others, wanted) in [
            (put(10), vec![has(put(10)), nothing], Keep),
            (put(10), vec![has(tombstone(10))], Keep),
            (put(10), vec![has(put(11)), silent], Keep),
            (put(10), vec![has(put(9)), nothing], Believe),
            (tombstone(10), vec![has(put(10))], Believe),
            (put(10), vec![nothing, silent], Wait),
            (put(30), vec![nothing, silent], Wait),
            (put(30), vec![nothing, nothing], Believe),
            (put(21), vec![nothing], Believe),
            (put(20), vec![nothing], Ask),
            (put(10), vec![nothing, nothing], Ask),
            (tombstone(10), vec![nothing, nothing], Ask),
            (put(10), vec![], Believe),
        ] {
            assert_eq!(judge(own, 20, &others), wanted, "{own:?} {others:?}");
        }
    }

    #[test]
    fn a_device_is_away_when_it_synced_with_most_of_its_peers_too_long_ago() {
        for (synced, wanted) in [
            (&[][..], false),
            (&[950], false),
            (&[900], true),
            (&[10, 950], false),
            (&[10, 20, 950], true),
            (&[10, 940, 950], false),
            (&[2000], false),
        ] {
            assert_eq!(is_away(1000, 100, synced), wanted, "{synced:?}");
        }
    }
}
