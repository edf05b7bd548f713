//! Sets of partitions, as runs.
//!
//! Invariant: ranges ascend, are not empty, and do not touch one another.

use std::ops::Range;

use crate::catalog::POLICIES;

/// Skipped and taken partitions in turns: how a set travels.
pub type Runs = Vec<(u32, u32)>;

/// A set of partitions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts(Vec<Range<u32>>);

impl Parts {
    /// All from `range.start` up to, and without, `range.end`.
    #[must_use]
    pub fn range(range: Range<u32>) -> Self {
        Self(Some(range).into_iter().filter(|range| !range.is_empty()).collect())
    }

    /// Adds a range that begins at or behind the end of the set.
    pub(crate) fn push(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            last => {
                assert!(last.is_none_or(|last| last.end < range.start), "parts are out of order");
                self.0.push(range);
            }
        }
    }

    /// Its ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u32>] {
        &self.0
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| u64::from(range.end - range.start)).sum()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, part: u32) -> bool {
        let at = self.0.partition_point(|range| range.end <= part);
        self.0.get(at).is_some_and(|range| range.contains(&part))
    }

    /// Groups of `group` parts in order; the last may have fewer. Each as its ranges.
    pub(crate) fn groups(&self, group: u32) -> Vec<Vec<Range<u32>>> {
        let mut groups = Vec::new();
        let (mut current, mut left) = (Vec::new(), group);
        for range in &self.0 {
            let mut from = range.start;
            while from < range.end {
                let take = left.min(range.end - from);
                current.push(from..from + take);
                from += take;
                left -= take;
                if left == 0 {
                    groups.push(std::mem::take(&mut current));
                    left = group;
                }
            }
        }
        groups.extend(Some(current).filter(|current| !current.is_empty()));
        groups
    }

    /// Takes the first `count` off.
    pub(crate) fn split_front(&mut self, count: u64) -> Self {
        let (mut front, mut back, mut left) = (Self::default(), Self::default(), count);
        for range in std::mem::take(&mut self.0) {
            let take = left.min(u64::from(range.end - range.start));
            let middle = range.start + u32::try_from(take).unwrap_or(u32::MAX);
            front.push(range.start..middle);
            back.push(middle..range.end);
            left -= take;
        }
        *self = back;
        front
    }

    /// The same hashes in parts of `bits` more bits.
    pub(crate) fn children(&self, bits: u8) -> Self {
        Self(self.0.iter().map(|range| range.start << bits..range.end << bits).collect())
    }

    /// As it travels.
    #[must_use]
    pub fn runs(&self) -> Runs {
        let mut at = 0;
        let run = |range: &Range<u32>| {
            let run = (range.start - at, range.end - range.start);
            at = range.end;
            run
        };
        self.0.iter().map(run).collect()
    }

    /// From runs within 2^`power` parts of each policy; `None` when they are none.
    #[must_use]
    pub fn from_runs(runs: &[(u32, u32)], power: u8) -> Option<Self> {
        let (mut parts, mut at) = (Self::default(), 0_u32);
        for (n, (skip, take)) in runs.iter().enumerate() {
            if *take == 0 || (*skip == 0 && n > 0) {
                return None;
            }
            let start = at.checked_add(*skip)?;
            at = start.checked_add(*take)?;
            parts.push(start..at);
        }
        (u64::from(at) <= u64::from(POLICIES).checked_shl(u32::from(power))?).then_some(parts)
    }
}

impl FromIterator<u32> for Parts {
    /// From ascending numbers.
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut parts = Self::default();
        numbers.into_iter().for_each(|number| parts.push(number..number + 1));
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_what_was_put_in_and_come_back_from_their_runs() {
        let numbers = [0, 1, 2, 5, 9, 10, 63];
        let parts: Parts = numbers.into_iter().collect();
        assert_eq!(parts.ranges(), [0..3, 5..6, 9..11, 63..64]);
        assert!(parts.iter().eq(numbers) && parts.count() == 7);
        assert!((0..64).all(|n| parts.contains(n) == numbers.contains(&n)));
        assert_eq!(Parts::from_runs(&parts.runs(), 6), Some(parts.clone()));
        assert_eq!(Parts::from_runs(&parts.runs(), 1), None, "beyond the last part");
        for bad in [&[(0, 0)][..], &[(0, 1), (0, 1)], &[(u32::MAX, 1)], &[(1, u32::MAX), (1, 1)]] {
            assert_eq!(Parts::from_runs(bad, 32), None, "{bad:?}");
        }
        let mut rest = parts.clone();
        let front = rest.split_front(4);
        assert_eq!((front.ranges(), rest.ranges()), (&[0..3, 5..6][..], &[9..11, 63..64][..]));
        let groups: Vec<Vec<u32>> =
            parts.groups(3).into_iter().map(|group| group.into_iter().flatten().collect()).collect();
        assert_eq!(groups, [vec![0, 1, 2], vec![5, 9, 10], vec![63]]);
        assert_eq!(rest.children(2).ranges(), [36..44, 252..256]);
    }
}
