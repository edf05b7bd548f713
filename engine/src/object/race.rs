//! One answer wanted, asked for of one replica after another: the next when one fails, is slow, or stalls.
//!
//! Invariant: the first good answer wins; what is still asked then is dropped, and so cancelled.
//! Invariant: a second replica is asked before the first has stalled only while the [`Budget`] lasts.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::health::Budget;
use super::launch::{Time, wait};
use super::limits::STALL;
use super::replica::BoxFuture;

/// One replica, asked.
pub(crate) struct Attempt<T, E> {
    pub(crate) work: BoxFuture<'static, Result<T, E>>,
    /// When another may be asked beside it.
    pub(crate) patience: Duration,
}

enum Wait {
    /// For a hedge; then so long until it counts as stalled.
    Hedge(BoxFuture<'static, ()>, Duration),
    Stall(BoxFuture<'static, ()>),
}

/// A race under way.
struct Race<'a, T, E> {
    running: Vec<BoxFuture<'static, Result<T, E>>>,
    errors: Vec<E>,
    wait: Option<Wait>,
    time: Option<&'a Time>,
    budget: &'a Mutex<Budget>,
}

/// The first good answer, or every error. `next` asks one more.
pub(crate) async fn race<T, E>(
    time: Option<&Time>,
    budget: &Mutex<Budget>,
    mut next: impl FnMut() -> Option<Attempt<T, E>>,
) -> Result<T, Vec<E>> {
    let (running, errors) = (Vec::with_capacity(1), Vec::new());
    let mut race = Race { running, errors, wait: None, time, budget };
    race.budget().read();
    let mut more = race.begin(&mut next);
    poll_fn(|context| {
        loop {
            match race.step(context) {
                Poll::Ready(Some(answer)) => return Poll::Ready(Ok(answer)),
                Poll::Ready(None) if more => more = race.begin(&mut next),
                Poll::Ready(None) | Poll::Pending if race.running.is_empty() => {
                    return Poll::Ready(Err(std::mem::take(&mut race.errors)));
                }
                Poll::Ready(None) => race.wait = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

impl<T, E> Race<'_, T, E> {
    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one more; false when there is nobody.
    fn begin(&mut self, next: &mut impl FnMut() -> Option<Attempt<T, E>>) -> bool {
        let Some(Attempt { work, patience }) = next() else {
            self.wait = None;
            return false;
        };
        let first = self.running.is_empty() && self.errors.is_empty();
        self.running.push(work);
        self.wait = self.time.map(|time| {
            if first && patience < STALL {
                Wait::Hedge((time.timer)(patience), STALL - patience)
            } else {
                Wait::Stall((time.timer)(STALL))
            }
        });
        true
    }

    /// An answer; or `None`: one more should be asked.
    fn step(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut failed = false;
        let mut at = 0;
        while let Some(work) = self.running.get_mut(at) {
            match work.as_mut().poll(context) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(Some(answer)),
                Poll::Ready(Err(e)) => {
                    drop(self.running.swap_remove(at));
                    self.errors.push(e);
                    failed = true;
                }
                Poll::Pending => at += 1,
            }
        }
        if failed { Poll::Ready(None) } else { self.is_slow(context) }
    }

    fn is_slow(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(Wait::Hedge(delay, left)) = &mut self.wait
            && delay.as_mut().poll(context).is_ready()
        {
            let left = *left;
            if self.budget().take() {
                return Poll::Ready(None);
            }
            self.wait = Some(Wait::Stall(wait(self.time, left)));
        }
        match &mut self.wait {
            Some(Wait::Stall(stall)) => stall.as_mut().poll(context).map(|()| None),
            _ => Poll::Pending,
        }
    }
}
