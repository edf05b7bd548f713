//! What must be, judged by what clients were told and shown alone. The order of writes is known as far as it shows: of two heads the
//! newer one's writes are the later ones, and of one head's what was answered, or shown, before another was asked for.
//!
//! Invariant: what was flushed or shown to a reader stays, and with it all that lies before it in the order. What was only
//! acknowledged goes only when another head comes and some machine went down, and then all that lies behind it goes as well.
//! Invariant: a read shows all that was acknowledged when it was asked for; what one reader was shown the next one is shown as well, or
//! something newer; what a newer head did not show does not appear.

mod frozen;

use std::ops::Range;

use self::frozen::Frozen;
use crate::store::oracle::Violation;

/// Blocks that are used.
pub(crate) const BLOCKS: u8 = 48;

/// What is known of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may be there, or not.
    Open,
    /// It is there, durably.
    Safe,
    /// It was gone when the head of this epoch began.
    Lost(u64),
}

/// A write, or trim, of blocks in one chunk.
#[derive(Debug, Clone)]
struct Write {
    blocks: Range<u8>,
    zeroes: bool,
    epoch: u64,
    began: u64,
    /// When its client was told, or somebody was shown it.
    known: Option<u64>,
    acknowledged: bool,
    fate: Fate,
}

/// A read that was answered.
#[derive(Debug, Clone, Copy)]
struct Read {
    epoch: u64,
    began: u64,
    ended: u64,
}

/// The oracle. Times are counts of what happened.
#[derive(Debug, Clone)]
pub(crate) struct Oracle {
    /// By their names; the first is what the volume was made with.
    writes: Vec<Write>,
    /// What readers were shown last of each block.
    shown: Vec<Option<(usize, Read)>>,
    /// By block: what was shown, and then something newer.
    over: Vec<Vec<usize>>,
    /// When machines went down.
    downs: Vec<u64>,
    /// Snapshots, by their names.
    frozen: Vec<Frozen>,
}

fn broken<T>(what: String) -> Result<T, Violation> {
    Err(Violation(what))
}

impl Oracle {
    pub(crate) fn new() -> Self {
        let nothing = Write {
            blocks: 0..BLOCKS,
            zeroes: true,
            epoch: 0,
            began: 0,
            known: Some(0),
            acknowledged: false,
            fate: Fate::Safe,
        };
        let each = usize::from(BLOCKS);
        Self {
            writes: vec![nothing],
            shown: vec![None; each],
            over: vec![Vec::new(); each],
            downs: Vec::new(),
            frozen: Vec::new(),
        }
    }

    /// A client asks for a write at the head of an epoch; its name.
    pub(crate) fn began(&mut self, blocks: Range<u8>, zeroes: bool, epoch: u64, now: u64) -> usize {
        let (known, fate) = (None, Fate::Open);
        self.writes.push(Write { blocks, zeroes, epoch, began: now, known, acknowledged: false, fate });
        self.writes.len() - 1
    }

    /// A machine went down.
    pub(crate) fn down(&mut self, now: u64) {
        self.downs.push(now);
    }

    /// Does it lie before the other in every order that is possible?
    fn before(&self, first: usize, second: usize) -> bool {
        let (a, b) = (&self.writes[first], &self.writes[second]);
        let told = a.known.is_some_and(|known| known < b.began);
        first == 0 || a.epoch < b.epoch || (a.epoch == b.epoch && told)
    }

    /// A client was told that its write is there.
    pub(crate) fn acknowledged(&mut self, name: usize, durable: bool, now: u64) -> Result<(), Violation> {
        if let Fate::Lost(epoch) = self.writes[name].fate {
            return broken(format!("write {name} is acknowledged, and was gone at epoch {epoch}"));
        }
        let write = &mut self.writes[name];
        write.acknowledged = true;
        write.known.get_or_insert(now);
        if durable { self.safe(name) } else { Ok(()) }
    }

    /// It is durable, and so is all before it.
    fn safe(&mut self, name: usize) -> Result<(), Violation> {
        if let Fate::Lost(epoch) = self.writes[name].fate {
            return broken(format!("write {name} is there, and was gone at epoch {epoch}"));
        }
        self.writes[name].fate = Fate::Safe;
        let epoch = self.writes[name].epoch;
        for other in 1..self.writes.len() {
            let same = self.writes[other].epoch == epoch;
            if same && self.writes[other].fate == Fate::Open && self.before(other, name) {
                self.writes[other].fate = Fate::Safe;
            }
        }
        Ok(())
    }

    /// It was not there when the head of `epoch` began, and neither is what lies behind it.
    fn lost(&mut self, name: usize, epoch: u64) -> Result<(), Violation> {
        let own = self.writes[name].epoch;
        for other in 1..self.writes.len() {
            let write = &self.writes[other];
            let behind = other == name || (write.epoch == own && self.before(name, other));
            if !behind || matches!(write.fate, Fate::Lost(_)) {
                continue;
            }
            if write.fate == Fate::Safe {
                return broken(format!("write {other} was flushed or shown, and is gone at epoch {epoch}"));
            }
            if write.acknowledged && !self.downs.iter().any(|down| *down >= write.began) {
                return broken(format!("write {other} was acknowledged, nobody lost it, and it is gone"));
            }
            self.writes[other].fate = Fate::Lost(epoch);
        }
        Ok(())
    }

    /// A client was told that all that was acknowledged when it asked is durable.
    pub(crate) fn flushed(&mut self, epoch: u64, began: u64) -> Result<(), Violation> {
        for name in 1..self.writes.len() {
            let write = &self.writes[name];
            let told = write.acknowledged && write.known.is_some_and(|known| known < began);
            if write.epoch == epoch && told {
                self.safe(name)?;
            }
        }
        Ok(())
    }

    /// A client was shown these, block by block; `None`: zeroes.
    pub(crate) fn read(
        &mut self,
        first: u8,
        names: &[Option<u64>],
        epoch: u64,
        began: u64,
        ended: u64,
    ) -> Result<(), Violation> {
        let read = Read { epoch, began, ended };
        for (block, name) in (first..).zip(names) {
            let judged = self.judged(block, *name, read);
            let possible: Vec<usize> =
                judged.iter().filter(|(_, why)| why.is_ok()).map(|(n, _)| *n).collect();
            match possible[..] {
                [] => {
                    let why = judged.into_iter().rev().find_map(|(_, why)| why.err()).unwrap_or_default();
                    return broken(format!("block {block} reads {name:?} at epoch {epoch}: {why}"));
                }
                [one] => self.enter(block, one, read)?,
                // Which of several trims it is does not show.
                _ => {}
            }
        }
        Ok(())
    }

    /// The writes that a block may be of that shows this, each with whether a read may show it.
    fn judged(&self, block: u8, name: Option<u64>, read: Read) -> Vec<(usize, Result<(), String>)> {
        let candidates: Vec<usize> = match name {
            Some(name) => vec![usize::try_from(name).unwrap_or(usize::MAX)],
            None => {
                let zeroes = |n: &usize| self.writes[*n].zeroes && self.writes[*n].blocks.contains(&block);
                (0..self.writes.len()).filter(zeroes).collect()
            }
        };
        candidates.into_iter().map(|name| (name, self.judge(block, name, read))).collect()
    }

    /// May a read show this?
    fn judge(&self, block: u8, name: usize, read: Read) -> Result<(), String> {
        let Some(write) = self.writes.get(name).filter(|write| write.blocks.contains(&block)) else {
            return Err("nobody wrote that there".to_owned());
        };
        if write.epoch > read.epoch || write.began > read.ended {
            return Err("that was not written yet".to_owned());
        }
        if let Fate::Lost(epoch) = write.fate {
            return Err(format!("that was gone at epoch {epoch}"));
        }
        if let Some((last, shown)) =
            self.shown[usize::from(block)].filter(|(_, shown)| shown.ended < read.began)
        {
            if last != name && write.epoch < shown.epoch {
                return Err(format!("the head of epoch {} showed {last} instead", shown.epoch));
            }
            if self.over[usize::from(block)].contains(&name) {
                return Err(format!("{last} was shown after it"));
            }
        }
        for newer in 1..self.writes.len() {
            let other = &self.writes[newer];
            if newer == name || !other.blocks.contains(&block) || !self.before(name, newer) {
                continue;
            }
            let told = other.known.is_some_and(|known| known < read.began);
            let gone = matches!(other.fate, Fate::Lost(_));
            if other.epoch >= read.epoch && told && !gone {
                return Err(format!("{newer} was acknowledged or shown before"));
            }
            if other.epoch < read.epoch && other.fate == Fate::Safe {
                return Err(format!("{newer} was flushed or shown before, and is gone"));
            }
        }
        Ok(())
    }

    /// A read has shown this: it stays, and what would lie over it is not there.
    fn enter(&mut self, block: u8, name: usize, read: Read) -> Result<(), Violation> {
        for newer in 1..self.writes.len() {
            let other = &self.writes[newer];
            let over = newer != name && other.blocks.contains(&block) && self.before(name, newer);
            if over && other.epoch < read.epoch && other.fate == Fate::Open {
                self.lost(newer, read.epoch)?;
            }
        }
        self.writes[name].known.get_or_insert(read.ended);
        if name != 0 {
            self.safe(name)?;
        }
        let last = &mut self.shown[usize::from(block)];
        match *last {
            Some((before, shown)) if shown.ended >= read.began && before != name => return Ok(()),
            Some((before, _)) if before != name => self.over[usize::from(block)].push(before),
            _ => {}
        }
        self.shown[usize::from(block)] = Some((name, read));
        Ok(())
    }

    /// Members hold these blocks, each by the write with this place in the order: do the orders agree?
    pub(crate) fn placed(&self, held: &[(u8, (u64, u64), Option<u64>)]) -> Result<(), Violation> {
        let named =
            held.iter().filter_map(|(block, at, name)| Some((*block, *at, usize::try_from((*name)?).ok()?)));
        let named: Vec<_> = named.collect();
        for (block, (epoch, _), name) in &named {
            let write = self.writes.get(*name).filter(|write| write.blocks.contains(block));
            if write.is_none_or(|write| write.epoch != *epoch) {
                return broken(format!("block {block} is of write {name} and epoch {epoch}, which is none"));
            }
        }
        for (_, first, a) in &named {
            for (_, second, b) in &named {
                if a != b && self.before(*a, *b) && first >= second {
                    return broken(format!("write {a} at {first:?} lies before write {b} at {second:?}"));
                }
                if (a == b) != (first == second) {
                    return broken(format!("writes {a} and {b} lie at {first:?} and {second:?}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two acknowledged writes to the block 3 at epoch 1, the first one flushed.
    fn two() -> Oracle {
        let mut oracle = Oracle::new();
        for (n, at) in [(1, 10), (2, 20)] {
            assert_eq!(oracle.began(3..4, false, 1, at), n);
            oracle.acknowledged(n, false, at + 1).unwrap();
            if n == 1 {
                oracle.flushed(1, 15).unwrap();
            }
        }
        oracle
    }

    fn shows(oracle: &mut Oracle, name: Option<u64>, epoch: u64, began: u64) -> bool {
        oracle.read(3, &[name], epoch, began, began + 1).is_ok()
    }

    #[test]
    fn a_head_shows_what_it_acknowledged() {
        assert!(shows(&mut two(), Some(2), 1, 30));
        assert!(
            shows(&mut two(), Some(1), 1, 20),
            "the second one was not acknowledged when it was asked for"
        );
        assert!(!shows(&mut two(), Some(1), 1, 30));
        assert!(!shows(&mut two(), None, 1, 30));
        assert!(!shows(&mut two(), Some(9), 1, 30));
    }

    #[test]
    fn what_was_flushed_stays_and_what_was_not_goes_with_power() {
        assert!(!shows(&mut two(), Some(1), 2, 30), "nobody lost it");
        let mut oracle = two();
        oracle.down(25);
        assert!(shows(&mut oracle, Some(1), 2, 30));
        assert!(!shows(&mut oracle, Some(2), 2, 40), "and it does not come back");
        let mut oracle = two();
        oracle.down(25);
        assert!(!shows(&mut oracle, None, 2, 30), "the first one was flushed");
    }

    #[test]
    fn what_was_shown_stays() {
        let mut oracle = two();
        assert!(shows(&mut oracle, Some(2), 1, 30));
        oracle.down(35);
        assert!(!shows(&mut oracle, Some(1), 2, 40));
        assert!(shows(&mut oracle, Some(2), 2, 50));
    }

    #[test]
    fn what_goes_takes_all_behind_it_along() {
        let mut oracle = two();
        let third = oracle.began(5..6, false, 1, 30);
        oracle.acknowledged(third, false, 31).unwrap();
        oracle.down(35);
        assert!(shows(&mut oracle, Some(1), 2, 40));
        assert!(oracle.read(5, &[Some(3)], 2, 50, 51).is_err(), "a hole in the order");
        assert!(oracle.read(5, &[None], 2, 50, 51).is_ok());
    }

    #[test]
    fn a_fenced_head_shows_nothing_old() {
        let mut oracle = two();
        let third = oracle.began(3..4, false, 2, 30);
        oracle.acknowledged(third, false, 31).unwrap();
        assert!(shows(&mut oracle, Some(2), 1, 30), "it was asked before");
        assert!(!shows(&mut oracle, Some(2), 1, 40));
        assert!(shows(&mut oracle, Some(3), 2, 40));
    }

    #[test]
    fn what_a_newer_head_did_not_show_does_not_appear() {
        let mut oracle = two();
        let third = oracle.began(3..4, false, 1, 30);
        assert!(shows(&mut oracle, Some(2), 2, 40));
        assert!(!shows(&mut oracle, Some(third as u64), 2, 50));
    }
}
