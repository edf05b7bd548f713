//! The io_uring body of the disk seam.
//!
//! Invariant: memory that the kernel may touch is owned by a slot of `inflight` until its completion is seen.
//! Invariant: requests inside the kernel <= DEPTH < entries of the completion queue, which so never overflows.
//! Invariant: the eventfd is written only by the waker that found the owner asleep (and once by drop).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::buffer::{AlignedBuf, BufferPool, CLASSES, SMALL_CLASSES, SizeClass};
use super::commit::Committer;
use super::device::DeviceFile;
use super::gather::{Gather, Vectors};
use super::lane::Lanes;
use super::linger::{self, Linger};
use super::{Completion, Disk, Geometry, MAX_REQUESTS, Op, Token, Told, Wait, Wake, Waker, check_range};

/// Requests inside the kernel at once; the rest wait in `queue`.
const DEPTH: u32 = 256;
/// `user_data` of the read on the eventfd. Slots count from zero and never get here.
const WAKE: u64 = u64::MAX;
/// Times that one request is sent again after EINTR or EAGAIN before the error counts.
const RETRIES: u32 = 1000;
const DISK: Fixed = Fixed(0);
const EVENT: Fixed = Fixed(1);

/// What a request moves, and where to.
pub(super) enum Moves {
    /// A read.
    Into(AlignedBuf),
    /// A write. The kernel is told by the vectors where the pieces lie, if by them.
    From(Gather, Vectors),
    /// A flush.
    Nothing,
}

/// One request from `submit` until its completion.
pub(super) struct Request {
    pub(super) token: Token,
    pub(super) offset: u64,
    pub(super) moves: Moves,
    /// Bytes moved so far.
    pub(super) done: usize,
    pub(super) retries: u32,
}

pub(crate) struct UringDisk {
    // Field order is drop order: the ring closes before the memory that is registered with it goes.
    ring: IoUring,
    /// Dropped first, and so ended: it waits for what is out.
    committer: Committer,
    geometry: Geometry,
    inflight: Vec<Option<Request>>,
    free: Vec<usize>,
    queue: VecDeque<usize>,
    refused: Vec<Completion>,
    in_kernel: u32,
    wake: Arc<EventWake>,
    wake_armed: bool,
    linger: Linger,
    wake_count: Box<u64>,
    pool: Arc<BufferPool>,
    lanes: Lanes,
}

impl UringDisk {
    /// A ring over an open device. Fails where the kernel or a sandbox refuses io_uring.
    pub(super) fn new(file: Arc<DeviceFile>, geometry: Geometry) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(DEPTH)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring of this kernel is too old"));
        }
        assert!(ring.params().cq_entries() > DEPTH);
        let wake = Arc::new(EventWake::new()?);
        ring.submitter().register_files(&[file.as_raw_fd(), wake.event.as_raw_fd()])?;
        let pool = registered_pool(&ring);
        let lanes = Lanes::new(&file, Arc::clone(&pool), geometry.capacity);
        let committer = Committer::start(file, Arc::clone(&wake) as Waker)?;
        let mut disk = Self {
            ring,
            committer,
            geometry,
            inflight: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            refused: Vec::new(),
            in_kernel: 0,
            wake,
            wake_armed: false,
            linger: Linger::default(),
            wake_count: Box::new(0),
            pool,
            lanes,
        };
        disk.prove()?;
        Ok(disk)
    }

    /// One no-op through the ring: a sandbox may allow the set-up and refuse the use.
    fn prove(&mut self) -> io::Result<()> {
        // SAFETY: a no-op touches no memory.
        let pushed = unsafe { self.ring.submission().push(&opcode::Nop::new().build()) };
        assert!(pushed.is_ok(), "a fresh ring has room");
        self.ring.submit_and_wait(1)?;
        assert_eq!(self.ring.completion().count(), 1);
        Ok(())
    }

    /// Move queued requests into the submission queue, as many as the kernel may hold.
    fn push(&mut self) {
        if !self.wake_armed {
            let target: *mut u64 = &raw mut *self.wake_count;
            let entry = opcode::Read::new(EVENT, target.cast(), 8).build().user_data(WAKE);
            // SAFETY: the boxed counter lives until drop has seen this read complete.
            unsafe { self.push_entry(&entry) };
            self.wake_armed = true;
        }
        while self.in_kernel < DEPTH {
            let Some(slot) = self.queue.pop_front() else { break };
            let entry = self.entry(slot);
            // SAFETY: the entry points into a buffer owned by `inflight[slot]`, kept until its completion.
            unsafe { self.push_entry(&entry) };
        }
    }

    /// # Safety
    /// What the entry points at stays valid until its completion is collected.
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the submission queue has DEPTH entries and no more are ever in use");
        self.in_kernel += 1;
    }

    /// The submission entry for what remains of a request.
    fn entry(&mut self, slot: usize) -> squeue::Entry {
        let Some(request) = self.inflight[slot].as_mut() else { unreachable!("queued slots are in use") };
        let at = request.offset + request.done as u64;
        // A transfer above the limit of 32 bits comes back short and goes on from there.
        let limited = |len: usize| u32::try_from(len).unwrap_or(1 << 30);
        let entry = match &mut request.moves {
            Moves::Nothing => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
            Moves::Into(buf) => {
                let index = buf.registered(&self.pool);
                let rest = &mut buf[request.done..];
                let (start, len) = (rest.as_mut_ptr(), limited(rest.len()));
                match index {
                    Some(index) => opcode::ReadFixed::new(DISK, start, len, index).offset(at).build(),
                    None => opcode::Read::new(DISK, start, len).offset(at).build(),
                }
            }
            Moves::From(data, vectors) => match data.registered(&self.pool) {
                Some((bytes, index)) => {
                    let rest = &bytes[request.done..];
                    let (start, len) = (rest.as_ptr(), limited(rest.len()));
                    opcode::WriteFixed::new(DISK, start, len, index).offset(at).build()
                }
                None => {
                    *vectors = Vectors::of(data, request.done);
                    let (start, count) = vectors.parts();
                    opcode::Writev::new(DISK, start, count).offset(at).build()
                }
            },
        };
        entry.user_data(slot as u64)
    }

    /// Hand the submission queue to the kernel and, with a timeout, sleep until it has an answer.
    fn enter(&mut self, timeout: Option<Duration>) {
        let entered = match timeout {
            None if self.ring.submission().is_empty() => return,
            None => self.ring.submit(),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            // What was not taken stays in the submission queue for the next call.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM), _)) => {
            }
            Err((_, error)) => panic!("io_uring_enter refused a ring that worked: {error}"),
        }
    }

    /// Take every answer that is there.
    fn collect(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.refused);
        self.committer.collect(out);
        loop {
            let Some(answer) = self.ring.completion().next() else { break };
            self.in_kernel -= 1;
            match usize::try_from(answer.user_data()) {
                Ok(slot) if answer.user_data() != WAKE => out.extend(self.settle(slot, answer.result())),
                _ => self.wake_armed = false,
            }
        }
    }

    /// Judge one answer: finished, or the rest goes to the front of the queue.
    fn settle(&mut self, slot: usize, result: i32) -> Option<Completion> {
        let Some(request) = self.inflight[slot].as_mut() else {
            unreachable!("answers are for slots in use")
        };
        let result = match verdict(request, result) {
            Verdict::Again => {
                self.queue.push_front(slot);
                return None;
            }
            Verdict::Finished(result) => result,
        };
        let request = self.inflight[slot].take()?;
        self.free.push(slot);
        Some(request.completed(result))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a bounded sleep needs a deadline; nothing else sees the time"
    )]
    fn sleep(&mut self, limit: Duration, out: &mut Vec<Completion>) {
        let began = Instant::now();
        let Some(deadline) = began.checked_add(limit.min(Duration::from_secs(3600))) else { return };
        // A device that works says nothing that could be looked for; a caller soon asks the next thing, or not for long.
        let idle = self.in_kernel == u32::from(self.wake_armed) && self.committer.is_idle();
        if idle && self.linger.is_worth_it() {
            linger::look(began, || self.wake.is_woken());
        }
        self.rest(deadline, out);
        if idle {
            self.linger.waited(began.elapsed());
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a bounded sleep needs a deadline; nothing else sees the time"
    )]
    fn rest(&mut self, deadline: Instant, out: &mut Vec<Completion>) {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wake.fall_asleep() {
                self.enter(None);
                self.collect(out);
                return;
            }
            self.enter(Some(left));
            let woken = self.wake.get_up();
            self.collect(out);
            self.push();
            if woken || !out.is_empty() || left.is_zero() {
                return;
            }
        }
    }

    fn busy(&self) -> bool {
        self.free.len() < self.inflight.len()
    }
}

impl Request {
    /// Its answer. What it wrote is let go of.
    pub(super) fn completed(self, result: io::Result<()>) -> Completion {
        let buf = match self.moves {
            Moves::Into(buf) => Some(buf),
            Moves::From(..) | Moves::Nothing => None,
        };
        Completion { token: self.token, result, buf }
    }
}

pub(super) enum Verdict {
    Again,
    Finished(io::Result<()>),
}

/// What an answer of the kernel means for a request.
pub(super) fn verdict(request: &mut Request, result: i32) -> Verdict {
    let Ok(moved) = usize::try_from(result) else {
        let again = matches!(-result, libc::EINTR | libc::EAGAIN) && request.retries < RETRIES;
        if again {
            request.retries += 1;
            return Verdict::Again;
        }
        return Verdict::Finished(Err(io::Error::from_raw_os_error(-result)));
    };
    let (len, short) = match &request.moves {
        Moves::Nothing => return Verdict::Finished(Ok(())),
        Moves::Into(buf) => (buf.len(), io::ErrorKind::UnexpectedEof),
        Moves::From(data, _) => (data.len(), io::ErrorKind::WriteZero),
    };
    request.done += moved;
    assert!(request.done <= len, "the kernel moved more than it was asked to");
    match (request.done == len, moved) {
        (true, _) => Verdict::Finished(Ok(())),
        (false, 0) => Verdict::Finished(Err(short.into())),
        (false, _) => Verdict::Again,
    }
}

/// Register as much as the limit on locked memory lets us; transfers work without, at more cost each.
fn registered_pool(ring: &IoUring) -> Arc<BufferPool> {
    let sizes: [&[SizeClass]; 2] = [&CLASSES, &SMALL_CLASSES];
    for classes in sizes {
        let (pool, regions) = BufferPool::indexed(classes);
        // SAFETY: the regions belong to `pool`, which the disk keeps until after its ring is closed.
        match unsafe { ring.submitter().register_buffers(&regions) } {
            Ok(()) => return pool,
            Err(error) => tracing::info!(buffers = regions.len(), %error, "register buffers with io_uring"),
        }
    }
    tracing::warn!(
        "io_uring runs without registered buffers: raise the limit on locked memory (RLIMIT_MEMLOCK)"
    );
    BufferPool::new()
}

impl Disk for UringDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, op: Op) {
        let op = match check_range(self.geometry.capacity, op) {
            Ok(op) => op,
            Err(refused) => return self.refused.push(refused),
        };
        let (token, offset, moves) = match op {
            Op::Read { token, offset, buf } => (token, offset, Moves::Into(buf)),
            Op::Write { token, offset, data } => (token, offset, Moves::From(data, Vectors::default())),
            Op::WriteDurably { token, offset, data } => return self.committer.submit(token, offset, data),
            Op::Flush { token } => (token, 0, Moves::Nothing),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.inflight.push(None);
            self.inflight.len() - 1
        });
        assert!(slot < MAX_REQUESTS, "more than {MAX_REQUESTS} requests in flight");
        self.inflight[slot] = Some(Request { token, offset, moves, done: 0, retries: 0 });
        self.queue.push_back(slot);
    }

    fn announce(&mut self, told: Told) {
        self.committer.announce(told);
    }

    fn pipelines(&self) -> bool {
        self.committer.were_quick()
    }

    fn reap(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        let mut fresh = Vec::new();
        // To wake the other thread, and be woken by it, takes as long as a quick device.
        if wait != Wait::Never && !self.busy() && self.refused.is_empty() && self.committer.is_for_the_owner()
        {
            out.extend(self.committer.carry_out());
            return;
        }
        self.committer.send();
        self.push();
        self.enter(None);
        self.collect(&mut fresh);
        if let (Wait::AtMost(limit), true) = (wait, fresh.is_empty()) {
            self.push();
            self.sleep(limit, &mut fresh);
        }
        // What completed made room in the kernel; what came back short goes on.
        self.push();
        self.enter(None);
        out.append(&mut fresh);
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.wake) as Waker
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn buffer(&mut self, len: usize) -> AlignedBuf {
        self.pool.take(len)
    }

    fn lanes(&self) -> Option<Lanes> {
        Some(self.lanes.clone())
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let mut out = Vec::new();
        while self.busy() {
            self.push();
            self.enter(Some(Duration::from_secs(1)));
            self.collect(&mut out);
        }
        // The read on the eventfd points into `wake_count`: have it finish too.
        if self.wake_armed {
            self.wake.ring_bell();
        }
        while self.wake_armed {
            self.enter(Some(Duration::from_secs(1)));
            self.collect(&mut out);
        }
        // The kernel takes a closed ring apart later; the device's lock, and our share of the limit on locked memory,
        // must be free when we return. No buffers may be registered: that error says nothing.
        let _ = self.ring.submitter().unregister_buffers();
        if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::warn!(%error, "unregister device from io_uring");
        }
    }
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const WOKEN: u8 = 2;

/// Wakes the owner with one atomic exchange, and a system call only when it sleeps.
///
/// An exchange rather than a load: what the waker queued before is then seen by the owner that takes the state next,
/// and a wake-up that comes before the sleep stays on record as WOKEN.
struct EventWake {
    state: AtomicU8,
    event: OwnedFd,
}

impl EventWake {
    fn new() -> io::Result<Self> {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Self { state: AtomicU8::new(AWAKE), event })
    }

    /// False when a wake-up came first; it is used up by that.
    fn fall_asleep(&self) -> bool {
        let slept = self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !slept {
            self.state.swap(AWAKE, Ordering::AcqRel);
        }
        slept
    }

    /// True when a waker ended the sleep.
    fn get_up(&self) -> bool {
        self.state.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }

    fn is_woken(&self) -> bool {
        self.state.load(Ordering::Acquire) == WOKEN
    }

    fn ring_bell(&self) {
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "write eventfd of a sleeping disk thread");
        }
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            self.ring_bell();
        }
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
