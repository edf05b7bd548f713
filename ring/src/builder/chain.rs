//! What single moves cannot do, by two: a device in balance feeds a needy one, and is fed by one above its quota.
//!
//! Invariant: both moves are made or none, and each is one that `balance` might make.

use super::phases::scattered;
use super::work::Work;

/// Pairs of moves that are tried for what single moves cannot mend.
const CHAIN_ATTEMPTS: u32 = 4096;
/// Partitions that are looked at for the second move of a pair.
const CHAIN_REACH: usize = 48;

impl Work<'_> {
    /// What is left: a device in balance feeds the needy one, and is fed by one above its quota. First only devices in
    /// domains above their quota: what is lacking elsewhere has to come out of those.
    pub(crate) fn chain(&mut self, version: u64) {
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
            let Some(between) = self.device(partition, row).filter(|_| self.may_move(partition, row)) else {
                continue;
            };
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
