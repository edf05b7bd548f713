//! How long the thread of a client looks for what comes next before it sleeps ([`Linger`] says when).
//!
//! A client that has many commands open is served best by sleeping: they gather meanwhile.
//!
//! Invariant: nobody looks for a client that asks nothing.

use std::time::Instant;

use quarry_engine::disk::Lane;
use quarry_engine::io::Linger;

/// Keeps the thread from sleeping in a wait that began then, if that is worth its while; ends when its lane has read something.
pub(super) async fn look(linger: &Linger, began: Instant, lane: Option<&Lane>) {
    while linger.is_worth_it() && began.elapsed() < Linger::LONGEST {
        // First others of this processor, the client perhaps, then the disk, then other tasks of this thread, and what its sockets
        // have.
        std::thread::yield_now();
        if lane.is_some_and(Lane::collect) {
            return;
        }
        tokio::task::yield_now().await;
    }
    std::future::pending::<()>().await;
}

/// So many commands came at once.
pub(super) fn took(linger: &mut Linger, commands: usize) {
    if commands > 1 {
        linger.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_come_together_are_let_gather() {
        let mut linger = Linger::default();
        for _ in 0..8 {
            linger.waited(Linger::LONGEST / 2);
        }
        took(&mut linger, 1);
        assert!(linger.is_worth_it());
        took(&mut linger, 2);
        assert!(!linger.is_worth_it());
    }
}
