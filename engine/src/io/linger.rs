//! How long a thread looks for what comes next before it sleeps.
//!
//! To wake a thread takes 5 µs, and ten times that where its processor rests and is a virtual one; a fast disk reads 4 KiB in 50.
//! The rule is that of KVM's halt polling (Linux, Documentation/virt/kvm/halt-polling.rst): who waited shortly of late looks, who
//! waited long sleeps at once.
//!
//! Invariant: nobody looks for longer than [`Linger::LONGEST`] after its wait began, and nobody for whom nothing comes.
//! Invariant: between two looks the processor is offered to whoever else would run on it: what is waited for may be its work.

use std::time::{Duration, Instant};

/// So many short waits one after another are worth to be looked through.
const ENOUGH: u8 = 2;
/// More are not remembered: each long wait forgets half.
const MOST: u8 = 8;

/// What is remembered of a thread's waits for one kind of thing.
#[derive(Debug, Default)]
pub struct Linger {
    short: u8,
}

impl Linger {
    /// A wait that is longer is slept through.
    pub const LONGEST: Duration = Duration::from_micros(100);

    /// Whether the next wait is worth to be looked through.
    #[must_use]
    pub fn is_worth_it(&self) -> bool {
        self.short >= ENOUGH
    }

    /// Something came, after a wait.
    pub fn waited(&mut self, time: Duration) {
        self.short = if time <= Self::LONGEST { (self.short + 1).min(MOST) } else { self.short / 2 };
    }

    /// What was remembered holds no more.
    pub fn forget(&mut self) {
        self.short = 0;
    }
}

/// Looks for what is waited for since `began`, again and again, until it came or its time is over.
#[expect(clippy::disallowed_methods, reason = "a bounded look needs a clock; nothing else sees the time")]
pub(super) fn look(began: Instant, came: impl Fn() -> bool) {
    while !came() && began.elapsed() < Linger::LONGEST {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(40);
    const LONG: Duration = Duration::from_millis(3);

    #[test]
    fn who_waits_shortly_looks_and_who_is_idle_does_not() {
        let mut linger = Linger::default();
        assert!(!linger.is_worth_it());
        for _ in 0..100 {
            linger.waited(SHORT);
        }
        assert!(linger.is_worth_it());
        for _ in 0..3 {
            linger.waited(LONG);
        }
        assert!(!linger.is_worth_it(), "three long waits end it");
    }

    #[test]
    fn what_holds_no_more_is_forgotten() {
        let mut linger = Linger::default();
        for _ in 0..100 {
            linger.waited(SHORT);
        }
        linger.forget();
        linger.waited(SHORT);
        assert!(!linger.is_worth_it());
    }
}
