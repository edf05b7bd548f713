//! Durable writes of the io_uring body: a thread of their own writes and flushes without coming back in between.
//!
//! Through the ring a write and its flush are two requests: the owner must be woken to submit the second, and the kernel gives a
//! flush to a worker of its own anyway. One thread that makes both calls saves two wake-ups of every batch, and the owner may
//! work for longer without holding up the flush.
//!
//! Invariant: one at a time, in the order of submission.
//! Invariant: the thread has ended when this is dropped, and every request has been carried out.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::gather::Gather;
use super::{Completion, Token, Told, Waker};

struct Request {
    token: Token,
    offset: u64,
    data: Gather,
    told: Option<Told>,
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
}

impl Committer {
    /// Starts the thread; `waker` ends the owner's sleep when something is done.
    pub(super) fn start(file: Arc<File>, waker: Waker) -> io::Result<Self> {
        let (requests, wanted) = channel();
        let done = Arc::<Mutex<Vec<Completion>>>::default();
        let said = Arc::clone(&done);
        let thread = std::thread::Builder::new().name("disk-commit".to_owned());
        let thread = thread.spawn(move || work(&file, &wanted, &said, &waker))?;
        Ok(Self { requests: Some(requests), done, thread: Some(thread), out: 0, told: None })
    }

    pub(super) fn submit(&mut self, token: Token, offset: u64, data: Gather) {
        let request = Request { token, offset, data, told: self.told.take() };
        let sent = self.requests.as_ref().map(|requests| requests.send(request));
        assert!(matches!(sent, Some(Ok(()))), "the thread lives as long as its queue");
        self.out += 1;
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
        self.requests = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a disk thread panicked");
        }
    }
}

fn work(file: &File, wanted: &Receiver<Request>, done: &Mutex<Vec<Completion>>, waker: &Waker) {
    while let Ok(Request { token, offset, data, told }) = wanted.recv() {
        let completion = write_durably(file, token, offset, data);
        if completion.result.is_ok()
            && let Some(told) = told
        {
            told();
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
        waker.wake();
    }
}
