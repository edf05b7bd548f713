//! What snapshots must show.
//!
//! Invariant: a snapshot shows what was there at one place in the order, between being asked for and being there, and shows it for ever.

use std::collections::BTreeMap;

use super::{Oracle, Read, broken};
use crate::store::oracle::Violation;

/// A snapshot that somebody asked for.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    epoch: u64,
    began: u64,
    /// From here on nothing can be in it that was not before.
    ended: Option<u64>,
    /// What it has shown.
    shown: BTreeMap<u8, Option<u64>>,
}

impl Oracle {
    /// A client asks the head of an epoch for a snapshot; its name.
    pub(crate) fn freezes(&mut self, epoch: u64, now: u64) -> usize {
        self.frozen.push(Frozen { epoch, began: now, ended: None, shown: BTreeMap::new() });
        self.frozen.len() - 1
    }

    /// It is there, or its head writes nothing any more.
    pub(crate) fn froze(&mut self, name: usize, now: u64) {
        self.frozen[name].ended.get_or_insert(now);
    }

    /// Somebody was shown these of a snapshot, block by block; `None`: zeroes.
    pub(crate) fn froze_as(
        &mut self,
        name: usize,
        first: u8,
        names: &[Option<u64>],
        now: u64,
    ) -> Result<(), Violation> {
        for (block, shown) in (first..).zip(names.iter().copied()) {
            let Some(Frozen { epoch, began, ended, shown: before }) = self.frozen.get_mut(name) else {
                return broken(format!("nobody asked for snapshot {name}"));
            };
            if let Some(before) = before.insert(block, shown) {
                if before != shown {
                    return broken(format!(
                        "block {block} of snapshot {name} was {before:?}, and is {shown:?}"
                    ));
                }
                continue;
            }
            let read = Read { epoch: *epoch, began: *began, ended: ended.unwrap_or(now) };
            let judged = self.judged(block, shown, read);
            let possible: Vec<usize> =
                judged.iter().filter(|(_, why)| why.is_ok()).map(|(n, _)| *n).collect();
            match possible[..] {
                [] => {
                    let why = judged.into_iter().rev().find_map(|(_, why)| why.err()).unwrap_or_default();
                    return broken(format!("block {block} of snapshot {name} is {shown:?}: {why}"));
                }
                [0] => {}
                [one] => {
                    self.writes[one].known.get_or_insert(now);
                    self.safe(one)?;
                }
                // Which of several trims it is does not show.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_acknowledged_nothing_that_came_later_and_always_the_same() {
        let mut oracle = Oracle::new();
        for (n, at) in [(1, 10), (2, 20)] {
            assert_eq!(oracle.began(3..4, false, 1, at), n);
            oracle.acknowledged(n, false, at + 1).unwrap();
        }
        let name = oracle.freezes(1, 30);
        oracle.froze(name, 40);
        let later = oracle.began(3..4, false, 1, 50);
        oracle.acknowledged(later, false, 51).unwrap();
        let shows = |oracle: &Oracle, what| oracle.clone().froze_as(name, 3, &[what], 60).is_ok();
        assert!(shows(&oracle, Some(2)));
        assert!(!shows(&oracle, Some(1)), "the second one was acknowledged before");
        assert!(!shows(&oracle, Some(3)), "it was asked for later");
        assert!(!shows(&oracle, None));
        let other = oracle.began(3..4, false, 1, 35);
        assert!(shows(&oracle, Some(other as u64)), "it was asked for meanwhile");
        oracle.froze_as(name, 3, &[Some(2)], 60).unwrap();
        assert!(!shows(&oracle, Some(other as u64)), "it was shown otherwise");
    }
}
