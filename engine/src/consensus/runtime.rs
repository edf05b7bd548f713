//! What a group runs on: tasks, time and randomness, brought by `node` or by a simulation.
//!
//! openraft asks its runtime by functions without a receiver. So each task carries its runtime: while it is polled, the runtime
//! is in a thread-local, and what it spawns inherits it. Nothing is global; many runtimes may live in one process.
//!
//! Invariant: nothing of a group is polled but within [`scope`].

use std::cell::RefCell;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use openraft::async_runtime::AsyncOneshotSendExt;
use openraft::{AsyncRuntime, OptionalSend};
use tokio::sync::oneshot;

use crate::object::BoxFuture;

/// A future that resolves when its time has come.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Tasks, time and randomness.
pub trait Runtime: Send + Sync {
    /// Run this to its end, beside everything else.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Time since some moment, never running backwards.
    fn now(&self) -> Duration;
    /// Resolves after so much time.
    fn sleep(&self, time: Duration) -> Sleep;
    /// A random number, for times of elections.
    fn random(&self) -> u64;
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Runtime>>> = const { RefCell::new(None) };
}

fn current() -> Arc<dyn Runtime> {
    CURRENT.with_borrow(|current| {
        let Some(runtime) = current else { unreachable!("what belongs to a group is polled in its scope") };
        Arc::clone(runtime)
    })
}

/// A future that is polled with a runtime at hand.
pub(crate) struct Scoped<F> {
    runtime: Arc<dyn Runtime>,
    future: Pin<Box<F>>,
}

/// Polls `future` with this runtime at hand.
pub(crate) fn scope<F: Future>(runtime: Arc<dyn Runtime>, future: F) -> Scoped<F> {
    Scoped { runtime, future: Box::pin(future) }
}

/// Calls `f` with this runtime at hand.
#[cfg(test)]
pub(crate) fn within<T>(runtime: Arc<dyn Runtime>, f: impl FnOnce() -> T) -> T {
    let _restore = Restore(CURRENT.replace(Some(runtime)));
    f()
}

struct Restore(Option<Arc<dyn Runtime>>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _restore = Restore(CURRENT.replace(Some(Arc::clone(&self.runtime))));
        self.future.as_mut().poll(context)
    }
}

/// openraft's runtime: whichever is at hand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ambient;

/// A moment of the runtime at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, time: Duration) {
        *self = *self - time;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl openraft::Instant for Moment {
    fn now() -> Self {
        Self(current().now())
    }
}

/// A task ended without a result: it panicked, or its runtime is gone.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("task ended without a result")]
pub(crate) struct Ended;

/// Waits for a task's result.
pub(crate) struct Join<T>(oneshot::Receiver<T>);

impl<T> Future for Join<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.map_err(|_| Ended))
    }
}

/// The time came first.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("time is over")]
pub(crate) struct TimeOver;

/// A future, unless its time comes first.
pub(crate) struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, TimeOver>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(done) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        self.sleep.as_mut().poll(context).map(|()| Err(TimeOver))
    }
}

/// Random numbers of the runtime at hand.
pub(crate) struct Draw(Arc<dyn Runtime>);

impl rand_core::RngCore for Draw {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.0.random() >> 32).unwrap_or(0)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.random()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        rand_core::impls::fill_bytes_via_next(self, bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

/// Sends one value.
pub(crate) struct Once<T>(oneshot::Sender<T>);

impl<T> std::fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

impl<T: OptionalSend> AsyncOneshotSendExt<T> for Once<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

impl AsyncRuntime for Ambient {
    type JoinError = Ended;
    type JoinHandle<T: OptionalSend + 'static> = Join<T>;
    type Sleep = Sleep;
    type Instant = Moment;
    type TimeoutError = TimeOver;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = Draw;
    type OneshotSender<T: OptionalSend> = Once<T>;
    type OneshotReceiverError = oneshot::error::RecvError;
    type OneshotReceiver<T: OptionalSend> = oneshot::Receiver<T>;

    fn spawn<T>(future: T) -> Join<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let runtime = current();
        let (result, join) = oneshot::channel();
        let task = scope(Arc::clone(&runtime), async move {
            // Whoever spawned it may not care.
            let _gone = result.send(future.await);
        });
        runtime.spawn(Box::pin(task));
        Join(join)
    }

    fn sleep(duration: Duration) -> Sleep {
        current().sleep(duration)
    }

    fn sleep_until(deadline: Moment) -> Sleep {
        let runtime = current();
        let left = deadline.0.saturating_sub(runtime.now());
        runtime.sleep(left)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Moment, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep_until(deadline) }
    }

    fn is_panic(_: &Ended) -> bool {
        false
    }

    fn thread_rng() -> Draw {
        Draw(current())
    }

    fn oneshot<T: OptionalSend>() -> (Once<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Once(sender), receiver)
    }
}
