//! What single moves cannot do: a device above its quota feeds one in balance, that one the next, the last a needy one.
//!
//! One look at all partitions makes many such paths. A device that could pass something on is "reached", with the replica
//! that it would pass on; the needy are reached from the start.
//!
//! Invariant: a path is walked whole or not at all, and each of its moves is one that `balance` might make.
//! Invariant: the searches of one rebalance are bounded.

use super::phases::scattered;
use super::tree::{DomainId, LEAF, TIERS};
use super::work::{NONE, Pool, Wish, Work};

/// Most searches for a place; some tenths of a second.
const MOST_SEARCHES: u32 = 1 << 21;
/// Most looks at all partitions.
const MOST_ROUNDS: u32 = 12;
/// Most moves in a row.
const LONGEST_PATH: u8 = 5;

/// The replica that a device would pass on, and to which leaf.
#[derive(Debug, Clone, Copy)]
struct Step {
    partition: u32,
    row: u8,
    to: DomainId,
    /// Moves until a needy device has one more.
    length: u8,
}

/// A move that was made, and what undoes it.
struct Made {
    partition: usize,
    row: usize,
    from: DomainId,
    mask: u32,
}

impl Work<'_> {
    /// Walk paths until nobody is needy, or none is left.
    pub(crate) fn mend(&mut self, version: u64) {
        let mut searches = MOST_SEARCHES;
        for _ in 0..MOST_ROUNDS {
            let before = self.need[0];
            if before == 0 || searches == 0 {
                return;
            }
            self.mend_round(version, &mut searches);
            if self.need[0] == before {
                return;
            }
        }
    }

    fn mend_round(&mut self, version: u64, searches: &mut u32) {
        let mut steps: Vec<Option<Step>> = vec![None; self.tree.paths.len()];
        self.open_reached();
        for partition in scattered(self.movable.len(), version) {
            if self.movable[partition] == 0 {
                continue;
            }
            for row in 0..self.rows.len() {
                if self.need[0] == 0 || *searches == 0 {
                    return;
                }
                let Some(device) = self.device(partition, row).filter(|&device| device != NONE) else {
                    continue;
                };
                let surplus = self.has_surplus(device);
                if !self.may_move(partition, row) || !surplus && self.is_reached(device) {
                    continue;
                }
                *searches -= 1;
                let places = self.places(partition, row);
                let wish =
                    Wish { others: places.as_slice(), home: Some(device), pool: Pool::Needy, heeded: TIERS };
                let direct = self.place_for(device, &wish);
                let to = direct.or_else(|| self.place_for(device, &Wish { pool: Pool::Reached, ..wish }));
                let Some(to) = to else { continue };
                let further = steps[usize::from(self.tree.position(to))].map_or(0, |step| step.length);
                let (partition, row) = (small(partition), u8::try_from(row).expect("at most 32 rows"));
                let step = Step { partition, row, to, length: further + 1 };
                if surplus {
                    self.walk(step, &mut steps);
                } else if step.length < LONGEST_PATH {
                    steps[usize::from(device)] = Some(step);
                    self.reach(device, true);
                }
            }
        }
    }

    /// Move a replica, and pass on until a needy device has one more; or nothing at all.
    fn walk(&mut self, first: Step, steps: &mut [Option<Step>]) {
        let mut made = Vec::new();
        let mut step = first;
        let arrived = loop {
            let (partition, row) = (step.partition as usize, usize::from(step.row));
            if made.len() == usize::from(LONGEST_PATH) || !self.fits(partition, row, step.to) {
                break false;
            }
            let next = self.tree.position(step.to);
            let needy = self.need[step.to as usize] > 0;
            let from = self.tree.leaf(usize::from(self.rows[row][partition]));
            made.push(Made { partition, row, from, mask: self.movable[partition] });
            self.relocate(partition, row, step.to);
            if self.need[step.to as usize] == 0 {
                // It is needy no more, or passes on what it can pass on once.
                self.reach(next, false);
            }
            if needy {
                break true;
            }
            let Some(following) = steps[usize::from(next)].take() else { break false };
            step = following;
            if self.rows[usize::from(step.row)][step.partition as usize] != next {
                break false;
            }
        };
        if !arrived {
            for Made { partition, row, from, mask } in made.into_iter().rev() {
                self.put(partition, row, from);
                self.movable[partition] = mask;
            }
        }
    }

    /// Whether a replica may move to a leaf: as in the search for a place.
    fn fits(&self, partition: usize, row: usize, leaf: DomainId) -> bool {
        if !self.may_move(partition, row) {
            return false;
        }
        let (places, home) = (self.places(partition, row), self.rows[row][partition]);
        let others = places.as_slice();
        let (from, to) =
            (self.tree.paths[usize::from(home)], self.tree.paths[usize::from(self.tree.position(leaf))]);
        let crosses = |tier: usize| {
            from[tier] == to[tier]
                || self.held(others, tier, from[tier]) >= self.least(from[tier])
                    && self.held(others, tier, to[tier]) < self.most(to[tier]).max(u8::from(tier == LEAF))
        };
        from[LEAF] != to[LEAF] && (0..=LEAF).all(crosses)
    }
}

fn small(partition: usize) -> u32 {
    u32::try_from(partition).expect("at most 2^24 partitions")
}
