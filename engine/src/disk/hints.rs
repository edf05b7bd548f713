//! What readers noticed that background work may make better. In memory, bounded, and no loss when it is gone.
//!
//! Invariant: a hint is ready once its weight has come together, is taken once, and begins anew after that.
//! Invariant: memory is bounded, whatever is noticed: what has not come together goes when there is too much of it, and what is
//! ready is not taken on beyond its limit.

use std::collections::{HashMap, VecDeque};

/// Hints that are kept, ready or not.
const MOST: usize = 8192;

/// What a hint is about, as whoever gives and takes it writes it.
pub(crate) type About = Box<[u8]>;

/// Hints about one disk.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// Weight of what has not come together; of what is ready, nothing.
    weights: HashMap<About, Option<u32>>,
    ready: VecDeque<About>,
}

impl Hints {
    /// Adds to a hint's weight; it is ready at `wanted`.
    pub(crate) fn give(&mut self, about: &[u8], weight: u32, wanted: u32) {
        if self.weights.len() >= MOST && !self.weights.contains_key(about) {
            self.weights.retain(|_, weight| weight.is_none());
            if self.weights.len() >= MOST {
                return;
            }
        }
        let known = self.weights.entry(about.into()).or_insert(Some(0));
        let Some(sum) = known else { return };
        *sum = sum.saturating_add(weight);
        if *sum >= wanted {
            *known = None;
            self.ready.push_back(about.into());
        }
    }

    /// The oldest that is ready.
    pub(crate) fn take(&mut self) -> Option<About> {
        let about = self.ready.pop_front()?;
        self.weights.remove(&about);
        Some(about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_ready_when_its_weight_has_come_together_and_taken_once() {
        let mut hints = Hints::default();
        hints.give(b"a", 3, 10);
        hints.give(b"b", 20, 10);
        assert_eq!(hints.take().as_deref(), Some(&b"b"[..]));
        assert_eq!(hints.take(), None);
        hints.give(b"a", 7, 10);
        hints.give(b"a", 7, 10);
        assert_eq!(hints.take().as_deref(), Some(&b"a"[..]));
        hints.give(b"a", 7, 10);
        assert_eq!(hints.take(), None, "it begins anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut hints = Hints::default();
        for n in 0..3 * MOST as u64 {
            hints.give(&n.to_le_bytes(), 1, 2);
            assert!(hints.weights.len() <= MOST);
        }
        for n in 0..3 * MOST as u64 {
            hints.give(&n.to_le_bytes(), 2, 2);
            assert!(hints.weights.len() <= MOST && hints.ready.len() <= MOST);
        }
        assert_eq!(std::iter::from_fn(|| hints.take()).count(), MOST);
        assert!(hints.weights.is_empty());
    }
}
