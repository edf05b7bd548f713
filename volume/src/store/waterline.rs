//! How far a head is, for clients that look by themselves whether there is anything to be flushed.
//!
//! Invariant: it rises before anybody is told of what it shows. So what a client was answered lies below `answered` when it looks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a head has reached.
#[derive(Debug, Default)]
pub(super) struct Waterline {
    /// The last write that was answered, or later.
    answered: AtomicU64,
    /// The last one that is durable.
    durable: AtomicU64,
    /// Somebody found all durable since the head asked last.
    looked: AtomicBool,
}

impl Waterline {
    /// The head is so far.
    pub(super) fn rise(&self, answered: u64, durable: u64) {
        self.durable.fetch_max(durable, Ordering::Release);
        self.answered.fetch_max(answered, Ordering::Release);
    }

    /// Whether all that was answered before is durable: a flush has nothing to do.
    pub(super) fn is_all_durable(&self) -> bool {
        // In this order: what is answered meanwhile was not answered before.
        let answered = self.answered.load(Ordering::Acquire);
        let all = self.durable.load(Ordering::Acquire) >= answered;
        if all {
            self.looked.store(true, Ordering::Relaxed);
        }
        all
    }

    /// Whether somebody found all durable since this was asked last.
    pub(super) fn was_looked_at(&self) -> bool {
        self.looked.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_durable_when_what_was_answered_is() {
        let line = Waterline::default();
        assert!(line.is_all_durable() && line.was_looked_at() && !line.was_looked_at());
        line.rise(3, 2);
        assert!(!line.is_all_durable() && !line.was_looked_at());
        line.rise(3, 3);
        assert!(line.is_all_durable());
        line.rise(2, 1);
        assert!(line.is_all_durable(), "it never falls");
    }
}
