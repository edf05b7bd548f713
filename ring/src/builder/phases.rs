//! The steps of a rebalance, in the order of what matters: every replica has a place; dispersion; weight.
//!
//! Invariant: a step that improves one thing does not worsen what comes before it: a move for weight leaves every domain
//! between the least and the most replicas of the partition that it may hold.
//! Invariant: a move for weight goes from a device above its quota to one below, so no move is in vain; only what is
//! left at the end is tried by two moves in a row.

use super::work::{ALL_ROWS, MOST_ROWS, NONE, Pool, Wish, Work};
use crate::table::scatter;

/// Pairs of moves that are tried for what single moves cannot mend.
const CHAIN_ATTEMPTS: u32 = 4096;
/// Partitions that are looked at for the second move of a pair.
const CHAIN_REACH: usize = 48;

/// Every partition once, in an order of the version's own, so that moves spread over all partitions.
fn scattered(partitions: usize, version: u64) -> impl Iterator<Item = usize> {
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
        let needy = Wish { others: places.as_slice(), home: None, pool: Pool::Needy, dispersed: true };
        let mut found = self.place_for_new(&needy);
        for dispersed in [true, false] {
            if found.is_none() {
                self.open_any();
                found = self.place_for_new(&Wish { pool: Pool::Any, dispersed, ..needy });
            }
        }
        let leaf = found.expect("there are as many devices with weight as rows");
        self.put(partition, row, leaf);
    }

    /// Where a domain holds more of a partition than it shall, one goes elsewhere.
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
        let Some((tier, domain)) = self.crowded(all.as_slice()) else { return false };
        let mut leaving = self.candidates(partition, |device, work| work.tree.paths[usize::from(device)][tier] == domain);
        for pool in [Pool::Needy, Pool::Any] {
            if pool == Pool::Any {
                self.open_any();
            }
            for &mut (_, row) in leaving.as_mut_slice() {
                let places = self.places(partition, row);
                let home = self.rows[row][partition];
                // Without a home: it has to leave the crowded domain.
                let wish = Wish { others: places.as_slice(), home: None, pool, dispersed: true };
                if let Some(leaf) = self.place_for(home, &wish) {
                    self.relocate(partition, row, leaf);
                    return true;
                }
            }
        }
        false
    }

    /// The highest domain that holds more of a partition than it shall.
    fn crowded(&self, devices: &[u16]) -> Option<(usize, u32)> {
        for tier in 0..super::tree::LEAF {
            for (number, &device) in devices.iter().enumerate() {
                let domain = self.tree.paths[usize::from(device)][tier];
                let most = self.most(domain).max(1);
                if devices.len() - number > usize::from(most) && self.held(&devices[number..], tier, domain) > most {
                    return Some((tier, domain));
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
    fn balance_one(&mut self, partition: usize) -> bool {
        let mut candidates = self.candidates(partition, |device, work| work.has_surplus(device));
        candidates.as_mut_slice().iter().any(|&(_, row)| self.feed(partition, row))
    }

    /// Move a replica to a device below its quota, if one may take it.
    fn feed(&mut self, partition: usize, row: usize) -> bool {
        let places = self.places(partition, row);
        let home = self.rows[row][partition];
        let wish = Wish { others: places.as_slice(), home: Some(home), pool: Pool::Needy, dispersed: true };
        let Some(leaf) = self.place_for(home, &wish) else { return false };
        self.relocate(partition, row, leaf);
        true
    }

    /// What is left: a device in balance feeds the needy one, and is fed by one above its quota. First only devices in
    /// domains above their quota: what is lacking elsewhere has to come out of those.
    fn chain(&mut self, version: u64) {
        if self.need[0] == 0 {
            return;
        }
        let mut givers = self.givers();
        for (attempts, full_domains) in [(CHAIN_ATTEMPTS, true), (CHAIN_ATTEMPTS / 8, false)] {
            let mut attempts = attempts;
            for partition in scattered(self.movable.len(), version) {
                if self.need[0] == 0 || givers.list.is_empty() || attempts == 0 {
                    break;
                }
                if self.movable[partition] != 0 && !self.balance_one(partition) {
                    self.chain_one(partition, full_domains, &mut givers, &mut attempts);
                }
            }
        }
    }

    fn chain_one(&mut self, partition: usize, full_domains: bool, givers: &mut Givers, attempts: &mut u32) {
        for row in 0..self.rows.len() {
            let Some(between) = self.device(partition, row).filter(|_| self.may_move(partition, row)) else { continue };
            if self.has_surplus(between) || full_domains && !self.in_full_domain(between) {
                continue;
            }
            let mask = self.movable[partition];
            if !self.feed(partition, row) {
                continue;
            }
            *attempts = attempts.saturating_sub(1);
            if self.give(givers) {
                return;
            }
            self.put(partition, row, self.tree.leaf(usize::from(between)));
            self.movable[partition] = mask;
        }
    }

    /// Replicas that may move on devices above their quota.
    fn givers(&self) -> Givers {
        let mut list = Vec::new();
        for partition in (0..self.movable.len()).filter(|&partition| self.movable[partition] != 0) {
            for row in 0..self.rows.len() {
                let device = self.device(partition, row).filter(|&device| self.has_surplus(device));
                if device.is_some() && self.may_move(partition, row) {
                    let partition = u32::try_from(partition).expect("at most 2^24");
                    list.push((partition, u8::try_from(row).expect("at most 32 rows")));
                }
            }
        }
        Givers { list, next: 0 }
    }

    /// One of the next givers feeds somebody; those that have nothing to give any more are dropped.
    fn give(&mut self, givers: &mut Givers) -> bool {
        let mut looked = 0;
        while looked < CHAIN_REACH.min(givers.list.len()) {
            givers.next %= givers.list.len();
            let (partition, row) = givers.list[givers.next];
            let (partition, row) = (partition as usize, usize::from(row));
            let gives = self.device(partition, row).is_some_and(|device| self.has_surplus(device));
            if !gives || !self.may_move(partition, row) {
                givers.list.swap_remove(givers.next);
                continue;
            }
            if self.feed(partition, row) {
                givers.list.swap_remove(givers.next);
                return true;
            }
            givers.next += 1;
            looked += 1;
        }
        false
    }
}

/// Replicas that could feed others, and which is asked next.
struct Givers {
    list: Vec<(u32, u8)>,
    next: usize,
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
