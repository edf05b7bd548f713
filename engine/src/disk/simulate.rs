//! Drives a disk's core without threads or time of its own: for simulations by seed and for tests.
//!
//! Invariant: the same disk, index, futures and order of polls give the same history.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::cache::CacheBytes;
use super::catalog::Catalog;
use super::core::{Core, Turn};
use super::handle::DiskHandle;
use super::open::{Open, OpenError, open};
use super::recovery::Report;
use crate::index::Index;
use crate::io::{Disk, Wait};

/// Turns without any progress after which a simulation is stuck: our bug.
const STUCK: u32 = 100_000;

/// A disk whose core turns only when the simulation says so.
pub struct SimulatedDisk {
    core: Core,
    handle: DiskHandle,
    index: Arc<dyn Index>,
    now: Duration,
    closed: bool,
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedDisk").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    /// Opens a device: recovery runs here.
    pub fn open(
        disk: Box<dyn Disk>,
        index: Arc<dyn Index>,
        catalog: Arc<dyn Catalog>,
    ) -> Result<(Self, Report), OpenError> {
        let options = Open {
            cluster: None,
            cache_bytes: CacheBytes { small: 1 << 20, large: 4 << 20 },
            progress: &mut |_, _| {},
        };
        let opened = open(disk, index.clone(), catalog, options)?;
        let sim =
            Self { core: opened.core, handle: opened.handle, index, now: Duration::ZERO, closed: false };
        Ok((sim, opened.report))
    }

    /// The handle that callers use.
    #[must_use]
    pub fn handle(&self) -> DiskHandle {
        self.handle.clone()
    }

    /// One turn of the core, one millisecond of its time, and the checkpoint it asks for, if any.
    pub fn turn(&mut self) {
        if self.closed {
            return;
        }
        self.now += Duration::from_millis(1);
        self.closed = self.core.turn(self.now, Wait::Never) == Turn::Closed;
        if let Some(farewell) = self.core.farewell.take() {
            farewell.say();
        }
        if self.core.take_checkpoint() {
            let result = self.index.checkpoint();
            self.core.checkpointed(result);
            self.core.shared.look_for_room();
        }
    }

    /// Lets time pass for the core: what is due by time is due at the next turn.
    pub fn pass(&mut self, by: Duration) {
        self.now += by;
    }

    /// A batch is being written while a flush is out.
    #[cfg(test)]
    pub(super) fn writes_beside_a_flush(&self) -> bool {
        self.core.writing.is_some() && self.core.flushing.is_some()
    }

    /// What the next batch changes is known before it is durable.
    #[cfg(test)]
    pub(super) fn knows_what_comes_next(&self) -> bool {
        self.core.prepared.is_some()
    }

    /// Polls `future` and turns the core in turns until it is ready.
    pub fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..STUCK {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.turn();
        }
        panic!("simulation is stuck: a future waits for something that never comes");
    }

    /// Runs all futures side by side, polled in order between turns; results in order.
    pub fn run_all<T>(&mut self, futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
        let mut futures: Vec<_> = futures.into_iter().map(Some).collect();
        let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..STUCK {
            for (slot, result) in futures.iter_mut().zip(&mut results) {
                if let Some(future) = slot
                    && let Poll::Ready(output) = future.as_mut().poll(&mut context)
                {
                    (*slot, *result) = (None, Some(output));
                }
            }
            if results.iter().all(Option::is_some) {
                return results.into_iter().flatten().collect();
            }
            self.turn();
        }
        panic!("simulation is stuck: {} futures wait", results.iter().filter(|r| r.is_none()).count());
    }
}
