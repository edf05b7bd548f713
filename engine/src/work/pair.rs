//! A device and one of its peers: what is compared, and what the peer has newer. Several pairs move on together.
//!
//! Invariant: a pair is in sync when a whole comparison found nothing that counts; nothing is assumed from copies made.
//! Invariant: two pairs never carry one object at the same time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use quarry_ring::PathHash;

use super::carry::{Carrier, Done, MOST, Ring, Way};
use crate::catalog::Stamp;
use crate::disk::format::record::DeviceId;
use crate::object::{Error, InFlight, Result};
use crate::sync::{self, Comparison, Difference};

/// Pairs that move on together.
pub(super) const PAIRS: usize = 4;
/// Turns in a row in which nothing could be had from a peer, after which it is left until the next round.
const PATIENCE: u32 = 3;

/// Which versions count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Only what is older.
    pub(super) upto: u64,
    /// Tombstones from before need not be copied.
    pub(super) reclaim_before: u64,
}

impl Bounds {
    /// Whether a difference must be gone before the two are in sync.
    fn counts(self, found: &Difference) -> bool {
        let alone = found.mine.is_none() || found.theirs.is_none();
        found.newer().is_some_and(|newer| {
            let reclaimable = alone && newer.deleted && newer.sequence < self.reclaim_before;
            newer.sequence <= self.upto && !reclaimable
        })
    }
}

/// A comparison with a peer, and what it found so far.
pub(super) struct Pair {
    peer: DeviceId,
    comparison: Comparison,
    pulls: VecDeque<Stamp>,
    /// Which end is pulled first: of two peers with the same versions each gives one half. It changes with every pass, so
    /// that versions which cannot be had do not stand before the others for ever.
    from_front: bool,
    clean: bool,
    failures: u32,
}

/// What came of one turn of several pairs.
#[derive(Default)]
pub(super) struct Turn {
    /// Those that are to go on, in their order.
    pub(super) pairs: Vec<Pair>,
    pub(super) done: Done,
    /// Peers that hold what the device holds.
    pub(super) synced: Vec<DeviceId>,
    pub(super) failed: Option<Error>,
}

enum Ended {
    Carried { at: usize, result: Result<Done> },
    Compared { pair: Box<Pair>, result: Result<bool> },
}

impl Pair {
    pub(super) fn new(peer: DeviceId, comparison: Comparison, from_front: bool) -> Self {
        Self { peer, comparison, pulls: VecDeque::new(), from_front, clean: true, failures: 0 }
    }

    /// The next versions to pull, but those that another pair pulls at this moment.
    fn choose(&mut self, most: usize, chosen: &mut HashSet<PathHash>) -> Vec<Stamp> {
        let mut out = Vec::with_capacity(most);
        let mut others = Vec::new();
        while out.len() < most
            && let Some(stamp) = if self.from_front { self.pulls.pop_front() } else { self.pulls.pop_back() }
        {
            if chosen.insert(stamp.hash) { out.push(stamp) } else { others.push(stamp) }
        }
        // Later: by then the other pair has it, or could not have it.
        for stamp in others {
            if self.from_front { self.pulls.push_back(stamp) } else { self.pulls.push_front(stamp) }
        }
        out
    }

    /// Asks both sides one more question; false when there is none left.
    async fn compare(&mut self, carrier: &Carrier, bounds: Bounds) -> Result<bool> {
        let Some(ask) = self.comparison.ask() else { return Ok(false) };
        let peer = self.peer;
        let mine = sync::answer(&carrier.disk, &ask)?;
        let theirs = carrier.reach(peer)?.ask(ask).await?;
        let bad = |e: sync::BadAnswer| Error::Unavailable { reason: format!("device {peer}: {e}") };
        let found = self.comparison.tell(&mine, &theirs).map_err(bad)?;
        for difference in found.into_iter().filter(|found| bounds.counts(found)) {
            self.clean = false;
            self.pulls.extend(difference.theirs.filter(|_| difference.theirs > difference.mine));
        }
        Ok(true)
    }
}

/// Moves all of these on: each pulls some of what it found, or asks one more question.
pub(super) async fn turn(carrier: &Arc<Carrier>, ring: Ring, bounds: Bounds, pairs: Vec<Pair>) -> Turn {
    let each = (MOST / pairs.len().max(1)).max(1);
    let (mut out, mut chosen, mut running) = (Turn::default(), HashSet::new(), InFlight::default());
    for mut pair in pairs {
        if pair.pulls.is_empty() {
            let carrier = carrier.clone();
            let compare = async move {
                let result = pair.compare(&carrier, bounds).await;
                Ended::Compared { pair: Box::new(pair), result }
            };
            running.push(Box::pin(compare)).await;
            continue;
        }
        let replica = match carrier.reach(pair.peer) {
            Ok(replica) => replica,
            Err(error) => {
                out.failed = Some(error);
                continue;
            }
        };
        let at = out.pairs.len();
        let batch = pair.choose(each, &mut chosen);
        pair.failures += u32::from(!batch.is_empty());
        for stamp in batch {
            let carry = carrier.carry(ring, Way::Pull(replica.clone()), stamp);
            running.push(Box::pin(async move { Ended::Carried { at, result: carry.await } })).await;
        }
        out.pairs.push(pair);
    }
    while let Some(ended) = running.next().await {
        out.take(ended);
    }
    out.pairs.retain(|pair| pair.failures <= PATIENCE);
    out
}

impl Turn {
    fn take(&mut self, ended: Ended) {
        match ended {
            Ended::Carried { at, result: Ok(done) } => {
                self.done.add(done);
                self.pairs[at].failures = 0;
            }
            Ended::Compared { pair, result: Ok(true) } => {
                self.done.units += 1;
                self.pairs.push(*pair);
            }
            Ended::Compared { pair, result: Ok(false) } => {
                self.done.units += 1;
                self.synced.extend(Some(pair.peer).filter(|_| pair.clean));
            }
            Ended::Carried { result: Err(error), .. } | Ended::Compared { result: Err(error), .. } => {
                self.failed = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Parts;

    fn stamp(n: u8) -> Stamp {
        Stamp { hash: [n; 16], sequence: 1, deleted: false }
    }

    fn pair(from_front: bool, found: &[u8]) -> Pair {
        let mut pair = Pair::new(DeviceId([1; 16]), Comparison::new(1, Parts::default()), from_front);
        pair.pulls.extend(found.iter().map(|n| stamp(*n)));
        pair
    }

    #[test]
    fn two_peers_with_the_same_versions_give_different_ones() {
        let all: Vec<u8> = (0..20).collect();
        let (mut one, mut other) = (pair(true, &all), pair(false, &all));
        let mut given = HashSet::new();
        for _ in 0..3 {
            let mut chosen = HashSet::new();
            let (first, second) = (one.choose(4, &mut chosen), other.choose(4, &mut chosen));
            assert_eq!(chosen.len(), first.len() + second.len(), "no object twice at a time");
            given.extend(chosen);
        }
        assert_eq!(given.len(), 20, "each gave one half, and they met in the middle");
    }

    #[test]
    fn what_another_pair_carries_comes_later() {
        let (mut one, mut chosen) = (pair(true, &[1, 2, 3]), HashSet::from([[1; 16]]));
        assert_eq!(one.choose(1, &mut chosen), [stamp(2)]);
        assert_eq!(one.choose(5, &mut HashSet::new()), [stamp(3), stamp(1)]);
    }
}
