//! A few futures that move on together, finished in order or not.
//!
//! Invariant: everything in here has been polled at least once when a call returns, so that it is submitted.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use super::replica::BoxFuture;

enum Slot<T> {
    Running(BoxFuture<'static, T>),
    Done(T),
}

/// Futures in order of their start.
pub(crate) struct InFlight<T> {
    slots: VecDeque<Slot<T>>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { slots: VecDeque::new() }
    }
}

impl<T> InFlight<T> {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    fn poll_all(&mut self, context: &mut Context<'_>) {
        for slot in &mut self.slots {
            if let Slot::Running(future) = slot
                && let Poll::Ready(result) = future.as_mut().poll(context)
            {
                *slot = Slot::Done(result);
            }
        }
    }

    /// Starts a future.
    pub(crate) async fn push(&mut self, future: BoxFuture<'static, T>) {
        self.slots.push_back(Slot::Running(future));
        poll_fn(|context| {
            self.poll_all(context);
            Poll::Ready(())
        })
        .await;
    }

    /// The result of the oldest, while all others move on; `None` when there is none.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|context| {
            self.poll_all(context);
            match self.slots.pop_front() {
                None => Poll::Ready(None),
                Some(Slot::Done(result)) => Poll::Ready(Some(result)),
                Some(running) => {
                    self.slots.push_front(running);
                    Poll::Pending
                }
            }
        })
        .await
    }
}
