//! A ring for the reads of one caller, who is woken where it sleeps: by a descriptor, beside its sockets.
//!
//! Through the disk's thread a read costs two threads' wake-ups, which is most of the time of a small one on a fast disk. Reads that
//! are begun together cost one call of the kernel, and the device is rung for once.
//!
//! Invariant: a buffer that the kernel may touch is owned by a slot until its completion is seen.
//! Invariant: a lane keeps no device open: one that was closed is read no more.
//! Invariant: requests inside the kernel <= DEPTH < entries of the completion queue; the rest wait in `queue`.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use super::buffer::BufferPool;
use super::device::DeviceFile;
use super::uring::{Moves, Request, Verdict, verdict};
use super::{BLOCK, Completion, Token};

/// Requests inside the kernel at once.
const DEPTH: u32 = 64;

/// What lanes of a device are made from.
#[derive(Debug, Clone)]
pub struct Lanes {
    file: Weak<DeviceFile>,
    pool: Arc<BufferPool>,
    capacity: u64,
}

impl Lanes {
    pub(super) fn new(file: &Arc<DeviceFile>, pool: Arc<BufferPool>, capacity: u64) -> Self {
        Self { file: Arc::downgrade(file), pool, capacity }
    }
}

/// A ring that only reads.
pub(crate) struct ReadRing {
    ring: IoUring,
    event: OwnedFd,
    from: Lanes,
    slots: Vec<Option<Request>>,
    free: Vec<usize>,
    queue: VecDeque<usize>,
    in_kernel: u32,
}

impl ReadRing {
    /// A ring beside the device's own.
    pub(crate) fn open(from: Lanes) -> io::Result<Self> {
        // Completions are told when this side next enters the kernel, which it does all the time: no interrupt for each.
        let ring = IoUring::builder().dontfork().setup_coop_taskrun().build(DEPTH);
        let ring = ring.or_else(|_| IoUring::builder().dontfork().build(DEPTH))?;
        assert!(ring.params().cq_entries() > DEPTH);
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let (slots, free, queue) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { ring, event, from, slots, free, queue, in_kernel: 0 })
    }

    /// Becomes readable with each completion; edges count, it need not be read.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Nothing is out.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Queues a read of `len` bytes at `offset`, both multiples of [`BLOCK`], for the next [`ReadRing::begin`]. `None`: the device is
    /// closed.
    pub(crate) fn submit(&mut self, token: Token, offset: u64, len: usize) -> Option<io::Result<()>> {
        assert!(offset.is_multiple_of(BLOCK as u64), "offset {offset} is not a multiple of {BLOCK}");
        self.from.file.upgrade()?;
        if offset.checked_add(len as u64).is_none_or(|end| end > self.from.capacity) {
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let buf = self.from.pool.take(len);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Request { token, offset, moves: Moves::Into(buf), done: 0, retries: 0 });
        }
        self.queue.push_back(slot);
        Some(Ok(()))
    }

    /// Hands to the kernel what was submitted, all at once: what is not the device's any more is appended to `out`.
    pub(crate) fn begin(&mut self, out: &mut Vec<Completion>) {
        if self.queue.is_empty() {
            return;
        }
        match self.from.file.upgrade() {
            Some(file) => self.enter(&file),
            None => self.give_up(out),
        }
    }

    /// Hands to the kernel what it may hold.
    fn enter(&mut self, file: &File) {
        while self.in_kernel < DEPTH {
            let Some(slot) = self.queue.pop_front() else { break };
            let Some(request) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
                unreachable!("queued slots are in use")
            };
            let at = request.offset + request.done as u64;
            let Moves::Into(buf) = &mut request.moves else { unreachable!("a lane only reads") };
            let Some(rest) = buf.get_mut(request.done..) else {
                unreachable!("a read does not outgrow its buffer")
            };
            let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
            let entry = opcode::Read::new(Fd(file.as_raw_fd()), rest.as_mut_ptr(), len).offset(at).build();
            // SAFETY: the entry points into a buffer owned by the slot, kept until its completion.
            let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
            assert!(pushed.is_ok(), "the submission queue has DEPTH entries and no more are ever in use");
            self.in_kernel += 1;
        }
        while !self.ring.submission().is_empty() {
            match self.ring.submit().map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) => {}
                // Short of memory for a moment: what was not taken stays in the submission queue.
                Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM), _)) => {
                    std::thread::yield_now();
                }
                Err((_, error)) => panic!("io_uring_enter refused a ring that worked: {error}"),
            }
        }
    }

    /// Takes every answer that is there.
    pub(crate) fn collect(&mut self, out: &mut Vec<Completion>) {
        loop {
            let Some(answer) = self.ring.completion().next() else { break };
            self.in_kernel -= 1;
            let slot = usize::try_from(answer.user_data()).unwrap_or(usize::MAX);
            let Some(place) = self.slots.get_mut(slot) else { unreachable!("answers are for slots in use") };
            let Some(request) = place.as_mut() else { unreachable!("answers are for slots in use") };
            match verdict(request, answer.result()) {
                Verdict::Again => self.queue.push_front(slot),
                Verdict::Finished(result) => {
                    let Some(request) = place.take() else { unreachable!("looked at above") };
                    self.free.push(slot);
                    out.push(request.completed(result));
                }
            }
        }
        self.begin(out);
    }

    /// The device is closed: what the kernel does not have yet ends.
    fn give_up(&mut self, out: &mut Vec<Completion>) {
        while let Some(slot) = self.queue.pop_front() {
            let request = self.slots.get_mut(slot).and_then(Option::take);
            self.free.push(slot);
            out.extend(request.map(|request| request.completed(Err(io::ErrorKind::NotConnected.into()))));
        }
    }
}

impl Drop for ReadRing {
    fn drop(&mut self) {
        // What is out ends by itself. The memory is ours: it may not go before.
        while self.in_kernel > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                tracing::error!(%error, "wait for the reads of a lane that ends");
            }
            while self.ring.completion().next().is_some() {
                self.in_kernel -= 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
