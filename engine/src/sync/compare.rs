//! Comparing two devices: pure. Says what to ask both of them next, and from their answers which versions differ.
//!
//! | equal sums | go on |
//! |---|---|
//! | of a group | nothing of it is looked at again |
//!
//! | different sums | next question |
//! |---|---|
//! | of a group of parts | sums of a 64th of it, down to single parts |
//! | of a part, and one side has nothing there | the stamps in the part |
//! | of a part that is more than a tally | sums of groups of its tallies |
//! | of a tally | the stamps in it; when they do not fit into one answer, sums of 256 parts of it |
//!
//! Invariant: a version that both sides keep alike is never told; every other is told once, unless it changes meanwhile.

use std::ops::Range;

use quarry_ring::PathHash;

use super::{Answer, Ask, MAX_POWER, MAX_RUNS, MAX_STAMPS, MAX_SUMS, Parts};
use crate::catalog::{Stamp, Stamps};
use crate::disk::TALLY_BITS;

/// Parts of a group are looked at in so many groups next.
const FAN: u32 = 64;
/// Bits by which a full tally is cut finer.
const FINER: u8 = 8;

/// An object of which two devices hold different versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub hash: PathHash,
    /// What the first holds.
    pub mine: Option<Stamp>,
    /// What the second holds.
    pub theirs: Option<Stamp>,
}

impl Difference {
    /// The newer of the two.
    #[must_use]
    pub fn newer(&self) -> Option<Stamp> {
        self.mine.max(self.theirs)
    }
}

/// An answer that does not fit its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer does not fit the question")]
pub struct BadAnswer;

#[derive(Debug, Clone)]
enum Item {
    Sums { power: u8, parts: Parts, group: u32 },
    Stamps { power: u8, part: u32, after: Option<PathHash> },
}

/// A comparison under way.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What is still to be asked; the last comes first.
    stack: Vec<Item>,
}

/// The size of the groups that a group of `group` parts is cut into: the largest power of [`FAN`] below it.
fn finer_group(group: u32) -> u32 {
    let mut finer = 1;
    while u64::from(finer) * u64::from(FAN) < u64::from(group) {
        finer *= FAN;
    }
    finer
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Comparison {
    /// Of what lies in parts of `power` bits.
    #[must_use]
    pub fn new(power: u8, mut parts: Parts) -> Self {
        let mut stack = Vec::new();
        while !parts.is_empty() {
            // Halved, because groups cut ranges.
            let count =
                parts.ranges().iter().take(MAX_RUNS / 2).map(|range| u64::from(range.end - range.start));
            let front = parts.split_front(count.sum());
            let group = narrow(front.count());
            stack.push(Item::Sums { power, parts: front, group });
        }
        Self { stack }
    }

    /// What to ask both sides next; `None`: the comparison is over.
    pub fn ask(&mut self) -> Option<Ask> {
        match self.stack.pop()? {
            Item::Sums { power, mut parts, group } => {
                let front = parts.split_front(u64::from(group) * MAX_SUMS as u64);
                if !parts.is_empty() {
                    self.stack.push(Item::Sums { power, parts, group });
                }
                self.stack.push(Item::Sums { power, parts: front.clone(), group });
                Some(Ask::Sums { power, parts: front, group })
            }
            item @ Item::Stamps { power, part, after } => {
                self.stack.push(item);
                Some(Ask::Stamps { power, part, after, limit: narrow(MAX_STAMPS as u64), doubt: false })
            }
        }
    }

    /// Takes the answers of both sides to the last question.
    pub fn tell(&mut self, mine: &Answer, theirs: &Answer) -> Result<Vec<Difference>, BadAnswer> {
        match (self.stack.pop().ok_or(BadAnswer)?, mine, theirs) {
            (Item::Sums { power, parts, group }, Answer::Sums(mine), Answer::Sums(theirs)) => {
                let groups = parts.groups(group);
                if mine.len() != groups.len() || theirs.len() != groups.len() {
                    return Err(BadAnswer);
                }
                self.sums(power, group, groups, mine, theirs);
                Ok(Vec::new())
            }
            (Item::Stamps { power, part, after }, Answer::Stamps(mine), Answer::Stamps(theirs)) => {
                check_page(after, mine)?;
                check_page(after, theirs)?;
                let full = mine.more || theirs.more;
                let both = !mine.stamps.is_empty() && !theirs.stamps.is_empty();
                if power == TALLY_BITS && after.is_none() && full && both {
                    let parts = Parts::range(part..part + 1).children(FINER);
                    self.stack.push(Item::Sums { power: power + FINER, parts, group: 1 });
                    return Ok(Vec::new());
                }
                let end =
                    [mine, theirs].into_iter().filter(|page| page.more).filter_map(|page| page.upto).min();
                if end.is_some() {
                    self.stack.push(Item::Stamps { power, part, after: end });
                }
                Ok(differences(&mine.stamps, &theirs.stamps, end))
            }
            _ => Err(BadAnswer),
        }
    }

    fn sums(&mut self, power: u8, group: u32, groups: Vec<Vec<Range<u32>>>, mine: &[u128], theirs: &[u128]) {
        let (mut finer, mut children) = (Parts::default(), Parts::default());
        let mut stamps = Vec::new();
        for ((ranges, mine), theirs) in groups.into_iter().zip(mine).zip(theirs) {
            if mine == theirs {
                continue;
            }
            for range in ranges {
                if group > 1 {
                    finer.push(range);
                } else if *mine == 0 || *theirs == 0 || power >= TALLY_BITS {
                    stamps.push(Item::Stamps { power, part: range.start, after: None });
                } else {
                    children.push(range);
                }
            }
        }
        // In the order of hashes, the first on top.
        if !finer.is_empty() {
            self.stack.push(Item::Sums { power, parts: finer, group: finer_group(group) });
        }
        if !children.is_empty() {
            let bits = TALLY_BITS - power;
            let group = finer_group(1 << bits);
            self.stack.push(Item::Sums { power: TALLY_BITS, parts: children.children(bits), group });
        }
        self.stack.extend(stamps.into_iter().rev());
    }
}

/// A page must be in order, behind where it begins, and get on.
fn check_page(after: Option<PathHash>, page: &Stamps) -> Result<(), BadAnswer> {
    let ascends = page.stamps.windows(2).all(|pair| pair[0].hash < pair[1].hash);
    let behind = page.stamps.first().is_none_or(|first| Some(first.hash) > after);
    let gets_on = !page.more || page.upto > after;
    let within = page.stamps.last().is_none_or(|last| !page.more || Some(last.hash) <= page.upto);
    if ascends && behind && gets_on && within && page.stamps.len() <= MAX_STAMPS {
        Ok(())
    } else {
        Err(BadAnswer)
    }
}

/// What differs up to `end`.
fn differences(mine: &[Stamp], theirs: &[Stamp], end: Option<PathHash>) -> Vec<Difference> {
    let mut out = Vec::new();
    let (mut mine, mut theirs) = (mine.iter().peekable(), theirs.iter().peekable());
    loop {
        let hash = match (mine.peek(), theirs.peek()) {
            (None, None) => return out,
            (Some(one), None) | (None, Some(one)) => one.hash,
            (Some(one), Some(other)) => one.hash.min(other.hash),
        };
        if end.is_some_and(|end| hash > end) {
            return out;
        }
        let (mine, theirs) =
            (mine.next_if(|stamp| stamp.hash == hash), theirs.next_if(|stamp| stamp.hash == hash));
        if mine != theirs {
            out.push(Difference { hash, mine: mine.copied(), theirs: theirs.copied() });
        }
    }
}

const _: () = assert!(TALLY_BITS + FINER <= MAX_POWER);
const _: () = assert!(MAX_RUNS / 2 + MAX_SUMS <= MAX_RUNS);

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
