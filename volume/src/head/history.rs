//! The history of a member: which head wrote which part of the order.
//!
//! Invariant: of two histories with a turn of the same epoch, both are the same up to the shorter end of that turn: an
//! epoch has one head, which names one base, and writes in one order.
//! Invariant: epochs of turns rise, bases do not fall, and no base lies behind the end.

use quarry_engine::block::Position;

/// Turns that are kept. Who has none in common with another any more is copied whole.
pub const MAX_TURNS: usize = 32;
/// No sequence is as high as that: nothing has come so far, and from each one may go on.
pub(crate) const NO_SEQUENCE: u64 = 1 << 63;

/// From where on an epoch's head wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Turn {
    /// The head's.
    pub epoch: u64,
    /// The sequence on which it builds: its own first write has the next.
    pub base: u64,
}

/// All that a member holds, told by who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct History {
    turns: Vec<Turn>,
    end: u64,
}

impl History {
    /// Of turns, oldest first, up to the sequence `end`; `None` if they are no history.
    #[must_use]
    pub fn new(turns: Vec<Turn>, end: u64) -> Option<Self> {
        let rising = turns.is_sorted_by(|a, b| a.epoch < b.epoch && a.base <= b.base);
        let inside = turns.last().map_or(end == 0, |last| last.base <= end);
        let counted = end < NO_SEQUENCE;
        (rising && inside && counted && turns.len() <= MAX_TURNS).then_some(Self { turns, end })
    }

    /// Of a member about which only the last write is known: it has nothing in common with others.
    #[must_use]
    pub fn unknown(last: Position) -> Self {
        let turn = Turn { epoch: last.epoch, base: last.sequence };
        let turns = if last == Position::default() { Vec::new() } else { vec![turn] };
        Self { turns, end: last.sequence }
    }

    /// Oldest first.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The last sequence in it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// By which the longest is chosen: the epoch that was begun last, then the sequence.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.turns.last().map_or(0, |last| last.epoch), sequence: self.end }
    }

    fn end_of(&self, turn: usize) -> u64 {
        self.turns.get(turn + 1).map_or(self.end, |next| next.base)
    }

    /// Up to this sequence both are the same.
    #[must_use]
    pub fn common(&self, other: &Self) -> u64 {
        for (mine, turn) in self.turns.iter().enumerate().rev() {
            if let Some(theirs) = other.turns.iter().position(|other| other == turn) {
                return self.end_of(mine).min(other.end_of(theirs));
            }
        }
        0
    }

    /// The other is the beginning of this one, or all of it.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        self.common(other) == other.end
    }

    /// The same, continued by a new head.
    #[must_use]
    pub fn begun(&self, epoch: u64) -> Self {
        let mut turns = self.turns.clone();
        turns.push(Turn { epoch, base: self.end });
        let spare = turns.len().saturating_sub(MAX_TURNS);
        turns.drain(..spare);
        Self { turns, end: self.end }
    }

    /// Its last head has gone on up to this sequence.
    pub fn grow(&mut self, end: u64) {
        assert!(end >= self.end, "a history grows");
        self.end = end;
    }

    /// The same turns, up to another end: the beginning of it, or where its last head has gone since.
    #[must_use]
    pub fn until(&self, end: u64) -> Self {
        let turns = self.turns.iter().copied().filter(|turn| turn.base <= end).collect();
        Self { turns, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(turns: &[(u64, u64)], end: u64) -> History {
        let turns = turns.iter().map(|&(epoch, base)| Turn { epoch, base }).collect();
        History::new(turns, end).unwrap()
    }

    #[test]
    fn what_is_common_ends_where_one_of_them_went_another_way() {
        let long = history(&[(1, 0), (3, 7), (4, 9)], 12);
        for (other, common) in [
            (history(&[], 0), 0),
            (history(&[(1, 0)], 5), 5),
            (history(&[(1, 0)], 8), 7),
            (history(&[(1, 0), (2, 6)], 9), 6),
            (history(&[(1, 0), (2, 8)], 9), 7),
            (history(&[(1, 0), (3, 7)], 10), 9),
            (history(&[(1, 0), (3, 7), (4, 9)], 20), 12),
            (history(&[(9, 4)], 20), 0),
        ] {
            assert_eq!(long.common(&other), common, "{other:?}");
            assert_eq!(other.common(&long), common, "{other:?}");
        }
    }

    #[test]
    fn a_history_that_was_only_begun_anew_is_the_same() {
        let old = history(&[(1, 0)], 5);
        let new = old.begun(2);
        assert!(new.holds(&old) && old.holds(&new));
        assert!(new.position() > old.position());
        let longer = history(&[(1, 0)], 6);
        assert!(!new.holds(&longer) && longer.holds(&new) && longer.common(&new) == 5);
        assert!(new.position() > longer.position(), "what was begun by a newer head counts more");
    }

    #[test]
    fn what_is_no_history_is_refused() {
        let turn = |epoch, base| Turn { epoch, base };
        assert_eq!(History::new(vec![turn(2, 0), turn(1, 3)], 9), None);
        assert_eq!(History::new(vec![turn(1, 4), turn(2, 3)], 9), None);
        assert_eq!(History::new(vec![turn(1, 4)], 3), None);
        assert_eq!(History::new(Vec::new(), 3), None);
        assert_eq!(History::new(vec![turn(1, 0)], u64::MAX), None, "whoever goes on from there overflows");
    }

    #[test]
    fn old_turns_are_forgotten() {
        let mut long = History::default();
        for epoch in 1..100 {
            long = long.begun(epoch).until(epoch);
        }
        let turns = long.turns().len();
        assert_eq!(turns, MAX_TURNS);
        assert_eq!(long.common(&history(&[(1, 0)], 1)), 0, "copied whole");
        assert!(History::new(long.turns().to_vec(), long.end()).is_some());
    }
}
