//! Durable writes of the io_uring body: a thread of their own writes and flushes without coming back in between.
//!
//! Through the ring a write and its flush are two requests: the owner must be woken to submit the second, and the kernel gives a
//! flush to a worker of its own anyway. One thread that makes both calls saves two wake-ups of every batch, and the owner may
//! work for longer without holding up the flush. An owner that has nothing else to do makes them itself, where the device is quick:
//! that saves the other two.
//!
//! Invariant: one at a time, in the order of submission; behind one that failed, none.
//! Invariant: the owner makes them only while nothing else is out and none of late took long: a slow device holds up no reads.
//! Invariant: the thread has ended when this is dropped, and every request has been carried out.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::device::DeviceFile;
use super::gather::Gather;
use super::{Completion, Token, Told, Waker};

/// Beside what takes no longer the time to be woken counts.
const QUICK: Duration = Duration::from_micros(400);
/// What takes no longer the owner does itself: waking the thread and being woken by it is a part of that worth saving. Longer than
/// that nobody's reads wait for it.
const OWN: Duration = Duration::from_millis(1);

struct Request {
    token: Token,
    offset: u64,
    data: Gather,
    told: Option<Told>,
}

impl Request {
    #[expect(clippy::disallowed_methods, reason = "how long a device takes is known from nowhere else")]
    fn carry_out(self, file: &File, past: &Past) -> Completion {
        if past.failed.load(Ordering::Relaxed) {
            drop(self.data);
            let result = Err(io::Error::other("a durable write before it failed"));
            return Completion { token: self.token, result, buf: None };
        }
        let began = Instant::now();
        let completion = write_durably(file, self.token, self.offset, self.data);
        past.usual.note(began.elapsed());
        match (&completion.result, self.told) {
            (Ok(()), Some(told)) => told(),
            (Ok(()), None) => {}
            (Err(_), _) => past.failed.store(true, Ordering::Relaxed),
        }
        completion
    }
}

/// Writes all pieces.
pub(super) fn write_all(file: &File, offset: u64, data: &Gather) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        let slices: Vec<IoSlice<'_>> = data.slices(done).map(IoSlice::new).collect();
        match rustix::io::pwritev(file, &slices, offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(moved) => done += moved,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes `data` and makes it durable, with all that was written before.
pub(super) fn write_durably(file: &File, token: Token, offset: u64, data: Gather) -> Completion {
    let result = write_all(file, offset, &data).and_then(|()| file.sync_data());
    // Its buffers are free before anybody hears that they are.
    drop(data);
    Completion { token, result, buf: None }
}

/// The thread and its two queues.
pub(super) struct Committer {
    requests: Option<Sender<Request>>,
    done: Arc<Mutex<Vec<Completion>>>,
    thread: Option<JoinHandle<()>>,
    out: usize,
    /// Of the next request.
    told: Option<Told>,
    /// Submitted, not yet begun.
    held: Option<Request>,
    file: Arc<DeviceFile>,
    past: Arc<Past>,
}

/// What is known of those that were carried out, one at a time, whoever did it.
#[derive(Default)]
struct Past {
    usual: Usual,
    failed: AtomicBool,
}

/// How long it takes of late, in nanoseconds.
#[derive(Default)]
struct Usual(AtomicU64);

impl Usual {
    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.0.load(Ordering::Relaxed);
        let now = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.0.store(now, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos > 0).then_some(Duration::from_nanos(nanos))
    }
}

impl Committer {
    /// Starts the thread; `waker` ends the owner's sleep when something is done.
    pub(super) fn start(file: Arc<DeviceFile>, waker: Waker) -> io::Result<Self> {
        let (requests, wanted) = channel::<Request>();
        let done = Arc::<Mutex<Vec<Completion>>>::default();
        let said = Arc::clone(&done);
        let thread = std::thread::Builder::new().name("disk-commit".to_owned());
        let past = Arc::<Past>::default();
        let (its, noted) = (Arc::clone(&file), Arc::clone(&past));
        let thread = thread.spawn(move || {
            while let Ok(request) = wanted.recv() {
                let completion = request.carry_out(&its, &noted);
                said.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
                waker.wake();
            }
        })?;
        let (requests, thread) = (Some(requests), Some(thread));
        Ok(Self { requests, done, thread, out: 0, told: None, held: None, file, past })
    }

    /// Begins with the next [`Committer::send`], or is carried out by [`Committer::carry_out`].
    pub(super) fn submit(&mut self, token: Token, offset: u64, data: Gather) {
        self.send();
        self.held = Some(Request { token, offset, data, told: self.told.take() });
    }

    /// Has the thread begin what was submitted.
    pub(super) fn send(&mut self) {
        let Some(request) = self.held.take() else { return };
        let sent = self.requests.as_ref().map(|requests| requests.send(request));
        assert!(matches!(sent, Some(Ok(()))), "the thread lives as long as its queue");
        self.out += 1;
    }

    /// Whether an owner that would only sleep meanwhile does better to do it itself.
    pub(super) fn is_for_the_owner(&self) -> bool {
        self.held.is_some() && self.out == 0 && self.took_at_most(OWN)
    }

    /// Whether those of late were.
    pub(super) fn were_quick(&self) -> bool {
        self.took_at_most(QUICK)
    }

    fn took_at_most(&self, time: Duration) -> bool {
        self.past.usual.get().is_some_and(|usual| usual <= time)
    }

    /// Nothing is submitted, nor out.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_none() && self.out == 0
    }

    /// Carries out what was submitted, here and now.
    pub(super) fn carry_out(&mut self) -> Option<Completion> {
        let request = self.held.take()?;
        Some(request.carry_out(&self.file, &self.past))
    }

    #[cfg(test)]
    pub(super) fn set_usual(&self, usual: Duration) {
        self.past.usual.0.store(u64::try_from(usual.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Called once the next request has succeeded.
    pub(super) fn announce(&mut self, told: Told) {
        self.told = Some(told);
    }

    /// Takes what is done.
    pub(super) fn collect(&mut self, out: &mut Vec<Completion>) {
        if self.out > 0 {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            self.out -= done.len();
            out.append(&mut done);
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.send();
        self.requests = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a disk thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    use super::super::{AlignedBuf, BLOCK, Wake};
    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    /// The second would have been durable, and told so, with nothing before it.
    #[test]
    fn behind_a_durable_write_that_failed_none_is_carried_out() {
        let file: File = memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap().into();
        file.set_len(BLOCK as u64).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        let file = Arc::new(DeviceFile::from(file));
        let mut committer = Committer::start(Arc::clone(&file), Arc::new(Nobody)).unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let mut submit = |token, offset| {
            let told = Arc::clone(&told);
            committer.announce(Box::new(move || {
                told.fetch_add(token, Ordering::Relaxed);
            }));
            let mut data = AlignedBuf::zeroed(BLOCK);
            data.fill(7);
            committer.submit(token, offset, data.into());
        };
        // The file does not grow.
        submit(1, BLOCK as u64);
        submit(2, 0);
        submit(3, 0);
        committer.send();
        let mut done = Vec::new();
        while done.len() < 3 {
            committer.collect(&mut done);
            std::thread::yield_now();
        }
        let ends: Vec<(Token, bool)> = done.iter().map(|one| (one.token, one.result.is_ok())).collect();
        assert_eq!(ends, [(1, false), (2, false), (3, false)]);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&**file, &mut byte, 0).unwrap();
        assert_eq!(byte, [0], "nothing was written behind it");
    }
}
