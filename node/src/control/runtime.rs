//! What consensus runs on: tokio's tasks and time, the operating system's randomness.

use std::time::{Duration, Instant};

use quarry_engine::consensus::{Runtime, Sleep};
use quarry_engine::object::BoxFuture;
use tokio::runtime::Handle;

use crate::storage::random_bytes;

/// The runtime that it is made in.
#[derive(Debug)]
pub(crate) struct Tokio {
    handle: Handle,
    begun: Instant,
}

impl Tokio {
    pub(crate) fn current() -> Self {
        Self { handle: Handle::current(), begun: Instant::now() }
    }
}

impl Runtime for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn random(&self) -> u64 {
        u64::from_le_bytes(random_bytes())
    }
}
