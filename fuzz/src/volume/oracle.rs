//! What must be: the order of writes as the head that serves has it, and what clients were told of it.
//!
//! Invariant: what was flushed, or shown to a reader, stays. What was only acknowledged may go with a member's unflushed tail.
//! Invariant: a read shows all that was acknowledged when it came, and nothing that is not in the order.

use std::collections::{BTreeMap, BTreeSet};

use quarry_volume::Position;
use quarry_volume::head::History;

use super::site::{Payload, Row, Site};
use crate::store::oracle::Violation;

/// Blocks of the volume.
pub(crate) const BLOCKS: u8 = 12;

/// The oracle.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// All that heads have given places, whatever became of it.
    placed: BTreeMap<Position, Payload>,
    /// Whose write has each sequence, from 1.
    order: Vec<u64>,
    pub(crate) acknowledged: u64,
    pub(crate) flushed: u64,
    serving: u64,
}

fn index(sequence: u64) -> usize {
    usize::try_from(sequence).expect("histories are short")
}

fn broken<T>(what: String) -> Result<T, Violation> {
    Err(Violation(what))
}

impl Oracle {
    pub(crate) fn placed(&mut self, at: Position, payload: Payload) {
        self.placed.insert(at, payload);
        if at.epoch == self.serving {
            assert_eq!(self.order.len() as u64 + 1, at.sequence, "a head gives places in order");
            self.order.push(at.epoch);
        }
    }

    /// The writers of a history.
    fn writers(&self, history: &History) -> Vec<u64> {
        let mut writers = self.order.clone();
        for turn in history.turns() {
            writers.resize(index(turn.base), 0);
            writers.resize(index(history.end()), turn.epoch);
        }
        writers.truncate(index(history.end()));
        writers
    }

    /// A head serves, on this base. `lost`: what members have lost of it; `forgiven`: an operator has decided.
    pub(crate) fn serves(
        &mut self,
        epoch: u64,
        base: &History,
        lost: &BTreeSet<Position>,
        forgiven: bool,
    ) -> Result<(), Violation> {
        if epoch <= self.serving {
            // It heard late of its quorum. What it acknowledges from here on is in no order.
            return Ok(());
        }
        let writers = self.writers(base);
        let common = self.order.iter().zip(&writers).take_while(|(old, new)| old == new).count() as u64;
        if common < self.flushed && !forgiven {
            return broken(format!("writes {}..={} were flushed and are gone", common + 1, self.flushed));
        }
        if common < self.acknowledged && !forgiven {
            let first = Position { epoch: self.order[index(common)], sequence: common + 1 };
            if !lost.contains(&first) {
                return broken(format!("{first:?} was acknowledged, nobody lost it, and it is gone"));
            }
        }
        self.order = writers;
        self.serving = epoch;
        (self.acknowledged, self.flushed) = (base.end(), base.end());
        Ok(())
    }

    fn is_in_order(&self, at: Position) -> bool {
        at.sequence == 0 || self.order.get(index(at.sequence) - 1) == Some(&at.epoch)
    }

    /// A client was told that its write is there.
    pub(crate) fn written(&mut self, at: Position, durable: bool) -> Result<(), Violation> {
        if !self.is_in_order(at) {
            return broken(format!("{at:?} is acknowledged, and in no order"));
        }
        self.acknowledged = self.acknowledged.max(at.sequence);
        if durable { self.durable(at) } else { Ok(()) }
    }

    /// A client was told that all up to there is durable.
    pub(crate) fn durable(&mut self, at: Position) -> Result<(), Violation> {
        if !self.is_in_order(at) {
            return broken(format!("{at:?} is flushed, and in no order"));
        }
        self.flushed = self.flushed.max(at.sequence);
        Ok(())
    }

    fn covers(payload: Option<&Payload>, block: u8) -> Option<u64> {
        match payload {
            Some(Payload::Write { first, blocks, value, .. }) => {
                (*first..first + blocks).contains(&block).then_some(*value)
            }
            _ => None,
        }
    }

    /// The newest write to a block up to a sequence of these writers.
    fn newest(&self, writers: &[u64], block: u8, until: u64) -> (u64, u64) {
        let known = writers.iter().zip(1_u64..).take_while(|(_, sequence)| *sequence <= until);
        let mut newest = (0, 0);
        for (epoch, sequence) in known {
            let payload = self.placed.get(&Position { epoch: *epoch, sequence });
            if let Some(value) = Self::covers(payload, block) {
                newest = (sequence, value);
            }
        }
        newest
    }

    /// A client was shown this; `mark`: what was acknowledged when it asked.
    pub(crate) fn read(&mut self, first: u8, rows: &[Row], mark: u64) -> Result<(), Violation> {
        for (block, row) in (first..).zip(rows) {
            let sequence = row.rank.sequence;
            let epoch = self.order.get(index(sequence).wrapping_sub(1)).copied().unwrap_or(0);
            let written = Self::covers(self.placed.get(&Position { epoch, sequence }), block);
            if sequence != 0 && written != Some(row.value) {
                return broken(format!("block {block} reads {row:?}, which is not in the order"));
            }
            let (least, _) = self.newest(&self.order, block, mark);
            if sequence < least {
                return broken(format!("block {block} reads {row:?}, but {least} was acknowledged before"));
            }
            // It must not vanish any more.
            self.acknowledged = self.acknowledged.max(sequence);
            self.flushed = self.flushed.max(sequence);
        }
        Ok(())
    }

    /// A member says that it holds this history and nothing else.
    pub(crate) fn check(&self, name: usize, site: &Site, history: &History) -> Result<(), Violation> {
        let writers = self.writers(history);
        let mut snapshots = BTreeMap::new();
        for (epoch, sequence) in writers.iter().zip(1_u64..) {
            let at = Position { epoch: *epoch, sequence };
            match self.placed.get(&at) {
                Some(Payload::Snapshot { era }) => {
                    snapshots.insert(*era, sequence);
                }
                Some(_) => {}
                None => return broken(format!("member {name} holds {at:?}, which nobody wrote")),
            }
        }
        let theirs: BTreeMap<u32, u64> = site.snapshots.iter().map(|(era, at)| (*era, at.sequence)).collect();
        if theirs != snapshots {
            return broken(format!("member {name} has snapshots {theirs:?} instead of {snapshots:?}"));
        }
        let views = snapshots.into_iter().chain([(u32::MAX, history.end())]);
        for (era, until) in views {
            for block in 0..BLOCKS {
                let (sequence, value) = self.newest(&writers, block, until);
                let row = site.see(block, era);
                if (row.rank.sequence, row.value) != (sequence, value) {
                    return broken(format!(
                        "member {name}, {history:?}: block {block} as of {until} is {row:?} instead of {value} of {sequence}"
                    ));
                }
            }
        }
        Ok(())
    }
}
