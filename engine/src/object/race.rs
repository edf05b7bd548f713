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
    wanted: usize,
    good: Vec<T>,
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
    next: impl FnMut() -> Option<Attempt<T, E>>,
) -> Result<T, Vec<E>> {
    gather(time, budget, 1, next).await.and_then(|good| good.into_iter().next().ok_or_else(Vec::new))
}

/// The first `wanted` good answers, or every error: so many are asked at once, and more as some fail or are slow.
pub(crate) async fn gather<T, E>(
    time: Option<&Time>,
    budget: &Mutex<Budget>,
    wanted: usize,
    mut next: impl FnMut() -> Option<Attempt<T, E>>,
) -> Result<Vec<T>, Vec<E>> {
    let (good, running, errors) = (Vec::with_capacity(wanted), Vec::with_capacity(wanted), Vec::new());
    let mut race = Race { wanted, good, running, errors, wait: None, time, budget };
    race.budget().read();
    let mut more = race.begin(&mut next);
    while more && race.running.len() < wanted {
        more = race.begin(&mut next);
    }
    poll_fn(|context| {
        loop {
            match race.step(context) {
                Poll::Ready(Some(answers)) => return Poll::Ready(Ok(answers)),
                Poll::Ready(None) if more => more = race.begin(&mut next),
                Poll::Ready(None) | Poll::Pending if race.is_short() => {
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

    /// Whether those that are asked do not suffice.
    fn is_short(&self) -> bool {
        self.running.len() + self.good.len() < self.wanted
    }

    /// Asks one more; false when there is nobody.
    fn begin(&mut self, next: &mut impl FnMut() -> Option<Attempt<T, E>>) -> bool {
        let Some(Attempt { work, patience }) = next() else {
            self.wait = None;
            return false;
        };
        let first = self.is_short() && self.errors.is_empty();
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

    /// All answers; or `None`: one more should be asked.
    fn step(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<T>>> {
        let mut failed = false;
        let mut at = 0;
        while let Some(work) = self.running.get_mut(at) {
            match work.as_mut().poll(context) {
                Poll::Ready(Ok(answer)) => {
                    drop(self.running.swap_remove(at));
                    self.good.push(answer);
                    if self.good.len() == self.wanted {
                        return Poll::Ready(Some(std::mem::take(&mut self.good)));
                    }
                }
                Poll::Ready(Err(e)) => {
                    drop(self.running.swap_remove(at));
                    self.errors.push(e);
                    failed = true;
                }
                Poll::Pending => at += 1,
            }
        }
        if failed || self.is_short() { Poll::Ready(None) } else { self.is_slow(context) }
    }

    fn is_slow(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<T>>> {
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
