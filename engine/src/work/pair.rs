//! A device and one of its peers: what is compared, and what the peer has newer. Several pairs move on together.
//!
//! Invariant: a pair is in sync when a whole comparison found nothing that counts; nothing is assumed from copies made.
//! Invariant: two pairs never carry one object at the same time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quarry_ring::PathHash;

use super::carry::{Carrier, Done, MOST, Ring, Way};
use crate::catalog::Stamp;
use crate::disk::format::record::DeviceId;
use crate::object::{BoxFuture, Error, Replica, Result};
use crate::sync::{self, Comparison, Difference};

/// Pairs that move on together.
pub(super) const PAIRS: usize = 4;
/// Versions that a turn carries at most, and units after which it begins no further one: a turn is short enough that clients
/// hardly wait for it, and long enough that its end, where few are on their way, does not count.
const TURN: usize = 8 * MOST;
const TURN_UNITS: u32 = 512;
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

    /// Takes back a version that was chosen and not pulled; the last one chosen comes first.
    fn put_back(&mut self, stamp: Stamp) {
        if self.from_front { self.pulls.push_front(stamp) } else { self.pulls.push_back(stamp) }
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

/// A version that a pair pulls in this turn.
struct Job {
    at: usize,
    peer: Arc<dyn Replica>,
    stamp: Stamp,
}

/// Moves all of these on: each pulls some of what it found, or asks one more question.
pub(super) async fn turn(carrier: &Arc<Carrier>, ring: Ring, bounds: Bounds, pairs: Vec<Pair>) -> Turn {
    let each = (TURN / pairs.len().max(1)).max(1);
    let (mut out, mut chosen) = (Turn::default(), HashSet::new());
    let mut running = FuturesUnordered::<BoxFuture<'static, Ended>>::new();
    let mut jobs = Vec::new();
    for mut pair in pairs {
        if pair.pulls.is_empty() {
            let carrier = carrier.clone();
            running.push(Box::pin(async move {
                let result = pair.compare(&carrier, bounds).await;
                Ended::Compared { pair: Box::new(pair), result }
            }));
            continue;
        }
        let peer = match carrier.reach(pair.peer) {
            Ok(replica) => replica,
            Err(error) => {
                out.failed = Some(error);
                continue;
            }
        };
        let at = out.pairs.len();
        let batch = pair.choose(each, &mut chosen);
        pair.failures += u32::from(!batch.is_empty());
        jobs.push(batch.into_iter().map(|stamp| Job { at, peer: Arc::clone(&peer), stamp }).collect());
        out.pairs.push(pair);
    }
    let mut jobs = in_turns(jobs);
    loop {
        while running.len() < MOST
            && out.done.units < TURN_UNITS
            && let Some(Job { at, peer, stamp }) = jobs.pop_front()
        {
            let carry = carrier.carry(ring, Way::Pull(peer), stamp);
            running.push(Box::pin(async move { Ended::Carried { at, result: carry.await } }));
        }
        match running.next().await {
            Some(ended) => out.take(ended),
            None => break,
        }
    }
    for Job { at, stamp, .. } in jobs.into_iter().rev() {
        out.pairs[at].put_back(stamp);
    }
    out.pairs.retain(|pair| pair.failures <= PATIENCE);
    out
}

/// One of each, and again, so that all peers are asked from the beginning.
fn in_turns(batches: Vec<VecDeque<Job>>) -> VecDeque<Job> {
    let mut out = VecDeque::new();
    let mut batches: Vec<_> = batches.into_iter().map(VecDeque::into_iter).collect();
    loop {
        let before = out.len();
        out.extend(batches.iter_mut().filter_map(Iterator::next));
        if out.len() == before {
            return out;
        }
    }
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

    #[test]
    fn what_was_not_begun_is_chosen_again_in_the_same_order() {
        for from_front in [true, false] {
            let mut pair = pair(from_front, &[1, 2, 3, 4, 5]);
            let chosen = pair.choose(4, &mut HashSet::new());
            chosen[1..].iter().rev().for_each(|stamp| pair.put_back(*stamp));
            assert_eq!(pair.choose(3, &mut HashSet::new()), chosen[1..]);
        }
    }
}
