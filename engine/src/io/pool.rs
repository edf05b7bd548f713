//! The pread/pwrite body of the disk seam: a few threads, for places where io_uring is refused.
//!
//! Invariant: requests queued + running + finished but not reaped <= MAX_REQUESTS.
//! Invariant: every worker has ended when the disk is dropped, and every request has been carried out.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::{AlignedBuf, BufferPool};
use super::commit::{write_all, write_durably};
use super::device::DeviceFile;
use super::{Completion, Disk, Geometry, MAX_REQUESTS, Op, Wait, Wake, Waker, check_range};

/// Threads per disk: enough for a flush, a write and some reads side by side.
const WORKERS: usize = 4;

#[derive(Default)]
struct State {
    queue: VecDeque<Op>,
    done: Vec<Completion>,
    unreaped: usize,
    woken: bool,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    answer: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Shared {
    fn wake(&self) {
        self.lock().woken = true;
        self.answer.notify_one();
    }
}

pub(crate) struct PoolDisk {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    geometry: Geometry,
    pool: Arc<BufferPool>,
}

impl PoolDisk {
    /// Start the workers over an open device.
    pub(super) fn new(file: &Arc<DeviceFile>, geometry: Geometry) -> io::Result<Self> {
        let mut disk =
            Self { shared: Arc::default(), workers: Vec::new(), geometry, pool: BufferPool::new() };
        for number in 0..WORKERS {
            let (shared, file) = (Arc::clone(&disk.shared), Arc::clone(file));
            let thread = std::thread::Builder::new().name(format!("disk-io-{number}"));
            disk.workers.push(thread.spawn(move || work(&shared, &file))?);
        }
        Ok(disk)
    }
}

fn work(shared: &Shared, file: &File) {
    let mut state = shared.lock();
    loop {
        let Some(op) = state.queue.pop_front() else {
            if state.closing {
                return;
            }
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        let completion = perform(file, op);
        state = shared.lock();
        state.done.push(completion);
        shared.answer.notify_one();
    }
}

fn perform(file: &File, op: Op) -> Completion {
    match op {
        Op::Read { token, offset, mut buf } => {
            let result = file.read_exact_at(&mut buf, offset);
            Completion { token, result, buf: Some(buf) }
        }
        Op::Write { token, offset, data } => {
            let result = write_all(file, offset, &data);
            drop(data);
            Completion { token, result, buf: None }
        }
        Op::WriteDurably { token, offset, data } => write_durably(file, token, offset, data),
        Op::Flush { token } => Completion { token, result: file.sync_data(), buf: None },
    }
}

impl Disk for PoolDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, op: Op) {
        let mut state = self.shared.lock();
        assert!(state.unreaped < MAX_REQUESTS, "more than {MAX_REQUESTS} requests in flight");
        state.unreaped += 1;
        match check_range(self.geometry.capacity, op) {
            Ok(op) => state.queue.push_back(op),
            Err(refused) => state.done.push(refused),
        }
        drop(state);
        self.shared.work.notify_one();
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a bounded sleep needs a deadline; nothing else sees the time"
    )]
    fn reap(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        let mut state = self.shared.lock();
        if let Wait::AtMost(limit) = wait {
            let deadline = Instant::now().checked_add(limit.min(Duration::from_secs(3600)));
            while state.done.is_empty() && !state.woken {
                let left =
                    deadline.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
                if left.is_zero() {
                    break;
                }
                let slept = self.shared.answer.wait_timeout(state, left);
                state = slept.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.done.is_empty() {
                state.woken = false;
            }
        }
        state.unreaped -= state.done.len();
        out.append(&mut state.done);
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.shared) as Waker
    }

    fn name(&self) -> &'static str {
        "pread"
    }

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.pool.take(len)
    }
}

impl Drop for PoolDisk {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}
