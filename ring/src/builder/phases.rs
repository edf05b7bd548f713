//! The steps of a rebalance, in the order of what matters: every replica has a place; dispersion; weight.
//!
//! Invariant: a step that improves one thing does not worsen what comes before it: a move for weight leaves every domain
//! between the least and the most replicas of the partition that it may hold.
//! Invariant: a move for weight goes from a device above its quota to one below, so no move is in vain; only what is
//! left at the end is tried by several moves in a row.

use super::tree::{DomainId, LEAF, TIERS};
use super::work::{ALL_ROWS, MOST_ROWS, NONE, Pool, Wish, Work};
use crate::table::scatter;

/// Every partition once, in an order of the version's own, so that moves spread over all partitions.
pub(crate) fn scattered(partitions: usize, version: u64) -> impl Iterator<Item = usize> {
    let low = u32::try_from(version & u64::from(u32::MAX)).expect("masked");
    let jumble = usize::try_from(scatter(0x0072_696e, low) >> 33).expect("31 bits");
    let (step, start) = (jumble | 1, jumble >> 7);
    let mask = partitions - 1;
    (0..partitions).map(move |number| number.wrapping_mul(step).wrapping_add(start) & mask)
}

impl Work<'_> {
    /// Everything, in order.
    pub(crate) fn run(&mut self, version: u64) {
        self.place_missing();
        self.disperse(version);
        self.balance(version);
        self.chain(version);
        self.mend(version);
    }

    /// Give every replica without a device one.
    fn place_missing(&mut self) {
        for partition in 0..self.movable.len() {
            for row in 0..self.rows.len() {
                if self.device(partition, row) == Some(NONE) {
                    self.place_one(partition, row);
                }
            }
        }
    }

    fn place_one(&mut self, partition: usize, row: usize) {
        let places = self.places(partition, row);
        let needy = Wish { others: places.as_slice(), home: None, pool: Pool::Needy, heeded: TIERS };
        let mut found = self.place_for_new(&needy);
        for heeded in (0..=TIERS).rev() {
            if found.is_none() {
                self.open_any();
                found = self.place_for_new(&Wish { pool: Pool::Any, heeded, ..needy });
            }
        }
        let leaf = found.expect("there are as many devices with weight as rows");
        self.put(partition, row, leaf);
    }

    /// Where a domain holds more of a partition than it shall, one goes elsewhere; where one holds less, a new
    /// replica comes.
    fn disperse(&mut self, version: u64) {
        for partition in scattered(self.movable.len(), version) {
            let mut moves = 0;
            while self.movable[partition] != 0 && moves < MOST_ROWS && self.disperse_one(partition) {
                moves += 1;
            }
        }
    }

    fn disperse_one(&mut self, partition: usize) -> bool {
        let all = self.places(partition, usize::MAX);
        if let Some((tier, domain)) = self.crowded(all.as_slice()) {
            let inside = |device: u16, work: &Self| work.tree.paths[usize::from(device)][tier] == domain;
            let mut leaving = self.candidates(partition, inside);
            // Without a home: it has to leave the crowded domain.
            let leaving = leaving.as_mut_slice();
            // If need be it crowds a lower tier.
            return [TIERS, tier + 1].into_iter().any(|heeded| {
                self.first_that_may(partition, leaving, |work, home, wish| {
                    work.place_outside(home, tier, &Wish { home: None, heeded, ..*wish })
                })
            });
        }
        // A domain with too few harms nobody who is spread: only what is on its way anyhow goes there.
        if self.movable[partition] != ALL_ROWS
            && let Some((tier, domain)) = self.lacking(all.as_slice())
        {
            let outside = |device: u16, work: &Self| work.tree.paths[usize::from(device)][tier] != domain;
            let mut coming = self.candidates(partition, outside);
            return self.first_that_may(partition, coming.as_mut_slice(), |work, home, wish| {
                work.place_within(home, (tier, domain), wish)
            });
        }
        false
    }

    /// Move the first of some rows for which `place` finds a place, among the needy if it can be.
    fn first_that_may(
        &mut self,
        partition: usize,
        rows: &mut [(u64, usize)],
        place: impl Fn(&mut Self, u16, &Wish<'_>) -> Option<DomainId>,
    ) -> bool {
        for pool in [Pool::Needy, Pool::Any] {
            if pool == Pool::Any {
                self.open_any();
            }
            for &mut (_, row) in &mut *rows {
                let places = self.places(partition, row);
                let home = self.rows[row][partition];
                let wish = Wish { others: places.as_slice(), home: Some(home), pool, heeded: TIERS };
                if let Some(leaf) = place(self, home, &wish) {
                    self.relocate(partition, row, leaf);
                    return true;
                }
            }
        }
        false
    }

    /// The highest domain that holds more of a partition than it shall.
    fn crowded(&self, devices: &[u16]) -> Option<(usize, DomainId)> {
        for tier in 0..LEAF {
            for (number, &device) in devices.iter().enumerate() {
                let domain = self.tree.paths[usize::from(device)][tier];
                let most = self.most(domain).max(1);
                if devices.len() - number > usize::from(most)
                    && self.held(&devices[number..], tier, domain) > most
                {
                    return Some((tier, domain));
                }
            }
        }
        None
    }

    /// The highest domain that holds less of a partition than it must.
    fn lacking(&self, devices: &[u16]) -> Option<(usize, DomainId)> {
        for tier in 0..=LEAF {
            for &device in devices {
                let above =
                    tier.checked_sub(1).map_or(0, |above| self.tree.paths[usize::from(device)][above]);
                let lacks = |&&child: &&DomainId| self.held(devices, tier, child) < self.least(child);
                if let Some(&child) = self.owed(above).iter().find(lacks) {
                    return Some((tier, child));
                }
                if tier == 0 {
                    break;
                }
            }
        }
        None
    }

    /// Rows of a partition that may move and are asked for, those furthest above their quota first.
    fn candidates(&self, partition: usize, asked: impl Fn(u16, &Self) -> bool) -> Candidates {
        let mut candidates = Candidates { rows: [(0, 0); MOST_ROWS], len: 0 };
        for row in 0..self.rows.len() {
            if self.may_move(partition, row)
                && let Some(device) = self.device(partition, row)
                && asked(device, self)
            {
                candidates.rows[candidates.len] = (self.surplus(device), row);
                candidates.len += 1;
            }
        }
        candidates.as_mut_slice().sort_unstable_by_key(|&(surplus, row)| (std::cmp::Reverse(surplus), row));
        candidates
    }

    /// From devices above their quota to those below.
    fn balance(&mut self, version: u64) {
        for partition in scattered(self.movable.len(), version) {
            if self.need[0] == 0 {
                return;
            }
            if self.movable[partition] != 0 {
                self.balance_one(partition);
            }
        }
    }

    /// Move one replica of a partition from a device above its quota to one below; false if none can.
    pub(crate) fn balance_one(&mut self, partition: usize) -> bool {
        let mut candidates = self.candidates(partition, |device, work| work.has_surplus(device));
        candidates.as_mut_slice().iter().any(|&(_, row)| self.feed(partition, row))
    }

    /// Move a replica to a device below its quota, if one may take it.
    pub(crate) fn feed(&mut self, partition: usize, row: usize) -> bool {
        let places = self.places(partition, row);
        let home = self.rows[row][partition];
        let wish = Wish { others: places.as_slice(), home: Some(home), pool: Pool::Needy, heeded: TIERS };
        let Some(leaf) = self.place_for(home, &wish) else { return false };
        self.relocate(partition, row, leaf);
        true
    }
}

/// Rows in the order in which they are tried, each with its device's surplus.
struct Candidates {
    rows: [(u64, usize); MOST_ROWS],
    len: usize,
}

impl Candidates {
    fn as_mut_slice(&mut self) -> &mut [(u64, usize)] {
        &mut self.rows[..self.len]
    }
}

const _: () = assert!(ALL_ROWS.count_ones() as usize == MOST_ROWS);
