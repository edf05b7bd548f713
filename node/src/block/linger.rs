//! How long the thread of a client looks for what comes next before it sleeps.
//!
//! To wake a thread takes 5 µs, and ten times that where its processor rests and is a virtual one; a fast disk reads 4 KiB in 50.
//! The rule is that of KVM's halt polling (Linux, Documentation/virt/kvm/halt-polling.rst): who waited shortly of late looks, who
//! waited long sleeps at once. A client that has many commands open is served best by sleeping: they gather meanwhile.
//!
//! Invariant: nobody looks for longer than [`LONGEST`] after its wait began, and nobody for a client that asks nothing.
//! Invariant: who waits for what another thread does leaves it the processor.

use std::time::{Duration, Instant};

/// A wait that is longer is slept through.
const LONGEST: Duration = Duration::from_micros(100);
/// So many short waits one after another are worth to be looked through.
const ENOUGH: u8 = 2;
/// More are not remembered: each long wait forgets half.
const MOST: u8 = 8;

/// What is remembered of the waits for one client.
#[derive(Debug, Default)]
pub(super) struct Linger {
    short: u8,
}

impl Linger {
    /// Keeps the thread from sleeping in a wait that began then, if that is worth its while; never ends.
    pub(super) async fn look(&self, began: Instant) {
        if self.short >= ENOUGH {
            while began.elapsed() < LONGEST {
                tokio::task::yield_now().await;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Something came, after a wait.
    pub(super) fn waited(&mut self, time: Duration) {
        self.short = if time <= LONGEST { (self.short + 1).min(MOST) } else { self.short / 2 };
    }

    /// So many commands came at once.
    pub(super) fn took(&mut self, commands: usize) {
        if commands > 1 {
            self.short = 0;
        }
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
        assert!(linger.short < ENOUGH);
        for _ in 0..100 {
            linger.waited(SHORT);
        }
        assert!(linger.short >= ENOUGH);
        for _ in 0..3 {
            linger.waited(LONG);
        }
        assert!(linger.short < ENOUGH, "three long waits end it");
    }

    #[test]
    fn commands_that_come_together_are_let_gather() {
        let mut linger = Linger { short: MOST };
        linger.took(1);
        assert_eq!(linger.short, MOST);
        linger.took(2);
        assert_eq!(linger.short, 0);
    }
}
