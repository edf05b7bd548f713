//! Threads that serve NBD clients, each with a runtime of its own.
//!
//! What a client waits for wakes the one thread that serves it. The node's runtime, whose threads share their tasks, wakes two or
//! three for each request, which is most of what a small one costs.
//!
//! Invariant: a client stays where it was begun, and so does what its commands spawn.
//! Invariant: the threads end when the listeners have.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// More would not serve sooner: volumes are bounded by their disks.
const MOST: usize = 8;

/// The threads.
#[derive(Debug)]
pub(super) struct Threads {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    _running: Vec<oneshot::Sender<()>>,
}

impl Threads {
    /// As many as there are processors. Where the system gives none, clients are served by the node's runtime.
    pub(super) fn start() -> Self {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST);
        let started = (0..count).filter_map(|number| {
            start(number).inspect_err(|error| tracing::warn!(%error, "start a thread for NBD clients")).ok()
        });
        let (runtimes, running) = started.unzip();
        Self { runtimes, next: AtomicUsize::new(0), _running: running }
    }

    /// Where the next client is served.
    pub(super) fn next(&self) -> Option<&Handle> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.runtimes.get(turn.checked_rem(self.runtimes.len())?)
    }
}

fn start(number: usize) -> std::io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (running, ended) = oneshot::channel();
    std::thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
        // The other side only ever goes.
        let _gone = runtime.block_on(ended);
        runtime.shutdown_background();
    })?;
    Ok((handle, running))
}
