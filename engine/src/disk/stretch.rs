//! A stretch of a disk of which something cannot be read: which blocks are tried, and in which order.
//!
//! A drive may take seconds to say that it cannot read a sector. So where many blocks in a row cannot be read only some of those that
//! follow are tried, until one of them can be: then those before it are, backwards. What lies alone between bad blocks may stay unread.
//!
//! Invariant: no block is tried twice; of a bad run of n blocks about n / [`STRIDE`] are tried, and a few more.
//! Invariant: whatever can be read next to what was read is read.

use bytes::BytesMut;

use crate::io::BLOCK;

/// Bad blocks in a row behind which blocks are left out.
const PATIENCE: usize = 8;
/// One of so many is tried there.
const STRIDE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Not,
    Read,
    Failed,
}

/// What is known of it; zeros where nothing is.
pub(super) struct Stretch {
    pub(super) bytes: BytesMut,
    tried: Vec<Tried>,
}

impl Stretch {
    /// Of so many bytes.
    pub(super) fn new(len: usize) -> Self {
        Self { bytes: BytesMut::zeroed(len), tried: vec![Tried::Not; len.div_ceil(BLOCK)] }
    }

    /// Where the next block begins that is to be tried.
    pub(super) fn next(&self) -> Option<usize> {
        let tried = |at: usize| self.tried.get(at).copied();
        // What was left out before a block that was read then.
        let beside = |at: &usize| tried(*at) == Some(Tried::Not) && tried(at + 1) == Some(Tried::Read);
        let count = self.tried.len();
        if let Some(at) = (0..count).find(beside) {
            return Some(at * BLOCK);
        }
        let Some(last) = (0..count).rev().find(|at| tried(*at) != Some(Tried::Not)) else {
            return (count > 0).then_some(0);
        };
        let bad = (0..=last).rev().take_while(|at| tried(*at) != Some(Tried::Read)).count();
        let step = if bad >= PATIENCE { STRIDE } else { 1 };
        // The last one is tried in any case: what follows may be readable.
        let next = if last + 1 == count { return None } else { (last + step).min(count - 1) };
        Some(next * BLOCK)
    }

    /// The block at `at` was read.
    pub(super) fn read(&mut self, at: usize, block: &[u8]) {
        if let Some(into) = self.bytes.get_mut(at..at + block.len()) {
            into.copy_from_slice(block);
        }
        self.note(at, Tried::Read);
    }

    /// The block at `at` cannot be read.
    pub(super) fn failed(&mut self, at: usize) {
        self.note(at, Tried::Failed);
    }

    fn note(&mut self, at: usize, what: Tried) {
        if let Some(tried) = self.tried.get_mut(at / BLOCK) {
            *tried = what;
        }
    }

    /// Whether no block of it could be read.
    pub(super) fn nothing_read(&self) -> bool {
        !self.tried.contains(&Tried::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many blocks were tried, and which were read, where these are bad.
    fn run(count: usize, bad: impl Fn(usize) -> bool) -> (usize, Vec<usize>) {
        let mut stretch = Stretch::new(count * BLOCK);
        let mut tried = std::collections::BTreeSet::new();
        while let Some(at) = stretch.next() {
            assert!(at % BLOCK == 0 && tried.insert(at / BLOCK), "block {at} twice");
            if bad(at / BLOCK) { stretch.failed(at) } else { stretch.read(at, &[1; BLOCK]) }
        }
        let read: Vec<usize> = (0..count).filter(|at| stretch.bytes[at * BLOCK] == 1).collect();
        assert_eq!(stretch.nothing_read(), read.is_empty());
        (tried.len(), read)
    }

    #[test]
    fn what_is_readable_beside_a_bad_run_is_read_wherever_it_ends() {
        for from in [0, 1, 7, 30] {
            for len in [1, 2, 7, 8, 9, 15, 16, 17, 23, 30, 33] {
                let (_, read) = run(64, |at| (from..from + len).contains(&at));
                let wanted: Vec<usize> = (0..64).filter(|at| !(from..from + len).contains(at)).collect();
                assert_eq!(read, wanted, "{from} {len}");
            }
        }
        assert_eq!(run(1, |_| false).1, [0]);
        assert!(Stretch::new(0).next().is_none());
    }

    #[test]
    fn a_long_bad_run_is_not_tried_block_by_block() {
        let (tried, read) = run(1024, |_| true);
        assert!(tried < PATIENCE + 1024 / STRIDE + 2 && read.is_empty(), "{tried}");
        let (tried, read) = run(1024, |at| at < 1000);
        assert!(tried < PATIENCE + 1024 / STRIDE + 2 + 24 + STRIDE, "{tried}");
        assert_eq!(read.len(), 24);
    }
}
