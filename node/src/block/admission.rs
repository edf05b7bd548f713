//! Who may come in: clients that have not agreed yet, and those that have.
//!
//! Invariant: who has not agreed takes no place of those who have. No more of them are there than [`MOST_WAITING`]: when one more comes,
//! the one that has waited longest is shown out, so that nobody keeps others out by saying nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Clients that have not agreed, at most. Each takes a buffer of 64 KiB, and what TLS needs.
const MOST_WAITING: usize = 256;

/// The places of all listeners together.
#[derive(Debug)]
pub(super) struct Admission {
    places: Arc<Semaphore>,
    waiting: Mutex<VecDeque<oneshot::Sender<()>>>,
}

/// A client's place in a volume.
pub(super) type Place = OwnedSemaphorePermit;

impl Admission {
    /// `most`: clients that have agreed.
    pub(super) fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), waiting: Mutex::default() }
    }

    /// A client comes, which has not agreed as long as it keeps what this returns; it is told when it has to go.
    pub(super) fn come(&self) -> oneshot::Receiver<()> {
        let (show_out, shown_out) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST_WAITING {
            waiting.retain(|client| !client.is_closed());
        }
        if waiting.len() >= MOST_WAITING
            && let Some(longest) = waiting.pop_front()
        {
            // One that has agreed meanwhile does not hear it.
            let _agreed = longest.send(());
        }
        waiting.push_back(show_out);
        shown_out
    }

    /// A place for one that is about to agree, if there is any.
    pub(super) fn place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_longest_makes_room_and_those_who_agreed_do_not_count() {
        let admission = Admission::new(1);
        let mut early: Vec<_> = (0..MOST_WAITING).map(|_| admission.come()).collect();
        early.remove(0);
        let mut waiting = Vec::new();
        waiting.push(admission.come());
        assert!(early.iter_mut().all(|client| client.try_recv().is_err()), "there was room: one had agreed");
        waiting.push(admission.come());
        assert!(early[0].try_recv().is_ok());
        assert!(early[1..].iter_mut().chain(&mut waiting).all(|client| client.try_recv().is_err()));
        assert_eq!(admission.waiting.lock().unwrap().len(), MOST_WAITING);
    }
}
