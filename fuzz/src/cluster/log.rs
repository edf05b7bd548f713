//! What happened, in words: the end of it for whoever reads a failure, all of it in a hash.

use std::collections::VecDeque;
use std::time::Duration;

/// Lines that a failure shows.
pub const LINES: usize = 80;
/// Longest line.
const LINE: usize = 400;

/// The log of a history.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) hash: u64,
    pub(crate) tail: VecDeque<String>,
    lines: usize,
}

impl Log {
    pub(crate) fn new(lines: usize) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, tail: VecDeque::new(), lines }
    }

    /// Enters an event in the log and its hash (FNV-1a).
    pub(crate) fn note(&mut self, at: Duration, event: &str) {
        let line = format!("{:.6} {event}", at.as_secs_f64());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.tail.len() == self.lines {
            self.tail.pop_front();
        }
        self.tail.push_back(line.chars().take(LINE).collect());
    }
}
