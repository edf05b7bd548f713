//! Time, and work that runs beside its caller.
//!
//! Invariant: what is launched moves on however seldom its caller looks: a transport's deadlines run all the same.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use super::replica::BoxFuture;
use super::store::Spawn;
use crate::net::{MonotonicClock, Timer};

/// The time, as the node hands it in.
#[derive(Clone)]
pub struct Time {
    /// Ends waits.
    pub timer: Timer,
    /// Time since some moment, never running backwards.
    pub now: MonotonicClock,
}

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Time").field("now", &(self.now)()).finish_non_exhaustive()
    }
}

/// What becomes of launched work when nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    /// It is dropped.
    Drop,
    /// It runs to its end.
    Finish,
}

/// The result of work that runs by itself; `None` when the node stops before it ends. Without a `spawn` it runs as its caller
/// looks.
pub(crate) fn launch<T: Send + 'static>(
    spawn: Option<&Spawn>,
    mut work: BoxFuture<'static, T>,
    unwanted: Unwanted,
) -> BoxFuture<'static, Option<T>> {
    let Some(spawn) = spawn else { return Box::pin(async move { Some(work.await) }) };
    let (mut reply, answer) = oneshot::channel();
    spawn(Box::pin(async move {
        let result = poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if unwanted == Unwanted::Finish => Poll::Pending,
            Poll::Pending => reply.poll_closed(context).map(|()| None),
        });
        if let Some(result) = result.await {
            // The caller may have gone.
            let _gone = reply.send(result);
        }
    }));
    Box::pin(async move { answer.await.ok() })
}

/// Waits, where there is a time; else for ever.
pub(crate) fn wait(time: Option<&Time>, how_long: Duration) -> BoxFuture<'static, ()> {
    match time {
        Some(time) => (time.timer)(how_long),
        None => Box::pin(std::future::pending()),
    }
}
