//! What a group in the queue comes to, told in two steps: it is durable; then the index has it, or it failed.
//!
//! Who reads what it wrote elsewhere than in the index need not wait for the index.
//!
//! Invariant: a group is said to be durable only after a flush that covers it, whatever becomes of the index afterwards.
//! Invariant: each group ends once: with its answer, or with its disk.
//! Invariant: of a batch all groups are told before anybody is woken, and whoever waits for several of them is woken once: to wake one that
//! sleeps costs as much as the rest of a small write.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Lsn;
use super::shared::{DiskError, Shared};

type Outcome = Result<Lsn, DiskError>;

#[derive(Default)]
struct State {
    durable: bool,
    /// Its disk is gone, or the answer was given: nothing more comes.
    over: bool,
    outcome: Option<Outcome>,
    /// Who waits until it is durable.
    durability: Vec<Waker>,
    /// Who waits for its end.
    end: Option<Waker>,
}

#[derive(Default)]
struct Cell(Mutex<State>);

impl Cell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn durable(&self) {
        let mut state = self.state();
        state.durable = true;
        let waiting = std::mem::take(&mut state.durability);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The side of the disk.
pub(crate) struct Answer(Arc<Cell>);

impl Answer {
    pub(crate) fn new() -> (Self, Pending) {
        let cell = Arc::<Cell>::default();
        (Self(Arc::clone(&cell)), Pending(cell))
    }

    /// It is durable.
    pub(crate) fn durable(&self) {
        self.0.durable();
    }

    /// Who may say so too.
    pub(crate) fn announcer(&self) -> Announcer {
        Announcer(Arc::clone(&self.0))
    }

    /// Its end; who waits for it is woken later.
    pub(crate) fn tell(self, outcome: Outcome, waiting: &mut Waiting) {
        let mut state = self.0.state();
        (state.outcome, state.over) = (Some(outcome), true);
        std::mem::take(&mut state.durability)
            .into_iter()
            .chain(state.end.take())
            .for_each(|waker| waiting.add(waker));
    }
}

/// Who is to be woken when all are told.
#[derive(Default)]
pub(crate) struct Waiting(Vec<Waker>);

impl Waiting {
    fn add(&mut self, waker: Waker) {
        if !self.0.last().is_some_and(|last| last.will_wake(&waker)) {
            self.0.push(waker);
        }
    }

    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.over = true;
        let waiting = std::mem::take(&mut state.durability);
        let end = state.end.take();
        drop(state);
        waiting.into_iter().chain(end).for_each(Waker::wake);
    }
}

/// Says that a group is durable, before its disk has seen it.
pub(crate) struct Announcer(Arc<Cell>);

impl Announcer {
    pub(crate) fn durable(&self) {
        self.0.durable();
    }
}

/// The other side, before it knows its disk.
pub(crate) struct Pending(Arc<Cell>);

impl Pending {
    pub(crate) fn submitted(self, shared: &Arc<Shared>) -> Submitted {
        Submitted { cell: self.0, shared: Arc::clone(shared) }
    }
}

/// A group of records that is in a disk's queue.
pub struct Submitted {
    cell: Arc<Cell>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Submitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submitted").finish_non_exhaustive()
    }
}

impl Submitted {
    /// Waits as long as the durability that was asked for says.
    pub async fn done(mut self) -> Outcome {
        self.wait().await
    }

    /// As [`Submitted::done`], for who may stop waiting and begin again. To be called until it has answered once.
    pub async fn wait(&mut self) -> Outcome {
        poll_fn(|context| self.poll(context)).await
    }

    /// As [`Submitted::wait`], for who is woken by hand.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.cell.state();
        if !state.over {
            state.end = Some(context.waker().clone());
            return Poll::Pending;
        }
        let outcome = state.outcome.take();
        drop(state);
        Poll::Ready(outcome.unwrap_or_else(|| Err(self.shared.gone())))
    }

    /// The answer, if it is there. To be called until it has answered once.
    pub fn look(&mut self) -> Option<Outcome> {
        let mut state = self.cell.state();
        if !state.over {
            return None;
        }
        let outcome = state.outcome.take();
        drop(state);
        Some(outcome.unwrap_or_else(|| Err(self.shared.gone())))
    }

    /// To wait only until the group is durable, of one that was to be.
    #[must_use]
    pub fn durability(&self) -> Durable {
        Durable(Arc::clone(&self.cell))
    }
}

/// The first step of a [`Submitted`] group.
#[derive(Clone)]
pub struct Durable(Arc<Cell>);

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Durable").field(&self.0.state().durable).finish()
    }
}

impl Durable {
    /// Waits until the group is durable; false: it failed before.
    pub async fn wait(&self) -> bool {
        poll_fn(|context| {
            let mut state = self.0.state();
            if state.durable || state.over {
                return Poll::Ready(state.durable);
            }
            if !state.durability.iter().any(|waker| waker.will_wake(context.waker())) {
                state.durability.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn waits(pending: &Pending, waker: &Waker) {
        pending.0.state().end = Some(waker.clone());
    }

    #[test]
    fn who_waits_for_several_of_a_batch_is_woken_once_and_finds_all_told() {
        let [one, other] = [(), ()].map(|()| Arc::<Woken>::default());
        let (answers, asked): (Vec<_>, Vec<_>) = (0..5).map(|_| Answer::new()).unzip();
        for (n, pending) in asked.iter().enumerate() {
            waits(pending, &Waker::from(if n == 3 { other.clone() } else { one.clone() }));
        }
        let mut waiting = Waiting::default();
        answers.into_iter().for_each(|answer| answer.tell(Ok(7), &mut waiting));
        assert!(asked.iter().all(|pending| pending.0.state().over));
        let woken = || [&one, &other].map(|woken| woken.0.load(Ordering::SeqCst));
        assert_eq!(woken(), [0, 0]);
        waiting.wake();
        // The one before and the one after the other's.
        assert_eq!(woken(), [2, 1]);
    }

    #[test]
    fn who_waits_when_the_disk_goes_is_woken() {
        let (answer, pending) = Answer::new();
        let woken = Arc::<Woken>::default();
        waits(&pending, &Waker::from(woken.clone()));
        drop(answer);
        assert!(pending.0.state().over && pending.0.state().outcome.is_none());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }
}
